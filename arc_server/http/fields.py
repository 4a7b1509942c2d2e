"""Fields of a path or a query: text in, values out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec

from arc_protocol.codec import split_path, utc
from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.base import (
    MAX_TAGS,
    MAX_WAIT_SECONDS,
    IdempotencyKey,
    Name,
    TagKey,
    TagValue,
    Timestamp,
)

E = TypeVar("E", bound=StrEnum)

_NUMBER: Final = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?", re.ASCII)


def name(field: str, text: str) -> str:
    """Return a deployment, command or agent name. Raises InvalidCommand."""
    return _converted(field, text, Name)


def optional_name(field: str, text: str | None) -> str | None:
    """Return a name if it is there. Raises InvalidCommand."""
    return None if text is None else name(field, text)


def optional_key(field: str, text: str | None) -> str | None:
    """Return an idempotency key if it is there. Raises InvalidCommand."""
    return None if text is None else _converted(field, text, IdempotencyKey)


def instant(field: str, text: str | None) -> datetime | None:
    """Return an instant in UTC if it is there. Raises InvalidCommand."""
    return None if text is None else utc(_converted(field, text, Timestamp))


def tags(family: str, given: Mapping[str, str]) -> Mapping[str, str] | None:
    """Return tags by their keys, if there are any. Raises InvalidCommand."""
    for key, value in given.items():
        _converted(family + key, key, TagKey)
        _converted(family + key, value, TagValue)
    if len(given) > MAX_TAGS:
        raise InvalidCommand(f"{family}: more than {MAX_TAGS} tags", field=family)
    return dict(sorted(given.items())) or None


def integer(field: str, text: str | None) -> int | None:
    """Return a whole number from 0 if it is there. Raises InvalidCommand."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidCommand(f"{field}: must be a whole number", field=field)
    return int(text)


def wait_seconds(text: str | None) -> float:
    """Return the seconds that a long poll may wait; 0 if absent. Raises InvalidCommand."""
    if text is None:
        return 0.0
    seconds = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise InvalidCommand(
            f"waitSeconds: must be a number from 0 to {MAX_WAIT_SECONDS}", field="waitSeconds"
        )
    return seconds


def boolean(field: str, text: str | None) -> bool:
    """Return a boolean; False if absent. Raises InvalidCommand."""
    if text not in (None, "true", "false"):
        raise InvalidCommand(f"{field}: must be true or false", field=field)
    return text == "true"


def choice(field: str, text: str | None, kind: type[E]) -> E | None:
    """Return one of an enum's values if it is there. Raises InvalidCommand."""
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(kind)
        raise InvalidCommand(f"{field}: must be one of {known}", field=field) from None


def choices(field: str, text: str | None, kind: type[E]) -> tuple[E, ...] | None:
    """Return values of an enum, between commas, if they are there. Raises InvalidCommand."""
    if text is None:
        return None
    chosen = [choice(field, each, kind) for each in text.split(",")]
    return tuple(sorted({each for each in chosen if each is not None}))


def _converted(field: str, text: str, kind: Any) -> Any:
    """Return a text as a value of a type. Raises InvalidCommand."""
    try:
        return msgspec.convert(text, kind)
    except msgspec.ValidationError as error:
        raise InvalidCommand(f"{field}: {split_path(str(error))[0]}", field=field) from None
