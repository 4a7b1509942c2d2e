"""Cursors name a place in a list. They are signed, and good for the filter that they came with."""

from __future__ import annotations

import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from arc_protocol.codec import encode
from arc_protocol.errors import InvalidCommand
from arc_server.ports.links import PlaceSigner
from arc_server.ports.records import CommandFilter, ListMark

_CURSOR: Final = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)
_PLACE: Final = struct.Struct(">qq")


class Cursors:
    """Cursors of one server: opaque to clients, as an edited one would show a list askew."""

    def __init__(self, signer: PlaceSigner) -> None:
        self._signer = signer

    def of(self, which: CommandFilter, mark: ListMark) -> str:
        """Return the cursor of a place in the list of a filter."""
        place = _PLACE.pack(*mark)
        seal = self._signer.sign_place(_name(which), place.hex())
        return urlsafe_b64encode(place + bytes.fromhex(seal)).decode("ascii").rstrip("=")

    def read(self, which: CommandFilter, cursor: str) -> ListMark:
        """Return the place of a cursor. Raises InvalidCommand unless it is one of this filter."""
        if _CURSOR.fullmatch(cursor) and len(cursor) % 4 != 1:
            data = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            place, seal = data[: _PLACE.size], data[_PLACE.size :]
            is_whole = urlsafe_b64encode(data).decode("ascii").rstrip("=") == cursor
            if is_whole and self._signer.has_signed_place(seal.hex(), _name(which), place.hex()):
                at, seq = _PLACE.unpack(place)
                return at, seq
        raise InvalidCommand(
            "cursor: not one that a list of this filter has answered", field="cursor"
        )


def _name(which: CommandFilter) -> str:
    """Return a text that no two filters share."""
    return encode(which).decode()
