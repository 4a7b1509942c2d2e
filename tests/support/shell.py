"""`arc`: called, as a process in pipes, and on a terminal of its own."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from arc_client.cli.main import app
from tests.support.waiting import Changes

_ONE_AT_A_TIME = threading.Lock()
ARC = [sys.executable, "-m", "arc_client"]
LIMIT_SECONDS = 30
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Ended:
    """How a run of `arc` ended."""

    code: int
    out: bytes
    err: str

    def json(self) -> Any:
        """Return what it wrote to stdout, as JSON."""
        return json.loads(self.out)


def environment(url: str | None, **more: str) -> dict[str, str]:
    """The environment of a run: nothing of ours but what the test gives."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ARC_")}
    if url is not None:
        kept["ARC_SERVER_URL"] = url
    return kept | more


async def arc(
    *arguments: str | Path, url: str | None = None, stdin: bytes = b"", **environ: str
) -> Ended:
    """Run `arc` in this process, one at a time: all but its start, its signals and its end."""
    return await asyncio.to_thread(
        _call, [str(argument) for argument in arguments], url, stdin, environ
    )


def _call(arguments: list[str], url: str | None, stdin: bytes, environ: dict[str, str]) -> Ended:
    kept = {name: None for name in os.environ if name.startswith("ARC_")}
    given = {"ARC_SERVER_URL": url} if url is not None else {}
    with _ONE_AT_A_TIME:  # standard streams and environment are the whole process's
        ended = CliRunner().invoke(app, arguments, input=stdin, env=kept | given | environ)
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return Ended(ended.exit_code, ended.stdout_bytes, ended.stderr)


async def arc_process(
    *arguments: str | Path, url: str | None = None, stdin: bytes = b"", **environ: str
) -> Ended:
    """Run `arc` as a process of its own, in pipes, to its end."""
    process = await start(*arguments, url=url, **environ)
    async with asyncio.timeout(LIMIT_SECONDS):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, out, err.decode())


async def start(
    *arguments: str | Path, url: str | None, stdout: int = asyncio.subprocess.PIPE, **environ: str
) -> asyncio.subprocess.Process:
    """Start `arc` as a process of its own, in pipes."""
    return await asyncio.create_subprocess_exec(
        *ARC,
        *map(str, arguments),
        env=environment(url, **environ),
        stdin=asyncio.subprocess.PIPE,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


class Terminal:
    """`arc` on a terminal: what it shows, and keys to press."""

    def __init__(self, process: asyncio.subprocess.Process, fd: int) -> None:
        self.process = process
        self.raw = ""
        self._fd = fd
        self._changes = Changes()
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._read)

    @property
    def shown(self) -> str:
        """All that was written so far, without what moves and colours it."""
        return _ESCAPES.sub("", self.raw)

    async def until(self, text: str) -> None:
        """Wait until something was shown."""
        await self._changes.until(lambda: text in self.shown)

    def press(self, keys: bytes) -> None:
        """Type something. b"\\x03" is Ctrl-C."""
        os.write(self._fd, keys)

    async def end(self) -> int:
        """Wait for its end; the exit code."""
        async with asyncio.timeout(LIMIT_SECONDS):
            return await self.process.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the other end was closed with the process
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
        self.raw += data.decode("utf-8", "replace")
        self._changes.notify()


@asynccontextmanager
async def terminal(
    *arguments: str | Path, url: str, stdout: int | None = None
) -> AsyncIterator[Terminal]:
    """Run `arc` on a terminal; `stdout` may be elsewhere."""
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *ARC,
            *map(str, arguments),
            env=environment(url, TERM="xterm-256color", COLUMNS="100"),
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            preexec_fn=_own_terminal,  # the child is single-threaded still
        )
    finally:
        os.close(theirs)
    shown = Terminal(process, ours)
    try:
        yield shown
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        os.close(ours)


def _own_terminal() -> None:
    """Make stdin the terminal that Ctrl-C comes from."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
