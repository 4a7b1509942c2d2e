"""Tables keep ids and states whole: what does not fit is a column less, never half a word.

On a terminal the columns of the lowest `rank` are there first, and each further one if it fits;
free text then shares the room that is left. In a pipe a table is as wide as its cells, and without
colours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from arc_runtime.terminal.styles import (
    BOLD,
    DIM,
    has_colours,
    is_terminal,
    style_of_state,
    styled,
    width_of_terminal,
)
from arc_runtime.terminal.text import on_one_line, padded, printable, shortened, width_of
from arc_runtime.terminal.times import age, instant
from arc_runtime.terminal.wrapping import wrapped

Cell = str | int | datetime | None

GAP: Final = "  "
LEAST_TEXT: Final = 16
"""A column of free text with less room than this says nothing."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Its cells stay whole unless they are free text."""

    title: str
    rank: int = 0
    """0: always there. Of the others, the lower ones are there first; empty columns come last."""
    is_text: bool = False
    """True: free text, which may be shortened. Never for ids, names and states."""
    is_state: bool = False
    """True: the first word of a cell is a state, and has its colour."""
    is_wide: bool = False
    """True: only in a wide table."""


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    is_wide: bool = False,
    more: str | None = None,
) -> None:
    """Write a table to stdout, by what stdout is; notes about it go to stderr.

    `is_wide`: all columns, and instants in full. `more`: how to see the rows that are not here,
    when there are more: `--limit 100`.
    """
    now = datetime.now(UTC)
    if not rows and is_terminal(sys.stdout):
        print_note("there are none")
        return
    shows_all = is_wide or not is_terminal(sys.stdout)
    width = None if shows_all else width_of_terminal(sys.stdout)
    lines, missing = laid_out(
        columns, rows, now=now, width=width, is_wide=is_wide, is_coloured=has_colours(sys.stdout)
    )
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())
    sys.stdout.flush()
    if missing:
        print_note(f"not shown: {', '.join(missing)}; -o wide shows all")
    if more is not None:
        print_note(f"there are more: {more}")


def print_note(text: str) -> None:
    """Write a remark about the output to stderr."""
    sys.stdout.flush()
    style = DIM if has_colours(sys.stderr) else None
    note = wrapped(f"({printable(text)})", sys.stderr, indent=1)
    sys.stderr.write(f"{styled(note, style)}\n")
    sys.stderr.flush()


def laid_out(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    now: datetime,
    width: int | None = None,
    is_wide: bool = False,
    is_coloured: bool = False,
) -> tuple[list[str], list[str]]:
    """Return the lines of a table, and the titles of the columns that it has no room for.

    `width` None: there is room for all.
    """
    shown = {
        column: [_text(row[index], now, is_wide) for row in rows]
        for index, column in enumerate(columns)
        if is_wide or not column.is_wide
    }
    widths = {column: _width(column, cells) for column, cells in shown.items()}
    missing = _left_out(shown, widths, width)
    shown = {column: cells for column, cells in shown.items() if column not in missing}
    if width is not None:
        _share(width, {column: widths[column] for column in shown}, widths)
    lines = list(_lines(shown, widths, is_coloured))
    return lines, [column.title for column in missing if any(row for row in missing[column])]


def _left_out(
    shown: Mapping[Column, Sequence[str]], widths: Mapping[Column, int], width: int | None
) -> dict[Column, Sequence[str]]:
    """Return the columns that there is no room for: the lowest ranks are there first."""
    if width is None:
        return {}
    least = {column: _least(column, widths[column]) + len(GAP) for column in shown}
    room = width + len(GAP) - sum(least[column] for column in shown if not column.rank)
    missing: set[Column] = set()
    ranked = (column for column in shown if column.rank)
    for column in sorted(ranked, key=lambda column: (not any(shown[column]), column.rank)):
        if least[column] <= room:
            room -= least[column]
        else:
            missing.add(column)
    return {column: cells for column, cells in shown.items() if column in missing}


def _share(width: int, shown: Mapping[Column, int], widths: dict[Column, int]) -> None:
    """Give the columns of free text, from the first on, what room the others leave."""
    least = {column: _least(column, natural) for column, natural in shown.items()}
    spare = max(0, width - sum(least.values()) - len(GAP) * (len(shown) - 1))
    for column, natural in shown.items():
        given = min(natural - least[column], spare)
        widths[column] = least[column] + given
        spare -= given


def _least(column: Column, natural: int) -> int:
    """Return the fewest cells that a column is of use in."""
    return min(natural, max(LEAST_TEXT, len(column.title))) if column.is_text else natural


def _width(column: Column, cells: Sequence[str]) -> int:
    return max(width_of(column.title), *map(width_of, cells)) if cells else width_of(column.title)


def _lines(
    shown: Mapping[Column, Sequence[str]], widths: Mapping[Column, int], is_coloured: bool
) -> Iterator[str]:
    """Yield the title line and a line for each row."""
    titles = (padded(column.title, widths[column]) for column in shown)
    yield _styled(GAP.join(titles).rstrip(), BOLD, is_coloured)
    for row in zip(*shown.values(), strict=True):
        cells: list[str] = []
        for column, cell in zip(shown, row, strict=True):
            text = shortened(cell, widths[column]) if column.is_text else cell
            style = style_of_state(text) if column.is_state else None
            space = padded(text, widths[column])[len(text) :]
            cells.append(_styled(text, style, is_coloured) + space)
        yield GAP.join(cells).rstrip()


def _styled(text: str, style: str | None, is_coloured: bool) -> str:
    return styled(text, style) if is_coloured else text


def _text(cell: Cell, now: datetime, is_wide: bool) -> str:
    """Return a cell as text on one line."""
    match cell:
        case None:
            return ""
        case datetime():
            return instant(cell) if is_wide else age(cell, now)
        case _:
            return on_one_line(str(cell))
