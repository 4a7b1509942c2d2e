"""A session is one run of `arc`: the server that was named, and how the run ends."""

from __future__ import annotations

import asyncio
import inspect
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from arc_client.cli.arguments import ConnectionOptions
from arc_client.cli.explain import ExitCode, explain
from arc_client.cli.interrupts import Interrupted
from arc_client.cli.output import Format, UnfitForTerminal, show_error, show_json, show_message
from arc_client.cli.progress import CommandProgress, TerminalProgress
from arc_protocol.errors import ArcError
from arc_protocol.messages.base import State
from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.styles import is_terminal
from arc_runtime.terminal.table import print_note

if TYPE_CHECKING:
    from arc_client.client import Client

T = TypeVar("T")

RETRY_SECONDS: Final = 10.0
"""The time that a person waits for a server that gives no answer."""
SHOWN_POLL_SECONDS: Final = 2
"""The greatest age of a state that a person sees."""

_CONNECTION: Final = "Connection"

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="URL of the server [env: ARC_SERVER_URL]",
        rich_help_panel=_CONNECTION,
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="Read the token from a file [env: ARC_TOKEN_FILE, or ARC_TOKEN for the token itself]",
        rich_help_panel=_CONNECTION,
    ),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        help="Trust these certificates in place of the system's [env: ARC_CA_FILE]",
        rich_help_panel=_CONNECTION,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Output JSON, errors too: -o json")]
FormatOption = Annotated[
    Format,
    typer.Option(
        "-o",
        "--output",
        metavar="FORMAT",
        case_sensitive=False,
        help="Output a table, a wide table with all columns, or json",
    ),
]


class Session:
    """A session opens a client when there is work for it, and shows what comes of it."""

    def __init__(self, connection: ConnectionOptions, output: Format) -> None:
        self.connection = connection
        self.as_json = output is Format.JSON
        self.is_wide = output is Format.WIDE
        self.key: str | None = None
        """With this key a command can be sent again that may or may not have been sent."""
        is_watched = is_terminal(sys.stderr) and not self.as_json
        self.progress: Final = TerminalProgress() if is_watched else CommandProgress()

    def run(self, work: Callable[[Client], Awaitable[T]], *, patience: float = RETRY_SECONDS) -> T:
        """Do some work with a client, and return what it returns.

        `patience`: seconds that the person waits. Raises what the work does, and
        ConfigurationError.
        """
        options = self.connection.client_options(os.environ)
        options["retry_seconds"] = min(RETRY_SECONDS, patience)
        if self.progress.is_shown:
            options["poll_seconds"] = SHOWN_POLL_SECONDS

        async def connected() -> T:
            from arc_runtime.startup.light_imports import import_aiohttp

            import_aiohttp()
            from arc_client.client import Client

            self._show_warnings()

            # The options have been completed from the environment already.
            async with Client(**options, callbacks=self.progress, environ={}) as client:
                return await work(client)

        return asyncio.run(connected())

    def _show_warnings(self) -> None:
        """Show a person what the library logs; a program reads results and errors only."""
        import logging

        class Notes(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                print_note(record.getMessage())

        log = logging.getLogger("arc_client")
        log.propagate = False
        log.handlers = [Notes() if self.progress.is_shown else logging.NullHandler()]

    def run_with_id(
        self,
        command_id: str,
        work: Callable[[Client, str], Awaitable[T]],
        *,
        patience: float = RETRY_SECONDS,
    ) -> T:
        """Do some work with the command whose id begins as given. Raises as `run` does."""

        async def found(client: Client) -> T:
            from arc_client.cli.lookup import with_whole_id

            return await with_whole_id(client, command_id, lambda whole: work(client, whole))

        return self.run(found, patience=patience)

    def show(self, found: T, show: Callable[[T], None]) -> None:
        """Show what was found: as JSON for a program, by `show` for a person."""
        show_json(found) if self.as_json else show(found)


def in_session(command: Callable[..., None]) -> Callable[..., None]:
    """Make a subcommand of a function whose first parameter is a session.

    The subcommand has the options that all share, `--server`, `--token-file`, `--ca-file`,
    `--output` and `--json`, and ends with the exit code of what went wrong.
    """

    def run(
        ctx: typer.Context,
        *,
        output: FormatOption = Format.TABLE,
        as_json: JsonOption = False,
        server: ServerOption = None,
        token_file: TokenFileOption = None,
        ca_file: CaFileOption = None,
        **arguments: Any,
    ) -> None:
        connection = ConnectionOptions(server, token_file, ca_file).over(ctx.obj)
        session = Session(connection, Format.JSON if as_json else output)
        with _errors_shown(session):
            command(session, **arguments)

    # typer reads the parameters from the signature: this command's own, then those that all share.
    first, *shared = inspect.signature(run, eval_str=True).parameters.values()
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    parameters = [first, *own, *shared[:-1]]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


@contextmanager
def _errors_shown(session: Session) -> Generator[None]:
    """Show on stderr what goes wrong, and exit with its code."""
    progress = session.progress
    try:
        try:
            yield
        finally:
            progress.close()
    except ArcError as error:
        explanation = explain(error)
        show_error(error, explanation, as_json=session.as_json)
        raise typer.Exit(explanation.exit_code) from None
    except UnfitForTerminal:
        it = shlex.quote(str(progress.command_id))
        print_error(
            f"command {it} is done, but its result is not fit for a terminal",
            next_steps=[f"Write it to a file: arc wait {it} --out FILE"],
        )
        raise typer.Exit(ExitCode.USAGE) from None
    except BrokenPipeError:
        # The reader has left. Nothing that is still buffered may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None
    except OSError as error:
        it = progress.command_id
        print_error(
            f"the result cannot be written: {error.strerror or error}",
            next_steps=[] if it is None else [f"Read it again: arc wait {shlex.quote(it)}"],
        )
        raise typer.Exit(ExitCode.USAGE) from None
    except (Interrupted, KeyboardInterrupt):
        if progress.is_paused:  # the terminal's line is that of the question
            show_message("")
        show_message(f"interrupted; {_how_to_go_on(progress, session.key)}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _how_to_go_on(progress: CommandProgress, key: str | None) -> str:
    """Return what becomes of a command whose sender left, and what to do about it."""
    if progress.command_id is None:
        if key is None:
            return "nothing was changed"
        return (
            "the command may or may not have been sent\n"
            f"  To send it again without running it twice: the same with --key {shlex.quote(key)}"
        )
    it = shlex.quote(progress.command_id)
    if progress.is_over:
        return f"command {it} has ended\n  Its result: arc wait {it}"
    if progress.state is State.PENDING_UPLOAD:
        return f"command {it} waits for the rest of its params, and will not run without them"
    return f"command {it} goes on\n  Wait on: arc wait {it}\n  Stop it: arc cancel {it}"
