"""Ranges of bytes (RFC 9110, 14)."""

from __future__ import annotations

import re
from typing import Final

from arc_protocol.errors import RangeNotSatisfiable

_RANGE: Final = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.ASCII | re.I)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return start and end (not included) of the requested range; None for the whole.

    Several ranges, other units and malformed headers are ignored, as the RFC asks. Raises
    RangeNotSatisfiable for a range outside of the blob.
    """
    found = None if header is None else _RANGE.fullmatch(header)
    if found is None or not (found[1] or found[2]):
        return None
    if found[1]:
        start = int(found[1])
        end = min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < start:
            return None
    else:
        start, end = max(0, size - int(found[2])), size
    if start >= end:
        raise RangeNotSatisfiable(f"Range: the blob has {size} bytes", size=size)
    return start, end
