"""Lists of the server's records, as tables in the house style or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, TypeVar

import msgspec
import typer

from arc_runtime.terminal.table import Cell, Column, print_table
from arc_runtime.terminal.text import json_for_terminal

R = TypeVar("R", bound=msgspec.Struct)


class Output(StrEnum):
    """The form of a list."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"


OutputOption = Annotated[
    Output, typer.Option("-o", "--output", help="Form: wide shows every column and whole instants")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, as -o json does")]


def print_list(
    rows: Sequence[R],
    columns: Sequence[Column],
    cells: Callable[[R], Sequence[Cell]],
    *,
    output: Output,
    as_json: bool,
) -> None:
    """Write rows as a table of `columns`, filled by `cells`, or as JSON."""
    if as_json or output is Output.JSON:
        sys.stdout.write(json_for_terminal(msgspec.json.encode(rows).decode()) + "\n")
        return
    print_table(columns, [cells(row) for row in rows], is_wide=output is Output.WIDE)
