"""A small worker that commands are pushed to: 202 at once, the response later."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from tests.support.listening import stop_serving
from tests.support.octets import octets_in_time
from tests.support.raw_sender import Json, Sender, inline


class PushWorker:
    """Answers every push with 202, runs each command once, and hands in what `blob` would."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._wire = Sender(session, "", "")
        self.envelopes: list[Json] = []
        """Every envelope that was pushed, in order."""
        self.authorizations: list[str | None] = []
        self.params: dict[str, tuple[int, str]] = {}
        """Length and SHA-256 of the params that came, by command id."""
        self._running: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen on a port of its own."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/_alien/commands", self._accept)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/_alien/commands"

    async def stop(self) -> None:
        """Stop listening. A response that could not be handed in fails the test here."""
        assert self._runner is not None
        await stop_serving(self._runner)
        await asyncio.gather(*self._running)

    async def _accept(self, request: web.Request) -> web.Response:
        envelope = await request.json()
        self.envelopes.append(envelope)
        self.authorizations.append(request.headers.get("Authorization"))
        self._running.add(asyncio.create_task(self._run(envelope)))
        return web.json_response({"accepted": True}, status=202)

    async def _run(self, envelope: Json) -> None:
        digest = hashlib.sha256()
        length = 0
        first = b""
        async for chunk in self._params(envelope["params"]):
            first = first or chunk
            digest.update(chunk)
            length += len(chunk)
        self.params[envelope["commandId"]] = (length, digest.hexdigest())
        size, seed = map(int, first.split(b"\n", 1)[0].split())
        handling = envelope["responseHandling"]
        body = await self._response_body(handling, size, seed)
        response = {"status": "success", "response": body}
        await self._wire.signed("PUT", handling["submitResponseUrl"], response)

    async def _params(self, spec: Json) -> AsyncIterator[bytes]:
        if spec["mode"] == "inline":
            yield await self._wire.body(spec)
            return
        async for chunk in self._wire.download(spec["storageGetRequest"]):
            yield chunk

    async def _response_body(self, handling: Json, size: int, seed: int) -> dict[str, Any]:
        if size <= handling["maxInlineBytes"]:
            return inline(b"".join([chunk async for chunk in octets_in_time(size, seed)]))
        await self._wire.upload(handling["storageUploadRequest"], octets_in_time(size, seed))
        return {"mode": "storage", "size": size, "storagePutUsed": True}
