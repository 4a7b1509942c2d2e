"""`arc keys`: make a key to sign commands with, and show its public part."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from arc_client.cli.explain import ExitCode
from arc_client.cli.output import print_line, say
from arc_runtime.key_files import (
    SIGNING,
    KeyFileError,
    check_name,
    new_key,
    read_private,
    write_private,
)

app = typer.Typer(
    name="keys",
    help="Keys to sign commands with.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the key is called on the hosts.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Its file; NAME.key unless given."),
    ] = None,
) -> None:
    """Make a key: the private part goes to a file (0600), the public line to stdout."""
    with _reporting():
        check_name(name)
        file = out or Path(f"{name}.key")
        key = new_key(name, SIGNING)
        write_private(file, key)
        if sys.stderr.isatty():
            say(f"The private key is in {file}. This line goes to the hosts:")
        print_line(key.public().line)


@app.command()
def public(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A private key's file.")],
) -> None:
    """Print the public line of a key."""
    with _reporting():
        print_line(read_private(file, SIGNING).public().line)


@contextmanager
def _reporting() -> Generator[None]:
    """Tell what went wrong, and exit with the code for it."""
    try:
        yield
    except KeyFileError as error:
        say(f"error: {error}")
        raise typer.Exit(ExitCode.USAGE) from None
