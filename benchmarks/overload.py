"""This benchmark measures an honest load beside each attack, and 10,000 agents that wait.

The honest load is 100 lifecycles a second, begun on time, also while earlier ones hang; one that
has not succeeded within five seconds is lost. Its sender and its agents try again as clients of the
protocol do. Bounds, each of which fails the run: 80 % of the lifecycles succeed, the server stays
below 300 MiB, and a lifecycle is as fast as before within five seconds after the attack. The server
has one core, everything else the other.

    python benchmarks/overload.py [--seconds 60] [--only NAME …] [--idle 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import attacks, stored
from benchmarks.connection import Connection

DEPLOYMENT: Final = "honest"
LOST_SECONDS: Final = 5.0
SENDERS: Final = 64
AGENTS: Final = 2
MIN_GOODPUT: Final = 0.8
MAX_RSS_MIB: Final = 300.0
MAX_RECOVERY_SECONDS: Final = 5.0
NORMAL: Final = 2.0
"""Lifecycles are as fast as before when the median of half a second is below twice that."""
MAX_LONE_MS: Final = 100.0
"""Until a command is leased while another deployment has 100,000 that wait."""
PENDING: Final = 100_000
MAX_IDLE_KIB: Final = 12.0
MAX_WAKE_MS: Final = 20.0
MAX_RECONNECT_SECONDS: Final = 15.0
CONFIG: Final = """
log: {level: error}
http: {max_connections: %d, max_connections_per_address: %d, max_requests_per_token: %d}
"""


def create_token(data_dir: Path, scope: str, deployment: str | None) -> Path:
    """Create a token; return its file."""
    file = data_dir.with_name(f"{deployment or 'all'}-{scope}.token")
    bound = [] if deployment is None else ["--deployment", deployment]
    subprocess.run(
        [
            *(sys.executable, "-m", "arc_server", "token", "create", "--scope", scope, *bound),
            *("--data-dir", str(data_dir), "--init", "--out", str(file)),
        ],
        check=True,
        capture_output=True,
    )
    return file


class ServerProcess:
    """A server, started on one core."""

    def __init__(
        self, data_dir: Path, listen: str, core: int, connections: int, more: str = ""
    ) -> None:
        """Start it; `more` is added to its configuration."""
        config = data_dir.with_name("server.yaml")
        config.write_text(CONFIG % (connections, connections, connections) + more)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "arc_server", "serve", "--config", str(config)),
                *("--data-dir", str(data_dir), "--listen", listen),
            ],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line.startswith("READY "):
            raise SystemExit(f"the server did not start: {line!r}")
        self.url = line.removeprefix("READY ")

    @property
    def rss_mib(self) -> float:
        """Return the memory that it takes now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def stop(self) -> None:
        """Drain and end it."""
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def running(
    data_dir: Path, core: int, connections: int = 10_000, more: str = ""
) -> Iterator[ServerProcess]:
    """Run a server for as long as the context lasts."""
    server = ServerProcess(data_dir, "127.0.0.1:0", core, connections, more)
    try:
        yield server
    finally:
        server.stop()


class Caller:
    """A client of one token with connections of its own, which are opened anew when they end."""

    def __init__(self, url: str, token: str, tls: ssl.SSLContext | None = None) -> None:
        self.url, self._token, self._tls = url, token, tls
        self._free: list[Connection] = []

    async def ask(
        self, method: str, path: str, message: Any = None, *, seconds: float = LOST_SECONDS
    ) -> Any:
        """Return the answer of a request; try again in that time after a passing failure.

        Raises TimeoutError.
        """
        body = b"" if message is None else json.dumps(message).encode()
        async with asyncio.timeout(seconds):
            while True:
                connection = None
                try:
                    connection = self._free.pop() if self._free else None
                    connection = connection or await Connection.open(self.url, self._tls)
                    status, answer = await connection.request(method, path, body, self._token)
                except OSError:
                    status, answer, connection = 503, b"", None
                except BaseException:
                    if connection is not None:
                        connection.close()
                    raise
                if connection is not None:
                    self._free.append(connection)
                if status < 400:
                    return json.loads(answer or b"null")
                if status not in (408, 429) and status < 500:
                    raise SystemExit(f"{method} {path}: {status} {answer!r}")
                await asyncio.sleep(random.uniform(0.02, 0.2))

    def close(self) -> None:
        """Close its connections."""
        for connection in self._free:
            connection.close()


@dataclass
class HonestLoad:
    """The honest load: its lifecycles, by when they began."""

    begun: int = 0
    done: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When each ended, and how long it took, in seconds."""
    leased_at: dict[str, float] = field(default_factory=dict[str, float])
    """When an agent had the lease of a command, for those whose create is not yet answered."""
    leases: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When each began, and how long it took until an agent had its lease."""

    def between(self, start: float, end: float) -> list[float]:
        """Return how long those took that ended in a span of time."""
        return [took for at, took in self.done if start <= at < end]


@asynccontextmanager
async def honest(
    url: str, sender: Path, agent: Path, per_second: float, tls: ssl.SSLContext | None = None
) -> AsyncIterator[HonestLoad]:
    """Run the honest load for as long as the context lasts."""
    load = HonestLoad()
    sending = Caller(url, sender.read_text().strip(), tls)
    holding = Caller(url, agent.read_text().strip(), tls)
    params = {"mode": "inline", "inlineBase64": "eHh4eHh4"}
    create = {"deploymentId": DEPLOYMENT, "command": "report", "params": params, "waitSeconds": 4}
    success = {"status": "success", "response": params}

    async def lifecycle() -> None:
        begun = time.perf_counter()
        with contextlib.suppress(TimeoutError):
            key = os.urandom(16).hex()
            created = await sending.ask("POST", "/v1/commands", create | {"idempotencyKey": key})
            status = created.get("status") or {}
            while status.get("state") not in ("SUCCEEDED", "FAILED"):
                left = begun + LOST_SECONDS - time.perf_counter()
                path = f"/v1/commands/{created['commandId']}?waitSeconds=4"
                status = await sending.ask("GET", path, seconds=left)
            ended = time.perf_counter()
            if leased_at := load.leased_at.pop(created["commandId"], None):
                load.leases.append((begun, leased_at - begun))
            if ended - begun <= LOST_SECONDS:
                load.done.append((ended, ended - begun))

    async def hold() -> None:
        ask = {"deploymentId": DEPLOYMENT, "maxLeases": 64, "waitSeconds": 20}
        while True:
            with contextlib.suppress(TimeoutError):
                answer = await holding.ask("POST", "/v1/commands/leases", ask, seconds=30)
                now = time.perf_counter()
                load.leased_at.update((each["commandId"], now) for each in answer["leases"])
                responses = [
                    {"leaseId": each["leaseId"], "commandId": each["commandId"]}
                    | {"response": success}
                    for each in answer["leases"]
                ]
                if responses:
                    path = "/v1/commands/leases/respond"
                    await holding.ask("POST", path, {"responses": responses}, seconds=30)

    async def begin() -> None:
        next_at = time.perf_counter()
        while True:
            load.begun += 1
            lifecycles.add(task := asyncio.ensure_future(lifecycle()))
            task.add_done_callback(lifecycles.discard)
            next_at += 1 / per_second
            await asyncio.sleep(max(0, next_at - time.perf_counter()))

    lifecycles: set[asyncio.Future[None]] = set()
    loops = [asyncio.ensure_future(each()) for each in (begin, *([hold] * AGENTS))]
    try:
        yield load
        loops[0].cancel()
        if lifecycles:
            await asyncio.wait(lifecycles)
    finally:
        for task in (*loops, *lifecycles):
            task.cancel()
        await asyncio.wait((*loops, *lifecycles))
        sending.close()
        holding.close()


@dataclass
class Row:
    """A row of the report."""

    name: str
    goodput: float
    p50_ms: float
    p99_ms: float
    lease_p99_ms: float
    """Until an agent has the lease."""
    rss_mib: float
    recovery_seconds: float
    """Until lifecycles were as fast as before; infinite if they were not."""

    @property
    def is_good(self) -> bool:
        """Return True if it is within all bounds."""
        return (
            self.goodput >= MIN_GOODPUT
            and self.rss_mib <= MAX_RSS_MIB
            and self.recovery_seconds <= MAX_RECOVERY_SECONDS
            and (self.name != "pending" or self.lease_p99_ms <= MAX_LONE_MS)
        )

    def __str__(self) -> str:
        return (
            f"{self.name:20} {self.goodput:7.1%} {self.p50_ms:8.1f} {self.p99_ms:8.1f}"
            f" {self.lease_p99_ms:8.1f} {self.rss_mib:8.0f} {self.recovery_seconds:8.1f}"
            f"  {'' if self.is_good else 'FAILED'}"
        )


async def beside(name: str, options: argparse.Namespace) -> Row:
    """Measure the honest load beside an attack, on a server of its own."""
    with tempfile.TemporaryDirectory(prefix="arc-bench-") as scratch:
        data_dir = Path(scratch) / "data"
        tokens = {
            (deployment, scope): create_token(data_dir, scope, deployment)
            for deployment in (DEPLOYMENT, attacks.DEPLOYMENT)
            for scope in ("sender", "agent")
        }
        for deployment in (DEPLOYMENT, attacks.DEPLOYMENT):
            with_target = ["target", "add", deployment, "host", "--data-dir", str(data_dir)]
            subprocess.run(
                [sys.executable, "-m", "arc_server", *with_target], check=True, capture_output=True
            )
        if name == "pending":
            stored.fill(
                data_dir / "arc.db",
                stored=PENDING,
                pending=PENDING,
                deployments=1,
                known=attacks.DEPLOYMENT,
                busy_target="host",
                body=b"x" * 300,
            )
        mine = [tokens[DEPLOYMENT, scope] for scope in ("sender", "agent")]
        theirs = [str(tokens[attacks.DEPLOYMENT, scope]) for scope in ("sender", "agent")]
        with running(data_dir, options.server_core) as server:
            async with honest(server.url, mine[0], mine[1], options.rate) as load:
                await asyncio.sleep(2)
                load.done.clear()
                start = time.perf_counter()
                await asyncio.sleep(3)
                normal = statistics.median(load.between(start, time.perf_counter()))
                program = [sys.executable, str(Path(attacks.__file__)), name, server.url, *theirs]
                attack = subprocess.Popen(program, stderr=subprocess.DEVNULL)
                begun, start = load.begun, time.perf_counter()
                rss = 0.0
                try:
                    while time.perf_counter() < start + options.seconds:
                        await asyncio.sleep(0.2)
                        rss = max(rss, server.rss_mib)
                        if attack.poll() is not None:
                            raise SystemExit(f"the attack {name} has ended")
                finally:
                    attack.kill()
                    attack.wait()
                offered, end = load.begun - begun, time.perf_counter()
                await asyncio.sleep(2 * MAX_RECOVERY_SECONDS)
            seen = [(at, took) for at, took in load.done if start <= at - took < end]
            times = sorted(took for _, took in seen) or [float("inf")]
            leases = sorted(took for at, took in load.leases if start <= at < end)
            leases = leases or [float("inf")]
            return Row(
                name,
                len(seen) / offered,
                times[len(times) // 2] * 1000,
                times[int(len(times) * 0.99)] * 1000,
                leases[int(len(leases) * 0.99)] * 1000,
                rss,
                _recovery(load, end, normal),
            )


def _recovery(load: HonestLoad, end: float, normal: float) -> float:
    """Return how long after the end of an attack lifecycles were as fast as before it."""
    step = 0.5
    for number in range(int(2 * MAX_RECOVERY_SECONDS / step)):
        times = load.between(end + number * step, end + (number + 1) * step)
        if times and statistics.median(times) <= NORMAL * normal:
            return number * step
    return float("inf")


async def idle_agents(options: argparse.Namespace) -> list[str]:
    """Measure agents that wait: memory, how fast one wakes, a restart. Return what failed."""
    count: int = options.idle
    with tempfile.TemporaryDirectory(prefix="arc-bench-") as scratch:
        data_dir = Path(scratch) / "data"
        token = create_token(data_dir, "admin", None).read_text().strip()
        server = ServerProcess(data_dir, "127.0.0.1:0", options.server_core, count + 500)
        try:
            empty = server.rss_mib
            polls = Polls(server.url, token, count)
            took = await polls.until_all_wait()
            await asyncio.sleep(3)
            kib = (server.rss_mib - empty) * 1024 / count
            wakes = sorted([await polls.wake(random.randrange(count)) for _ in range(300)])
            wake_ms = wakes[int(len(wakes) * 0.99)] * 1000
            await polls.until_all_wait()
            sending = asyncio.ensure_future(polls.send_until_cancelled())
            await asyncio.to_thread(server.stop)
            polls.forget()
            listen = server.url.removeprefix("http://")
            server = await asyncio.to_thread(
                ServerProcess, data_dir, listen, options.server_core, count + 500
            )
            reconnect = await polls.until_all_wait()
            sending.cancel()
            await asyncio.wait((sending,))
            errors = "none" if sending.cancelled() else repr(sending.exception())
            await polls.close()
        finally:
            server.stop()
    print(
        f"{count} idle agents: {kib:.1f} KiB each, wake-up p99 {wake_ms:.1f} ms, connected in"
        f" {took:.1f} s, all back {reconnect:.1f} s after a restart, errors of a sender: {errors}"
    )
    bounds = {
        "memory": kib <= MAX_IDLE_KIB,
        "wake-up": wake_ms <= MAX_WAKE_MS,
        "reconnect": reconnect <= MAX_RECONNECT_SECONDS,
        "errors": errors == "none",
    }
    return [name for name, is_good in bounds.items() if not is_good]


class Polls:
    """Agents that wait for work, each of a deployment of its own."""

    def __init__(self, url: str, token: str, count: int) -> None:
        self._url, self._token = url, token
        self._woken: dict[int, asyncio.Future[float]] = {}
        self._waiting: set[int] = set()
        self._changed = asyncio.Event()
        self._count = count
        self._sender = Caller(url, token)
        self._agents = [asyncio.ensure_future(self._agent(number)) for number in range(count)]

    async def until_all_wait(self) -> float:
        """Wait until all have been polling for a second; return how long that took before."""
        begun = time.perf_counter()
        while len(self._waiting) < self._count:
            self._changed.clear()
            await self._changed.wait()
        return time.perf_counter() - begun

    def forget(self) -> None:
        """Forget who waits: the server has ended."""
        self._waiting.clear()

    async def wake(self, number: int) -> float:
        """Create a command for an agent; return when it gets it, in seconds from before."""
        while number not in self._waiting:
            await asyncio.sleep(0.01)
        woken = self._woken[number] = asyncio.get_running_loop().create_future()
        begun = time.perf_counter()
        await self._create(number)
        return max(0.0, await asyncio.wait_for(woken, 30) - begun)

    async def send_until_cancelled(self) -> None:
        """Create commands that no agent here takes, one after the other; an error ends it."""
        while True:
            await self._create(self._count, seconds=30)
            await asyncio.sleep(0.05)

    async def _create(self, number: int, seconds: float = LOST_SECONDS) -> None:
        params = {"mode": "inline", "inlineBase64": "eHh4"}
        request = {"deploymentId": f"d{number}", "command": "report", "params": params}
        await self._sender.ask("POST", "/v1/commands", request, seconds=seconds)

    async def _agent(self, number: int) -> None:
        body = json.dumps({"deploymentId": f"d{number}", "waitSeconds": 60}).encode()
        await asyncio.sleep(number / 2_000)
        failures = 0
        connection = None
        while True:
            try:
                connection = connection or await Connection.open(self._url)
                answer = asyncio.ensure_future(
                    connection.request("POST", "/v1/commands/leases", body, self._token)
                )
                await asyncio.wait((answer,), timeout=1)
                if not answer.done():
                    failures = 0
                    self._waiting.add(number)
                    self._changed.set()
                status, message = await answer
                if status != 200:  # the agents here share one token, and so its requests a second
                    self._waiting.discard(number)
                    await asyncio.sleep(random.uniform(1, 2))
                if b"leaseId" in message and number in self._woken:
                    self._woken.pop(number).set_result(time.perf_counter())
            except OSError:
                self._waiting.discard(number)
                connection = None
                failures += 1
                await asyncio.sleep(random.uniform(0, min(30, 0.5 * 2**failures)))

    async def close(self) -> None:
        """End all."""
        for agent in self._agents:
            agent.cancel()
        await asyncio.wait(self._agents)
        self._sender.close()


async def run(options: argparse.Namespace) -> int:
    """Measure everything that was asked for; return the exit code."""
    os.sched_setaffinity(0, {options.driver_core})
    failed: list[str] = []
    names: Sequence[str] = options.only or list(attacks.ATTACKS)
    heads = ("goodput", "p50 ms", "p99 ms", "leased", "RSS MiB", "normal s")
    print(f"{'beside':20} {heads[0]:>7} {' '.join(f'{head:>8}' for head in heads[1:])}")
    for name in names:
        if name in attacks.ATTACKS:
            row = await beside(name, options)
            print(row, flush=True)
            failed += [] if row.is_good else [name]
    if options.idle and (not options.only or "idle" in options.only):
        failed += [f"idle agents: {each}" for each in await idle_agents(options)]
    if failed:
        print(f"out of bounds: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=100, help="honest lifecycles a second")
    parser.add_argument("--only", nargs="+", choices=[*attacks.ATTACKS, "idle"])
    parser.add_argument("--idle", type=int, default=10_000, help="0 leaves that part out")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--driver-core", type=int, default=1)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    raise SystemExit(asyncio.run(run(options)))


if __name__ == "__main__":
    main()
