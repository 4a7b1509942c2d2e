"""Runs of our programs, each forked from a process that has imported the program.

A run is a process like any other: its own arguments, environment, directory, streams and session.
Only its imports, nine tenths of what a short command costs, are done once for each worker of xdist.
For tests of what commands print and do; how a program starts is not tested by these.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO, cast

PROGRAMS: Final = {"arc": "arc_client", "arc-server": "arc_server", "arc-agent": "arc_agent"}
"""The package of each program."""
_LIMIT_BYTES: Final = 100_000


class Run:
    """A program that runs, or has ended."""

    def __init__(self, reply: socket.socket) -> None:
        self._reply = reply
        self.pid = int(reply.recv(20))
        self.returncode: int | None = None

    def wait(self, seconds: float) -> int:
        """Return the exit code, minus SIGKILL if it was killed. Raises TimeoutError."""
        if self.returncode is None:
            self._reply.settimeout(seconds)
            self.returncode = int(self._reply.recv(20) or -signal.SIGKILL)
        return self.returncode

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it, if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it if it still runs."""
        if self.returncode is None:
            self.send(signal.SIGKILL)
        self._reply.close()


def program_of(command: Sequence[str | Path]) -> tuple[str, list[str]] | None:
    """Return the program of a command line and its arguments; None if it is none of ours."""
    words = [*map(str, command)]
    for program, package in PROGRAMS.items():
        if words[:3] == [sys.executable, "-m", package]:
            return program, words[3:]
        if words[0] == str(Path(sys.executable).with_name(program)):
            return program, words[1:]
    return None


def start(
    program: str,
    arguments: Sequence[str | Path],
    environ: Mapping[str, str],
    streams: Sequence[int],
    directory: Path | None = None,
) -> Run:
    """Run a program on three file descriptors: standard input, output and error."""
    words = [program, *map(str, arguments)]
    what = {"words": words, "environ": dict(environ), "in": str(directory or os.getcwd())}
    ours, theirs = _pair()
    with theirs:
        message = json.dumps(what).encode()
        socket.send_fds(_imported(PROGRAMS[program]), [message], [*streams, theirs.fileno()])
    return Run(ours)


def run(
    program: str,
    arguments: Sequence[str | Path],
    environ: Mapping[str, str] | None = None,
    seconds: float = 60,
    directory: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without input. Raises TimeoutError."""
    given = os.environ if environ is None else environ
    with (
        open(os.devnull) as nothing,
        os.fdopen(os.memfd_create("stdout"), "r+b", 0) as out,
        os.fdopen(os.memfd_create("stderr"), "r+b", 0) as err,
    ):
        streams = [nothing.fileno(), out.fileno(), err.fileno()]
        running = start(program, arguments, given, streams, directory)
        try:
            code = running.wait(seconds)
        finally:
            running.kill()
        shown = [os.pread(each.fileno(), os.fstat(each.fileno()).st_size, 0) for each in (out, err)]
    words = [program, *map(str, arguments)]
    return subprocess.CompletedProcess(words, code, shown[0].decode(), shown[1].decode())


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets between which each message stays one."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextmanager
def running(
    program: str, arguments: Sequence[str | Path], log: Path
) -> Generator[tuple[Run, TextIO]]:
    """Run a program until the context ends, then end it by SIGTERM; with what it prints."""
    from_it, to_us = os.pipe()
    with open(os.devnull) as nothing, log.open("ab") as err, open(from_it) as printed:
        try:
            begun = start(program, arguments, os.environ, [nothing.fileno(), to_us, err.fileno()])
        finally:
            os.close(to_us)
        try:
            yield begun, printed
            begun.send(signal.SIGTERM)
            begun.wait(30)
        finally:
            begun.kill()


@functools.cache
def _imported(package: str) -> socket.socket:
    """Start the process that imports a package; return the socket that it takes orders from."""
    ours, theirs = _pair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, package, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )

    def end() -> None:
        ours.close()
        process.wait(30)

    atexit.register(end)
    return ours


# in the process that imports


def _serve(package: str, orders: socket.socket) -> None:
    """Import a package and fork a process for each order, until the tests have ended."""
    _import(package)
    gc.freeze()  # a collection in a run would copy every page of it
    while True:
        message, fds, _, _ = socket.recv_fds(orders, _LIMIT_BYTES, 4)
        if not message:
            break
        if os.fork() == 0:
            orders.close()
            _run(package, json.loads(message), fds)
        for fd in fds:
            os.close(fd)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _import(package: str) -> None:
    """Import the command line as its entry point does, with all that it loads on demand."""
    if package == "arc_server":
        light_imports = importlib.import_module("arc_runtime.startup.light_imports")
        light_imports.import_structlog()
        light_imports.import_aiohttp()
    importlib.import_module(f"{package}.__main__")
    cli = importlib.import_module(f"{package}.cli")
    for module in pkgutil.walk_packages(cli.__path__, f"{package}.cli."):
        importlib.import_module(module.name)


def _run(package: str, what: dict[str, Any], fds: list[int]) -> None:
    """Become the program; never return."""
    os.setsid()
    reply = socket.socket(fileno=fds.pop())
    reply.set_inheritable(False)
    reply.send(b"%d" % os.getpid())
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = cast("Any", _stream(0, "r", "surrogateescape"))
    sys.stdout = cast("Any", _stream(1, "w", "surrogateescape"))
    sys.stderr = cast("Any", _stream(2, "w", "backslashreplace"))
    os.environ.clear()
    os.environ.update(what["environ"])
    time.tzset()
    os.chdir(what["in"])
    sys.argv = what["words"]
    code = _ended(package)
    reply.send(b"%d" % code)
    os._exit(code)


def _stream(fd: int, mode: str, errors: str) -> io.TextIOWrapper:
    is_lively = mode == "w" and (os.isatty(fd) or fd == 2)
    raw = cast("Any", open(fd, f"{mode}b", closefd=False))  # noqa: SIM115  # it stays
    return io.TextIOWrapper(raw, "utf-8", errors, line_buffering=is_lively)


def _ended(package: str) -> int:
    """Run the entry point, end as an interpreter does, and return the exit code."""
    main = importlib.import_module(f"{package}.__main__").main
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # pyright: ignore
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    _serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
