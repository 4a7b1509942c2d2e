"""This benchmark measures an honest load beside a purge, a backup, and changes of certificates.

The load is that of `benchmarks/overload.py`, 200 lifecycles a second. 100,000 commands that have
ended are stored before: the purge removes them, the backup copies them. New certificates come into
force twice a second, every other time a pair that does not match, while another client opens a
connection for each of its requests. The server has one core, everything else the other.

    python benchmarks/upkeep.py [--seconds 10] [--rate 200] [--only purge backup certificates]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import stored
from benchmarks.connection import Connection
from benchmarks.overload import DEPLOYMENT, HonestLoad, ServerProcess, create_token, honest, running
from tests.support.certificates import Authority, Issued

STORED: Final = 100_000
RENEWALS_A_SECOND: Final = 2
CONNECTIONS_A_SECOND: Final = 20
MAX_SLOWER: Final = 2.0
"""The p99 beside a purge is at most so many times the p99 without."""


class Certificates:
    """The certificates of a server, and how connections fare while they change."""

    def __init__(self, directory: Path) -> None:
        self._authority = Authority(directory / "authority", "Benchmark CA")
        self._pairs = [self._authority.issue(name, ["127.0.0.1"]) for name in ("first", "second")]
        self._cert_file, self._key_file = directory / "server.crt", directory / "server.key"
        self._put(self._pairs[0], self._pairs[0])
        self.config = f"tls: {{cert_file: {self._cert_file}, key_file: {self._key_file}}}\n"
        self.trust = ssl.create_default_context(cafile=str(self._authority.ca_file))
        self.opened = self.failed = 0

    async def change(self, server: ServerProcess, seconds: float) -> None:
        """Change the certificates again and again for so long, good pairs and bad in turns."""
        opening = asyncio.ensure_future(self._keep_opening(server.url))
        for number in range(int(seconds * RENEWALS_A_SECOND)):
            new, other = self._pairs[number // 2 % 2], self._pairs[(number + 1) // 2 % 2]
            self._put(new, other)
            server.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(1 / RENEWALS_A_SECOND)
        opening.cancel()
        await asyncio.wait((opening,))

    def _put(self, cert: Issued, key: Issued) -> None:
        for file, source in ((self._cert_file, cert.cert_file), (self._key_file, key.key_file)):
            new = file.with_suffix(".new")
            new.write_bytes(source.read_bytes())
            new.chmod(0o600)
            new.replace(file)

    async def _keep_opening(self, url: str) -> None:
        while True:
            self.opened += 1
            try:
                connection = await Connection.open(url, self.trust)
                status, _ = await connection.request("GET", "/healthz")
                connection.close()
                self.failed += status != 200
            except OSError:
                self.failed += 1
            await asyncio.sleep(1 / CONNECTIONS_A_SECOND)


async def command(data_dir: Path, *argv: str) -> None:
    """Run a command of arc-server. Raises SystemExit if it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "arc_server", *argv, "--data-dir", str(data_dir)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if await process.wait():
        raise SystemExit(f"{' '.join(argv)} has failed")


def p99_ms(times: list[float]) -> float:
    """Return the 99th percentile of some times, in milliseconds."""
    return sorted(times)[int(len(times) * 0.99)] * 1000


async def beside(name: str, options: argparse.Namespace) -> bool:
    """Measure the load before and during one kind of upkeep; return False if a bound is broken."""
    with tempfile.TemporaryDirectory(prefix="arc-bench-") as scratch:
        data_dir = Path(scratch) / "data"
        sender, agent = (create_token(data_dir, each, DEPLOYMENT) for each in ("sender", "agent"))
        await command(data_dir, "target", "add", DEPLOYMENT, "host")
        stored.fill(
            data_dir / "arc.db",
            stored=STORED,
            pending=0,
            deployments=1,
            known="archive",
            busy_target="host",
            body=b"x" * 300,
        )
        certificates = Certificates(Path(scratch)) if name == "certificates" else None
        trust = certificates and certificates.trust
        more = certificates.config if certificates else ""
        with running(data_dir, options.server_core, more=more) as server:
            works: dict[str, Callable[[], Awaitable[None]]] = {
                "purge": lambda: command(data_dir, "purge", "--older-than", "1h"),
                "backup": lambda: command(data_dir, "backup", str(data_dir.with_name("copy"))),
            }
            if certificates is not None:
                works[name] = lambda: certificates.change(server, options.seconds)
            async with honest(server.url, sender, agent, options.rate, trust) as load:
                await asyncio.sleep(2)
                before, _ = await _measured(load, lambda: asyncio.sleep(options.seconds))
                during, took = await _measured(load, works[name])
                offered = took * options.rate
    slower = p99_ms(during) / p99_ms(before)
    failed = certificates.failed if certificates else 0
    print(
        f"{name:12} {took:6.1f} s {len(during) / offered:8.1%} {p99_ms(before):10.1f}"
        f" {p99_ms(during):10.1f} {slower:8.2f}"
        + (f"   {certificates.opened} new connections, {failed} failed" if certificates else ""),
        flush=True,
    )
    return not failed and (name != "purge" or slower <= MAX_SLOWER)


async def _measured(
    load: HonestLoad, work: Callable[[], Awaitable[None]]
) -> tuple[list[float], float]:
    """Return how long the lifecycles took that ended during some work, and how long that took."""
    begun = time.perf_counter()
    await work()
    ended = time.perf_counter()
    return load.between(begun, ended), ended - begun


async def run(options: argparse.Namespace) -> int:
    """Measure everything that was asked for; return the exit code."""
    os.sched_setaffinity(0, {options.driver_core})
    print(f"{'beside':12} {'for':>8} {'goodput':>8} {'p99 before':>10} {'during':>10} {'times':>8}")
    results = [await beside(name, options) for name in options.only]
    return 0 if all(results) else 1


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = ["purge", "backup", "certificates"]
    parser.add_argument("--seconds", type=float, default=10, help="before, and for certificates")
    parser.add_argument("--rate", type=float, default=200, help="lifecycles a second")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--driver-core", type=int, default=1)
    raise SystemExit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
