"""A real process of ours: started, listened to, signalled, measured, and always put away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.waiting import until

BIN = Path(sys.executable).parent
NO_BALLAST = {"ARC_SERVER_DISK_BALLAST_BYTES": "0"}
"""For servers in tests: each would take 64 MiB, and pytest keeps their directories for a while."""
START_SECONDS = 30.0
"""A start takes half a second; a machine that others use as well may take its time."""

_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""

Event = dict[str, Any]
"""One line of the JSON log; a line that is no JSON is `{"event": line, "is_text": True}`."""


class Process:
    """One process with its output. Lines are read as they come, so that it never blocks on them."""

    def __init__(self, name: str, running: asyncio.subprocess.Process) -> None:
        self.name = name
        self.log: list[Event] = []
        """What it has logged so far (standard error)."""
        self.printed: list[str] = []
        """What it has printed so far (standard output)."""
        self._running = running
        self._news = asyncio.Event()
        self._readers = (
            asyncio.create_task(self._read(running.stdout, self.printed.append)),
            asyncio.create_task(self._read(running.stderr, self._note)),
        )

    @classmethod
    async def start(
        cls,
        name: str,
        program: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        listener: socket.socket | None = None,
    ) -> Process:
        """Run one of our console scripts. Our own variables are not inherited.

        With a `listener` it is handed over as systemd does.
        """
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ARC_", "ALIEN_"))}
        handed_over: list[str] = []
        if listener is not None:
            handed_over = [sys.executable, "-ISc", _HAND_OVER, str(listener.fileno())]
        running = await asyncio.create_subprocess_exec(
            *handed_over,
            str(BIN / program),
            *arguments,
            env={**inherited, **NO_BALLAST, **(env or {})},
            pass_fds=[] if listener is None else [listener.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=16 << 20,
        )
        return cls(name, running)

    # listening

    async def _read(self, stream: asyncio.StreamReader | None, take: Callable[[str], None]) -> None:
        assert stream is not None
        while line := await stream.readline():
            take(line.decode(errors="replace").rstrip("\n"))
            self._news.set()
        self._news.set()

    def _note(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            event = {"event": line, "is_text": True}
        self.log.append({"seen_at": time.monotonic(), **event})

    def events(self, name: str, **fields: Any) -> list[Event]:
        """All logged so far of that name, with those fields."""
        return [
            event
            for event in self.log
            if event.get("event") == name and fields.items() <= event.items()
        ]

    async def logged(self, name: str, seconds: float = 20.0, *, times: int = 1, **fields: Any):
        """Wait until it has logged the event that many times; the last of them."""
        await self._until(
            lambda: len(self.events(name, **fields)) >= times, seconds, f"log {name} {fields}"
        )
        return self.events(name, **fields)[times - 1]

    async def url(self) -> str:
        """Wait until it prints READY; the URL that stands behind it."""
        await self._until(
            lambda: any(line.startswith("READY ") for line in self.printed),
            START_SECONDS,
            "print READY",
        )
        return next(
            line.removeprefix("READY ") for line in self.printed if line.startswith("READY ")
        )

    async def _until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    self._news.clear()
                    if all(reader.done() for reader in self._readers):
                        raise AssertionError(f"{self.name} ended and did not {what}\n{self.tail()}")
                    await self._news.wait()
        except TimeoutError:
            message = f"{self.name} did not {what} within {seconds} s\n{self.tail()}"
            raise AssertionError(message) from None

    def tail(self, lines: int = 60) -> str:
        """The end of its log, to read when a test fails."""
        shown = [
            str(event["event"])
            if event.get("is_text")
            else json.dumps({k: v for k, v in event.items() if k != "seen_at"})
            for event in self.log[-lines:]
        ]
        return f"--- {self.name} (pid {self.pid}, exit {self.exit_code})\n" + "\n".join(shown)

    # signals

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal that killed it."""
        return self._running.returncode

    def kill(self) -> None:
        """SIGKILL."""
        self._running.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self._running.send_signal(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP."""
        self._running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._running.send_signal(signal.SIGCONT)

    async def ended(self, seconds: float = 30.0) -> int:
        """Wait until it has ended and all its output is read; its exit code."""
        try:
            async with asyncio.timeout(seconds):
                code = await self._running.wait()
                await asyncio.gather(*self._readers)
        except TimeoutError:
            message = f"{self.name} did not end within {seconds} s\n{self.tail()}"
            raise AssertionError(message) from None
        return code

    async def put_away(self) -> None:
        """Kill it if it still runs, and take its exit."""
        if self.exit_code is None:
            self.kill()
        await self.ended()

    # memory

    def resident_bytes(self) -> int:
        """Return what it has in memory now."""
        return self._from_status("VmRSS")

    def peak_resident_bytes(self) -> int:
        """The most that it ever had in memory."""
        return self._from_status("VmHWM")

    def _from_status(self, field: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
        raise AssertionError(f"no {field} of process {self.pid}")


async def run_once(
    program: str, *arguments: str, env: Mapping[str, str] | None = None
) -> list[str]:
    """Run one of our console scripts to its end; what it printed. It must end with 0."""
    process = await Process.start(program, program, *arguments, env=env)
    code = await process.ended()
    assert code == 0, process.tail()
    return process.printed


async def let_real_time_pass(seconds: float) -> None:
    """Wait for faults that are a length of time: an outage, a lease that is not renewed."""
    await asyncio.sleep(seconds)


async def until_gone(pid: int) -> None:
    """Wait until a process is gone, or only its parent's memory of it is left."""

    def is_gone() -> bool:
        try:
            return ") Z " in Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    await until(is_gone)
