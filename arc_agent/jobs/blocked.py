"""A blocked response does not get through, although the server answers other requests."""

from __future__ import annotations

from typing import Final

from arc_agent.jobs.lease_table import HeldLease
from arc_agent.net.connection import NoContact
from arc_protocol.codec import encode
from arc_protocol.lifecycle import CANCELLED
from arc_protocol.messages.base import Message
from arc_protocol.messages.bodies import ErrorResponse

_TRIES: Final = 8
"""Tries of a response that a status below 500 refuses: with the pauses about 45 s."""
_PASSING_TRIES: Final = 16
"""Tries where the reason may pass (5xx, a cut connection, no answer): about three minutes."""


class _Details(Message, frozen=True, kw_only=True):
    """The details of the error that takes a response's place."""

    status: int | None
    bytes: int


class Blocked:
    """A blocked response's failures since the first."""

    __slots__ = ("lease", "reason", "since", "status", "tries")

    def __init__(self, since: float) -> None:
        self.since = since
        """The first failure, on the agent's clock."""
        self.tries = 0
        self.reason = ""
        self.status: int | None = None
        self.lease: HeldLease | None = None
        """The lease under which it was tried last."""

    def count(self, error: NoContact) -> None:
        """Count a failure."""
        self.tries += 1
        self.reason = error.reason
        self.status = error.status

    @property
    def is_hopeless(self) -> bool:
        """Return True after enough tries."""
        is_refused = self.status is not None and self.status < 500
        return self.tries >= (_TRIES if is_refused else _PASSING_TRIES)

    @property
    def is_unwanted(self) -> bool:
        """Return True if the sender has cancelled the command."""
        return self.lease is not None and self.lease.is_unwanted

    def substitute(self, size: int) -> bytes:
        """Return the error that takes the place of a response of `size` bytes."""
        what = f"the response ({size} bytes) did not get through to the server: {self.reason}"
        code = "STORAGE_OPERATION_FAILED"
        if self.is_unwanted:
            code, what = CANCELLED, f"cancelled while {what}"
        details = encode(_Details(status=self.status, bytes=size)).decode()
        return encode(ErrorResponse(code=code, message=what, details=details))
