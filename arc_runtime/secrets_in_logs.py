"""Taking secrets out of what is logged, whoever logs it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final, cast

REDACTED: Final = "***"
_MAX_TEXT: Final = 16_384
"""Longer text is cut: a log line is not a place for bodies."""
_MAX_DEPTH: Final = 5
_MAX_ITEMS: Final = 100
_MAX_BITS: Final = 128
"""Of an integer; Python refuses to write out much longer ones."""

_SECRET_NAME: Final = re.compile(
    r"(^|[_.\-\s]|(?<=[a-z]))"
    r"(tokens?|authorization|passwords?|passwd|passphrase|secrets?|signatures?|cookies?|credentials?"
    r"|(api|private|secret|access|signing)[_.\-]?keys?)$",
    re.IGNORECASE,
)
"""A name whose last word is a secret's: `response_token` and `Authorization`, not `token_id`."""
_QUERY_VALUE: Final = re.compile(r"([?&][\w.\-~%\[\]]+=)[^\s&;\"'<>`]+")
_USER_INFO: Final = re.compile(r"(//)[^\s/@\"'<>?#]+@")
_CREDENTIAL: Final = re.compile(
    r"\b(bearer|basic)\s+(?=\S*[\d=]|\S{20})[\w.~+/=\-]{4,}", re.IGNORECASE
)


def redact_fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an event's fields without secrets: bounded, plain JSON values."""
    return {name: _redact(name, value, 0) for name, value in event.items()}


def redact_text(text: str) -> str:
    """Text without the query values and user parts of URLs in it, and without bearer tokens."""
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}… ({len(text) - _MAX_TEXT} more characters)"
    if "=" in text:
        text = _QUERY_VALUE.sub(rf"\1{REDACTED}", text)
    if "@" in text:
        text = _USER_INFO.sub(rf"\1{REDACTED}@", text)
    if " " in text:
        text = _CREDENTIAL.sub(rf"\1 {REDACTED}", text)
    return text


def _redact(name: str, value: Any, depth: int) -> Any:
    """One value under its name."""
    if value is None or isinstance(value, bool):
        return value
    return REDACTED if _is_secret(name) else _clean(value, depth)


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    """Whether a name is a secret's. The same few names come again and again."""
    return _SECRET_NAME.search(name) is not None


def _clean(value: Any, depth: int) -> Any:
    """A value under a harmless name: plain, bounded, and without secrets further down."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"(an integer of {value.bit_length()} bits)"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(cast('bytes', value))} bytes)"
    if depth >= _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        entries = islice(cast("Mapping[Any, Any]", value).items(), _MAX_ITEMS)
        return {_text(name): _redact(_text(name), inner, depth + 1) for name, inner in entries}
    if isinstance(value, list | tuple | set | frozenset):
        items = islice(cast("list[Any]", value), _MAX_ITEMS)
        return [_clean(inner, depth + 1) for inner in items]
    return redact_text(_text(value))


def _text(value: Any) -> str:
    """Anything as text, even what cannot say what it is."""
    try:
        return str(value)
    except Exception:  # somebody's __str__; logging must not fail for it
        return f"<{type(value).__name__}>"
