"""Transfers stream bodies to and from blob storage by presigned URLs, without a token."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple

import aiohttp
import msgspec

from arc_client.bodies.params import CHUNK_BYTES, Body
from arc_client.errors import InvalidParams, ResultUnreadable, ServerUnreachable, UnexpectedAnswer
from arc_client.wire.connection import (
    CONNECT_SECONDS,
    MAX_ERROR_BYTES,
    SenderConnection,
    answered,
    host_of,
    read_bounded,
    translated,
)
from arc_client.wire.progress_callbacks import ProgressCallbacks
from arc_client.wire.retry import WaitClock, is_transient, retried
from arc_protocol.errors import ArcError, InvalidEnvelope
from arc_protocol.messages.bodies import HttpBackend, LocalBackend, PresignedRequest
from arc_protocol.urls import redact, resolve
from arc_runtime.network.encodings import unasked_encoding

STALL_SECONDS: Final = 60.0
"""A transfer that moves nothing for this long is broken off and tried again."""
TRIES: Final = 6
"""Tries of a transfer without getting any further; `retry_seconds` applies too."""
REFUSALS: Final = 2
"""Refusals of a fresh URL before the refusal is final."""

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-")


class Location(NamedTuple):
    """A location is the presigned request of a body, the URL whose answer held it, and the size."""

    request: PresignedRequest
    source_url: str
    size: int | None


async def upload(
    connection: SenderConnection,
    request: PresignedRequest,
    source_url: str,
    body: Body,
    callbacks: ProgressCallbacks,
) -> None:
    """PUT a body to a presigned URL, once.

    Raises ServerUnreachable, the storage's error, InvalidParams when the body cannot be read, and
    UnexpectedAnswer when the request is not one that a sender can make.
    """
    backend = backend_of(request, source_url, "PUT")
    unreadable: InvalidParams | None = None
    loop = asyncio.get_running_loop()

    async def chunks(stall: asyncio.Timeout) -> AsyncIterator[bytes]:
        nonlocal unreadable
        sent = 0
        callbacks.on_upload(sent, body.size)
        try:
            async for chunk in body.chunks():
                yield chunk
                sent += len(chunk)
                stall.reschedule(loop.time() + STALL_SECONDS)
                callbacks.on_upload(sent, body.size)
        except InvalidParams as error:
            unreadable = error
            raise

    try:
        async with (
            translated(backend.url),
            asyncio.timeout(STALL_SECONDS) as stall,
            connection.transfer(
                "PUT",
                backend.url,
                headers={**backend.headers, "Content-Length": str(body.size)},
                data=chunks(stall),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            ) as response,
        ):
            data = await _word(response)
    except ServerUnreachable:
        if unreadable is not None:  # to aiohttp it is a connection that broke
            raise unreadable from None
        raise
    if not 200 <= response.status < 300:
        raise _refused(response, data)


def _refused(response: aiohttp.ClientResponse, data: bytes) -> ArcError:
    """Return the error that the storage's answer stands for. It says no word about `server_url`."""
    where = response.headers.get("Location")
    if not 300 <= response.status < 400 or where is None:
        return answered(response, data)
    host = host_of(str(response.url))
    return UnexpectedAnswer(
        f"{host}, where bodies are stored, redirects ({response.status}) to {redact(where)},"
        " which is not followed: is a portal in the way?",
        status=response.status,
    )


class Download:
    """A download yields each byte of a body once and in order, across broken connections.

    After a break it goes on where it was (by a Range request, or by skipping what it has), with a
    fresh presigned URL each time: the old one may have expired. Iterate it, and close it. Raises
    ResultUnreadable when the whole body cannot be fetched.
    """

    def __init__(
        self,
        connection: SenderConnection,
        locate: Callable[[], Awaitable[Location]],
        *,
        command_id: str,
        clock: WaitClock,
        retry_seconds: float,
        max_bytes: int,
        callbacks: ProgressCallbacks,
    ) -> None:
        """Take `locate`, which returns a fresh location at the start and after each break."""
        self._connection = connection
        self._locate = locate
        self._command_id = command_id
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._max_bytes = max_bytes
        self._callbacks = callbacks
        self._response: aiohttp.ClientResponse | None = None
        self._received = 0
        self._size: int | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        refusals = 0

        def should_retry(error: BaseException) -> bool:
            nonlocal refusals
            if isinstance(error, ResultUnreadable) or not isinstance(error, ArcError):
                return False
            refusals += not is_transient(error)
            return refusals < REFUSALS

        try:
            chunk = await retried(
                self._next,
                clock=self._clock,
                until=self._clock.monotonic() + self._retry_seconds,
                should_retry=should_retry,
                tries=TRIES,
                on_retry=self._callbacks.on_retry,
            )
        except ResultUnreadable:
            raise
        except ArcError as error:
            raise self._unreadable(f"cannot be fetched: {error.message}") from error
        if chunk:
            return chunk
        await self.aclose()
        if self._size is not None and self._received != self._size:
            raise self._unreadable(f"has {self._received} bytes instead of {self._size}")
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    async def _next(self) -> bytes:
        """Return the next chunk, from a new connection if need be; empty at the end."""
        try:
            if self._response is None:
                self._response = await self._connect()
            async with translated(str(self._response.url)):
                chunk = await self._response.content.read(CHUNK_BYTES)
        except BaseException:
            await self.aclose()
            raise
        self._received += len(chunk)
        if self._size is not None and self._received > self._size:
            raise self._unreadable(f"has more than the {self._size} bytes it was said to have")
        self._check_size(self._received)
        if chunk:
            self._callbacks.on_download(self._received, self._size)
        return chunk

    async def _connect(self) -> aiohttp.ClientResponse:
        """Request what is still missing, and skip to its beginning."""
        location = await self._locate()
        self._size = location.size
        self._check_size(location.size or 0)
        backend = backend_of(location.request, location.source_url, "GET")
        headers = dict(backend.headers)
        if self._received:
            headers["Range"] = f"bytes={self._received}-"
        async with translated(backend.url):
            response = await self._connection.transfer(
                "GET",
                backend.url,
                headers=headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS
                ),
            ).__aenter__()
            try:
                await self._skip_to(response, self._received)
            except BaseException:
                response.close()
                raise
        return response

    async def _skip_to(self, response: aiohttp.ClientResponse, position: int) -> None:
        """Skip what an answer repeats. Raises the answer's error when it is no success."""
        if response.status in (200, 206) and (encoding := unasked_encoding(response.headers)):
            raise UnexpectedAnswer(f"the storage answers in {encoding}, which was not asked for")
        if response.status == 206:
            begin = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if begin is None or int(begin[1]) != position:
                raise UnexpectedAnswer("the storage answered another range than it was asked for")
            return
        if response.status != 200:
            raise _refused(response, await read_bounded(response, MAX_ERROR_BYTES))
        if self._size is None:
            self._size = response.content_length
        while position:
            skipped = len(await response.content.read(min(position, CHUNK_BYTES)))
            if not skipped:
                raise UnexpectedAnswer("the storage answered with less than it did before")
            position -= skipped

    def _check_size(self, size: int) -> None:
        """Raise ResultUnreadable for a result that is larger than the caller takes."""
        if size > self._max_bytes:
            raise self._unreadable(f"has more than {self._max_bytes:,} bytes")

    def _unreadable(self, why: str) -> ResultUnreadable:
        """Return the error of a result that cannot be fetched whole."""
        return ResultUnreadable(f"the result {why}", command_id=self._command_id)


async def _word(response: aiohttp.ClientResponse) -> bytes:
    """Return the start of a storage's answer to an upload. Its status counts."""
    data = b""
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > MAX_ERROR_BYTES:
            response.close()
            break
    return data[:MAX_ERROR_BYTES]


def backend_of(request: PresignedRequest, source_url: str, method: str) -> HttpBackend:
    """Return the HTTP request of a presigned request, with an absolute URL.

    A relative URL is resolved against `source_url`, whose answer it came with. Raises
    UnexpectedAnswer for a file path, another scheme than http(s), another method, and headers that
    no storage needs.
    """
    if isinstance(request.backend, LocalBackend):
        reason = "the server hands out a path on its own disk, which only it can use"
        raise UnexpectedAnswer(reason, is_final=True)
    try:
        request.backend.check(method)
        url = resolve(source_url, request.backend.url)
    except InvalidEnvelope as error:
        reason = f"the server hands out a URL that is none: {error}"
        raise UnexpectedAnswer(reason, is_final=True) from error
    except ValueError as error:
        raise UnexpectedAnswer(f"the server hands out {error}", is_final=True) from error
    return msgspec.structs.replace(request.backend, url=url)
