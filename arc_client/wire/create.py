"""A creation brings one command to the server, and uploads its params when they are large."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from arc_client.bodies.params import Body
from arc_client.errors import InvalidParams, ServerUnreachable, UploadFailed
from arc_client.wire.connection import ANSWER_SECONDS, SenderConnection
from arc_client.wire.progress_callbacks import ProgressCallbacks
from arc_client.wire.retry import WaitClock, retried
from arc_client.wire.transfer import upload
from arc_protocol.errors import ArcError, InvalidCommand, InvalidStateTransition, PayloadTooLarge
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import (
    DEFAULT_INLINE_BYTES,
    InlineBody,
    LocalBackend,
    StorageBody,
)
from arc_protocol.messages.commands import (
    CommandStatus,
    CreateCommandRequest,
    CreateCommandResponse,
    StorageUpload,
    UploadCompleteRequest,
    UploadCompleteResponse,
)

T = TypeVar("T")

INLINE_BYTES: Final = 1_500_000
"""The longest params that go with a create. Public servers take requests of 2 MiB, base64 included,
and some hand out upload URLs that only their own host can use: every public sender sends inline."""
UPLOAD_TRIES: Final = 5
"""Tries of an upload, each to a fresh URL."""
_LARGE_BYTES: Final = 10_000
"""From this size on, params may be the reason why something on the way refuses a create."""


class Creation:
    """A creation can repeat every step, because the create carries an idempotency key."""

    def __init__(
        self,
        connection: SenderConnection,
        request: CreateCommandRequest,
        body: Body,
        *,
        clock: WaitClock,
        retry_seconds: float,
        callbacks: ProgressCallbacks,
    ) -> None:
        self._connection = connection
        self._request = request
        self._body = body
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._callbacks = callbacks
        self._location: tuple[StorageUpload, str] | None = None
        """The upload that the server asks for, and the URL whose answer asked for it."""
        self.held_seconds = 0.0
        """The seconds for which the server held the last create, if it holds creates."""

    async def create(self) -> CreateCommandResponse:
        """Create the command, or read its state if an earlier try has created it.

        Inline params that are too large for the server are announced in place of being sent. Raises
        what the server refuses for good, and the last error once the retries are over.
        """
        is_inline = isinstance(self._request.params, InlineBody)
        try:
            return await self._create()
        except PayloadTooLarge as error:
            if not is_inline or self._body.size <= DEFAULT_INLINE_BYTES:
                raise self._with_size(error) from error
            params = StorageBody(size=self._body.size)
            self._request = msgspec.structs.replace(self._request, params=params)
            return await self._create()
        except ArcError as error:
            is_own_word = error.context.get("is_ours", not isinstance(error, ServerUnreachable))
            if is_inline and not is_own_word:
                raise self._with_size(error) from error
            raise

    def _with_size(self, error: ArcError) -> ArcError:
        """Return the error of a refused create with the size of its params, if that is large."""
        if self._body.size < _LARGE_BYTES:
            return error
        message = f"{error.message} (the create carried {self._body.size:,} bytes of params)"
        return type(error)(message, **error.context)

    async def _create(self) -> CreateCommandResponse:
        url = self._connection.url("commands")
        wait_seconds = self._request.wait_seconds or 0

        async def post() -> CreateCommandResponse:
            asked_at = self._clock.monotonic()
            answer = await self._connection.call(
                "POST",
                url,
                CreateCommandResponse,
                message=self._request,
                limit_seconds=ANSWER_SECONDS + wait_seconds,
            )
            took = self._clock.monotonic() - asked_at
            self.held_seconds = 0.0 if answer.status is None else min(took, wait_seconds)
            return answer

        answer = await self._retried(post)
        if answer.storage_upload is not None:
            self._location = answer.storage_upload, url
        return answer

    async def upload(self, created: CreateCommandResponse) -> CreateCommandResponse:
        """Upload the params that a command waits for, and report them complete.

        Before every further try the create is sent again: its answer has a fresh URL, or says that
        the params are there already. Raises UploadFailed, and what `create` does.
        """
        answer: CreateCommandResponse | None = created

        async def attempt() -> CreateCommandResponse:
            nonlocal answer
            latest, answer = answer or await self.create(), None
            if latest.state is not State.PENDING_UPLOAD:
                return latest
            await self._put(latest.command_id)
            return await self._complete(latest)

        return await retried(
            attempt,
            clock=self._clock,
            until=math.inf,
            should_retry=_is_worth_another_upload,
            tries=UPLOAD_TRIES,
            on_retry=self._callbacks.on_retry,
        )

    async def _put(self, command_id: str) -> None:
        """PUT the params to the presigned URL. Raises UploadFailed, InvalidParams."""
        if self._location is None:
            raise UploadFailed(
                "the server does not say where to upload the params",
                command_id=command_id,
                is_final=True,
            )
        storage, source_url = self._location
        if isinstance(storage.put_request.backend, LocalBackend):
            await self._give_up(command_id)
            raise UploadFailed(
                "the server takes uploads on its own disk only, so params may have up to"
                f" {INLINE_BYTES:,} bytes",
                command_id=command_id,
                is_final=True,
            )
        try:
            await upload(
                self._connection, storage.put_request, source_url, self._body, self._callbacks
            )
        except InvalidParams:
            raise
        except ArcError as error:
            raise self._upload_failed(command_id, error) from error

    async def _give_up(self, command_id: str) -> None:
        """Cancel a command that never gets its params, as far as the server can cancel."""
        url = self._connection.url("commands", command_id, "cancel")
        with suppress(ArcError):
            await self._connection.call("POST", url, CommandStatus)

    async def _complete(self, latest: CreateCommandResponse) -> CreateCommandResponse:
        """Report the params complete. Raises UploadFailed when the server does not find them."""
        url = self._connection.url("commands", latest.command_id, "upload-complete")
        message = UploadCompleteRequest(size=self._body.size)
        try:
            answer = await self._retried(
                lambda: self._connection.call("POST", url, UploadCompleteResponse, message=message)
            )
        except InvalidStateTransition:  # the answer to an earlier report was lost, or it has ended
            return await self.create()
        except InvalidCommand as error:
            raise self._upload_failed(latest.command_id, error) from error
        return CreateCommandResponse(
            command_id=latest.command_id,
            state=answer.state,
            inline_allowed_up_to=latest.inline_allowed_up_to,
            next="poll",
        )

    def _upload_failed(self, command_id: str, error: ArcError) -> UploadFailed:
        """Return an error as one of this command's params."""
        return UploadFailed(
            f"the params ({self._body.size:,} bytes) cannot be uploaded: {error.message}",
            command_id=command_id,
            is_final=error.context.get("is_final", isinstance(error, PayloadTooLarge)),
            status=error.context.get("status"),
            retry_after=error.context.get("retry_after"),
        )

    async def _retried(self, work: Callable[[], Awaitable[T]]) -> T:
        """Repeat a request to the server for `retry_seconds`."""
        return await retried(
            work,
            clock=self._clock,
            until=self._clock.monotonic() + self._retry_seconds,
            on_retry=self._callbacks.on_retry,
        )


def _is_worth_another_upload(error: BaseException) -> bool:
    """Return True if a fresh URL, or just another try, may help."""
    return isinstance(error, UploadFailed) and not error.context.get("is_final", False)
