"""Bodies on their way in and out: inline in the database or in blob storage.

A body up to the inline limit stands in the database; a larger one in blob storage, whatever way it
came. URLs are minted when a body is handed out, never stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

import structlog

from arc_protocol.errors import ArcError, InvalidCommand, NotFound, PayloadTooLarge
from arc_protocol.messages.bodies import (
    BodySpec,
    CommandResponse,
    ErrorResponse,
    InlineBody,
    PresignedRequest,
    StorageBody,
    SuccessResponse,
)
from arc_protocol.messages.commands import StorageUpload
from arc_server.ports.blobs import BlobStore
from arc_server.ports.clock import Clock
from arc_server.ports.records import (
    AwaitedBlob,
    Command,
    DamagedBody,
    ReadResponse,
    StoredBlob,
    StoredBody,
    StoredError,
    StoredInline,
    StoredParams,
    StoredResponse,
    StoredSuccess,
)
from arc_server.service.limits import CommandLimits

log = structlog.get_logger(__name__)

OFF_LOOP_BYTES: Final = 1 << 20
"""Bodies from this size on are decoded and hashed in a thread: below, the hop costs more."""


class Bodies:
    """Takes bodies in and presents them again."""

    def __init__(self, blobs: BlobStore, clock: Clock, limits: CommandLimits) -> None:
        self._blobs = blobs
        self._clock = clock
        self._limits = limits

    # in

    async def accept_params(
        self, command_id: str, params: BodySpec
    ) -> tuple[StoredInline | StoredBlob | AwaitedBlob, bytes]:
        """Params of a create as they are to be stored, and their digest.

        Raises InvalidCommand (bad base64, a sender's own URL), PayloadTooLarge.
        """
        path = f"{directory(command_id)}/params"
        if isinstance(params, InlineBody):
            field = "params.inlineBase64"
            data = _decode_short(params, field)
            if data is None:
                data = await _decode_long(params, field)
            elif len(data) <= self._limits.inline_bytes:
                return StoredInline(data=data), hashlib.sha256(b"inline:" + data).digest()
            digest = await _sha256(b"inline:", data)
            return await self.keep(data, path), digest
        if params.storage_get_request is not None:
            raise InvalidCommand(
                "params.storageGetRequest: not accepted from a sender; leave it out and upload",
                field="params.storageGetRequest",
            )
        if params.size is not None:
            self.check_size("params.size", params.size)
        digest = await _sha256(b"storage:", str(params.size).encode())
        return AwaitedBlob(path=path, size=params.size), digest

    async def accept_response(
        self, command: Command | None, response: CommandResponse, lease_id: str | None = None
    ) -> StoredResponse:
        """A response as it is to be stored. `command` is needed unless `is_small(response)`.

        Raises InvalidCommand (bad base64, nothing uploaded, another size than announced).
        """
        if isinstance(response, ErrorResponse):
            limit = self._limits.inline_bytes
            return StoredError(
                code=_clip(response.code, limit),
                message=_clip(response.message, limit),
                details=None if response.details is None else _clip(response.details, limit),
            )
        path = "" if command is None else response_path(command, lease_id)
        return StoredSuccess(body=await self.accept(response.response, "response", path))

    async def accept(self, body: BodySpec, field: str, path: str) -> StoredBody:
        """Any body; one in storage must have been uploaded to `path`.

        A large inline one gets a path that nobody else writes to: a second try finds it free.
        """
        if isinstance(body, InlineBody):
            data = _decode_short(body, f"{field}.inlineBase64")
            if data is None:
                data = await _decode_long(body, f"{field}.inlineBase64")
            elif len(data) <= self._limits.inline_bytes:
                return StoredInline(data=data)
            return await self.keep(data, f"{path}-inline-{secrets.token_hex(8)}")
        size = await self.check_upload(path, body.size, f"{field}.size")
        return StoredBlob(path=path, size=size)

    async def accept_upload(self, path: str, size: int) -> StoredBody:
        """Params that were uploaded, as they are to be stored; small ones move into the database.

        Raises InvalidCommand when nothing or something of another size was uploaded.
        """
        await self.check_upload(path, size, "size")
        if size > self._limits.inline_bytes:
            return StoredBlob(path=path, size=size)
        data = bytearray()
        try:
            async for chunk in self._blobs.read(path):
                if len(data) <= size:  # a larger one may have taken its place since
                    data += chunk
        except NotFound:
            data.clear()
        if len(data) != size:
            raise InvalidCommand(f"size: {size} announced, another was uploaded", field="size")
        return StoredInline(data=bytes(data))

    async def keep(self, data: bytes, path: str) -> StoredInline | StoredBlob:
        """Bytes that came inline: above the limit they become a blob."""
        if len(data) <= self._limits.inline_bytes:
            return StoredInline(data=data)
        await self._blobs.write(path, _one_chunk(data), len(data))
        return StoredBlob(path=path, size=len(data))

    async def check_upload(self, path: str, size: int | None, field: str) -> int:
        """The size of a blob. Raises InvalidCommand unless it is there and as announced."""
        found = await self._blobs.size(path)
        if found is None:
            raise InvalidCommand(f"{field}: nothing was uploaded", field=field)
        if size is not None and found != size:
            raise InvalidCommand(f"{field}: {size} announced, {found} uploaded", field=field)
        return found

    def check_size(self, field: str, size: int) -> None:
        """Raise PayloadTooLarge above what may be uploaded."""
        most = self._limits.max_blob_bytes
        if size > most:
            raise PayloadTooLarge(f"{field}: at most {most} bytes", field=field)

    def is_small(self, response: CommandResponse) -> bool:
        """Whether a response stays inline for sure, so that no blob path is needed."""
        if isinstance(response, ErrorResponse):
            return True
        body = response.response
        limit = self._limits.inline_bytes
        return isinstance(body, InlineBody) and len(body.inline_base64) // 4 * 3 <= limit

    async def seal(self, body: StoredParams) -> None:
        """Nobody may replace a body any more; called once the command refers to it.

        A failure is logged, not raised: what the caller asked for is done.
        """
        if not isinstance(body, StoredBlob):
            return
        try:
            await self._blobs.seal(body.path)
        except ArcError as error:
            log.error("blob.not_sealed", path=body.path, reason=error.message)

    async def seal_response(self, response: StoredResponse) -> None:
        """The same for the body of a success."""
        if isinstance(response, StoredSuccess):
            await self.seal(response.body)

    async def withdraw(self, response: CommandResponse, stored: StoredResponse) -> None:
        """Remove the blob that an inline response became, when the response was not taken.

        Not when it is unknown whether it was taken: a blob too many is better than a body lost.
        """
        if isinstance(response, SuccessResponse) and isinstance(response.response, InlineBody):
            assert isinstance(stored, StoredSuccess)
            await self.discard(stored.body)

    async def discard(self, body: StoredParams) -> None:
        """Remove the blob of a body that nothing refers to. A failure is logged, not raised."""
        if not isinstance(body, StoredBlob):
            return
        try:
            await self._blobs.delete(body.path)
        except ArcError as error:
            log.warning("blob.not_removed", path=body.path, reason=error.message)

    # out

    def upload(self, path: str, base_url: str) -> StorageUpload:
        """Leave for a sender to upload its params."""
        request = self._presign("put", path, base_url, self._limits.upload_url_seconds)
        return StorageUpload(put_request=request, expires_at=request.expiration)

    def response_upload(self, command: Command, base_url: str) -> PresignedRequest:
        """Leave for the holder of the latest lease to upload its response."""
        return self._presign(
            "put", response_path(command), base_url, self._limits.response_url_seconds
        )

    def present(self, body: StoredBody, base_url: str) -> BodySpec:
        """A body for a reader, with a fresh URL if it is in blob storage."""
        if isinstance(body, StoredInline):
            return InlineBody.of(body.data)
        return StorageBody(
            size=body.size,
            storage_get_request=self._presign(
                "get", body.path, base_url, self._limits.download_url_seconds
            ),
            storage_put_used=True,
        )

    def present_params(self, params: StoredParams, base_url: str) -> BodySpec | None:
        """Params for a reader; None while there are none to read."""
        if isinstance(params, StoredInline | StoredBlob):
            return self.present(params, base_url)
        return None

    def present_response(
        self, response: ReadResponse | None, base_url: str
    ) -> CommandResponse | None:
        """A response for a reader; a damaged one is presented as an error."""
        if response is None:
            return None
        if isinstance(response, StoredSuccess):
            return SuccessResponse(response=self.present(response.body, base_url))
        if isinstance(response, StoredError):
            return ErrorResponse(
                code=response.code, message=response.message, details=response.details
            )
        return _damaged(response)

    def _presign(
        self, operation: str, path: str, base_url: str, seconds: float
    ) -> PresignedRequest:
        until = self._clock.now() + timedelta(seconds=seconds)
        return self._blobs.presign(operation, path, base_url, until)


def directory(command_id: str) -> str:
    """Where the blobs of a command are."""
    return f"arc/commands/{command_id}"


def response_path(command: Command, lease_id: str | None = None) -> str:
    """Where a response of the latest lease (or of `lease_id`) is uploaded.

    Attempt and lease are in it: a stale holder cannot overwrite a newer body.
    """
    attempt = command.lease_attempt or command.attempt
    lease = lease_id or command.lease_id or "none"
    return f"{directory(command.command_id)}/attempts/{attempt}/{lease}/response"


def _damaged(body: DamagedBody) -> ErrorResponse:
    return ErrorResponse(
        code="SERIALIZATION_FAILED",
        message="the stored response is damaged and cannot be read",
        details=body.reason,
    )


def _clip(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} characters more)"


def _decode_short(body: InlineBody, field: str) -> bytes | None:
    """What a short body holds, None for a long one. Nearly all are short: no coroutine for those.

    Raises InvalidCommand.
    """
    if len(body.inline_base64) >= OFF_LOOP_BYTES:
        return None
    try:
        return body.data()
    except ValueError as error:
        raise InvalidCommand(f"{field}: {error}", field=field) from None


async def _decode_long(body: InlineBody, field: str) -> bytes:
    try:
        return await asyncio.to_thread(body.data)
    except ValueError as error:
        raise InvalidCommand(f"{field}: {error}", field=field) from None


async def _sha256(prefix: bytes, data: bytes) -> bytes:
    def compute() -> bytes:
        digest = hashlib.sha256(prefix)
        digest.update(data)
        return digest.digest()

    return compute() if len(data) < OFF_LOOP_BYTES else await asyncio.to_thread(compute)


async def _one_chunk(data: bytes) -> AsyncIterator[bytes]:
    yield data
