"""Instants for people: as an age in tables, in full where the table is wide."""

from __future__ import annotations

from datetime import datetime
from typing import Final

_JUST_NOW_SECONDS: Final = 5.0
"""An age below this is within what two clocks differ by."""
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
_LARGE: Final = 3
"""From this many of a unit on, the next smaller one is left out: `2h40m`, `3h`."""


def age(moment: datetime, now: datetime) -> str:
    """Return how long ago an instant was, or how far ahead it is: `3m ago`, `in 2h40m`."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) < _JUST_NOW_SECONDS:
        return "now"
    span = short_span(abs(seconds))
    return f"{span} ago" if seconds > 0 else f"in {span}"


def short_span(seconds: float) -> str:
    """Return a length of time in one unit, or in two while the larger one is few: `2h40m`."""
    whole = int(seconds)
    for index, (unit, name) in enumerate(_UNITS):
        if whole < unit:
            continue
        count, rest = divmod(whole, unit)
        if count < _LARGE and index + 1 < len(_UNITS):
            smaller, smaller_name = _UNITS[index + 1]
            if part := rest // smaller:
                return f"{count}{name}{part}{smaller_name}"
        return f"{count}{name}"
    return "0s"


def instant(moment: datetime) -> str:
    """Return an instant with this machine's zone, to the second: `2026-11-29 20:15:00+01:00`."""
    return local(moment).isoformat(" ", "seconds")


def local(moment: datetime) -> datetime:
    """Return an instant in this machine's zone; as it is where it lies outside the calendar there.

    An end that never comes is written as the last second of year 9999.
    """
    try:
        return moment.astimezone()
    except OverflowError:
        return moment
