"""Redaction takes secrets out of log events: by name, by form, and by value where it is known."""

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
"""Longer text is cut: a log line is no place for bodies."""
_MAX_DEPTH: Final = 5
_MAX_ITEMS: Final = 100
_MAX_BITS: Final = 128
"""Bits of an integer; Python refuses to write out much longer ones."""

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
"""`password=hunter2` of a connection string, `"token": "…"` of JSON or of a dict's repr."""
_SHORTEST: Final = 6
"""A shorter value is no secret, and would be found in innocent words."""
_MAX_KNOWN: Final = 256


class KnownSecrets:
    """Known secrets are values that no log may show. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, None] = {}
        self._forms: tuple[str, ...] = ()
        """Longest first: masking a value within another would leave the rest of it."""

    @property
    def longest(self) -> int:
        """Return the length of the longest form of a value."""
        return len(self._forms[0]) if self._forms else 0

    def add(self, value: str | None) -> None:
        """Mask a value from now on; the latest 256 are kept, and none below 6 characters."""
        if value is None or len(value) < _SHORTEST or value in self._values:
            return
        with self._lock:
            self._values[value] = None
            while len(self._values) > _MAX_KNOWN:
                del self._values[next(iter(self._values))]
            forms = {form for each in self._values for form in _forms(each)}
            self._forms = tuple(sorted(forms, key=len, reverse=True))

    def mask(self, text: str) -> str:
        """Return a text without any of the values."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, REDACTED)
        return text


_KNOWN: Final = KnownSecrets()
"""One for the process, as there is one log."""


def keep_secret(*values: str | None) -> None:
    """Mask these values in every log event of this process from now on."""
    for value in values:
        _KNOWN.add(value)


def mask_known(text: str) -> str:
    """Return a text without the values that are kept secret, and otherwise as it is."""
    return _KNOWN.mask(text)


def _forms(value: str) -> tuple[str, ...]:
    """Return the ways to write a value: as it is, in a URL, in JSON, as a Python repr."""
    return value, quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1]


def redact_fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of an event's fields without secrets: bounded, plain JSON values."""
    return {_KNOWN.mask(name): _redact(name, value, 0) for name, value in event.items()}


def redact_text(text: str) -> str:
    """Return a text without secrets, cut to a bounded length.

    Masked are query values and user parts of URLs, bearer tokens, values under a secret's name, and
    every value that is kept secret.
    """
    if len(text) > _MAX_TEXT:
        head = _KNOWN.mask(text[: _MAX_TEXT + _KNOWN.longest])  # a value may lie across the cut
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
    """Return `name=***` if the name is a secret's, else the text that was found."""
    name, between, value = found.group("name", "between", "value")
    if not _is_secret(name) or value == REDACTED:
        return found.group()
    mark = value[0] if value[0] in "\"'" else ""
    return f"{name}{between}{mark}{REDACTED}{mark}"


def _redact(name: str, value: Any, depth: int) -> Any:
    """Return the value of a name, masked if the name is a secret's."""
    if value is None or isinstance(value, bool):
        return value
    return REDACTED if _is_secret(name) else _clean(value, depth)


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    """Return True if a name is a secret's. Cached: a few names come in every event."""
    return _SECRET_NAME.search(name) is not None


def _clean(value: Any, depth: int) -> Any:
    """Return the value of a harmless name: plain, bounded, and without secrets inside it."""
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
    """Return any value as text, even one whose `__str__` fails."""
    try:
        return str(value)
    except Exception:  # a foreign __str__: logging must not fail for it
        return f"<{type(value).__name__}>"
