"""A submission hands responses to the server once: by a pre-authorised URL or by token."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from arc_agent.jobs.delivery_plan import Pending
from arc_agent.jobs.job import ReplyTo
from arc_agent.jobs.spool import Spool
from arc_agent.jobs.spool_rows import Entry
from arc_agent.net.bodies import TransferRefused
from arc_agent.net.connection import Answer, NoContact, Refused, ServerConnection
from arc_agent.net.server_state import ServerState
from arc_agent.net.transfer import Transfer
from arc_protocol.codec import decode, encode
from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.base import Message
from arc_protocol.messages.bodies import (
    ErrorResponse,
    HttpBackend,
    InlineBody,
    StorageBody,
    SuccessResponse,
)
from arc_protocol.messages.errors import ErrorBody
from arc_protocol.messages.leases import RespondResponse
from arc_protocol.urls import same_origin
from arc_runtime.network.allowed_hosts import HostRefused

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_SHARING: Final = "responses"
"""The extension that takes several responses in one request."""
_INLINE_FALLBACK_BYTES: Final = 20 * 1024 * 1024
"""The largest body that is sent inline when its upload URL is no longer accepted: as base64 it fits
a request of 32 MiB."""


class _Submitted(Message, frozen=True, kw_only=True):
    """SubmittedResponse, with a response that was encoded before."""

    lease_id: str
    command_id: str
    response: msgspec.Raw


class _Respond(Message, frozen=True, kw_only=True):
    """RespondRequest, with encoded responses."""

    responses: list[_Submitted]


class Submission:
    """The requests that deliver a response. They try once; when to try again is the caller's."""

    def __init__(
        self,
        *,
        spool: Spool,
        transfer: Transfer,
        connection: ServerConnection,
        contact: ServerState,
    ) -> None:
        self._spool = spool
        self._transfer = transfer
        self._connection = connection
        self._contact = contact
        self._respond_url = connection.url("commands", "leases", "respond")

    @property
    def shares(self) -> bool:
        """Return True if the server takes several responses in one request."""
        return self._contact.knows_extensions and self._contact.supports(_SHARING)

    def is_ours(self, pending: Pending) -> bool:
        """Return True if a response goes to the configured server itself."""
        submit_url = pending.entry.to.submit_url
        return (
            pending.needs_token or submit_url is None or same_origin(submit_url, self._respond_url)
        )

    async def passes_others(self, pending: Pending) -> bool:
        """Return True if small requests are answered where the next request of a response goes."""
        to = pending.entry.to
        message_url = None if pending.needs_token else to.submit_url
        url = _upload_url(to) if pending.must_upload else message_url
        if url is None or same_origin(url, self._respond_url):
            return await self._connection.answers()
        return await self._transfer.answers(url)

    def may_go_inline(self, pending: Pending) -> bool:
        """Return True if a body that cannot be uploaded may get through by the server.

        In front of the server itself stands what has refused the body.
        """
        body, url = pending.entry.body, _upload_url(pending.entry.to)
        return (
            body is not None
            and body.size <= _INLINE_FALLBACK_BYTES
            and url is not None
            and not same_origin(url, self._respond_url)
        )

    async def upload(self, pending: Pending) -> bool:
        """Upload a body; False when its store will never take it. Raises NoContact."""
        to, body = pending.entry.to, pending.entry.body
        if body is None:
            return True
        if to.upload is None:
            return False
        try:
            path = self._spool.body_path(pending.entry)
            await self._transfer.upload(to.upload, path, body.size, body.sha256)
        except (TransferRefused, HostRefused, OSError) as error:
            log.error("upload.refused", command_id=to.command_id, reason=str(error))
            return False
        return True

    async def put(self, pending: Pending) -> Answer:
        """PUT one response to where its lease says, else by token. Raises NoContact."""
        message = await self._message(pending)
        to = pending.entry.to
        if to.submit_url is not None and not pending.needs_token:
            try:
                return await self._transfer.put_message(to.submit_url, message)
            except (Refused, HostRefused) as error:
                # The signature has run out, as after a long outage, or leads astray.
                log.info("submit.by_token", command_id=to.command_id, reason=str(error))
                pending.needs_token = True
        url = self._connection.url(
            "commands", to.command_id, "response", query={"lease": to.lease_id}
        )
        try:
            return await self._connection.call("PUT", url, message)
        except Refused as error:
            if error.status == 403 and error.code is not None:
                return Answer(403, encode({"code": error.code}), {})
            raise

    async def put_together(self, entries: Sequence[Entry]) -> list[ErrorBody | None]:
        """Send responses in one request; return for each why it was refused, None if it was taken.

        Raises NoContact, with a status when the server answered, but not to each.
        """
        messages = await self._spool.messages(entries)
        request = _Respond(
            responses=[
                _Submitted(
                    lease_id=entry.to.lease_id,
                    command_id=entry.to.command_id,
                    response=msgspec.Raw(message or _lost()),
                )
                for entry, message in zip(entries, messages, strict=True)
            ]
        )
        try:
            answer = await self._connection.call("POST", self._respond_url, encode(request))
        except Refused:  # this token may not; the pre-authorised URLs may
            self._contact.lacks(_SHARING)
            raise
        if answer.status in (404, 405):
            self._contact.lacks(_SHARING)
        if answer.status != 200:
            raise NoContact(f"the server answered {answer.status}", status=answer.status)
        try:
            refused = decode(answer.body, RespondResponse).refused
        except InvalidCommand as error:
            raise NoContact(f"no such answer: {error.message}", status=200) from error
        errors = {refusal.lease_id: refusal.error for refusal in refused}
        return [errors.get(entry.to.lease_id) for entry in entries]

    async def _message(self, pending: Pending) -> bytes:
        """Return a response as it is sent now."""
        body = pending.entry.body
        if pending.is_replaced and pending.blocked is not None:
            return pending.blocked.substitute(pending.entry.size)
        if body is None:
            (message,) = await self._spool.messages([pending.entry])
            return message or _lost()
        if not pending.is_unstorable:
            return encode(
                SuccessResponse(response=StorageBody(size=body.size, storage_put_used=True))
            )
        pending.needs_token = True
        if body.size > _INLINE_FALLBACK_BYTES:
            return encode(
                ErrorResponse(
                    code="STORAGE_OPERATION_FAILED",
                    message=f"the result ({body.size} bytes) could not be uploaded",
                )
            )
        try:
            path = self._spool.body_path(pending.entry)
            return encode(
                SuccessResponse(response=InlineBody.of(await asyncio.to_thread(path.read_bytes)))
            )
        except OSError:
            return _lost()


def _upload_url(to: ReplyTo) -> str | None:
    """Return where a body is uploaded; None for a path on this host's disk."""
    backend = None if to.upload is None else to.upload.backend
    return backend.url if isinstance(backend, HttpBackend) else None


def _lost() -> bytes:
    """Return the response for a result that can no longer be read."""
    return encode(
        ErrorResponse(
            code="STORAGE_OPERATION_FAILED", message="the result was lost on the agent's disk"
        )
    )
