"""Values of command lines that argparse reads."""

from __future__ import annotations

from argparse import ArgumentTypeError

from arc_runtime.durations import parse_duration


def duration(text: str) -> float:
    """Return a duration such as `15s` or `1h30m` in seconds. Raises ArgumentTypeError."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
