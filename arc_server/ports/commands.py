"""The ports for commands: looking one up, and all that a sender does with commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from arc_protocol.lifecycle import ShownState
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.ports.records import (
    CommandFilter,
    CommandPage,
    CommandRecord,
    CommandWithBodies,
    CommandWithResponse,
    Completion,
    Created,
    ListMark,
    NewCommand,
    PastLease,
    PushLease,
    Quotas,
    StoredBody,
    StoredResponse,
)


class CommandLookup(Protocol):
    """A command as it stands: read it, and end first what is overdue."""

    async def get(self, command_id: str) -> CommandWithResponse | None:
        """Return a command, with its response once it has ended. Judge no deadline."""
        ...

    async def expire_due(self, now: datetime, limit: int) -> Sequence[CommandRecord]:
        """End live commands whose deadline has passed as EXPIRED: at most `limit`, earliest first.

        Return the commands that have ended.
        """
        ...


class CommandStore(CommandLookup, Protocol):
    """Commands as senders and operators see them."""

    async def create(self, new: NewCommand) -> Created:
        """Create a command. If its idempotency key was used before, return the command that this
        key created, in its current state, also after its deadline.

        Keys are told apart by deployment, target and command name (docs/protocol.md, Idempotency).
        The target is resolved as docs/protocol.md, Targets says. A command that is pushed is
        DISPATCHED under its push lease, if there is one and its params are there.

        Raises IdempotencyKeyReused (the key was used with other params), Conflict (the command of
        the key was deleted before the key's time was over), InvalidCommand (the
        deadline is not after `created_at`), CommandTargetNotFound, CommandTargetAmbiguous,
        CommandTargetIdInvalid (contains `:`), DeploymentNotFound (unknown, and `auto_register` is
        off), QuotaExceeded; nothing is stored then.
        """
        ...

    async def mark_uploaded(
        self,
        command_id: str,
        params: StoredBody,
        now: datetime,
        push_lease: PushLease | None = None,
    ) -> CommandRecord:
        """Make a PENDING_UPLOAD command PENDING, with the params that arrived; DISPATCHED under
        `push_lease` if it is pushed.

        It is ready from `now` on, behind the commands that are ready already. An overdue command
        ends as EXPIRED. Raises CommandNotFound, InvalidStateTransition (also when the command has
        just expired).
        """
        ...

    async def mark_arrived(self, command_id: str, size: int) -> bool:
        """Count the bytes that were uploaded for a command which waits for its params, in the place
        of those of an earlier upload. Return False for one that waits no more.

        They count until the upload is confirmed, or until the command has ended and
        `RetentionStore.forget_uploads` says that they are gone.
        """
        ...

    async def upload_room(self, deployment_id: str, most: Quotas) -> int:
        """Return how many bytes a deployment may still store."""
        ...

    async def get_with_bodies(self, command_id: str) -> CommandWithBodies | None:
        """Return a command with everything stored for it, in any state."""
        ...

    async def write_payload(
        self, command_id: str, params: StoredBody | None, response: StoredResponse | None
    ) -> None:
        """Replace the stored bodies of a live command without a change of state.

        Raises CommandNotFound, InvalidStateTransition for a command that has ended.
        """
        ...

    async def cancel(self, command_id: str, now: datetime, by: str | None = None) -> Completion:
        """Cancel a command, as far as its state allows; `by` names the caller in its row.

        Not leased yet, it ends as FAILED with CANCELLED. DISPATCHED, it gets `cancel_requested`.
        An ended command stays as it is; an overdue one ends as EXPIRED. Raises CommandNotFound.
        """
        ...

    async def list(self, which: CommandFilter, before: ListMark | None, limit: int) -> CommandPage:
        """Return at most `limit` commands, newest first, from behind the place `before` on.

        With a span of time for the end, those that ended last come first. A page is short where
        what matches is rare: no page walks over more than about a thousand commands.
        """
        ...

    async def count(
        self, deployment_id: str | None, within: Reach = EVERYTHING
    ) -> Mapping[ShownState, int]:
        """Return how many commands are in each state, of a deployment or of all that are within
        reach. What commands and targets a caller is bound to is not told apart."""
        ...

    async def past_leases(self, command_id: str) -> Sequence[PastLease]:
        """Return the leases of a command after which it was to be leased again, in order; the last
        of very many."""
        ...
