"""Content encodings: an answer that was compressed unasked is refused, not decompressed.

Both clients ask for `identity`. 400 kB of gzip can become 400 MB, and the server that sends it may
lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_SHOWN_CHARS: Final = 32


def unasked_encoding(headers: Mapping[str, str]) -> str | None:
    """Return the encoding of an answer that is not `identity`; None for a plain one."""
    encoding = headers.get("Content-Encoding", "").strip().lower()
    return None if encoding in ("", "identity") else encoding[:_SHOWN_CHARS]
