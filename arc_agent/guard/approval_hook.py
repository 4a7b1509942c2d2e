"""The approval hook tells an operator's own program that a command waits for approval.

The program gets the request as a line of JSON on its standard input, to send a mail or a page. No
command waits for it, and its failure is only logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from arc_agent.host.threads import in_thread

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_AT_ONCE: Final = 4
"""Programs that run at a time; others wait for them."""
_STDERR_CHARS: Final = 300
"""The end of standard error that is logged."""


class ApprovalHook:
    """Runs the program for each request. Lives in the main loop."""

    def __init__(self, argv: Callable[[], Sequence[str]], seconds: Callable[[], float]) -> None:
        """Run `argv`, for `seconds` at most; without words, do nothing."""
        self._argv = argv
        self._seconds = seconds
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, request: Mapping[str, Any]) -> None:
        """Run the program with a request, beside all else."""
        if self._argv():
            task = asyncio.get_running_loop().create_task(self._run(request), name="approval hook")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Wait for no program any longer. Running ones end by themselves, in time."""
        for task in list(self._tasks):
            task.cancel()

    async def _run(self, request: Mapping[str, Any]) -> None:
        """Run the program once. Log how it fails."""
        line = json.dumps(dict(request), ensure_ascii=False).encode() + b"\n"
        async with self._turns:
            argv, seconds = list(self._argv()), self._seconds()
            if not argv:
                return
            failure = await in_thread(
                lambda: _failure(argv, line, seconds), "approval hook", is_left=True
            )
        if failure is not None:
            log.warning("approval.hook_failed", program=argv[0], command_id=request["id"],
                        reason=failure)  # fmt: skip


def _failure(argv: list[str], line: bytes, seconds: float) -> str | None:
    """Run a program in a session of its own; return how it failed, if it did."""
    try:
        process = subprocess.Popen(  # noqa: S603  # the host's own configuration names it
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return str(error)
    with process:
        try:
            _, stderr = process.communicate(line, seconds)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            return f"killed after {seconds:g} s"
        except OSError as error:
            _kill_group(process.pid)
            return str(error)
    if process.returncode == 0:
        return None
    said = stderr.decode("utf-8", "replace").strip()[-_STDERR_CHARS:]
    return f"exit status {process.returncode}" + (f": {said}" if said else "")


def _kill_group(pid: int) -> None:
    """Kill a program with all that it has started in its session's first group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
