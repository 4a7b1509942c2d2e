"""Taking secrets out of what is logged, whoever logs it: by their names, by what they look like,
and by their values where the process knows them.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final, cast
from urllib.parse import quote

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
_NAMED: Final = re.compile(
    r"""(?P<name>[A-Za-z][\w.\-]{0,63})(?P<between>=|["']\s*:\s*)(?P<value>"[^"]*"|'[^']*'|[^\s,;&"']+)"""
)
"""`password=hunter2` of a connection string, `"token": "…"` of JSON or of a printed dict."""
_SHORTEST: Final = 6
"""A shorter value is no secret worth the name, and would be found in innocent words."""
_MAX_KNOWN: Final = 256


class KnownSecrets:
    """The values that must not be shown wherever they stand. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, None] = {}
        self._forms: tuple[str, ...] = ()
        """Longest first: a value within another must not leave the rest of it."""

    @property
    def longest(self) -> int:
        """The length of the longest."""
        return len(self._forms[0]) if self._forms else 0

    def add(self, value: str | None) -> None:
        """Mask a value from now on; the latest 256 are known. Those below 6 characters are not."""
        if value is None or len(value) < _SHORTEST or value in self._values:
            return
        with self._lock:
            self._values[value] = None
            while len(self._values) > _MAX_KNOWN:
                del self._values[next(iter(self._values))]
            forms = {form for each in self._values for form in _forms(each)}
            self._forms = tuple(sorted(forms, key=len, reverse=True))

    def mask(self, text: str) -> str:
        """Text without any of them."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, REDACTED)
        return text


_KNOWN: Final = KnownSecrets()
"""Of the process, as its log is."""


def keep_secret(*values: str | None) -> None:
    """Show these values in no log of this process from now on, whatever they stand in."""
    for value in values:
        _KNOWN.add(value)


def mask_known(text: str) -> str:
    """Text without the values that are kept secret, and otherwise as it is."""
    return _KNOWN.mask(text)


def _forms(value: str) -> tuple[str, ...]:
    """How a value may be written: as it is, in a URL, in JSON, as Python shows it."""
    return value, quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1]


def redact_fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an event's fields without secrets: bounded, plain JSON values."""
    return {_KNOWN.mask(name): _redact(name, value, 0) for name, value in event.items()}


def redact_text(text: str) -> str:
    """Text without the query values and user parts of URLs in it, without bearer tokens, without
    values under a secret's name, and without any value that is kept secret.
    """
    if len(text) > _MAX_TEXT:
        head = _KNOWN.mask(text[: _MAX_TEXT + _KNOWN.longest])  # one may stand across the cut
        text = f"{head[:_MAX_TEXT]}… ({len(text) - _MAX_TEXT} more characters)"
    else:
        text = _KNOWN.mask(text)
    if "=" in text:
        text = _QUERY_VALUE.sub(rf"\1{REDACTED}", text)
    if "@" in text:
        text = _USER_INFO.sub(rf"\1{REDACTED}@", text)
    if " " in text:
        text = _CREDENTIAL.sub(rf"\1 {REDACTED}", text)
    if "=" in text or ":" in text:
        text = _NAMED.sub(_without_value, text)
    return text


def _without_value(found: re.Match[str]) -> str:
    """`name=***` when the name is a secret's, else what was found."""
    name, between, value = found.group("name", "between", "value")
    if not _is_secret(name) or value == REDACTED:
        return found.group()
    mark = value[0] if value[0] in "\"'" else ""
    return f"{name}{between}{mark}{REDACTED}{mark}"


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
        return {
            _KNOWN.mask(_text(name)): _redact(_text(name), inner, depth + 1)
            for name, inner in entries
        }
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
