"""A reverse proxy that does not let every request through: what stands in front of a server."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Self

import aiohttp
from aiohttp import web

from tests.support.listening import stop_serving
from tests.support.waiting import Changes

Refusal = int | Literal["cut", "page 200"]
_CHUNK_BYTES: Final = 64 * 1024
_HOP: Final = ("connection", "content-length", "keep-alive", "transfer-encoding")
_PAGE: Final = "<html><h1>Request refused</h1></html>"


class LimitingProxy:
    """Passes requests on to `behind`, but for those that `refuses` picks.

    `refusal` is what these get: a status with a page of the proxy's own, before the body was read
    or after; or their connection is cut in the middle of the body.
    """

    def __init__(
        self, behind: str, refuses: Callable[[web.Request], bool], refusal: Refusal = 413
    ) -> None:
        self._behind = behind
        self.refuses = refuses
        self.refusal: Refusal = refusal
        self.reads_all = True
        """The body is read before a refusal is answered."""
        self.passed: list[str] = []
        """`METHOD path` of what was passed on."""
        self.refused: list[tuple[str, int]] = []
        """`METHOD path` and length of what was not."""
        self.changes = Changes()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        assert self._session is not None
        await stop_serving(self._runner)  # before the session: its requests may be under way
        await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        what = f"{request.method} {request.path}"
        if self.refuses(request):
            self.refused.append((what, request.content_length or 0))
            self.changes.notify()
            return await self._refuse(request)
        self.passed.append(what)
        self.changes.notify()
        assert self._session is not None
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        async with self._session.request(
            request.method,
            f"{self._behind}{request.raw_path}",
            headers=headers,
            data=io.BytesIO(await request.read()),
            allow_redirects=False,
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    async def _refuse(self, request: web.Request) -> web.StreamResponse:
        if self.refusal == "cut":
            await request.content.read(_CHUNK_BYTES)
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if self.reads_all:
            await request.read()
        status = 200 if isinstance(self.refusal, str) else self.refusal
        return web.Response(status=status, text=_PAGE, content_type="text/html")


def larger_than(size: int) -> Callable[[web.Request], bool]:
    """Return the rule of a proxy with a limit for request bodies."""
    return lambda request: (request.content_length or 0) > size
