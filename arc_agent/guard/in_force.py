"""InForce is what the guard reads of the live configuration, which a reload replaces.

The room `work` owns the live configuration and stands above this one, so the guard names only the
parts that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from arc_agent.config.sections import Config
from arc_agent.guard.policy import Policy


class InForce(Protocol):
    """The configuration, policy and keys in force. Read an attribute anew each time."""

    @property
    def config(self) -> Config:
        """Return the configuration."""
        ...

    @property
    def policy(self) -> Policy | None:
        """Return the rules of this host; None when it has none."""
        ...

    @property
    def signing_keys(self) -> Mapping[str, bytes] | None:
        """Return the public keys of senders, by id; None when signatures are not verified."""
        ...

    @property
    def host_keys(self) -> Mapping[str, bytes]:
        """Return the host's own private keys, by name."""
        ...
