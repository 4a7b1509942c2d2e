"""`arc-agent`: run it, check its configuration.

Exit codes: 0 done; 1 it broke; 2 usage or configuration (design.md).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from arc_runtime.settings import SettingsError

app = typer.Typer(
    name="arc-agent",
    help="Runs commands on a host that nobody can reach.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The configuration (YAML).")
    ] = None,
    server: Annotated[str | None, typer.Option("--server", help="The server's URL.")] = None,
    deployment: Annotated[
        str | None, typer.Option("--deployment", help="The deployment whose commands are run.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="A file that holds the bearer token.")
    ] = None,
    handlers: Annotated[
        list[str] | None,
        typer.Option("--handlers", help="A module, or a .py file, with handlers. Repeatable."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Spool and temporary files.")
    ] = None,
) -> None:
    """Run the agent until it is told to stop (SIGTERM)."""
    overrides: dict[str, Any] = {
        "server.url": server,
        "deployment": deployment,
        "server.token_file": token_file,
        "handlers.modules": handlers or None,
        "data_dir": data_dir,
    }
    if handlers:
        sys.path.insert(0, os.getcwd())  # who names a module by hand means the one here
    raise typer.Exit(_run(config, overrides))


@app.command("check-config")
def check_config(
    file: Annotated[Path, typer.Argument(help="The configuration (YAML).")],
) -> None:
    """Check a configuration, handlers included, without running anything."""
    from arc_agent.live import Live, Source

    try:
        live = Live(Source(file=file, environ=os.environ, overrides={}))
    except Exception as error:
        _refuse(error)
    names = ", ".join(handler.name for handler in live.registry)
    typer.echo(f"{file}: ok; {len(live.registry)} handlers: {names}", err=True)


def _run(file: Path | None, overrides: dict[str, Any]) -> int:
    """The agent's whole life; the exit code."""
    from arc_agent.agent import Agent
    from arc_agent.live import Live, Source

    try:
        live = Live(Source(file=file, environ=os.environ, overrides=overrides))
    except Exception as error:
        _refuse(error)
    live.configure_logs()

    async def main() -> int:
        agent = Agent(live)
        try:
            code = await agent.run()
        except Exception as error:
            _refuse(error)
        if agent.has_abandoned:
            sys.stderr.flush()
            os._exit(code)  # what ignores its cancellation would keep the process alive
        return code

    return asyncio.run(main())


def _refuse(error: Exception) -> NoReturn:
    """Say in one line what is wrong and exit 2; anything unforeseen is raised on."""
    from arc_agent.data_dir import DataDirError
    from arc_agent.handlers.loading import ImportFailed
    from arc_agent.handlers.registry import HandlerError
    from arc_agent.spool import SpoolError
    from arc_agent.tokens import TokenError

    known = (SettingsError, TokenError, HandlerError, DataDirError, SpoolError)
    if not isinstance(error, known):
        raise error
    if isinstance(error, ImportFailed):
        typer.echo(error.report, err=True)
    typer.echo(f"arc-agent: {error}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """The console script."""
    app()
