"""The finding of a check: good, bad with advice, or untested with the reason."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from arc_runtime.logs.redaction import mask_known

CHECK_SECONDS: Final = 10.0
"""The time limit of a check."""


_MARK_CELLS: Final = 4
_NAME_CELLS: Final = 10
TEXT_CELL: Final = _MARK_CELLS + 1 + _NAME_CELLS + 1
"""The cell of a line at which the text begins."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check."""

    name: str
    state: Literal["ok", "bad", "untested"]
    text: str

    def line(self) -> str:
        """Return the finding as a line of text."""
        mark = {"ok": "ok", "bad": "BAD", "untested": "-"}[self.state]
        text = "".join(char if char.isprintable() else " " for char in mask_known(self.text))
        return f"{mark:<{_MARK_CELLS}} {self.name:<{_NAME_CELLS}} {text}"


def ok(name: str, text: str) -> Finding:
    """Return a good finding."""
    return Finding(name=name, state="ok", text=text)


def bad(name: str, text: str) -> Finding:
    """Return a bad finding; the text gives advice."""
    return Finding(name=name, state="bad", text=text)


def untested(name: str, text: str) -> Finding:
    """Return the finding of a check that is impossible here; the text gives the reason."""
    return Finding(name=name, state="untested", text=text)
