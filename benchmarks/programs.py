"""Programs of one virtual environment run as processes: server, agent and sender.

A benchmark starts them as an operator does, with the defaults of a real agent (audit and spool on)
and of a real server (`synchronous=FULL`, tokens), so that before and after differ in nothing but
the `bin` directory that they come from. Logs go to files: a pipe would cost the driver's CPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
DEPLOYMENT: Final = "bench"
START_SECONDS: Final = 120.0
"""How long a program may take to start: an agent first tries to deliver what its spool holds."""
STOP_SECONDS: Final = 60.0
STALL_SECONDS: Final = 600.0
"""How long an upload may stand still: longer than a benchmark measures (benchmarks/waiting.py)."""
ANSWER_SECONDS: Final = 900.0
"""How long a sender may take for a job."""
_LINE_BYTES: Final = 1 << 26
"""The longest answer of a sender: a latency for each of its commands."""


@dataclass(frozen=True)
class Programs:
    """Programs are the `bin` directory of a virtual environment, with a name for the report."""

    name: str
    directory: Path

    @classmethod
    def parse(cls, text: str) -> Programs:
        """Read `NAME=DIR` or `DIR`. Raises ValueError when the directory holds no agent."""
        name, _, directory = text.rpartition("=")
        path = Path(directory).absolute()
        if not (path / "arc-agent").is_file():
            raise ValueError(f"{path} holds no arc-agent: give the bin directory of a .venv")
        return cls(name or path.parent.parent.name, path)

    def path(self, program: str) -> str:
        """Return the path of one of the programs."""
        return str(self.directory / program)


class Process:
    """A process that runs, and its use of CPU and memory."""

    def __init__(self, running: asyncio.subprocess.Process, log: Path) -> None:
        self.running = running
        self.log = log

    @classmethod
    async def start(cls, log: Path, *command: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a command with pipes for input and output; what it logs goes to a file."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ARC_", "PYTHON"))}
        with log.open("ab") as errors:
            running = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**inherited, **(env or {})},
                limit=_LINE_BYTES,
            )
        return cls(running, log)

    async def line(self, seconds: float = START_SECONDS) -> str:
        """Return the next line that the process prints. Raises SystemExit when it ends instead."""
        assert self.running.stdout is not None
        async with asyncio.timeout(seconds):
            line = await self.running.stdout.readline()
        if not line:
            raise SystemExit(f"a program ended: {self.log.read_text()[-4000:]}")
        return line.decode().rstrip("\n")

    async def logged(self, event: str, seconds: float = START_SECONDS) -> None:
        """Wait until the process has logged an event. Raises SystemExit when it does not."""
        until = time.monotonic() + seconds
        while f'"event":"{event}"' not in self.log.read_text().replace('": "', '":"'):
            if self.running.returncode is not None or time.monotonic() > until:
                raise SystemExit(f"no {event}: {self.log.read_text()[-4000:]}")
            await asyncio.sleep(0.05)

    async def close_input(self) -> None:
        """Close its standard input and wait until it has ended by itself."""
        assert self.running.stdin is not None
        self.running.stdin.close()
        async with asyncio.timeout(STOP_SECONDS):
            await self.running.wait()

    async def stop(self) -> None:
        """End the process by SIGTERM; kill it when that takes too long."""
        if self.running.returncode is None:
            self.running.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.running.wait()
        except TimeoutError:
            self.running.kill()
            await self.running.wait()

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self.running.pid

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads so far, without its children's."""
        return time.clock_gettime((~self.pid << 3) | 2)  # CPUCLOCK_SCHED of a process

    @property
    def main_thread_cpu_seconds(self) -> float:
        """Return the CPU time of its main thread so far."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    @property
    def children_cpu_seconds(self) -> float:
        """Return the CPU time of the children that it has waited for."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_bytes(self) -> int:
        """Return its resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


async def ask(sender: Process, **job: Any) -> dict[str, Any]:
    """Give a sender a job as a line of JSON; return its answer."""
    stdin = sender.running.stdin
    assert stdin is not None
    stdin.write(json.dumps(job).encode() + b"\n")
    return json.loads(await sender.line(ANSWER_SECONDS))


class Trio:
    """A trio is a server, an agent and a sender that work together."""

    def __init__(
        self,
        programs: Programs,
        directory: Path,
        *,
        max_concurrent: int,
        sampled: str | None = None,
    ) -> None:
        """Start nothing yet. `sampled` names the program whose main thread is profiled."""
        self.programs = programs
        self.url = ""
        self.server: Process
        self.agent: Process
        self.sender: Process
        self._directory = directory
        self._max_concurrent = max_concurrent
        self._sampled = sampled
        self._samples = directory / "samples"

    @property
    def agent_directory(self) -> Path:
        """Return the directory in which the agent keeps spool and audit."""
        return self._directory / "agent"

    async def start_server(self) -> None:
        """Start the server and make the tokens."""
        data = self._directory / "server"
        self.server = await Process.start(
            self._directory / "server.log",
            *self._command("arc-server"),
            "serve",
            *("--data-dir", str(data), "--listen", "127.0.0.1:0"),
        )
        line = await self.server.line()
        if not line.startswith("READY "):
            raise SystemExit(f"the server did not start: {line}")
        self.url = line.removeprefix("READY ")
        for scope in ("sender", "agent"):
            made = subprocess.run(
                [
                    *(self.programs.path("arc-server"), "token", "create", "--scope", scope),
                    *("--deployment", DEPLOYMENT, "--data-dir", str(data)),
                ],
                check=True,
                capture_output=True,
                text=True,
            )
            token = self._token(scope)
            token.touch(0o600)
            token.write_text(made.stdout)

    async def start_agent(self) -> None:
        """Start the agent, or start it again. It polls when this returns."""
        config = self._directory / "agent.yaml"
        config.write_text(json.dumps(self._agent_config()))  # JSON is YAML
        command = (*self._command("arc-agent"), "run", "--config", str(config))
        log = self._directory / "agent.log"
        log.unlink(missing_ok=True)
        self.agent = await Process.start(log, *command)
        await self.agent.logged("ready")

    async def start_sender(self) -> None:
        """Start the sender."""
        self.sender = await Process.start(
            self._directory / "sender.log",
            *(self.programs.path("python"), str(HERE / "sender.py")),
            *(self.url, DEPLOYMENT, str(self._token("sender"))),
        )

    async def send(self, **job: Any) -> dict[str, Any]:
        """Give the sender a job; return its answer."""
        return await ask(self.sender, **{"seconds": 600.0, "count": 0, "pause": 0, **job})

    def forget_samples(self) -> None:
        """Begin a profile."""
        self._samples.unlink(missing_ok=True)
        self._signal_sampled(signal.SIGUSR1)

    async def samples(self) -> str:
        """End a profile; return its stacks, one a line with the number of samples."""
        self._signal_sampled(signal.SIGUSR2)
        async with asyncio.timeout(START_SECONDS):
            while not self._samples.exists():
                await asyncio.sleep(0.02)
        return self._samples.read_text()

    def _signal_sampled(self, number: signal.Signals) -> None:
        sampled = {"arc-server": self.server, "arc-agent": self.agent}.get(self._sampled or "")
        if sampled is not None:
            sampled.running.send_signal(number)

    def _command(self, program: str) -> tuple[str, ...]:
        """Return what runs a program, with the sampler if the program is to be profiled."""
        if program != self._sampled:
            return (self.programs.path(program),)
        sampling = str(HERE / "sampling.py")
        return (self.programs.path("python"), sampling, str(self._samples), program)

    def _token(self, scope: str) -> Path:
        return self._directory / f"{scope}.token"

    def _agent_config(self) -> dict[str, Any]:
        return {
            "server": {"url": self.url, "token_file": str(self._token("agent"))},
            "deployment": DEPLOYMENT,
            "name": "bench",
            "data_dir": str(self.agent_directory),
            "max_concurrent": self._max_concurrent,
            "transfer": {"allow_hosts": ["127.0.0.1"], "stall_seconds": STALL_SECONDS},
            "handlers": {
                "modules": [str(HERE / "trivial_handlers.py")],
                "exec": {"bench.exec": {"argv": ["/bin/echo", "done"], "output": "text"}},
            },
        }


@asynccontextmanager
async def trio(
    programs: Programs, directory: Path, *, max_concurrent: int, sampled: str | None = None
) -> AsyncIterator[Trio]:
    """Start a server, an agent and a sender; stop them at the end."""
    directory.mkdir()
    started = Trio(programs, directory, max_concurrent=max_concurrent, sampled=sampled)
    try:
        await started.start_server()
        await started.start_agent()
        await started.start_sender()
        yield started
    finally:
        for name in ("sender", "agent", "server"):
            process = getattr(started, name, None)
            if process is not None:
                await process.stop()
