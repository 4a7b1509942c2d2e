"""Handlers that run a program: an argv list, a process group of its own, a bounded output.

Params reach the program by standard input, in a file, or as whole arguments that a schema bounds
(placeholders.py). Nothing that a sender writes can become an option or a word of a shell.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

import msgspec
import structlog

from arc_agent.config.declared_handlers import NO_LIMITS, ExecSection
from arc_agent.handlers.context import CommandFailed, Context, Retry
from arc_agent.handlers.declared import isolation
from arc_agent.handlers.declared.argv import Argv
from arc_agent.handlers.declared.placeholders import declare
from arc_agent.handlers.declared.program_output import ProgramOutput, Tail, drain, result_of
from arc_agent.handlers.declared.strays import MARK, end_strays
from arc_agent.handlers.no_descriptors import put_off
from arc_agent.handlers.registry import UNTYPED, Handler, HandlerError
from arc_agent.host.threads import in_thread
from arc_runtime.environment import OWN_ENVIRON

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

PARAMS_FILE: Final = "{params_file}"
_STDERR_BYTES: Final = 8 * 1024
"""The end of standard error that goes into the details of the command's error."""
_LEFTOVERS_SECONDS: Final = 1.0
"""The time limit for the pipes to close after the group was killed."""
_LAUNCH_SECONDS: Final = 30.0
"""The time limit of systemd for making a scope."""

_groups: Final[set[int]] = set()
"""The running process groups, to be killed when the agent ends at once."""


def exec_handler(name: str, section: ExecSection) -> Handler:
    """Return the handler of a section of `handlers.exec`. Raises HandlerError."""
    key = f"handlers.exec.{name}"
    for index, argument in enumerate(section.argv):
        if PARAMS_FILE in argument and argument != PARAMS_FILE:
            raise HandlerError(f"{key}.argv[{index}]: {PARAMS_FILE} must be an argument of its own")
        if "\0" in argument:
            raise HandlerError(f"{key}.argv[{index}]: an argument with a NUL in it")
    if not section.argv[0] or section.argv[0] == PARAMS_FILE:
        raise HandlerError(f"{key}.argv[0]: argv starts with the program")
    for status, code in section.error_codes.items():
        if not (status.isascii() and status.isdecimal() and 0 < int(status) < 256 and code):
            raise HandlerError(f"{key}.error_codes: {status!r} is not an exit status with a code")
    for variable, value in section.env.items():
        if "{params." in value:
            raise HandlerError(f"{key}.env.{variable}: params are for argv only")
    params = argv = None
    if section.params is not None or any("{params." in part for part in section.argv):
        params = declare(section.params or {}, f"{key}.params")
        argv = Argv(section, params, key)
    start = _Start(name, section, has_arguments=argv is not None and argv.has_placeholders)

    async def run(ctx: Context, params: Mapping[str, Any] | None = None) -> Any:
        if section.restarts:
            await asyncio.to_thread(ctx.expect_restart)
        arguments = section.argv if argv is None or params is None else argv.filled(params)
        return await _run(section, ctx, start, arguments)

    return Handler(
        name=name,
        call=run,
        description=section.description,
        timeout_seconds=section.timeout_seconds,
        idempotent=section.idempotent,
        concurrency=section.concurrency,
        params_type=UNTYPED,
        params_name=None if params is None else "params",
        read_params=None if params is None else params.read,
        params_schema=None if params is None else params.advertised,
        context_name="ctx",
        is_async=True,
        origin="handlers.exec",
        grace_seconds=section.kill_after_seconds + 2 * _LEFTOVERS_SECONDS,
    )


def kill_all() -> None:
    """Kill every running program, for an agent that ends at once."""
    for group in list(_groups):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


async def _run(section: ExecSection, ctx: Context, start: _Start, arguments: list[str]) -> Any:
    """Run the program to its end, or end it when cancelled. Raises CommandFailed."""
    directory = ctx.directory
    params = await asyncio.to_thread(_params_file, ctx)
    started = await _started(start, ctx, arguments, params)
    process = started.process
    _groups.add(process.pid)
    output = ProgramOutput(directory / "stdout", section.max_output_bytes)
    errors = Tail(_STDERR_BYTES)
    pipes = [
        asyncio.ensure_future(drain(process.stdout, output.write)),
        asyncio.ensure_future(drain(process.stderr, errors.write)),
    ]
    # asyncio's own wait would last as long as any process holds the pipes.
    ending: asyncio.Future[int | None] = asyncio.ensure_future(
        in_thread(lambda: _exit_status(process), "wait")
    )
    try:
        await asyncio.wait({ending})
    except asyncio.CancelledError:
        _signal_group(process.pid, signal.SIGTERM)
        await asyncio.wait({ending}, timeout=section.kill_after_seconds)
        raise
    finally:
        _signal_group(process.pid, signal.SIGKILL)  # a process left behind holds the pipes open
        if started.end is not None:
            await asyncio.to_thread(started.end)
        strays = await asyncio.to_thread(end_strays, str(directory))
        if strays:
            log.warning(
                "exec.left_processes", command=ctx.command, command_id=ctx.command_id, ended=strays
            )
        await asyncio.wait({ending, *pipes}, timeout=_LEFTOVERS_SECONDS)
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)
        _groups.discard(process.pid)
        await asyncio.to_thread(output.close)
    if output.error is not None:
        raise output.error
    status = ending.result()
    if status is None:
        raise CommandFailed("HANDLER_ERROR", "the program's exit status is unknown", errors.text())
    if status != 0:
        raise _failure(section, status, errors.text())
    return await asyncio.to_thread(result_of, section, output)


def _exit_status(process: subprocess.Popen[bytes]) -> int | None:
    """Wait until the program ends. Return its exit status; None if that cannot be known.

    It is lost when a handler ignores SIGCHLD or waits for children that are not its own.
    """
    try:
        _, status = os.waitpid(process.pid, 0)
    except ChildProcessError:
        process.returncode = 0  # as Popen's own wait sets it, which takes the loss for success
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode


class _Started(msgspec.Struct, frozen=True):
    """A running program."""

    process: subprocess.Popen[bytes]
    end: Callable[[], None] | None = None
    """End processes outside its group. Blocks."""


async def _started(start: _Start, ctx: Context, argv: list[str], params: Path) -> _Started:
    """Start the program; a cancellation ends it again. Raises CommandFailed."""
    starting = asyncio.ensure_future(asyncio.to_thread(start, ctx, argv, params))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        started = await starting
        _signal_group(started.process.pid, signal.SIGKILL)
        if started.end is not None:
            await asyncio.to_thread(started.end)
        await in_thread(started.process.wait, "wait")
        for pipe in (started.process.stdout, started.process.stderr):
            if pipe is not None:
                pipe.close()
        raise


class _Start:
    """The start of a section's program in a group of its own."""

    def __init__(self, name: str, section: ExecSection, *, has_arguments: bool) -> None:
        self._name = name
        self._section = section
        reads_by_default = PARAMS_FILE not in section.argv and not has_arguments
        self._feeds = section.stdin == "params" or (section.stdin is None and reads_by_default)
        self._no_scope = False
        """systemd has refused a scope."""

    def __call__(self, ctx: Context, argv: list[str], params: Path) -> _Started:
        """Start the program. Blocks. Raises CommandFailed."""
        section = self._section
        if section.user is None and section.limits == NO_LIMITS and not _has_powers():
            return _Started(self._plain(ctx, argv, params))
        return self._fenced(ctx, argv, params)

    def _plain(self, ctx: Context, argv: list[str], params: Path) -> subprocess.Popen[bytes]:
        """Start the program as the agent's user, without limits."""
        argv = [str(params) if part == PARAMS_FILE else part for part in argv]
        environment = _environment(self._section, ctx)
        try:
            with open(params if self._feeds else os.devnull, "rb") as stdin:
                return self._spawn(argv, stdin, self._section.cwd or ctx.directory, environment)
        except (OSError, ValueError) as error:
            raise _not_started(argv[0], error) from error

    def _fenced(self, ctx: Context, argv: list[str], params: Path) -> _Started:
        """Start the program with limits, or as another user."""
        section = self._section
        fence = isolation.choose(section)
        chosen = "rlimits" if self._no_scope and fence.chosen == "scope" else fence.chosen
        if chosen == "rlimits" and section.isolation == "scope":
            raise CommandFailed("HANDLER_ERROR", f"a scope is not possible here: {fence.reason}")
        user = None
        if section.user is not None:
            user = isolation.find_user(section.user, f"handlers.exec.{self._name}")
        unit = isolation.unit_name(ctx.command_id, ctx.attempt) if chosen == "scope" else ""
        ours, theirs = socket.socketpair()
        try:
            with ours, theirs, open(params, "rb") as file, open(os.devnull, "rb") as nothing:
                if user is not None:  # only the holder of the descriptor reaches the file
                    os.fchmod(file.fileno(), 0o444)
                held = [theirs.fileno(), *([file.fileno()] if PARAMS_FILE in argv else ())]
                path = f"/dev/fd/{file.fileno()}"
                real = [path if part == PARAMS_FILE else part for part in argv]
                process = self._spawn(
                    isolation.wrapped(real, section, chosen, unit=unit, channel=theirs.fileno()),
                    file if self._feeds else nothing,
                    section.cwd or isolation.place(ctx.directory, user),
                    isolation.for_systemd() if chosen == "scope" else {},
                    held,
                )
                theirs.close()
                environment = _environment(section, ctx)
                if user is not None:
                    environment = isolation.of_user(environment, section, user)
                answer = _instruct(ours, isolation.instructions(section, chosen, user, environment))
        except (OSError, ValueError) as error:
            raise _not_started(argv[0], error) from error
        if answer.startswith(b"+") and len(answer) == 1:
            end = (lambda: isolation.end_scope(unit)) if chosen == "scope" else None
            return _Started(process, end)
        reason = _reap(process)
        if answer:
            number = int(answer[1:])
            raise _not_started(argv[0], OSError(number, os.strerror(number)))
        if chosen == "scope" and section.isolation == "auto":
            self._no_scope = True  # the program has not run yet
            log.warning("exec.no_scope", handler=self._name, instead="rlimits", reason=reason)
            return self._fenced(ctx, argv, params)
        raise CommandFailed("HANDLER_ERROR", "the program cannot be confined", reason)

    def _spawn(
        self,
        argv: list[str],
        stdin: BinaryIO | IO[bytes],
        cwd: Path,
        environment: Mapping[str, str],
        held: list[int] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process. Raises OSError, ValueError."""
        return subprocess.Popen(  # noqa: S603  # argv is the host's configuration
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            pass_fds=held or (),
        )


@cache
def _has_powers() -> bool:
    """Return True if programs would inherit capabilities of the agent, which the launcher drops."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    ambient = next((line for line in status.splitlines() if line.startswith("CapAmb:")), "x 0")
    return int(ambient.split()[1], 16) != 0


def _instruct(channel: socket.socket, instructions: bytes) -> bytes:
    """Send the launcher its instructions; return its answer, empty if it never ran."""
    channel.settimeout(_LAUNCH_SECONDS)
    answer = b""
    try:
        channel.sendall(instructions)
        channel.shutdown(socket.SHUT_WR)
        while part := channel.recv(64):
            answer += part
    except OSError:
        return answer
    return answer


def _reap(process: subprocess.Popen[bytes]) -> str:
    """Kill a launcher that failed; return the end of its standard error."""
    _signal_group(process.pid, signal.SIGKILL)
    try:
        _, stderr = process.communicate(timeout=_LAUNCH_SECONDS)
    except subprocess.TimeoutExpired:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        return "it did not end"
    return stderr[-_STDERR_BYTES:].decode("utf-8", "replace").strip()


def _not_started(program: str, error: Exception) -> CommandFailed | Retry:
    """Return the error of a program that cannot be started; Retry if the host has no room now."""
    retry = put_off(error, program)
    if retry is not None:
        return retry
    reason = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        reason = f"{reason}; limits.memory_bytes may be too small"
    return CommandFailed("HANDLER_ERROR", f"{program} cannot be started: {reason}")


def _failure(section: ExecSection, status: int, stderr: str) -> CommandFailed:
    """Return the error of an exit status other than 0."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return CommandFailed("HANDLER_ERROR", f"the program was ended by {name}", stderr or None)
    code = section.error_codes.get(str(status), "HANDLER_ERROR")
    return CommandFailed(code, f"the program exited with status {status}", stderr or None)


def _signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if it still exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _params_file(ctx: Context) -> Path:
    """Return a file with the params that only this user can read."""
    if ctx.params_source.file is not None:
        return ctx.params_source.file
    path = ctx.directory / "params"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(ctx.params_source.read())
    return path


def _environment(section: ExecSection, ctx: Context) -> dict[str, str]:
    """Return the allowed variables, the section's own, and those that describe the command."""
    passed = {name: OWN_ENVIRON[name] for name in section.env_pass if name in OWN_ENVIRON}
    return {
        **passed,
        **section.env,
        MARK: str(ctx.directory),  # unique for each run
        "ARC_COMMAND": ctx.command,
        "ARC_COMMAND_ID": ctx.command_id,
        "ARC_ATTEMPT": str(ctx.attempt),
        "ARC_DEPLOYMENT": ctx.deployment_id,
    }
