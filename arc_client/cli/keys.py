"""The subcommand `arc keys` creates keys that sign commands, and prints their public parts."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from arc_client.cli.explain import ExitCode
from arc_client.cli.output import print_line, show_message
from arc_runtime.key_files import (
    SIGNING,
    KeyFileError,
    check_name,
    new_key,
    read_private,
    write_private,
)
from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.typer_programs import Program

app = Program(
    "keys",
    about="Manage the keys that sign commands",
    epilog=examples("arc keys new vendor", "arc keys public vendor.key"),
)


@app.command(
    epilog=examples("arc keys new vendor", "arc keys new vendor --out ~/.config/arc/vendor.key")
)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key's name on the hosts")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write the private key to a file [default: NAME.key]"
        ),
    ] = None,
) -> None:
    """Create a key and print its public line; the private key goes to a file (0600)"""
    with _errors_shown():
        check_name(name)
        file = out or Path(f"{name}.key")
        key = new_key(name, SIGNING)
        write_private(file, key)
        if sys.stderr.isatty():
            show_message(f"The private key is in {file}. This line goes to the hosts:")
        print_line(key.public().line)


@app.command(epilog=examples("arc keys public vendor.key"))
def public(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file of a private key")],
) -> None:
    """Print the public line of a key"""
    with _errors_shown():
        print_line(read_private(file, SIGNING).public().line)


@contextmanager
def _errors_shown() -> Generator[None]:
    """Show on stderr what goes wrong, and exit with its code."""
    try:
        yield
    except KeyFileError as error:
        print_error(str(error))
        raise typer.Exit(ExitCode.USAGE) from None
