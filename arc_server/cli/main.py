"""The console script `arc-server`: its groups of commands, and how errors end it."""

from __future__ import annotations

import sys
from pathlib import Path
from ssl import OPENSSL_VERSION
from typing import Annotated

import typer

from arc_protocol.errors import ArcError
from arc_runtime import sqlite_version
from arc_runtime.config.settings import SettingsError
from arc_runtime.control_socket import ControlRefused, NotListening
from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.prefixes import PrefixError
from arc_runtime.terminal.table import print_note
from arc_runtime.terminal.typer_programs import Program
from arc_server.app import CannotStart
from arc_server.backup.manifest import BackupError
from arc_server.cli.agents import agents
from arc_server.cli.backups import backup, begin, fsck, restore
from arc_server.cli.credentials import credentials
from arc_server.cli.database import FAILED, UNUSABLE
from arc_server.cli.deployments import deployments as deployments_commands
from arc_server.cli.enrolment_tokens import enrolment_tokens
from arc_server.cli.keys import keys
from arc_server.cli.purging import delete_command, purge
from arc_server.cli.serve import serve
from arc_server.cli.targets import targets
from arc_server.cli.tokens import tokens
from arc_server.config.parts import deployments, server_tls
from arc_server.config.reading import exposed_secrets, load_config
from arc_server.server_keys import KeysUnusable

cli = Program(
    "arc-server",
    about="Run the server of ARC and manage its tokens and keys",
    epilog=examples(
        "arc-server serve --data-dir ./data --listen 127.0.0.1:8484",
        "arc-server token create --scope sender --deployment acme-eu-1 --out s.token",
    ),
)


def print_versions(is_asked: bool) -> None:
    """Print the versions that matter to the owner of a server, and exit."""
    if not is_asked:
        return
    from importlib.metadata import version

    sqlite = ".".join(map(str, sqlite_version.version()))
    python = ".".join(map(str, sys.version_info[:3]))
    sys.stdout.write(f"arc-server {version('arc-commands')}\n")
    sys.stdout.write(
        f"Python {python}, aiohttp {version('aiohttp')}, SQLite {sqlite},"
        f" {OPENSSL_VERSION.rpartition('  ')[0] or OPENSSL_VERSION}\n"
    )
    if sqlite_version.can_damage(sqlite_version.version()):
        print_note(f"SQLite {sqlite} can damage a database: {sqlite_version.HINT}")
    raise typer.Exit


@cli.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=print_versions, help="Print the versions"
        ),
    ] = False,
) -> None:
    """Run before every command"""


cli.command(
    "serve",
    epilog=examples(
        "arc-server serve --config /etc/arc-server/server.yaml",
        "arc-server serve --data-dir ./data --listen 127.0.0.1:8484 --no-auth",
    ),
)(serve)
cli.command(
    "backup",
    epilog=examples("arc-server backup /backups/arc-2026-11-29"),
)(backup)
cli.command(
    "restore",
    epilog=examples("arc-server restore /backups/today --data-dir ./data --former ./data.old"),
)(restore)
cli.command(
    "begin-epoch",
    epilog=examples("arc-server begin-epoch --data-dir ./data --former ./data.old"),
)(begin)
cli.command(
    "fsck",
    epilog=examples("arc-server fsck --deep", "arc-server fsck --backup /backups/arc-2026-11-29"),
)(fsck)
cli.command(
    "purge",
    epilog=examples("arc-server purge", "arc-server purge --older-than 7d"),
)(purge)
cli.command(
    "delete-command",
    epilog=examples("arc-server delete-command cmd_0198c5f2a7b1"),
)(delete_command)
cli.add_typer(tokens, name="token")
cli.add_typer(keys, name="keys")
cli.add_typer(enrolment_tokens, name="enrol-token")
cli.add_typer(credentials, name="credential")
cli.add_typer(deployments_commands, name="deployment")
cli.add_typer(targets, name="target")
cli.add_typer(agents, name="agent")


def main() -> None:
    """Run the command line. An error ends with its exit code."""
    try:
        cli()
    except (SettingsError, CannotStart, KeysUnusable) as error:
        print_error(str(error))
        raise SystemExit(UNUSABLE) from None
    except (BackupError, PrefixError, ControlRefused, NotListening) as error:
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
    config = load_config(file)
    deployments(config)
    server_tls(config)
    sys.stdout.write(f"{file}: good\n")
    for line in exposed_secrets(config, file):
        print_note(line)


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
