"""This benchmark measures the trivial route and full lifecycles of one real server.

A lifecycle is: create (300 B of params, idempotency key) → lease → response → result seen by the
sender; every step durable (SQLite, WAL, synchronous=FULL). It is measured as ARC's own sender and
agent do it: a create that waits for the result, and responses that are ready at the same time
submitted together. And step by step, one request for each but the shared lease poll, as clients do
that know less. Then an empty store is measured beside one that holds a million commands. The server
has one core, this driver the other. Quote ratios from one run: the machines are noisy.

    python benchmarks/lifecycle.py [--seconds 5] [--json] [--profile FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arc_client.wire.idempotency import new_idempotency_key
from arc_protocol.codec import encode
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import InlineBody, SuccessResponse
from arc_protocol.messages.commands import (
    CommandStatus,
    CreateCommandRequest,
    CreateCommandResponse,
)
from arc_protocol.messages.leases import LeaseInfo, LeaseResponse, RespondRequest, SubmittedResponse
from benchmarks import stored
from benchmarks.connection import Connection

DEPLOYMENT = "bench"
PARAMS = InlineBody.of(json.dumps({"report": "x" * 285}).encode())
RESPONSE_BODY = json.dumps({"rows": "y" * 286}).encode()
RESPONSE = SuccessResponse(response=InlineBody.of(RESPONSE_BODY))
TARGET = "host"
"""Named by senders and holders, so that what is stored for another target stays pending."""
TURNS = 4
"""How often an empty store and a full one are measured, one after the other."""
WARM_UP_SECONDS = 0.5
"""The longest warm-up of a measurement; a shorter one warms up as long as it measures."""
LEASES_PER_POLL = 64
AGENTS = 2
RESPONDERS = 32


@dataclass
class Measured:
    """A row of the report."""

    name: str
    senders: int
    per_second: float
    latencies: list[float] = field(repr=False, default_factory=list)
    cpu_seconds: float = 0.0
    """Of the server, all its threads: steadier than the rate on a noisy machine."""

    @classmethod
    def of(cls, turns: Sequence[Measured]) -> Measured:
        """Join the turns of one measurement, all of the same length."""
        return cls(
            turns[0].name,
            turns[0].senders,
            statistics.mean(turn.per_second for turn in turns),
            [latency for turn in turns for latency in turn.latencies],
            sum(turn.cpu_seconds for turn in turns),
        )

    @property
    def cpu_micros(self) -> float:
        """Return the CPU time of the server for one round."""
        return self.cpu_seconds / max(1, len(self.latencies)) * 1e6

    def quantile(self, share: float) -> float:
        """Return a quantile of the latencies in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


@dataclass
class Server:
    """A server that runs."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def server(data_dir: Path, core: int, profile: str | None = None):
    """Start a server on a free port, on one core; stop it at the end."""
    command = [sys.executable, "-m", "arc_server"]
    if profile:
        command = [sys.executable, "-m", "cProfile", "-o", profile, "-m", "arc_server"]
    process = subprocess.Popen(
        [*command, "serve", "--no-auth", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line.startswith("READY "):
            raise SystemExit(f"the server did not start: {line!r}")
        yield Server(line.removeprefix("READY "), process)
    finally:
        process.terminate()
        process.wait(30)


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Return the CPU time of a process so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def loops(
    at: Server,
    name: str,
    senders: int,
    seconds: float,
    step: Callable[[Connection], Awaitable[None]],
) -> Measured:
    """Run `step` over and over for so long, in each of `senders` connections."""
    url = at.url
    latencies: list[float] = []
    connections = [await Connection.open(url) for _ in range(senders)]
    until = time.perf_counter() + seconds

    async def loop(connection: Connection) -> None:
        while (begun := time.perf_counter()) < until:
            await step(connection)
            latencies.append(time.perf_counter() - begun)

    begun, used = time.perf_counter(), cpu_seconds(at.process)
    await asyncio.gather(*map(loop, connections))
    took, used = time.perf_counter() - begun, cpu_seconds(at.process) - used
    for connection in connections:
        connection.close()
    return Measured(name, senders, len(latencies) / took, latencies, used)


async def health(connection: Connection) -> None:
    """Ask the trivial route."""
    status, _ = await connection.request("GET", "/healthz")
    assert status == 200


@dataclass(frozen=True)
class Manner:
    """A manner in which a lifecycle goes over the wire."""

    name: str
    wait_seconds: float | None
    """How long the create is held for the result; without, the sender polls for it."""
    is_together: bool
    """True if the agents submit together what is ready together."""


OURS = Manner("lifecycle", 30, True)
"""As arc_client and arc_agent do it under load."""
STEP_BY_STEP = Manner("lifecycle, step by step", None, False)
"""As any client of the protocol may do it."""

_CREATED = msgspec.json.Decoder(CreateCommandResponse)
_LEASED = msgspec.json.Decoder(LeaseResponse)
_STATUS = msgspec.json.Decoder(CommandStatus)


async def lifecycle(connection: Connection, manner: Manner) -> None:
    """Do the sender's half: create a command and wait for its result."""
    request = CreateCommandRequest(
        deployment_id=DEPLOYMENT,
        target_resource_id=TARGET,
        command="report",
        params=PARAMS,
        idempotency_key=new_idempotency_key() if manner is OURS else os.urandom(16).hex(),
        wait_seconds=manner.wait_seconds,
    )
    status, body = await connection.request("POST", "/v1/commands", encode(request))
    assert status == 200, body
    created = _CREATED.decode(body)
    seen = created.status
    while seen is None or seen.state is not State.SUCCEEDED:
        path = f"/v1/commands/{created.command_id}?waitSeconds=30"
        status, body = await connection.request("GET", path)
        assert status == 200, body
        seen = _STATUS.decode(body)
        assert seen.state in (State.PENDING, State.DISPATCHED, State.SUCCEEDED), seen
    assert seen.response is not None


async def agents(url: str, manner: Manner) -> None:
    """Do the holders' half until cancelled: lease by long poll, submit responses at once."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(RESPONDERS):
        free.put_nowait(await Connection.open(url))
    ask = json.dumps(
        {
            "deploymentId": DEPLOYMENT,
            "target": {"resourceId": TARGET, "resourceType": "daemon"},
            "maxLeases": LEASES_PER_POLL,
            "leaseSeconds": 60,
            "waitSeconds": 30,
        }
    ).encode()
    response = encode(RESPONSE)

    async def send(method: str, path: str, message: bytes) -> None:
        connection = await free.get()
        try:
            status, body = await connection.request(method, path, message)
            assert status == 200, body
            assert b"error" not in body, body
        finally:
            free.put_nowait(connection)

    def submit(leases: list[LeaseInfo], responses: asyncio.TaskGroup) -> None:
        if manner.is_together:
            submitted = [
                SubmittedResponse(
                    lease_id=lease.lease_id, command_id=lease.command_id, response=RESPONSE
                )
                for lease in leases
            ]
            message = encode(RespondRequest(responses=submitted))
            responses.create_task(send("POST", "/v1/commands/leases/respond", message))
            return
        for lease in leases:
            parts = urlsplit(lease.envelope.response_handling.submit_response_url)
            responses.create_task(send("PUT", f"{parts.path}?{parts.query}", response))

    async def agent(responses: asyncio.TaskGroup) -> None:
        connection = await Connection.open(url)
        try:
            while True:
                status, body = await connection.request("POST", "/v1/commands/leases", ask)
                assert status == 200, body
                if leases := _LEASED.decode(body).leases:
                    submit(leases, responses)
        finally:
            connection.close()  # a poll left behind would go on taking leases

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AGENTS):
                group.create_task(agent(group))
    finally:
        while not free.empty():
            free.get_nowait().close()


async def measure(
    at: Server, senders: int, seconds: float, *, manner: Manner = OURS, name: str | None = None
) -> Measured:
    """Measure lifecycles, with holders that run beside."""
    holding = asyncio.create_task(agents(at.url, manner))

    async def step(connection: Connection) -> None:
        await lifecycle(connection, manner)

    try:
        await loops(at, "", senders, min(WARM_UP_SECONDS, seconds), step)
        return await loops(at, name or manner.name, senders, seconds, step)
    finally:
        holding.cancel()
        await asyncio.wait((holding,))
        if not holding.cancelled() and holding.exception() is not None:
            raise holding.exception()  # type: ignore[misc]


async def run(options: argparse.Namespace) -> list[Measured]:
    """Measure everything that was asked for."""
    os.sched_setaffinity(0, {options.driver_core})
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="arc-bench-") as scratch:
        with server(Path(scratch) / "a", options.server_core, options.profile) as at:
            for senders in options.senders:
                rows.append(await loops(at, "healthz", senders, options.seconds, health))
                rows += [
                    await measure(at, senders, options.seconds, manner=manner)
                    for manner in (OURS, STEP_BY_STEP)
                ]
        if options.stored:
            rows += await compare_stores(Path(scratch), options)
    return rows


async def compare_stores(scratch: Path, options: argparse.Namespace) -> list[Measured]:
    """Measure an empty store and a full one in turns: what else the machine does hits both."""
    with server(scratch / "full", options.server_core):
        pass  # it makes the schema
    seconds = stored.fill(
        scratch / "full" / "arc.db",
        stored=options.stored,
        pending=options.pending,
        deployments=options.deployments,
        known=DEPLOYMENT,
        busy_target=TARGET,
        body=RESPONSE_BODY,
    )
    name = (
        f"{options.stored:,} stored, {options.pending:,} pending, {options.deployments} deployments"
    )
    print(f"{name}: filled in {seconds:.0f} s", file=sys.stderr)
    turns: list[Measured] = []
    with (
        server(scratch / "empty", options.server_core) as empty,
        server(scratch / "full", options.server_core) as full,
    ):
        for _ in range(TURNS):
            for senders, suffix in ((max(options.senders), ""), (1, ", at rest")):
                for at, what in ((empty, "empty"), (full, name)):
                    turns.append(
                        await measure(at, senders, options.seconds / TURNS, name=what + suffix)
                    )
    by_name: dict[str, list[Measured]] = {}
    for turn in turns:
        by_name.setdefault(turn.name, []).append(turn)
    return [Measured.of(turns) for turns in by_name.values()]


def report(rows: list[Measured]) -> None:
    """Print a table, and the ratios that matter."""
    print(f"{'what':60} {'senders':>7} {'per s':>7} {'p50 ms':>8} {'p99 ms':>8} {'CPU µs':>7}")
    for row in rows:
        print(
            f"{row.name:60} {row.senders:7} {row.per_second:7.0f} "
            f"{row.quantile(0.5):8.2f} {row.quantile(0.99):8.2f} {row.cpu_micros:7.0f}"
        )
    by_name = {(row.name, row.senders): row for row in rows}
    for (name, senders), row in by_name.items():
        if name.startswith("lifecycle") and (trivial := by_name.get(("healthz", senders))):
            ratio = row.per_second / trivial.per_second
            print(
                f"{name} / healthz at {senders} senders: {ratio:.3f}"
                f" (by the server's CPU: {trivial.cpu_micros / row.cpu_micros:.3f})"
            )
    empty = [row for row in rows if row.name.startswith("empty")]
    full = [row for row in rows if " stored" in row.name]
    for before, after in zip(empty, full, strict=True):
        print(
            f"{after.name}: rate {after.per_second / before.per_second:.2f} x that of"
            f" {before.name}, the server's CPU {after.cpu_micros / before.cpu_micros:.2f} x"
        )


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--stored", type=int, default=1_000_000, help="0 leaves that part out")
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--deployments", type=int, default=500)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--driver-core", type=int, default=1)
    parser.add_argument("--profile", help="a cProfile of the server, written here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        import uvloop

        runner: Callable[..., list[Measured]] = uvloop.run
    except ImportError:
        runner = asyncio.run
    rows = runner(run(options))
    if options.json:
        keys = ("name", "senders", "per_second")
        print(
            json.dumps(
                [
                    {key: getattr(row, key) for key in keys}
                    | {"p50_ms": row.quantile(0.5), "p99_ms": row.quantile(0.99)}
                    for row in rows
                ]
            )
        )
    else:
        report(rows)


if __name__ == "__main__":
    main()
