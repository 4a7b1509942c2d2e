"""Approvals hold the commands that wait until an operator on the host allows or refuses them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from arc_agent.host.logins import Login
from arc_runtime.control_socket import ControlRefused

_SHOWN_BYTES: Final = 4096
"""The length of the params that an operator is shown."""


class Operator(msgspec.Struct, frozen=True):
    """The person who gives an order, and the user with whose rights."""

    uid: int
    login: Login

    def fields(self) -> dict[str, Any]:
        """Return the fields of a line in the audit log."""
        return {"by": self.login.name, "by_uid": self.uid, "by_from": self.login.source}


class Decision(msgspec.Struct, frozen=True):
    """An operator's answer."""

    is_yes: bool
    by: Operator
    note: str | None = None


class ApprovalRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A command that waits for an operator."""

    command_id: str
    command: str
    attempt: int
    rule: str
    signed_by: str | None
    senders: Sequence[str]
    """The names that the policy gives to the key that signed it."""
    since: datetime
    until: datetime
    params: bytes
    """The beginning of the params."""
    params_bytes: int
    params_sha256: str
    shows_params: bool
    """False: an operator sees size and digest alone."""
    decision: asyncio.Future[Decision]

    def shown(self) -> dict[str, Any]:
        """Return the fields that an operator sees. They leave the agent by its socket only."""
        params = self.params[:_SHOWN_BYTES].decode("utf-8", "replace")
        return {**self.announced(), "params": params if self.shows_params else None}

    def announced(self) -> dict[str, Any]:
        """Return the fields for a program of the host's: without the params."""
        return {
            "id": self.command_id,
            "command": self.command,
            "attempt": self.attempt,
            "rule": self.rule,
            "signed_by": self.signed_by,
            "senders": list(self.senders),
            "since": self.since.isoformat(timespec="seconds"),
            "until": self.until.isoformat(timespec="seconds"),
            "params_bytes": self.params_bytes,
            "params_sha256": self.params_sha256,
        }


class Approvals:
    """The commands that wait, by command id. Lives in the main loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, ApprovalRequest] = {}

    def __len__(self) -> int:
        """Return how many commands wait."""
        return len(self._waiting)

    def shown(self) -> list[Mapping[str, Any]]:
        """Return all requests as an operator sees them, oldest first."""
        return [each.shown() for each in self._waiting.values()]

    async def decision(self, request: ApprovalRequest, seconds: float) -> Decision | None:
        """Wait for an operator's answer; return None when none comes in time."""
        self._waiting[request.command_id] = request
        try:
            async with asyncio.timeout(seconds):
                return await request.decision
        except TimeoutError:
            return None
        finally:
            # The command may wait again under a new lease meanwhile.
            if self._waiting.get(request.command_id) is request:
                del self._waiting[request.command_id]

    def decide(self, command_id: str, decision: Decision) -> ApprovalRequest:
        """Answer a request. Raises ControlRefused when the command does not wait."""
        request = self._waiting.get(command_id)
        if request is None or request.decision.done():
            raise ControlRefused(f"no command {command_id} waits for approval")
        request.decision.set_result(decision)
        return request
