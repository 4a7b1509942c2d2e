"""A deployment as operations need it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from arc_protocol.messages.base import IMPLICIT_TARGET, RESERVED_TARGETS, CommandTarget


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
    push_by: str | None = None

    @property
    def default_target(self) -> CommandTarget | None:
        """Return the target of a command that names none; None if several exist and no default."""
        if self.default_target_id is not None:
            return self.targets[self.default_target_id]
        choice = [target for target in self.targets.values() if is_ordinary(target)]
        if len(choice) > 1:
            return None
        return choice[0] if choice else IMPLICIT_TARGET

    @property
    def has_targets(self) -> bool:
        """Return True if a target is registered that is not reserved."""
        return any(map(is_ordinary, self.targets.values()))

    def home_of(self, target: CommandTarget) -> CommandTarget:
        """Return where a command of `target` waits now: with the heir, if `target` was the implicit
        one and is not registered."""
        if target.resource_id in self.targets:
            return self.targets[target.resource_id]
        if self.heir_target_id is None or target.resource_id in RESERVED_TARGETS:
            return target
        return self.targets[self.heir_target_id]

    def key_scope(self, target: CommandTarget) -> str:
        """Return the scope of idempotency keys: empty for the implicit target and its heir."""
        if not is_ordinary(target):
            return target.resource_id
        is_implicit = not self.has_targets or target.resource_id == self.heir_target_id
        return "" if is_implicit else target.resource_id


def is_ordinary(target: CommandTarget) -> bool:
    """Return True unless the id of a target is reserved."""
    return target.resource_id not in RESERVED_TARGETS
