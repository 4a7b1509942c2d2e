"""Uploads: may a signed URL still bring a body, now that its command stands as it does?

A URL lives for days and its lease for a minute. The command judges: its params may come while it
waits for them, its result while the lease of the path is its latest and the command has not ended.

Params of a size that was not announced count against the quota of their deployment as they arrive.
"""

from __future__ import annotations

from typing import Final

from arc_protocol import lifecycle
from arc_protocol.errors import Conflict, LeaseLost, NotFound, QuotaExceeded
from arc_protocol.messages.base import State
from arc_server.ports.commands import CommandStore
from arc_server.ports.records import (
    AwaitedBlob,
    CommandWithBodies,
    DamagedBody,
    Epoch,
    Quotas,
    ReadResponse,
    StoredBlob,
    StoredParams,
    StoredSuccess,
)
from arc_server.service.blob_paths import ROOT, is_result

RETRY_AFTER_SECONDS: Final = 10
"""As after a create that is refused for a quota."""
_PARAMS: Final = "params"
_RESPONSE: Final = ("attempts", "response")


class Arrival:
    """The arrival of one body counts its bytes as they come, if they count nowhere else yet."""

    def __init__(
        self,
        others: set[Arrival],
        deployment_id: str,
        quotas: Quotas,
        is_counted: bool,
        is_latest_result: bool,
    ) -> None:
        """Count with `others`, which arrive for the same deployment, unless it is a result or was
        counted when it was announced."""
        self._others = others
        self._deployment_id = deployment_id
        self._quotas = quotas
        self._room = 0 if is_counted else None
        self._counted = 0
        self.is_latest_result = is_latest_result
        """True for a result of the latest lease: those of earlier leases are wanted no more."""
        if is_counted:
            others.add(self)

    def widen(self, room: int) -> None:
        """Allow so many bytes more."""
        self._room = (self._room or 0) + room

    def take(self, size: int) -> None:
        """Count bytes that have come. Raises QuotaExceeded."""
        self._counted += size
        self.check(0)

    def check(self, further_bytes: int) -> None:
        """Raise QuotaExceeded if all that arrives for the deployment is more than it may store."""
        if self._room is None:
            return
        if sum(each._counted for each in self._others) + further_bytes <= self._room:
            return
        most = self._quotas.max_stored_bytes
        raise QuotaExceeded(
            f"the deployment has used up its quota max_stored_bytes: {most}",
            deployment_id=self._deployment_id,
            quota="max_stored_bytes",
            most=most,
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

    def end(self, *, is_stored: bool = False) -> None:
        """Count the bytes here no longer. If they are stored, others have less room. May be called
        again."""
        if self not in self._others:
            return
        self._others.discard(self)
        if is_stored:
            for each in self._others:
                each._room = (each._room or 0) - self._counted


class Uploads:
    """The judge of uploads by signed URLs."""

    def __init__(self, store: CommandStore, epoch: Epoch, quotas: Quotas) -> None:
        self._store = store
        self._epoch = epoch
        self._quotas = quotas
        self._arriving: dict[str, set[Arrival]] = {}
        """By deployment, the uploads that go on and count nowhere yet."""

    async def admit(self, path: str, expected_bytes: int = 0) -> Arrival:
        """Return the arrival of a body that may come to a path. Raise if none may.

        Raises NotFound, Conflict (the command needs it no more), LeaseLost, QuotaExceeded (the
        bytes that are expected are more than the deployment may store).
        """
        found = await self._command_of(path)
        await self._check(path, found)
        command = found.command
        # After a restore the holder of an undone lease may hand in its work, too.
        is_latest = (
            is_result(path)
            and path.split("/")[-2] == command.lease_id
            and not self._epoch.is_former(command.lease_id)
        )
        is_counted = isinstance(found.params, AwaitedBlob) and found.params.size is None
        others = self._together(command.deployment_id) if is_counted else set[Arrival]()
        arrival = Arrival(others, command.deployment_id, self._quotas, is_counted, is_latest)
        try:
            if is_counted:  # it is among the others by now: what they store is subtracted
                arrival.widen(await self._store.upload_room(command.deployment_id, self._quotas))
            arrival.check(expected_bytes)
        except BaseException:
            arrival.end()
            raise
        return arrival

    async def arrived(self, path: str, size: int, arrival: Arrival) -> bool:
        """Count a body that has come as stored, if it is of awaited params. Return False if it is
        not wanted any more."""
        command_id = path.removeprefix(f"{ROOT}/").partition("/")[0]
        if not is_result(path) and await self._store.mark_arrived(command_id, size):
            arrival.end(is_stored=True)
            return True
        return await self.is_wanted(path)

    async def is_wanted(self, path: str) -> bool:
        """Return True if a body at a path is awaited, or referred to.

        A damaged row may refer to it, so that it stays. Once False, it stays False: leases and
        commands do not come back.
        """
        try:
            found = await self._command_of(path)
            if _may_name(found.params, path) or _may_name(found.response, path):
                return True
            await self._check(path, found)
        except (Conflict, LeaseLost, NotFound):
            return False
        return True

    def _together(self, deployment_id: str) -> set[Arrival]:
        """Return the arrivals of a deployment, to join them."""
        for idle in [name for name, each in self._arriving.items() if not each]:
            del self._arriving[idle]
        return self._arriving.setdefault(deployment_id, set())

    async def _command_of(self, path: str) -> CommandWithBodies:
        command_id = path.removeprefix(f"{ROOT}/").partition("/")[0]
        found = await self._store.get_with_bodies(command_id)
        if found is None:
            raise NotFound("no such command", path=path)
        return found

    async def _check(self, path: str, found: CommandWithBodies) -> None:
        command = found.command
        kind, *rest = path.removeprefix(f"{ROOT}/{command.command_id}/").split("/")
        if kind == _PARAMS and not rest:
            if command.state is not State.PENDING_UPLOAD:
                raise Conflict(f"the command is {command.state}: it waits for no params")
        elif len(rest) == 3 and (kind, rest[2]) == _RESPONSE:
            if rest[1] != command.lease_id and not self._epoch.has_undone(rest[1], command):
                raise LeaseLost(
                    "the command has been leased again since", command_id=command.command_id
                )
            if command.state in lifecycle.TERMINAL:
                raise Conflict(f"the command is {command.state}: it takes no result")
        else:
            raise NotFound("no body is uploaded there", path=path)


def _may_name(stored: StoredParams | ReadResponse | None, path: str) -> bool:
    body = stored.body if isinstance(stored, StoredSuccess) else stored
    if isinstance(body, DamagedBody):
        return not body.is_removed
    return isinstance(body, StoredBlob) and body.path == path
