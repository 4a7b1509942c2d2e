"""Sections are the building blocks of a configuration class, and the log's section is one of them.

A section's defaults and descriptions are the reference: docs/configuration.md is made from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec


def about(text: str, **bounds: Any) -> Any:
    """Return the metadata of a key: what it is for, and its bounds."""
    return msgspec.Meta(description=text, **bounds)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section is frozen and refuses a key that it does not know. The base of every section."""


class LogSection(Section, frozen=True, kw_only=True):
    """The log goes to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        about("Events below this level are left out. Reloaded on SIGHUP."),
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "text"],
        about("`auto`: text on a terminal, fields in the journal under systemd, else JSON lines."),
    ] = "auto"
