"""The usage of deployments in a batch: read once, added up in memory, written at its end.

Counting in each operation would cost a lifecycle three statements; so a batch writes one for each
of its deployments, in its own transaction. Triggers subtract what is removed (migration 10).
"""

from __future__ import annotations

from typing import Final

import msgspec

_MAX_KNOWN: Final = 10_000


class Usage(msgspec.Struct):
    """The usage of one deployment, or a change of it."""

    live_commands: int = 0
    open_uploads: int = 0
    stored_bytes: int = 0
    idempotency_keys: int = 0
    agents: int = 0
    dispatched: int = 0
    succeeded: int = 0
    failed: int = 0
    """Without the cancelled."""
    cancelled: int = 0
    expired: int = 0

    def add(self, other: Usage) -> None:
        """Add changes to what quotas bound. Agents are counted by triggers alone."""
        self.live_commands += other.live_commands
        self.open_uploads += other.open_uploads
        self.stored_bytes += other.stored_bytes
        self.idempotency_keys += other.idempotency_keys


class UsageCounts:
    """The counts of the batch that runs, beside those that were read from the database.

    What was read may be too high by what was removed since, never too low: who would refuse because
    of it reads again first.
    """

    def __init__(self) -> None:
        self._changes: dict[str, Usage] = {}
        self._known: dict[str, Usage] = {}

    def changed(self, deployment_id: str) -> Usage:
        """Return the changes to a deployment in this batch, to be added to."""
        changes = self._changes.get(deployment_id)
        if changes is None:
            changes = self._changes[deployment_id] = Usage()
        return changes

    def known(self, deployment_id: str) -> Usage | None:
        """Return what a deployment used when the batch began; None if it must be read."""
        return self._known.get(deployment_id)

    def remember(self, deployment_id: str, read: Usage) -> None:
        """Keep what was read of a deployment."""
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[deployment_id] = read

    def reread(self, deployment_id: str) -> None:
        """Read a deployment again when it is needed: a trigger has added to it."""
        self._known.pop(deployment_id, None)

    def take_changes(self) -> dict[str, Usage]:
        """Return the changes of the batch, which is about to be committed."""
        changes, self._changes = self._changes, {}
        for deployment_id, change in changes.items():
            known = self._known.get(deployment_id)
            if known is not None:
                known.add(change)
        return changes

    def forget(self) -> None:
        """Forget everything: the batch was undone, or another process has written."""
        self._changes.clear()
        self._known.clear()
