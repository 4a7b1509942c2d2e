"""The system's own words for a failed connection."""

from __future__ import annotations

import os
from typing import Final

_ASYNCIO: Final = "Connect call failed"
"""Begins the text `Connect call failed ('127.0.0.1', 9)`, by which asyncio replaces these words."""


def system_text(error: OSError) -> str:
    """Return why the system refused something, `Connection refused`; our own words stay."""
    if error.errno and (error.strerror or "").startswith(_ASYNCIO):
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__
