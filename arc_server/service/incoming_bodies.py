"""Bodies on their way in: checked, and stored in the database or in blob storage.

A body up to the inline limit is stored in the database, a larger one in blob storage, by whichever
way it came.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from typing import Final

import structlog

from arc_protocol.errors import ArcError, Conflict, InvalidCommand, NotFound, PayloadTooLarge
from arc_protocol.messages.bodies import (
    BodySpec,
    CommandResponse,
    ErrorResponse,
    InlineBody,
    SuccessResponse,
)
from arc_server.ports.blobs import BlobStore
from arc_server.ports.records import (
    AwaitedBlob,
    CommandRecord,
    StoredBlob,
    StoredBody,
    StoredError,
    StoredInline,
    StoredParams,
    StoredResponse,
    StoredSuccess,
)
from arc_server.service.blob_paths import params_path, response_path
from arc_server.service.limits import CommandLimits

log = structlog.get_logger(__name__)

OFF_LOOP_BYTES: Final = 1 << 20
"""Bodies from this size on are decoded and hashed in a thread: below, the hop costs more."""


class IncomingBodies:
    """Takes in the bodies of requests."""

    def __init__(self, blobs: BlobStore, limits: CommandLimits) -> None:
        self._blobs = blobs
        self._limits = limits

    async def accept_params(
        self, command_id: str, params: BodySpec
    ) -> tuple[StoredInline | StoredBlob | AwaitedBlob, bytes]:
        """Return the params of a create as they are to be stored, and their digest.

        Raises InvalidCommand (bad base64, a sender's own URL), PayloadTooLarge.
        """
        path = params_path(command_id)
        if isinstance(params, InlineBody):
            field = "params.inlineBase64"
            data = _decode_short(params, field)
            if data is None:
                data = await _decode_long(params, field)
            elif len(data) <= self._limits.inline_bytes:
                return StoredInline(data=data), hashlib.sha256(b"inline:" + data).digest()
            digest = await _sha256(b"inline:", data)
            return await self._keep(data, path), digest
        if params.storage_get_request is not None:
            raise InvalidCommand(
                "params.storageGetRequest: not accepted from a sender; leave it out and upload",
                field="params.storageGetRequest",
            )
        if params.size is not None:
            self._check_size("params.size", params.size)
        digest = await _sha256(b"storage:", str(params.size).encode())
        return AwaitedBlob(path=path, size=params.size), digest

    async def accept_again(self, command_id: str, params: StoredParams) -> StoredBody:
        """Return stored params as those of a new command. Raises Conflict if there are none."""
        if isinstance(params, StoredInline):
            return params
        if isinstance(params, AwaitedBlob):
            raise Conflict("its params were never uploaded: there is nothing to run again")
        path = params_path(command_id)
        try:
            if isinstance(params, StoredBlob):
                await self._blobs.link(params.path, path)
                return StoredBlob(path=path, size=params.size)
        except NotFound:
            pass
        raise Conflict("its params are no longer stored: it cannot be run again")

    async def accept_response(
        self, command: CommandRecord | None, response: CommandResponse, lease_id: str | None = None
    ) -> StoredResponse:
        """Return a response as it is to be stored; `is_small` tells when `command` may be None.

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
        """Return any body as it is to be stored. One in storage must have been uploaded to `path`.

        A large inline body gets a path of its own, so that a second try finds it free. Raises
        InvalidCommand.
        """
        if isinstance(body, InlineBody):
            data = _decode_short(body, f"{field}.inlineBase64")
            if data is None:
                data = await _decode_long(body, f"{field}.inlineBase64")
            elif len(data) <= self._limits.inline_bytes:
                return StoredInline(data=data)
            return await self._keep(data, f"{path}-inline-{secrets.token_hex(8)}")
        size = await self._check_upload(path, body.size, f"{field}.size")
        return StoredBlob(path=path, size=size)

    async def accept_upload(self, path: str, size: int) -> StoredBody:
        """Return uploaded params as they are to be stored: small ones move into the database.

        Raises InvalidCommand when nothing or a blob of another size was uploaded.
        """
        await self._check_upload(path, size, "size")
        if size > self._limits.inline_bytes:
            return StoredBlob(path=path, size=size)
        data = bytearray()
        try:
            async for chunk in self._blobs.read(path):
                if len(data) <= size:  # a larger blob may have taken its place since
                    data += chunk
        except NotFound:
            data.clear()
        if len(data) != size:
            raise InvalidCommand(f"size: {size} announced, another was uploaded", field="size")
        return StoredInline(data=bytes(data))

    def is_small(self, response: CommandResponse) -> bool:
        """Return True if a response surely stays inline, so that it needs no blob path."""
        if isinstance(response, ErrorResponse):
            return True
        body = response.response
        limit = self._limits.inline_bytes
        return isinstance(body, InlineBody) and len(body.inline_base64) // 4 * 3 <= limit

    async def seal(self, body: StoredParams) -> None:
        """Let no request replace a body any more. Call once the command refers to it.

        A failure is logged, not raised: what the client asked for is done.
        """
        if not isinstance(body, StoredBlob):
            return
        try:
            await self._blobs.seal(body.path)
        except ArcError as error:
            log.error("blob.not_sealed", path=body.path, reason=error.message)

    async def seal_response(self, response: StoredResponse) -> None:
        """Seal the body of a success."""
        if isinstance(response, StoredSuccess):
            await self.seal(response.body)

    async def withdraw(self, response: CommandResponse, stored: StoredResponse) -> None:
        """Remove the blob that an inline response became. Call when the response was refused.

        Never call it while that is unknown: a blob too many is better than a lost body.
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

    async def _keep(self, data: bytes, path: str) -> StoredInline | StoredBlob:
        """Store bytes that came inline; above the limit they become a blob."""
        if len(data) <= self._limits.inline_bytes:
            return StoredInline(data=data)
        await self._blobs.write(path, _one_chunk(data), len(data))
        return StoredBlob(path=path, size=len(data))

    async def _check_upload(self, path: str, size: int | None, field: str) -> int:
        """Return the size of a blob. Raises InvalidCommand unless it is there and as announced."""
        found = await self._blobs.size(path)
        if found is None:
            raise InvalidCommand(f"{field}: nothing was uploaded", field=field)
        if size is not None and found != size:
            raise InvalidCommand(f"{field}: {size} announced, {found} uploaded", field=field)
        return found

    def _check_size(self, field: str, size: int) -> None:
        """Raise PayloadTooLarge for a size above what may be uploaded."""
        most = self._limits.max_blob_bytes
        if size > most:
            raise PayloadTooLarge(f"{field}: at most {most} bytes", field=field)


def _clip(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} characters more)"


def _decode_short(body: InlineBody, field: str) -> bytes | None:
    """Decode a short body; None for a long one. Raises InvalidCommand."""
    # Nearly all bodies are short, and a coroutine for each would cost more than the decoding.
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
