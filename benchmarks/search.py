"""This benchmark measures each filter of the list of commands over a million of them.

Each request asks for a page of 100 and differs from the last: another deployment, name or day. A
filter that finds little looks at about a thousand commands for a page, so a page may be short.

    python benchmarks/search.py [--stored 1000000] [--requests 200]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import stored
from benchmarks.connection import Connection
from benchmarks.lifecycle import DEPLOYMENT, RESPONSE_BODY, server

Query = dict[str, str]


class Page(msgspec.Struct):
    """A page, as far as this benchmark reads it."""

    commands: list[msgspec.Raw] = msgspec.field(default_factory=list[msgspec.Raw])
    cursor: str | None = None


def filters(deployments: int, keys: Sequence[str], dice: random.Random) -> dict[str, Callable]:
    """Return what makes a query, by what it filters by."""
    now = datetime.now(UTC)

    def deployment() -> Query:
        return {"deploymentId": f"deployment-{dice.randrange(1, deployments):04}"}

    def states(*chosen: str) -> Query:
        return {"states": ",".join(chosen)}

    def command() -> Query:
        return {"command": f"report-{dice.randrange(stored.COMMANDS)}"}

    def target() -> Query:
        return {"target": f"host-{dice.randrange(stored.TARGETS)}"}

    def sender() -> Query:
        return {"createdBy": f"tok_{dice.randrange(stored.SENDERS)}"}

    def span(of: str, hours: float = 1) -> Query:
        begins = now - timedelta(seconds=dice.randrange(3_600, stored.SPREAD_SECONDS))
        ends = begins + timedelta(hours=hours)
        return {f"{of}After": begins.isoformat(), f"{of}Before": ends.isoformat()}

    return {
        "nothing": dict,
        "deployment": deployment,
        "state=FAILED, as on the wire": lambda: {"state": "FAILED"},
        "FAILED": lambda: states("FAILED"),
        "CANCELLED": lambda: states("CANCELLED"),
        "PENDING": lambda: states("PENDING"),
        "SUCCEEDED": lambda: states("SUCCEEDED"),
        "FAILED, CANCELLED, EXPIRED": lambda: states("FAILED", "CANCELLED", "EXPIRED"),
        "command": command,
        "target": target,
        "sender": sender,
        "key": lambda: {"idempotencyKey": dice.choice(keys)},
        "a key that is not there": lambda: {"idempotencyKey": f"none-{dice.random()}"},
        "tag": lambda: {"tag.batch": f"b-{dice.randrange(stored.BATCHES)}"},
        "a tag of many": lambda: {"tag.env": "prod"},
        "two tags": lambda: {"tag.batch": f"b-{dice.randrange(1_000)}", "tag.env": "test"},
        "created, an hour": lambda: span("created"),
        "ended, an hour": lambda: span("ended"),
        "deployment, command": lambda: deployment() | command(),
        "deployment, FAILED": lambda: deployment() | states("FAILED"),
        "deployment, PENDING": lambda: deployment() | states("PENDING"),
        "deployment, a day": lambda: deployment() | span("created", 24),
        "FAILED, an hour": lambda: states("FAILED") | span("created"),
        "FAILED, ended, an hour": lambda: states("FAILED") | span("ended"),
        "deployment, target": lambda: deployment() | target(),
        "deployment, sender": lambda: deployment() | sender(),
        "sender, FAILED": lambda: sender() | states("FAILED"),
        "target, command": lambda: target() | command(),
        "target, sender, FAILED, a day": lambda: (
            target() | sender() | states("FAILED") | span("created", 24)
        ),
        "deployment, ended, an hour": lambda: deployment() | span("ended"),
        "counts, of a deployment": deployment,
        "counts, of all": dict,
        "sender that sent nothing, command": lambda: command() | {"createdBy": "tok_none"},
    }


async def measure(url: str, options: argparse.Namespace, keys: Sequence[str]) -> None:
    """Ask for pages, filter by filter, and print a row for each."""
    connection = await Connection.open(url)
    dice = random.Random(7)
    print(f"{'filter':36} {'p50 ms':>8} {'p95 ms':>8} {'max ms':>8} {'found':>7} {'last':>6}")
    for name, make in filters(options.deployments, keys, dice).items():
        took: list[float] = []
        found = last = 0
        for _ in range(options.requests):
            query = urlencode(make())
            begun = time.perf_counter()
            route = "/counts" if name.startswith("counts") else ""
            status, body = await connection.request("GET", f"/v1/commands{route}?{query}")
            took.append((time.perf_counter() - begun) * 1000)
            assert status == 200, body
            page = msgspec.json.decode(body, type=Page)
            found += len(page.commands)
            last += page.cursor is None
        took.sort()
        quantiles = [took[len(took) // 2], took[int(len(took) * 0.95)], took[-1]]
        numbers = " ".join(f"{each:8.2f}" for each in quantiles)
        print(f"{name:36} {numbers} {found / len(took):7.1f} {last / len(took):6.0%}")
    connection.close()


def main() -> None:
    """Fill a store, serve it, ask."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stored", type=int, default=1_000_000)
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--deployments", type=int, default=500)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--driver-core", type=int, default=1)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.driver_core})
    with tempfile.TemporaryDirectory(prefix="arc-bench-") as scratch:
        data = Path(scratch)
        with server(data, options.server_core):
            pass  # it makes the schema
        seconds = stored.fill(
            data / "arc.db",
            stored=options.stored,
            pending=options.pending,
            deployments=options.deployments,
            known=DEPLOYMENT,
            busy_target="host",
            body=RESPONSE_BODY,
        )
        print(f"{options.stored:,} stored: filled in {seconds:.0f} s", file=sys.stderr)
        with closing(sqlite3.connect(data / "arc.db")) as db:
            rows = db.execute("SELECT key FROM idempotency_keys LIMIT 1000").fetchall()
        with server(data, options.server_core) as at:
            asyncio.run(measure(at.url, options, [key for (key,) in rows]))


if __name__ == "__main__":
    main()
