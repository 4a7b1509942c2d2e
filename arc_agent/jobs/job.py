"""What an envelope says, looked at before anything is done about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from arc_agent.net.allowed_hosts import HostRefused
from arc_protocol.errors import InvalidEnvelope
from arc_protocol.messages.base import PROTOCOL, CommandTarget
from arc_protocol.messages.bodies import HttpBackend, PresignedRequest
from arc_protocol.messages.leases import LeaseInfo
from arc_protocol.urls import resolve

_MAX_INLINE_BYTES: Final = 1024 * 1024
"""Whatever a server says: a result above it is a file, so that memory stays bounded."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as the poller got it, with the agent's own reckoning of time."""

    lease: LeaseInfo
    lease_url: str
    """Where it came from: relative URLs are resolved against it."""
    asked_at: float
    """When the request was sent that brought it, on the agent's clock."""
    seconds: float
    """How long the lease is from then on."""
    deadline_at: float | None
    """When the command's deadline passes, on the agent's clock."""
    directory: Path
    """For files of this run; made at first use, gone afterwards."""

    @property
    def inline_bytes(self) -> int:
        """The largest result that is sent inline."""
        asked = self.lease.envelope.response_handling.max_inline_bytes
        return max(0, min(asked, _MAX_INLINE_BYTES))


class Addresses(msgspec.Struct, frozen=True):
    """Where the response goes. None: the bearer token's way, to the configured server."""

    submit_url: str | None
    upload: PresignedRequest | None


NO_ADDRESSES: Final = Addresses(None, None)


def addresses(job: Job, check: Callable[[str], None]) -> Addresses:
    """Return where the response goes. Raises InvalidEnvelope.

    `check` raises HostRefused for a URL that leads to a host that is not allowed.
    """
    handling = job.lease.envelope.response_handling
    try:
        submit_url = allowed(job.lease_url, handling.submit_response_url, check)
    except HostRefused as error:
        raise InvalidEnvelope(str(error)) from None
    return Addresses(submit_url, resolved(job.lease_url, handling.storage_upload_request))


def allowed(lease_url: str, reference: str, check: Callable[[str], None]) -> str:
    """A URL of the envelope, absolute and allowed. Raises InvalidEnvelope, HostRefused."""
    url = resolve(lease_url, reference)
    check(url)
    return url


def resolved(lease_url: str, request: PresignedRequest) -> PresignedRequest:
    """A presigned request with an absolute URL. Raises InvalidEnvelope."""
    backend = request.backend
    if not isinstance(backend, HttpBackend):
        return request
    url = resolve(lease_url, backend.url)
    return msgspec.structs.replace(request, backend=msgspec.structs.replace(backend, url=url))


def check_envelope(lease: LeaseInfo, deployment_id: str, target: CommandTarget | None) -> None:
    """Raise InvalidEnvelope for an envelope that is not meant for this agent.

    `target` is the target that the agent asked for, if any.
    """
    envelope = lease.envelope
    if envelope.protocol != PROTOCOL:
        raise InvalidEnvelope(f"protocol: not {PROTOCOL}")
    if envelope.deployment_id != deployment_id:
        raise InvalidEnvelope("deploymentId: another deployment's")
    named = envelope.target
    if target is not None and named is not None and named.resource_id != target.resource_id:
        raise InvalidEnvelope("target: another than was asked for")
    if envelope.command_id != lease.command_id or not envelope.command_id:
        raise InvalidEnvelope("commandId: not that of the lease")
    if not envelope.command:
        raise InvalidEnvelope("command: empty")
