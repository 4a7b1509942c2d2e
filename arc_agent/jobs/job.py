"""What an envelope says, looked at before anything is done about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from arc_agent.jobs.outcome import Failed
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

    @property
    def task_name(self) -> str:
        """How the task of its handler is called: the watchdog looks for it."""
        return f"handler:{self.lease.lease_id}"


class Addresses(msgspec.Struct, frozen=True):
    """Where the response goes. None: the bearer token's way, to the configured server."""

    submit_url: str | None
    upload: PresignedRequest | None


def addresses(
    job: Job,
    deployment_id: str,
    check: Callable[[str], None],
    target: CommandTarget | None = None,
) -> tuple[Addresses, Failed | None]:
    """Where the response goes, and what is wrong with the envelope if something is.

    `check` raises HostRefused for a URL that leads where it must not. `target` is the one that was
    asked for.
    """
    handling = job.lease.envelope.response_handling
    try:
        submit_url = allowed(job.lease_url, handling.submit_response_url, check)
        upload = resolved(job.lease_url, handling.storage_upload_request)
    except (InvalidEnvelope, HostRefused) as error:
        return Addresses(None, None), Failed("INVALID_ENVELOPE", str(error))
    return Addresses(submit_url, upload), _problem(job.lease, deployment_id, target)


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


def _problem(lease: LeaseInfo, deployment_id: str, target: CommandTarget | None) -> Failed | None:
    """What an envelope says that cannot be meant for us."""
    envelope = lease.envelope
    if envelope.protocol != PROTOCOL:
        return Failed("INVALID_ENVELOPE", f"protocol: not {PROTOCOL}")
    if envelope.deployment_id != deployment_id:
        return Failed("INVALID_ENVELOPE", "deploymentId: another deployment's")
    theirs = envelope.target
    if target is not None and theirs is not None and theirs.resource_id != target.resource_id:
        return Failed("INVALID_ENVELOPE", "target: another than was asked for")
    if envelope.command_id != lease.command_id or not envelope.command_id:
        return Failed("INVALID_ENVELOPE", "commandId: not that of the lease")
    if not envelope.command:
        return Failed("INVALID_ENVELOPE", "command: empty")
    return None
