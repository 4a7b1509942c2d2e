"""Named queries out of .sql files.

A query begins with a line `-- name: lease_candidates` and ends with a semicolon; one without a
semicolon is a fragment that others take in by `{command_columns}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT: Final = re.compile(r"^\s*--.*$", re.MULTILINE)
_SPACE: Final = re.compile(r"\s+")
_PARAMETER: Final = re.compile(r":([a-z_]+)")


def parse(text: str) -> dict[str, str]:
    """Return the pieces of one file by name, without comments and line breaks.

    Raises ValueError when a name occurs twice.
    """
    _, *pieces = _NAME.split(text)
    found: dict[str, str] = {}
    for name, body in zip(pieces[::2], pieces[1::2], strict=True):
        if name in found:
            raise ValueError(f"query {name} is there twice")
        found[name] = _SPACE.sub(" ", _COMMENT.sub("", body)).strip()
    return found


@cache
def load() -> Mapping[str, str]:
    """Return every query of the store by name, fragments filled in.

    Raises ValueError when a name occurs twice.
    """
    pieces: dict[str, str] = {}
    folder = files("arc_server.store") / "sql"
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql"):
            continue
        found = parse(file.read_text("utf-8"))
        if twice := pieces.keys() & found.keys():
            raise ValueError(f"queries are there twice: {sorted(twice)}")
        pieces.update(found)
    fragments = {name: text for name, text in pieces.items() if not text.endswith(";")}
    return {
        name: text.format_map(fragments).removesuffix(";")
        for name, text in pieces.items()
        if name not in fragments
    }


def by_place(query: str) -> tuple[str, Sequence[str]]:
    """Return a query with `?` in place of each name, and the names in order, repeats included."""
    # Not `?1`: to Python that is a name, which takes no sequence from 3.14 on.
    return _PARAMETER.sub("?", query), _PARAMETER.findall(query)
