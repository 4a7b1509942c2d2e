"""The base of every section of a configuration, and the section that server and agent share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec


def about(text: str, **bounds: Any) -> Any:
    """Return the metadata of a key: its description for docs/configuration.md, and its bounds."""
    return msgspec.Meta(description=text, **bounds)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of a configuration: frozen, and an unknown key is refused."""


class LogSection(Section, frozen=True, kw_only=True):
    """The log that a process writes to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        about("The lowest level that is logged. A reload changes it."),
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "text"],
        about(
            "`auto` writes text on a terminal, fields to the journal under systemd, and JSON lines"
            " elsewhere."
        ),
    ] = "auto"
