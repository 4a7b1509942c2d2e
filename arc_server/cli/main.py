"""The console script `arc-server`: its groups of commands, and how errors end it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from arc_protocol.errors import ArcError
from arc_runtime.config.settings import SettingsError
from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.prefixes import PrefixError
from arc_runtime.terminal.typer_programs import Program
from arc_server.app import CannotStart
from arc_server.cli.credentials import credentials
from arc_server.cli.database import FAILED, UNUSABLE
from arc_server.cli.enrolment_tokens import enrolment_tokens
from arc_server.cli.keys import keys
from arc_server.cli.serve import serve
from arc_server.cli.targets import targets
from arc_server.cli.tokens import tokens
from arc_server.config.parts import deployments
from arc_server.config.reading import load_config
from arc_server.server_keys import KeysUnusable

cli = Program(
    "arc-server",
    about="Run the server of ARC and manage its tokens and keys",
    epilog=examples(
        "arc-server serve --data-dir ./data --listen 127.0.0.1:8484",
        "arc-server token create --scope sender --deployment acme-eu-1 --out s.token",
    ),
)
cli.command(
    "serve",
    epilog=examples(
        "arc-server serve --config /etc/arc-server/server.yaml",
        "arc-server serve --data-dir ./data --listen 127.0.0.1:8484 --no-auth",
    ),
)(serve)
cli.add_typer(tokens, name="token")
cli.add_typer(keys, name="keys")
cli.add_typer(enrolment_tokens, name="enrol-token")
cli.add_typer(credentials, name="credential")
cli.add_typer(targets, name="target")


def main() -> None:
    """Run the command line. An error ends with its exit code."""
    try:
        cli()
    except (SettingsError, CannotStart, KeysUnusable) as error:
        print_error(str(error))
        raise SystemExit(UNUSABLE) from None
    except PrefixError as error:
        print_error(str(error))
        raise SystemExit(FAILED) from None
    except ArcError as error:
        print_error(error.message)
        raise SystemExit(FAILED) from None


@cli.command("check-config", epilog=examples("arc-server check-config /etc/arc-server/server.yaml"))
def check_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Configuration (YAML)")],
) -> None:
    """Check a configuration file"""
    deployments(load_config(file))
    sys.stdout.write(f"{file}: good\n")


def _administration(verb: str, text: str) -> None:
    """Add a command of arc_runtime/install, which has a parser of its own."""

    @cli.command(
        verb,
        help=text,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )
    def run(context: typer.Context) -> None:  # pyright: ignore[reportUnusedFunction]
        from arc_server.cli.install import front

        raise typer.Exit(front().main([verb, *context.args]))


_administration("install", "Install the server on this host as a systemd unit")
_administration("uninstall", "Remove the server from this host")
_administration("upgrade", "Upgrade the server, and go back if the new version fails to start")
