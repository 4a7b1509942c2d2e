"""The reach of a caller: which deployments, commands and targets it may touch, whose leases it may
act on, and the name under which its deeds are recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from arc_protocol.errors import Forbidden, LeaseLost
from arc_protocol.messages.base import CommandTarget
from arc_server.ports.records import CommandRecord

_START: Final = re.compile(r"-[0-9a-f]{16}\Z", re.ASCII)
"""The end of the id of one start of an agent: `db-7-0123456789abcdef`."""
ANY: Final = ("*",)
"""The patterns that every name fits."""


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a caller. In a pattern `*` stands for any characters, also for none."""

    deployments: tuple[str, ...] = ANY
    """Patterns; a deployment that fits none of them does not exist for the caller."""
    commands: tuple[str, ...] = ANY
    """Patterns of command names."""
    target: CommandTarget | None = None
    """The only target that the caller may lease from and register for."""
    is_default_only: bool = False
    """True for an agent that enrolled without a target: it may name none."""
    agent_id: str | None = None
    """The only agent that the caller may be: its id, or the name with which the ids of all its
    starts begin."""
    credential: str | None = None
    """The id of the caller's token or credential; None if none was needed."""
    every_lease: bool = False
    """True if the caller may act on leases that others hold."""
    may_register: bool = False
    """True if deployments and targets are registered when the caller first names them."""

    def deployment(self) -> str | None:
        """Return the only deployment that the caller may name; None if there are several."""
        if len(self.deployments) == 1 and "*" not in self.deployments[0]:
            return self.deployments[0]
        return None

    def allows_deployment(self, name: str) -> bool:
        """Return True if the caller may name the deployment."""
        return fits(name, self.deployments)

    def allows_command(self, name: str) -> bool:
        """Return True if the caller may create and see commands of that name."""
        return fits(name, self.commands)

    def covers(self, command: CommandRecord) -> bool:
        """Return True if the command exists for the caller."""
        return (
            fits(command.deployment_id, self.deployments)
            and fits(command.command, self.commands)
            and (self.target is None or self.target == command.target)
        )

    def allows_agent(self, agent_id: str | None) -> bool:
        """Return True if the caller may give an agent id."""
        if self.agent_id is None or agent_id == self.agent_id:
            return True
        return agent_id is not None and _START.sub("", agent_id) == self.agent_id

    def holds(self, command: CommandRecord) -> bool:
        """Return True if the latest lease of the command is the caller's to act on.

        A lease without a credential was granted without a token, or by an earlier release. That of
        a push is its receiver's, which has a signed URL.
        """
        if self.every_lease:
            return True
        holder = command.lease_credential
        return not command.is_push if holder is None else holder == self.credential

    def is_holder(self, command: CommandRecord) -> bool:
        """Return True if the latest lease was granted to the caller, who may then leave it unnamed.

        One without a credential may be that of a push, also where commands are pushed no longer.
        """
        holder = command.lease_credential
        return self.every_lease or (holder is not None and holder == self.credential)

    def check_lease(self, command: CommandRecord, lease_id: str | None) -> None:
        """Raise LeaseLost or Forbidden unless the latest lease is the one named, and the caller's.

        A caller that names none is refused unless it holds the lease.
        """
        if lease_id is None:
            if not self.is_holder(command):
                raise Forbidden(
                    "another credential holds the lease of the command",
                    command_id=command.command_id,
                )
        elif lease_id != command.lease_id or not self.holds(command):
            raise LeaseLost(
                "the command has been leased again since, or never under this lease",
                command_id=command.command_id,
                lease_id=lease_id,
            )


EVERYTHING: Final = Reach(every_lease=True, may_register=True)
"""The reach of an admin, and of every caller where no token is needed."""
NOTHING: Final = Reach(deployments=())
"""The reach of a request that was let through without a caller."""


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Return True if a name fits one of the patterns."""
    return patterns is ANY or any(_fits(name, pattern) for pattern in patterns)


def _fits(name: str, pattern: str) -> bool:
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    if not name.startswith(first):
        return False
    at = len(first)
    for part in middle:  # each as far left as it can be: that leaves the most for the next
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return name.endswith(last) and len(name) - len(last) >= at
