"""docs/protocol.md against the code: its routes, errors, transitions, fields and anchors."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec

from arc_protocol import messages
from arc_protocol.errors import ArcError, InternalError
from arc_protocol.lifecycle import TERMINAL, TRANSITIONS
from arc_protocol.messages.base import Message, State
from arc_server.app import all_routes
from arc_server.config.sections import ServerConfig

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()


def section(title: str) -> str:
    """Return the text of one section."""
    return re.split(rf"^## \d+\. {title}\n", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]


def rows(title: str) -> Iterator[list[str]]:
    """Return the cells of each row of the tables of a section."""
    for line in section(title).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def errors(kind: type[ArcError] = ArcError) -> Iterator[type[ArcError]]:
    """Return every error of the protocol below one."""
    for below in kind.__subclasses__():
        if below.__module__ == "arc_protocol.errors":
            yield below
            yield from errors(below)


def test_the_page_has_the_routes_of_the_server_and_no_others() -> None:
    nothing: Any = MagicMock()
    served = {
        (route.method, re.sub(r"\*+", "{}", route.path))
        for route in all_routes(nothing, ServerConfig())
    }

    told = {
        (method, re.sub(r"\{\w+\}|…", "{}", path))
        for cells in rows("Overview")
        for names, path in re.findall(r"^((?:`?[A-Z]+`?(?: and )?)+) ?`?(/[^`]*)`", cells[0])
        for method in re.findall("[A-Z]+", names)
    }
    assert told == served


def test_the_page_has_every_error_with_its_status_and_whether_to_try_again() -> None:
    known = {
        (str(each.http_status), each.code, "yes" if each.retryable else "no")
        for each in errors()
        if each is not InternalError
    }

    told = {
        (cells[0], cells[1].strip("`"), cells[3]) for cells in rows("Errors") if cells[0].isdigit()
    }
    assert told == known


def test_the_page_has_every_transition_and_no_other() -> None:
    possible = {(before, after) for before, following in TRANSITIONS.items() for after in following}

    told = {
        (State(before), State(after))
        for cells in rows("Lifecycle")
        for before in re.findall("[A-Z_]{6,}", cells[0])
        for after in re.findall("[A-Z_]{6,}", cells[1])
    }
    assert told == possible
    assert {after for _, after in told} - {before for before, _ in told} == TERMINAL


def test_the_page_names_every_field_of_every_message() -> None:
    for module in pkgutil.iter_modules(messages.__path__):
        import_module(f"{messages.__name__}.{module.name}")
    import_module("arc_protocol.enrolment")
    fields = {
        field.encode_name
        for kind in Message.__subclasses__()
        if kind.__module__.startswith("arc_protocol.")
        for field in msgspec.structs.fields(kind)
    }
    words = set(re.findall(r"\w+", PAGE))

    assert fields - words == set()


def test_the_sections_are_numbered_and_each_has_an_anchor_of_its_title() -> None:
    headings = re.findall(r'<a id="([\w-]+)"></a>\n\n## (\d+)\. (.+)', PAGE)

    assert [int(number) for _, number, _ in headings] == list(range(1, len(headings) + 1))
    assert [anchor for anchor, _, _ in headings] == [
        title.lower().replace(" ", "-") for _, _, title in headings
    ]
    assert len(headings) == PAGE.count("\n## ")
    links = set(re.findall(r"\]\(#([\w-]+)\)", PAGE))
    assert links <= {anchor for anchor, _, _ in headings}
