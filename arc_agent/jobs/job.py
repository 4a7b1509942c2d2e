"""A job is one leased command on its way through the agent, checked before anything is done.

Its reply's address is kept apart, because a response outlives the process that ran the job.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from arc_protocol.errors import InvalidEnvelope
from arc_protocol.messages.base import PROTOCOL, CommandTarget
from arc_protocol.messages.bodies import HttpBackend, PresignedRequest
from arc_protocol.messages.leases import LeaseInfo
from arc_protocol.urls import resolve
from arc_runtime.network.allowed_hosts import HostRefused

_MAX_INLINE_BYTES: Final = 1024 * 1024
"""A larger result is a file even if the server takes it inline, so that memory stays bounded."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as the poller got it, with its times on the agent's clock."""

    lease: LeaseInfo
    lease_url: str
    """The URL that it was asked from; the envelope's relative URLs are resolved against it."""
    asked_at: float
    """When the request for it was sent, on the agent's clock."""
    seconds: float
    """The life of the lease, from `asked_at`."""
    deadline_at: float | None
    """When the command's deadline passes, on the agent's clock."""
    directory: Path
    """For files of this run; made at first use, removed at its end."""

    @property
    def inline_bytes(self) -> int:
        """Return the size of the largest result that is sent inline."""
        asked = self.lease.envelope.response_handling.max_inline_bytes
        return max(0, min(asked, _MAX_INLINE_BYTES))


class ReplyTo(msgspec.Struct, frozen=True, kw_only=True):
    """A reply's address: the command and lease that it answers, and the URLs that take it."""

    command_id: str
    lease_id: str
    command: str
    attempt: int
    submit_url: str | None = None
    """Pre-authorised; None: the configured server takes it, with the bearer token."""
    upload: PresignedRequest | None = None
    """For a body that does not go inline."""

    @classmethod
    def by_token(cls, job: Job) -> ReplyTo:
        """Return the address of a job's reply that needs none of the envelope's URLs."""
        lease = job.lease
        return cls(
            command_id=lease.command_id,
            lease_id=lease.lease_id,
            command=lease.envelope.command,
            attempt=lease.attempt,
        )

    @classmethod
    def of(cls, job: Job, check: Callable[[str], None]) -> ReplyTo:
        """Return the address of a job's reply; `check` raises HostRefused for a forbidden URL.

        Raises InvalidEnvelope when a URL of the envelope cannot or must not be used.
        """
        handling = job.lease.envelope.response_handling
        try:
            submit_url = allowed(job.lease_url, handling.submit_response_url, check)
        except HostRefused as error:
            raise InvalidEnvelope(str(error)) from error
        upload = resolved(job.lease_url, handling.storage_upload_request)
        return msgspec.structs.replace(cls.by_token(job), submit_url=submit_url, upload=upload)


def allowed(lease_url: str, reference: str, check: Callable[[str], None]) -> str:
    """Return a URL of the envelope, absolute and allowed. Raises InvalidEnvelope, HostRefused."""
    url = resolve(lease_url, reference)
    check(url)
    return url


def resolved(lease_url: str, request: PresignedRequest) -> PresignedRequest:
    """Return a presigned request with an absolute URL. Raises InvalidEnvelope."""
    backend = request.backend
    if not isinstance(backend, HttpBackend):
        return request
    url = resolve(lease_url, backend.url)
    return msgspec.structs.replace(request, backend=msgspec.structs.replace(backend, url=url))


def check_envelope(lease: LeaseInfo, deployment_id: str, target: CommandTarget | None) -> None:
    """Raise InvalidEnvelope for an envelope that is not meant for this agent.

    `target` is the target that the agent asks for; None asks for any.
    """
    envelope = lease.envelope
    if envelope.protocol != PROTOCOL:
        raise InvalidEnvelope(f"protocol: not {PROTOCOL}")
    if envelope.deployment_id != deployment_id:
        raise InvalidEnvelope("deploymentId: another deployment's")
    sent_to = envelope.target
    if target is not None and sent_to is not None and sent_to.resource_id != target.resource_id:
        raise InvalidEnvelope("target: another than was asked for")
    if envelope.command_id != lease.command_id or not envelope.command_id:
        raise InvalidEnvelope("commandId: not that of the lease")
    if not envelope.command:
        raise InvalidEnvelope("command: empty")
