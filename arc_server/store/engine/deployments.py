"""A deployment as operations need it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from arc_protocol.messages.base import IMPLICIT_TARGET, CommandTarget


class KnownDeployment(msgspec.Struct, frozen=True):
    """A deployment decides where its commands wait and how they get there.

    Source: docs/protocol.md, Targets.
    """

    deployment_id: str
    targets: Mapping[str, CommandTarget]
    """By resource id, in order of registration."""
    default_target_id: str | None = None
    heir_target_id: str | None = None
    """The first target that was registered: it took over from the implicit one."""
    push_url: str | None = None
    push_token: str | None = None

    @property
    def default_target(self) -> CommandTarget | None:
        """Return the target of a command that names none; None if several exist and no default."""
        if self.default_target_id is not None:
            return self.targets[self.default_target_id]
        if len(self.targets) > 1:
            return None
        return next(iter(self.targets.values()), IMPLICIT_TARGET)

    def home_of(self, target: CommandTarget) -> CommandTarget:
        """Return where a command of `target` waits now: with the heir, if `target` was the implicit
        one and is not registered."""
        if target.resource_id in self.targets:
            return self.targets[target.resource_id]
        return target if self.heir_target_id is None else self.targets[self.heir_target_id]

    def key_scope(self, target: CommandTarget) -> str:
        """Return the scope of idempotency keys: empty for the implicit target and its heir."""
        is_implicit = not self.targets or target.resource_id == self.heir_target_id
        return "" if is_implicit else target.resource_id
