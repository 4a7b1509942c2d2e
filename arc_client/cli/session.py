"""One run of `arc`: a client of the server that was named, and how it ended."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer

from arc_client.cli.arguments import ConnectionOptions
from arc_client.cli.explain import ExitCode, explain
from arc_client.cli.interrupts import Interrupted
from arc_client.cli.output import NotShown, is_shown_on, say, tell_error
from arc_client.cli.progress import CommandProgress, TerminalProgress
from arc_protocol.errors import ArcError
from arc_protocol.messages.base import State

if TYPE_CHECKING:
    from arc_client.client import Client

RETRY_SECONDS: Final = 10.0
"""For how long a person waits for a server that gives no answer."""
SHOWN_POLL_SECONDS: Final = 2
"""How old the state may be that a person is shown."""


def with_client(
    access: ConnectionOptions,
    progress: CommandProgress,
    work: Callable[[Client], Awaitable[None]],
    *,
    patience: float = RETRY_SECONDS,
) -> None:
    """Do some work with a client. Raises what the work does, and ConfigurationError."""
    options = access.client_options(os.environ)
    options["retry_seconds"] = min(RETRY_SECONDS, patience)
    if progress.is_shown:
        options["poll_seconds"] = SHOWN_POLL_SECONDS

    async def connected() -> None:
        from arc_runtime.startup.light_imports import import_aiohttp

        import_aiohttp()
        from arc_client.client import Client

        async with Client(**options, callbacks=progress) as client:
            await work(client)

    asyncio.run(connected())


@contextmanager
def reporting(
    *, as_json: bool, key: str | None = None, command_id: str | None = None
) -> Generator[CommandProgress]:
    """Tell on stderr what went wrong, and exit with the code for it.

    `key`: what a command that may or may not have been sent can be sent again with.
    """
    is_watched = is_shown_on(sys.stderr) and not as_json
    progress = TerminalProgress(command_id) if is_watched else CommandProgress(command_id)
    try:
        try:
            yield progress
        finally:
            progress.close()
    except ArcError as error:
        explanation = explain(error)
        tell_error(error, explanation, as_json=as_json)
        raise typer.Exit(explanation.exit_code) from None
    except NotShown:
        it = shlex.quote(str(progress.command_id))
        say(f"error: command {it} is done, but its result is not fit for a terminal")
        say(f"  Write it to a file: arc wait {it} --out FILE")
        raise typer.Exit(ExitCode.USAGE) from None
    except BrokenPipeError:
        # Our reader has left. Nothing of what is still buffered may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None
    except OSError as error:
        say(f"error: the result cannot be written: {error.strerror or error}")
        if progress.command_id is not None:
            say(f"  Read it again: arc wait {shlex.quote(progress.command_id)}")
        raise typer.Exit(ExitCode.USAGE) from None
    except (Interrupted, KeyboardInterrupt):
        say(f"interrupted; {how_to_go_on(progress, key)}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def how_to_go_on(progress: CommandProgress, key: str | None) -> str:
    """What becomes of a command whose sender left, and what to do about it."""
    if progress.command_id is None:
        if key is None:
            return "nothing was changed"
        return (
            "the command may or may not have been sent. "
            f"The same with --key {shlex.quote(key)} will not run it twice."
        )
    it = shlex.quote(progress.command_id)
    if progress.is_over:
        return f"command {it} has ended. Its result: arc wait {it}"
    if progress.state is State.PENDING_UPLOAD:
        return f"command {it} waits for the rest of its params, and will not run without them"
    return f"command {it} goes on. Wait on: arc wait {it}. Stop it: arc cancel {it}"
