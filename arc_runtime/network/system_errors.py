"""The system's own words for a failed connection."""

from __future__ import annotations

import os


def system_text(error: OSError) -> str:
    """Return why the system refused something, `Connection refused`.

    asyncio puts `Connect call failed ('127.0.0.1', 9)` in the place of these words.
    """
    if error.errno is not None and error.errno > 0:  # a look-up has negative codes of its own
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__
