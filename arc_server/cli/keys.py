"""`arc-server keys`: the keys that sign URLs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
import typer

from arc_runtime.directories import kept_by_owner
from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.table import Cell, Column
from arc_runtime.terminal.typer_programs import Program
from arc_server.app import KEYS, CannotStart
from arc_server.cli.database import ConfigOption, DataDirOption, config_here
from arc_server.cli.listing import JsonOption, Output, OutputOption, print_list
from arc_server.config.parts import max_url_seconds
from arc_server.server_keys import FILE_NAME, read_keys, rotate

KEY_SLACK_SECONDS: Final = 3600
"""Kept on top of the life of a retired key's URLs: a server may sign with it until it notices."""

keys = Program(
    "keys",
    about="List and rotate the keys that sign URLs",
    epilog=examples("arc-server keys list", "arc-server keys rotate"),
)

_COLUMNS: Final = (
    Column("ID"),
    Column("STATE", is_state=True),
    Column("CREATED", rank=1),
    Column("RETIRED", rank=2),
)


class KeyRow(msgspec.Struct, frozen=True):
    """A key as a list shows it, without its secret."""

    id: str
    created: datetime
    retired: datetime | None

    def cells(self) -> tuple[Cell, ...]:
        """Return the row of the table."""
        state = "current" if self.retired is None else "retired"
        return self.id, state, self.created, self.retired


@keys.command(
    "rotate", epilog=examples("arc-server keys rotate", "arc-server keys rotate --forget-older")
)
def rotate_keys(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    forget_older: Annotated[
        bool,
        typer.Option("--forget-older", help="Remove older keys and the URLs they signed"),
    ] = False,
) -> None:
    """Sign with a new key, and print its id; URLs that are out stay good"""
    loaded = config_here(config, data_dir)
    keep = timedelta(seconds=max_url_seconds(loaded) + KEY_SLACK_SECONDS)
    try:
        with kept_by_owner(loaded.data_dir):
            now_in_use = rotate(
                loaded.data_dir / KEYS, datetime.now(UTC), keep, forget_older=forget_older
            )
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None
    sys.stdout.write(f"{now_in_use[0].id}\n")


@keys.command("list", epilog=examples("arc-server keys list"))
def list_keys(
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List the keys without their secrets, the one that signs first"""
    loaded = config_here(config, data_dir)
    try:
        found = read_keys(loaded.data_dir / KEYS / FILE_NAME)
    except OSError as error:
        raise CannotStart(f"data_dir: {error.filename}: {error.strerror}") from None
    rows = [KeyRow(key.id, key.created_at, key.retired_at) for key in found]
    print_list(rows, _COLUMNS, KeyRow.cells, output=output, as_json=as_json)
