"""The transfer moves bodies by presigned URLs: streamed both ways, resumed or started again.

It sends no bearer token, follows no redirect, and goes to no host that the configuration does not
allow (arc_runtime/network/allowed_hosts.py). Size and SHA-256 of each body are logged.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
from yarl import URL

from arc_agent.config.sections import ServerSection, TransferSection
from arc_agent.net.bodies import CHUNK_BYTES, ArrivingBody, Fetched, FileBody, TransferRefused
from arc_agent.net.connection import (
    USER_AGENT,
    Answer,
    BackOff,
    NoContact,
    code_of,
    judged,
    redirected,
    retry_after,
    retrying,
    within,
)
from arc_agent.net.local_files import LocalFiles
from arc_agent.net.routes import Routes
from arc_protocol.messages.bodies import HttpBackend, LocalBackend, PresignedRequest
from arc_runtime.network.allowed_hosts import GuardedResolver, HostPolicy, HostRefused

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_RETRY_SECONDS: Final = 0.1
"""A transfer is tried again soon: mostly a connection broke off."""
_WORD_BYTES: Final = 64 * 1024
"""The most bytes that are read of the answer to a message or a body."""
_PROBE_SECONDS: Final = 5.0
_STORE_CODE: Final = re.compile(rb"<Code>([!-;=-~]{1,64})</Code>")
"""The code in an object store's own error, which is XML."""


class Transfer:
    """The sessions for all URLs that are not routes of the server. Lives in the main loop."""

    def __init__(
        self, settings: TransferSection, server: ServerSection, network: Routes | None = None
    ) -> None:
        """Open nothing yet. Raises ValueError for an entry of `allow_hosts` that cannot be read."""
        self._server = server
        self._network = network or Routes(server)
        self._resolver: GuardedResolver | None = None
        self._direct: aiohttp.ClientSession | None = None
        self._proxied: aiohttp.ClientSession | None = None
        self._back_off = BackOff(random.SystemRandom(), server.max_back_off_seconds, _RETRY_SECONDS)
        self.configure(settings)

    def configure(self, settings: TransferSection) -> None:
        """Take other settings; running transfers keep the old ones.

        Raises ValueError for an entry of `allow_hosts` that cannot be read.
        """
        policy = HostPolicy(
            self._server.url or "",
            settings.allow_hosts,
            allows_public=settings.public_hosts,
            has_answered=self._network.server_addresses.__contains__,
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
        """Raise HostRefused for a URL that may not be used, as far as the URL itself tells."""
        self._policy.check(url)

    async def put_message(self, url: str, body: bytes) -> Answer:
        """PUT a JSON message to a pre-authorised URL, byte for byte, without a token.

        Raises HostRefused, NoContact, Refused.
        """
        seconds = self._server.request_timeout_seconds
        return judged(await within(seconds, self._put_message(url, body)))

    async def _put_message(self, url: str, body: bytes) -> Answer:
        """Send a message and return the answer. Raises HostRefused, NoContact."""
        headers = {"Content-Type": "application/json"}
        try:
            async with self._request("PUT", url, headers=headers, data=body) as response:
                return Answer(response.status, await _word(response), response.headers)
        except (aiohttp.InvalidURL, ValueError) as error:
            raise HostRefused("a URL that cannot be used") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoContact(await self._network.reason(error, url)) from error

    async def answers(self, url: str) -> bool:
        """Return True if an HTTP server answers a small request at the origin of a URL."""
        try:
            root = str(URL(url, encoded=True).origin() / "")
            async with asyncio.timeout(_PROBE_SECONDS), self._request("GET", root) as response:
                return response.status < 500 and response.status != 407
        except (HostRefused, NoContact, aiohttp.ClientError, OSError, ValueError):
            return False

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
        """Fetch a body into a file, and try again until the caller cancels.

        A transfer that breaks off is resumed if the store can, else started again. Raises
        TransferRefused, HostRefused, NoRoom, and OSError when the file cannot be written.
        """
        if expected is not None and expected > self._settings.max_bytes:
            raise TransferRefused(f"a body of {expected} bytes is more than is taken here")
        backend = request.backend
        if isinstance(backend, LocalBackend):
            return await asyncio.to_thread(self._fetch_local, backend, into, expected)
        _check_request(backend, "GET")
        with into.open("wb") as file:
            download = ArrivingBody(file, expected, self._settings.max_bytes, has_room)
            async for attempt in retrying(sleep, self._back_off):
                with attempt:
                    await self._fetch_once(backend, download)
        log.info("transfer.fetched", bytes=download.size, sha256=download.sha256)
        return Fetched(download.size, download.sha256)

    async def _fetch_once(self, backend: HttpBackend, download: ArrivingBody) -> None:
        """GET the rest of a body, once. Raises NoContact to be tried again."""
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
            body = FileBody(source, size)
            await self._watched(self._upload(backend, body), body)
        log.info("transfer.uploaded", bytes=size, sha256=sha256)

    async def _upload(self, backend: HttpBackend, body: FileBody) -> None:
        """PUT a file by HTTP. Raises NoContact, TransferRefused, HostRefused."""
        try:
            async with self._request(
                "PUT", backend.url, headers=backend.headers, data=body
            ) as response:
                self._check_stored(response, await _word(response), backend.url)
        except (aiohttp.InvalidURL, ValueError) as error:
            raise TransferRefused("a presigned request that cannot be sent") from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise NoContact(await self._network.reason(error, backend.url)) from error

    async def _watched(self, work: Awaitable[None], body: FileBody) -> None:
        """Await an upload while it moves. Raises NoContact when it stands still."""
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

    def _check_stored(self, response: aiohttp.ClientResponse, word: bytes, url: str) -> None:
        """Raise NoContact or TransferRefused unless the store took a body.

        A refusal without a code is not the store's own, and may pass.
        """
        status = response.status
        code = code_of(Answer(status, word, {}))
        if code is None and (found := _STORE_CODE.search(word)):
            code = found[1].decode()
        if code is None and status >= 400:
            reason = f"something in front of the store answered {status}"
            raise NoContact(reason, status=status, retry_after=retry_after(response.headers))
        try:
            self._check_status(response, url)
        except NoContact as error:
            error.code = code
            raise

    def _check_status(
        self, response: aiohttp.ClientResponse, url: str, *, has_started: bool = False
    ) -> None:
        """Raise NoContact or TransferRefused unless the body follows.

        The server itself never redirects to a body, nor answers with a page: a portal or a proxy
        does, and that passes.
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
            to = redirected(response.headers)
            if is_own:
                reason = f"a redirect ({status}){to} where bodies are stored: a portal or proxy?"
                raise NoContact(reason)
            host = response.url.host
            reason = f"{host}, where bodies are stored, redirects ({status}){to}: not followed"
            raise TransferRefused(reason, status)
        raise TransferRefused(f"the store answered {status}", status)

    # Sessions

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        """Return a session without memory: no cookies, no redirects, no decompression."""
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
        """Return a request by the session that fits: to a proxy, or to an address that is checked.

        Raises HostRefused, NoContact.
        """
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


async def _word(response: aiohttp.ClientResponse) -> bytes:
    """Return the start of an answer's body. The status counts: the rest may be cut."""
    data = b""
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > _WORD_BYTES:
            response.close()
            break
    return data[:_WORD_BYTES]


def _check_request(backend: HttpBackend, method: str) -> None:
    """Raise TransferRefused for a presigned request of another method or with other headers."""
    try:
        backend.check(method)
    except ValueError as error:
        raise TransferRefused(str(error)) from None
