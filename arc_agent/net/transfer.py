"""Bodies by presigned URLs: streamed both ways, resumed or restarted, size and SHA-256 logged.

No bearer token, no redirect, no host that the configuration does not allow (hosts.py). Memory does
not grow with the size of a body.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import aiohttp
import aiohttp.payload
import msgspec
import structlog
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from arc_agent.config.sections import ServerSection, TransferSection
from arc_agent.net.allowed_hosts import GuardedResolver, HostPolicy, HostRefused
from arc_agent.net.connection import (
    USER_AGENT,
    Answer,
    BackOff,
    NoContact,
    judged,
    retrying,
    within,
)
from arc_agent.net.local_files import LocalFiles
from arc_agent.net.routes import Routes
from arc_protocol.messages.bodies import HttpBackend, LocalBackend, PresignedRequest

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

CHUNK_BYTES: Final = 256 * 1024
_RETRY_SECONDS: Final = 0.1
"""The first try again of a transfer comes soon: mostly a connection broke off."""
_WORD_BYTES: Final = 64 * 1024
"""How much is read of what is said to a message or a body that was handed over."""
_ROOM_CHECK_BYTES: Final = 16 * 1024 * 1024
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE | re.ASCII)
_OURS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that frame a message; a presigned request has no business with them."""


class TransferRefused(Exception):
    """It can never succeed as asked: refused here, or by who keeps the body. `status` if it was."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class NoRoom(Exception):
    """The disk has no room for the body."""


class Fetched(msgspec.Struct, frozen=True):
    """A body that has arrived."""

    size: int
    sha256: str


class Transfer:
    """The sessions for everything that is not a route of the server. Lives in the main loop."""

    def __init__(
        self, settings: TransferSection, server: ServerSection, network: Routes | None = None
    ) -> None:
        """Raises ValueError for an entry of `allow_hosts` that cannot be read."""
        self._server = server
        self._network = network or Routes(server)
        self._resolver: GuardedResolver | None = None
        self._direct: aiohttp.ClientSession | None = None
        self._proxied: aiohttp.ClientSession | None = None
        self._back_off = BackOff(random.SystemRandom(), server.max_back_off_seconds, _RETRY_SECONDS)
        self.configure(settings)

    def configure(self, settings: TransferSection) -> None:
        """Take other settings; transfers that run keep theirs. Raises ValueError as above."""
        policy = HostPolicy(
            self._server.url or "", settings.allow_hosts, allows_public=settings.public_hosts
        )
        self._settings = settings
        self._policy = policy
        self._files = LocalFiles(settings.local_dir)
        if self._resolver is not None:
            self._resolver.policy = policy

    async def open(self) -> None:
        """Make the sessions, in the running loop."""
        self._resolver = resolver = GuardedResolver(self._policy)
        # No address is remembered: each connection is judged by what its name means then.
        self._direct = self._session(
            self._network.connector(resolver=resolver, use_dns_cache=False)
        )
        self._proxied = self._session(self._network.connector())

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._direct, self._proxied):
            if session is not None:
                await session.close()

    def check(self, url: str) -> None:
        """Whether a URL may be used at all, as far as it tells. Raises HostRefused."""
        self._policy.check(url)

    async def put_message(self, url: str, body: bytes) -> Answer:
        """PUT a JSON message to a pre-authorised URL, byte for byte, without a token.

        Raises HostRefused, NoContact, Refused.
        """
        seconds = self._server.request_timeout_seconds
        return judged(await within(seconds, self._put_message(url, body)))

    async def _put_message(self, url: str, body: bytes) -> Answer:
        """Send and read."""
        headers = {"Content-Type": "application/json"}
        try:
            async with self._request("PUT", url, headers=headers, data=body) as response:
                return Answer(response.status, await _word(response), response.headers)
        except (aiohttp.InvalidURL, ValueError) as error:
            raise HostRefused("a URL that cannot be used") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoContact(await self._network.reason(error, url)) from error

    # Down

    async def fetch(
        self,
        request: PresignedRequest,
        into: Path,
        *,
        expected: int | None,
        has_room: Callable[[], bool],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> Fetched:
        """Fetch a body into a file, trying for as long as the caller lets it.

        What breaks off goes on where it broke if the other side can, else from the start. Raises
        TransferRefused, HostRefused, NoRoom, and OSError when the file cannot be written.
        """
        if expected is not None and expected > self._settings.max_bytes:
            raise TransferRefused(f"a body of {expected} bytes is more than is taken here")
        backend = request.backend
        if isinstance(backend, LocalBackend):
            return await asyncio.to_thread(self._fetch_local, backend, into, expected)
        _check_request(backend, "GET")
        with into.open("wb") as file:
            download = _Download(file, expected, self._settings.max_bytes, has_room)
            async for attempt in retrying(sleep, self._back_off):
                with attempt:
                    await self._fetch_once(backend, download)
        log.info("transfer.fetched", bytes=download.size, sha256=download.sha256)
        return Fetched(download.size, download.sha256)

    async def _fetch_once(self, backend: HttpBackend, download: _Download) -> None:
        """One GET, from where the last one ended. Raises NoContact to be tried again."""
        headers = {**backend.headers, "Accept-Encoding": "identity", **download.range_headers()}
        try:
            async with self._request("GET", backend.url, headers=headers) as response:
                self._check_status(response, backend.url, has_started=download.size > 0)
                await asyncio.to_thread(download.begin, response.status, response.headers)
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    await asyncio.to_thread(download.write, chunk)
        except (aiohttp.InvalidURL, ValueError) as error:
            raise TransferRefused("a presigned request that cannot be sent") from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise NoContact(await self._network.reason(error, backend.url)) from error
        download.check_complete()

    def _fetch_local(self, backend: LocalBackend, into: Path, expected: int | None) -> Fetched:
        """Copy a file of a server on this host."""
        if backend.operation != "get":
            raise TransferRefused("a presigned request of the wrong kind")
        try:
            size, digest = self._files.get(backend.file_path, into, self._settings.max_bytes)
        except PermissionError as error:
            raise TransferRefused(str(error)) from error
        if expected is not None and size != expected:
            raise TransferRefused(f"the body has {size} bytes instead of {expected}")
        return Fetched(size, digest)

    # Up

    async def upload(self, request: PresignedRequest, source: Path, size: int, sha256: str) -> None:
        """PUT a file, once. Raises NoContact to be tried again, TransferRefused, HostRefused."""
        backend = request.backend
        if isinstance(backend, LocalBackend):
            await asyncio.to_thread(self._put_local, backend, source)
        else:
            _check_request(backend, "PUT")
            body = _FileBody(source, size)
            await self._watched(self._upload(backend, body), body)
        log.info("transfer.uploaded", bytes=size, sha256=sha256)

    async def _upload(self, backend: HttpBackend, body: _FileBody) -> None:
        """One PUT of a file."""
        try:
            async with self._request(
                "PUT", backend.url, headers=backend.headers, data=body
            ) as response:
                self._check_status(response, backend.url)
                await _word(response)
        except (aiohttp.InvalidURL, ValueError) as error:
            raise TransferRefused("a presigned request that cannot be sent") from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise NoContact(await self._network.reason(error, backend.url)) from error

    async def _watched(self, work: Awaitable[None], body: _FileBody) -> None:
        """Await an upload as long as it moves. Raises NoContact when it stands still."""
        task = asyncio.ensure_future(work)
        try:
            seen = -1
            while not task.done():
                if seen == body.sent:
                    raise NoContact(f"the upload stood still at {seen} bytes")
                seen = body.sent
                await asyncio.wait({task}, timeout=self._settings.stall_seconds)
            task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _put_local(self, backend: LocalBackend, source: Path) -> None:
        """Copy a file to where a server on this host looks for it."""
        if backend.operation != "put":
            raise TransferRefused("a presigned request of the wrong kind")
        try:
            self._files.put(backend.file_path, source)
        except PermissionError as error:
            raise TransferRefused(str(error)) from error

    def _check_status(
        self, response: aiohttp.ClientResponse, url: str, *, has_started: bool = False
    ) -> None:
        """Whether the body follows. Raises NoContact to be tried again, TransferRefused otherwise.

        The server itself never redirects to a body, nor shows a page instead of one: that is a
        portal's or proxy's word, and passes.
        """
        status = response.status
        is_own = self._network.is_own(url)
        if 200 <= status < 300:
            if is_own and response.content_type == "text/html":
                raise NoContact(f"a web page ({status}) instead of the body: a portal or proxy?")
            return
        if status in (407, 408, 425, 429) or status >= 500 or (status == 416 and has_started):
            raise NoContact(f"the store answered {status}", status=status)
        if 300 <= status < 400:
            if is_own:
                raise NoContact(f"a redirect ({status}) instead of the body: a portal or proxy?")
            raise TransferRefused(f"the store redirects ({status}), which is not followed", status)
        raise TransferRefused(f"the store answered {status}", status)

    # Sessions

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        """A session without memory: no cookies, no redirects, no decompression."""
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Content-Type",),
            headers={"User-Agent": USER_AGENT},
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=self._server.connect_timeout_seconds,
                sock_connect=self._server.connect_timeout_seconds,
                sock_read=self._settings.stall_seconds,
            ),
        )

    def _request(self, method: str, url: str, **more: Any) -> Any:
        """A request by the session that fits: to a proxy, or to an address that is judged."""
        self._policy.check(url)
        try:
            way = self._network.way(url)
        except (OSError, ValueError) as error:
            raise NoContact(f"the proxy cannot be used: {error}") from error
        session = self._direct
        if way["proxy"] is not None:
            self._policy.check_unresolved(url)
            session = self._proxied
        if session is None:
            raise NoContact("the session is closed")
        return session.request(method, URL(url, encoded=True), allow_redirects=False, **way, **more)


class _Download:
    """A body as far as it has arrived. Its methods that write run in a thread."""

    def __init__(
        self, file: BinaryIO, expected: int | None, max_bytes: int, has_room: Callable[[], bool]
    ) -> None:
        self._file = file
        self._expected = expected
        self._max_bytes = max_bytes
        self._has_room = has_room
        self._digest = hashlib.sha256()
        self._validator: str | None = None
        self._total: str | None = None
        self._is_resumable = False
        self._unchecked = 0
        self._wrong_sizes = 0
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what has arrived, in hex."""
        return self._digest.hexdigest()

    def range_headers(self) -> Mapping[str, str]:
        """What asks for the rest only, if there is a start and the other side takes ranges."""
        if not self.size or not self._is_resumable:
            return {}
        headers = {"Range": f"bytes={self.size}-"}
        return {**headers, "If-Range": self._validator} if self._validator else headers

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Look at the head of an answer: does it go on where the last one ended?"""
        encoding = headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("", "identity"):
            raise TransferRefused(f"a body in {encoding[:32]}, which was not asked for")
        if status == 206:
            place = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if place is None or int(place[1]) != self.size or place[3] not in ("*", self._total):
                self._restart()
                raise NoContact("a range that was not asked for")
            return
        self._restart()
        etag = headers.get("ETag", "")  # a weak one (W/"…") does not promise the same bytes
        self._validator = etag if etag.startswith('"') else headers.get("Last-Modified")
        self._total = headers.get("Content-Length")
        takes_ranges = headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        self._is_resumable = takes_ranges and self._total is not None

    def write(self, chunk: bytes) -> None:
        """Keep a part. Raises TransferRefused when it is too much, NoRoom."""
        self.size += len(chunk)
        limit = self._max_bytes if self._expected is None else self._expected
        if self.size > limit:
            raise TransferRefused(f"the body is larger than {limit} bytes")
        self._unchecked += len(chunk)
        if self._unchecked >= _ROOM_CHECK_BYTES:
            self._unchecked = 0
            if not self._has_room():
                raise NoRoom("no room for the body")
        self._digest.update(chunk)
        self._file.write(chunk)

    def check_complete(self) -> None:
        """Whether all of it is there. A short one is fetched once again, from the start."""
        if self._expected is not None and self.size != self._expected:
            reason = f"the body has {self.size} bytes instead of {self._expected}"
            self._is_resumable = False
            self._wrong_sizes += 1
            raise NoContact(reason) if self._wrong_sizes == 1 else TransferRefused(reason)
        self._file.flush()

    def _restart(self) -> None:
        """Forget what has arrived."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size = self._unchecked = 0
        self._is_resumable = False


class _FileBody(aiohttp.payload.Payload):
    """A file as a request's body: opened at each try, read in a thread, length known."""

    def __init__(self, source: Path, size: int) -> None:
        super().__init__(source, content_type="application/octet-stream")
        self._size = self._length = size
        self.sent = 0

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """A body of bytes is no text."""
        raise TypeError(f"a file cannot be shown as text ({encoding}, {errors})")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send all of the file."""
        await self.write_with_length(writer, self._length)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Send as much of the file as the head has promised."""
        self.sent = 0
        left = self._length if content_length is None else min(content_length, self._length)
        file = await asyncio.to_thread(self._value.open, "rb")
        try:
            while left > 0:
                chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, left))
                if not chunk:
                    raise OSError("the file has become shorter")
                await writer.write(chunk)
                self.sent += len(chunk)
                left -= len(chunk)
        finally:
            file.close()


async def _word(response: aiohttp.ClientResponse) -> bytes:
    """What is said to something that was handed over. The status counts: the rest may be cut."""
    data = b""
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > _WORD_BYTES:
            response.close()
            break
    return data[:_WORD_BYTES]


def _check_request(backend: HttpBackend, method: str) -> None:
    """Whether a presigned request is what it should be. Raises TransferRefused."""
    if backend.method.upper() != method:
        raise TransferRefused("a presigned request of the wrong kind")
    for name in backend.headers:
        if name.lower() in _OURS:
            raise TransferRefused(f"a presigned request with the header {name[:64]}")
