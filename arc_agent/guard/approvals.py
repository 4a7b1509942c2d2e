"""Commands that wait for a person on the host to say yes or no."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from arc_agent.host.control_socket import ControlRefused, Peer

_SHOWN_BYTES: Final = 4096
"""How much of the params the person who decides is shown."""


class Decision(msgspec.Struct, frozen=True):
    """What a person said."""

    is_yes: bool
    by_uid: int
    note: str | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A command that waits."""

    command_id: str
    command: str
    attempt: int
    rule: str
    signed_by: str | None
    since: datetime
    until: datetime
    params: bytes
    """Their start."""
    params_bytes: int
    decision: asyncio.Future[Decision]

    def shown(self) -> dict[str, Any]:
        """What the person who decides gets to see; over the control socket only."""
        return {
            "id": self.command_id,
            "command": self.command,
            "attempt": self.attempt,
            "rule": self.rule,
            "signed_by": self.signed_by,
            "since": self.since.isoformat(timespec="seconds"),
            "until": self.until.isoformat(timespec="seconds"),
            "params": self.params[:_SHOWN_BYTES].decode("utf-8", "replace"),
            "params_bytes": self.params_bytes,
        }


class Approvals:
    """All that wait, by command id. Lives in the main loop."""

    def __init__(self) -> None:
        self._asked: dict[str, Asked] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._asked)

    def shown(self) -> list[Mapping[str, Any]]:
        """All of them, oldest first."""
        return [each.shown() for each in self._asked.values()]

    async def decision(self, asked: Asked, seconds: float) -> Decision | None:
        """What a person says; None when nobody says anything in time."""
        self._asked[asked.command_id] = asked
        try:
            async with asyncio.timeout(seconds):
                return await asked.decision
        except TimeoutError:
            return None
        finally:
            if self._asked.get(asked.command_id) is asked:
                del self._asked[asked.command_id]

    def decide(self, command_id: str, decision: Decision, peer: Peer) -> Asked:
        """Say yes or no. Raises ControlRefused when nothing of that id waits."""
        asked = self._asked.get(command_id)
        if asked is None or asked.decision.done():
            raise ControlRefused(f"no command {command_id} waits for approval")
        asked.decision.set_result(msgspec.structs.replace(decision, by_uid=peer.uid))
        return asked
