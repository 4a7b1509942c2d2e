"""Uploads: may a signed URL still bring a body, now that its command stands as it does?

A URL lives for days and its lease for a minute. The command judges: its params may come while it
waits for them, its result while the lease of the path is its latest and the command has not ended.
"""

from __future__ import annotations

from typing import Final

from arc_protocol import lifecycle
from arc_protocol.errors import Conflict, LeaseLost, NotFound
from arc_protocol.messages.base import State
from arc_server.ports.commands import CommandStore
from arc_server.ports.records import (
    CommandWithBodies,
    DamagedBody,
    Epoch,
    ReadResponse,
    StoredBlob,
    StoredParams,
    StoredSuccess,
)
from arc_server.service.blob_paths import ROOT

_PARAMS: Final = "params"
_RESPONSE: Final = ("attempts", "response")


class Uploads:
    """The judge of uploads by signed URLs."""

    def __init__(self, store: CommandStore, epoch: Epoch) -> None:
        self._store = store
        self._epoch = epoch

    async def check(self, path: str) -> None:
        """Raise unless a body may come to a path.

        Raises NotFound, Conflict (the command needs it no more), LeaseLost.
        """
        await self._check(path, await self._command_of(path))

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
