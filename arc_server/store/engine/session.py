"""What an operation works with: a connection inside its transaction, and what is known of it.

An operation is a plain function of a session and its arguments. It looks first and writes then: an
ArcError that it raises has changed nothing. It may run twice (its batch was rolled back), so it
depends on nothing else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from arc_protocol.messages.base import IMPLICIT_TARGET, CommandTarget
from arc_server.ports.records import Command, StoredInline, StoredParams
from arc_server.store.engine.rows import Row, target_of

NUMBERS_PER_BLOCK: Final = 1_000
"""How many numbers are reserved at once; what is left of a block at the end is not used."""
_MAX_KNOWN_DEPLOYMENTS: Final = 10_000
_MAX_KNOWN_COMMANDS: Final = 10_000
_MAX_KNOWN_BODY_BYTES: Final = 4_096
"""All that is remembered stays below 50 MB, however it is used; ordinarily it is below 10."""


class Again(Exception):
    """The transaction must be rolled back and the operation run again: it will know more then."""


class KnownDeployment(msgspec.Struct, frozen=True):
    """A deployment as operations need it: whom its commands are for, and how they get there."""

    deployment_id: str
    targets: Mapping[str, CommandTarget]
    """By resource id, in order of registration."""
    default_target_id: str | None
    heir_target_id: str | None
    """The first target that was registered: it took over from the implicit one."""
    push_url: str | None
    push_token: str | None

    @property
    def default_target(self) -> CommandTarget | None:
        """Whom a command is for that names nobody; None when there are several and no default.

        Source: protocol.md 1.3, "Targets".
        """
        if self.default_target_id is not None:
            return self.targets[self.default_target_id]
        if len(self.targets) > 1:
            return None
        return next(iter(self.targets.values()), IMPLICIT_TARGET)

    def home_of(self, target: CommandTarget) -> CommandTarget:
        """Where a command of `target` waits now: with the heir, if `target` was the implicit one
        and is not registered."""
        if target.resource_id in self.targets:
            return self.targets[target.resource_id]
        return target if self.heir_target_id is None else self.targets[self.heir_target_id]

    def key_scope(self, target: CommandTarget) -> str:
        """The scope of idempotency keys: empty for the implicit target and its heir."""
        is_implicit = not self.targets or target.resource_id == self.heir_target_id
        return "" if is_implicit else target.resource_id


class Session:
    """A connection, the named queries on it, and what is known of the rows behind it.

    Deployments and live commands are remembered, as last read or written: a command that was
    created a moment ago is leased and completed without being read again. All is forgotten when a
    transaction is undone or somebody else has written; and what a guarded update hits is decided by
    the row, not by the memory of it.
    """

    def __init__(self, connection: sqlite3.Connection, queries: Mapping[str, str]) -> None:
        self.connection: Final = connection
        self._execute = connection.execute
        self._queries = queries
        self._deployments: dict[str, KnownDeployment] = {}
        self._commands: dict[int, Command] = {}
        self._params: dict[int, StoredParams] = {}
        self._signatures: dict[int, str] = {}
        self._seqs: dict[str, int] = {}
        self.unreadable: set[int] = set()
        """Commands (by seq) whose params stand on damaged pages."""
        self._next_number = 0
        self._numbers_end = 0
        self._data_version = 0

    def rows(self, query: str, /, **params: Any) -> list[Row]:
        """All rows of a named query."""
        return self._execute(self._queries[query], params).fetchall()

    def row(self, query: str, /, **params: Any) -> Row | None:
        """The only row of a named query, or None."""
        found = self._execute(self._queries[query], params).fetchall()
        return found[0] if found else None

    def change(self, query: str, /, **params: Any) -> int:
        """Run a named INSERT, UPDATE or DELETE; how many rows it hit."""
        return self._execute(self._queries[query], params).rowcount

    def next_number(self) -> int:
        """A number above all that were given out before, on this database."""
        if self._next_number == self._numbers_end:
            self.change("reserve_numbers", count=NUMBERS_PER_BLOCK)
            [(end,)] = self.rows("highest_number")
            self._numbers_end = int(end)
            self._next_number = self._numbers_end - NUMBERS_PER_BLOCK
        self._next_number += 1
        return self._next_number

    def deployment(self, deployment_id: str) -> KnownDeployment | None:
        """A registered deployment; remembered until something changes it."""
        known = self._deployments.get(deployment_id)
        if known is not None:
            return known
        row = self.row("find_deployment", deployment_id=deployment_id)
        if row is None:
            return None
        targets = self.rows("targets_of", deployment_id=deployment_id)
        known = KnownDeployment(
            deployment_id, {target[0]: target_of(*target) for target in targets}, *row
        )
        if len(self._deployments) >= _MAX_KNOWN_DEPLOYMENTS:
            self._deployments.clear()
        self._deployments[deployment_id] = known
        return known

    def forget_deployment(self, deployment_id: str) -> None:
        """Call after changing one."""
        self._deployments.pop(deployment_id, None)

    def recall(self, seq: int) -> tuple[Command | None, StoredParams | None]:
        """A live command and its params, if they are remembered."""
        return self._commands.get(seq), self._params.get(seq)

    def signature(self, seq: int) -> str | None:
        """The signature of a live command whose params are remembered, if it has one."""
        return self._signatures.get(seq)

    def recall_by_id(self, command_id: str) -> tuple[int, Command] | None:
        """A live command, if it is remembered."""
        seq = self._seqs.get(command_id)
        return None if seq is None else (seq, self._commands[seq])

    def remember(
        self,
        seq: int,
        command: Command,
        params: StoredParams | None = None,
        signature: str | None = None,
    ) -> None:
        """How a live command stands now; params that are not given are as before.

        `signature` comes with the params.
        """
        if seq not in self._commands:
            if len(self._commands) >= _MAX_KNOWN_COMMANDS:
                self.forget_commands()
            self._seqs[command.command_id] = seq
        self._commands[seq] = command
        if params is None:
            return
        if isinstance(params, StoredInline) and len(params.data) > _MAX_KNOWN_BODY_BYTES:
            return
        self._params[seq] = params
        if signature is not None:
            self._signatures[seq] = signature

    def forget_command(self, seq: int) -> None:
        """It has ended, or its params have changed."""
        command = self._commands.pop(seq, None)
        if command is not None:
            del self._seqs[command.command_id]
            self._params.pop(seq, None)
            self._signatures.pop(seq, None)

    def forget_commands(self) -> None:
        """Call after changing many at once."""
        self._commands.clear()
        self._params.clear()
        self._signatures.clear()
        self._seqs.clear()

    def forget(self) -> None:
        """Nothing that was read or reserved before can be relied on: a transaction was undone."""
        self._deployments.clear()
        self.forget_commands()
        self._next_number = self._numbers_end = 0

    def notice_others(self) -> None:
        """Forget what was read if another process has written since. Call after BEGIN."""
        [(version,)] = self._execute("PRAGMA data_version").fetchall()
        if version != self._data_version:
            self._data_version = version
            self._deployments.clear()
            self.forget_commands()
