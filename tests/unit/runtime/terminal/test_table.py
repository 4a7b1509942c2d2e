"""Tables at any width: ids are whole, the least important columns go first."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_runtime.terminal.styles import DIM, GREEN
from arc_runtime.terminal.table import Cell, Column, laid_out, print_table
from arc_runtime.terminal.text import width_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID = "cmd_0123456789abcdef0123456789abcdef"
COLUMNS = [
    Column("ID"),
    Column("DEPLOYMENT", rank=3),
    Column("STATE", is_state=True),
    Column("CREATED", rank=1),
    Column("TOOK", rank=4),
    Column("NOTE", rank=2, is_text=True),
    Column("HOST", rank=9, is_wide=True),
]
ROW: list[Cell] = [
    ID,
    "acme-eu-1",
    "SUCCEEDED",
    NOW - timedelta(minutes=3),
    "1.5s",
    "the disk is replaced today",
    "db-1.acme.example",
]


def titles(width: int | None, **options: bool) -> list[str]:
    lines, _ = laid_out(COLUMNS, [ROW], now=NOW, width=width, **options)
    return lines[0].split()


def test_the_columns_of_the_lowest_rank_are_there_first() -> None:
    assert titles(None) == ["ID", "DEPLOYMENT", "STATE", "CREATED", "TOOK", "NOTE"]
    assert titles(100) == ["ID", "DEPLOYMENT", "STATE", "CREATED", "TOOK", "NOTE"]
    assert titles(90) == ["ID", "DEPLOYMENT", "STATE", "CREATED", "NOTE"]
    assert titles(77) == ["ID", "STATE", "CREATED", "NOTE"]
    assert titles(60) == ["ID", "STATE", "CREATED"]
    assert titles(20) == ["ID", "STATE"]


def test_a_narrow_column_has_the_room_that_a_wide_one_before_it_cannot_use() -> None:
    assert titles(83) == ["ID", "STATE", "CREATED", "TOOK", "NOTE"]


def test_the_columns_that_went_are_named() -> None:
    _, missing = laid_out(COLUMNS, [ROW], now=NOW, width=77)

    assert missing == ["DEPLOYMENT", "TOOK"]


def test_an_empty_column_goes_before_a_full_one_and_is_not_missed() -> None:
    row = [*ROW]
    row[3] = None

    lines, missing = laid_out(COLUMNS, [row], now=NOW, width=91)

    assert lines[0].split() == ["ID", "DEPLOYMENT", "STATE", "TOOK", "NOTE"]
    assert missing == []


def test_a_wide_table_has_all_columns_and_whole_instants() -> None:
    lines, missing = laid_out(COLUMNS, [ROW], now=NOW, is_wide=True)

    assert lines[0].split() == [column.title for column in COLUMNS]
    assert re.search(r"2026-0\d-\d\d \d\d:\d\d:00[+-]\d\d:\d\d  1.5s", lines[1])
    assert missing == []


def test_free_text_is_shortened_to_the_room_that_is_left() -> None:
    lines, _ = laid_out(COLUMNS, [ROW], now=NOW, width=77)

    assert lines[1].endswith("the disk is replac…")
    assert width_of(lines[1]) <= 77


def test_a_state_has_its_colour_and_its_word() -> None:
    columns = [Column("ID"), Column("STATE", is_state=True)]

    lines, _ = laid_out(
        columns, [[ID, "SUCCEEDED"], [ID, "gone"]], now=NOW, is_coloured=True, width=80
    )

    assert lines[1:] == [f"{ID}  \x1b[{GREEN}mSUCCEEDED\x1b[0m", f"{ID}  \x1b[{DIM}mgone\x1b[0m"]


@pytest.mark.parametrize(
    "foreign",
    ["a[/x]", "[link=http://x]y[/link]", "\x1b[2J", "\x9b2J", "a\u202eb", "a\nb", "\ud800", "日本"],
)
def test_foreign_text_is_shown_as_text_and_columns_stay_in_line(foreign: str) -> None:
    columns = [Column("NAME"), Column("STATE")]

    lines, _ = laid_out(columns, [[foreign, "ok"], ["b", "ok"]], now=NOW)

    assert len({width_of(line) for line in lines[1:]}) == 1
    assert "".join(lines).isprintable()
    if "[" in foreign and "\x1b" not in foreign:
        assert foreign.replace("\x9b", "\\x9b") in lines[1]


@given(
    ids=st.lists(st.from_regex(r"(cmd|tok)_[0-9a-z]{4,40}", fullmatch=True), min_size=1),
    notes=st.text(max_size=60),
    width=st.integers(1, 200),
)
def test_ids_are_whole_and_lines_fit_at_any_width(ids: list[str], notes: str, width: int) -> None:
    columns = [Column("ID"), Column("OF", rank=1), Column("NOTE", rank=2, is_text=True)]

    lines, _ = laid_out(columns, [[each, each, notes] for each in ids], now=NOW, width=width)

    assert [line.split()[0] for line in lines[1:]] == ids
    least = max(map(len, ids))
    assert all(width_of(line) <= max(width, least) for line in lines)


def test_a_pipe_has_neither_colours_nor_cuts(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")

    print_table(COLUMNS, [ROW], more="--limit 100")

    shown = capfd.readouterr()
    assert ID in shown.out
    assert "the disk is replaced today" in shown.out
    assert "\x1b" not in shown.out
    assert shown.err == "(there are more: --limit 100)\n"


def test_an_empty_table_is_its_titles_in_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS[:1], [])

    assert capfd.readouterr() == ("ID\n", "")
