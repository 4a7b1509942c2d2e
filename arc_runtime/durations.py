"""Durations are read and written as people do: `250ms`, `1.5s`, `5m`, `1h30m`, `7d`, seconds."""

from __future__ import annotations

import math
import re
from typing import Final

_UNITS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
"""Largest first: the units of a duration follow each other in this order."""
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|d|h|m|s)")
_PLAIN: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_MAX_SECONDS: Final = 36_500 * 86_400.0
"""A hundred years: a longer duration, added to a date, soon leaves the calendar."""
_EXPECTED: Final = "expected a duration such as 250ms, 1.5s, 5m, 2h, 7d, or a number of seconds"


def parse_duration(value: str | float) -> float:
    """Return a duration in seconds. Units may be combined, largest first: `1h30m`.

    Raises ValueError, with a message for the user, for any other text, for a negative value and
    for more than a hundred years.
    """
    if isinstance(value, str):
        return _bounded(_parse_text(value.strip()))
    if isinstance(value, bool):
        raise ValueError(_EXPECTED)  # noqa: TRY004  # one error type for every bad duration
    return _bounded(float(value))


def format_duration(seconds: float) -> str:
    """Return a duration as text, to the millisecond: `1h30m`, `1.5s`, `250ms`.

    parse_duration reads it back. Raises ValueError when it is negative or not finite.
    """
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"not a duration: {seconds} seconds")
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    parts: list[str] = []
    for unit in ("d", "h", "m"):
        count, milliseconds = divmod(milliseconds, int(_UNITS[unit] * 1000))
        if count:
            parts.append(f"{count}{unit}")
    if milliseconds:
        parts.append(f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s")
    return "".join(parts)


def _parse_text(text: str) -> float:
    """Return the seconds of `90`, `1.5s` or `1h30m`. Raises ValueError."""
    if _PLAIN.fullmatch(text):
        return float(text)
    total, position = 0.0, 0
    smaller = list(_UNITS)
    while position < len(text):
        part = _PART.match(text, position)
        if part is None or part[2] not in smaller:
            raise ValueError(_EXPECTED)
        total += float(part[1]) * _UNITS[part[2]]
        smaller = smaller[smaller.index(part[2]) + 1 :]
        position = part.end()
    if not text:
        raise ValueError(_EXPECTED)
    return total


def _bounded(seconds: float) -> float:
    """Return the seconds. Raises ValueError for a number that is no duration."""
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(_EXPECTED)
    if seconds > _MAX_SECONDS:
        raise ValueError("a duration of more than a hundred years")
    return seconds
