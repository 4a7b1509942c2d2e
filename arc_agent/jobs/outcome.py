"""The outcomes of a command that was leased here: what becomes of it."""

from __future__ import annotations

from typing import Final

import msgspec

from arc_agent.jobs.result_files import StoredBody

NO_COST: Final = "drain"
"""The reason for which a release costs no attempt (docs/protocol.md, Leases)."""


class Succeeded(msgspec.Struct, frozen=True):
    """The handler returned: bytes small enough to go inline, or a file in the spool's directory."""

    body: bytes | StoredBody


class Failed(msgspec.Struct, frozen=True):
    """An error for the sender."""

    code: str
    message: str
    details: str | None = None


class GivenBack(msgspec.Struct, frozen=True):
    """There is no response: the lease is released, for another try."""

    reason: str
    after_seconds: float = 0.0
    """The time for which the command should not come again, as far as the server allows that."""


class Dropped(msgspec.Struct, frozen=True):
    """The lease is another's, or over: there is no response and no release."""

    reason: str


Outcome = Succeeded | Failed | GivenBack | Dropped


class Ended(Exception):
    """Raised by the step of a run that is its last."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome
