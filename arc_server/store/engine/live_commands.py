"""Live commands in memory: one that was created a moment ago is leased and completed unread."""

from __future__ import annotations

from typing import Final

import msgspec

from arc_server.ports.records import StoredInline
from arc_server.store.engine.rows import StoredCommand

_MAX_COMMANDS: Final = 10_000
_MAX_BODY_BYTES: Final = 4_096
"""All that is held stays below 50 MB, however it is used; ordinarily it is below 10."""


class LiveCommands:
    """Live commands as their rows stand, by number and by id.

    Only `operations/lookup.py` reads them and only `operations/transitions.py` changes them, beside
    the statement that changes the row. What a guarded update hits is decided by the row.
    """

    def __init__(self) -> None:
        self._by_seq: dict[int, StoredCommand] = {}
        self._seqs: dict[str, int] = {}

    def get(self, seq: int) -> StoredCommand | None:
        """Return the command of a row, None if it is not held."""
        return self._by_seq.get(seq)

    def find(self, command_id: str) -> StoredCommand | None:
        """Return a command by its id, None if it is not held."""
        seq = self._seqs.get(command_id)
        return None if seq is None else self._by_seq[seq]

    def put(self, stored: StoredCommand) -> None:
        """Hold a live command as its row stands now; long params are left out."""
        if len(self._by_seq) >= _MAX_COMMANDS and stored.seq not in self._by_seq:
            self.clear()
        params = stored.params
        if isinstance(params, StoredInline) and len(params.data) > _MAX_BODY_BYTES:
            stored = msgspec.structs.replace(stored, params=None, signature=None)
        self._by_seq[stored.seq] = stored
        self._seqs[stored.command.command_id] = stored.seq

    def drop(self, seq: int) -> None:
        """Let go of a command that has ended, or whose params have changed."""
        stored = self._by_seq.pop(seq, None)
        if stored is not None:
            del self._seqs[stored.command.command_id]

    def clear(self) -> None:
        """Let go of all, after a change of many rows at once or when a transaction was undone."""
        self._by_seq.clear()
        self._seqs.clear()
