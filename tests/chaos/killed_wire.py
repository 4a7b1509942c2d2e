"""Requests to a server that may be killed at any moment."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import aiohttp
from yarl import URL

from tests.chaos.history import Open
from tests.chaos.history import digest as digest_of
from tests.chaos.killed_server import KilledServer

Json = dict[str, Any]
Reply = tuple[int, Any]


class Wire:
    """One server as its clients reach it."""

    def __init__(self, server: KilledServer, session: aiohttp.ClientSession) -> None:
        self._victim = server
        self._session = session
        self.progress = asyncio.Event()
        """Set whenever a request has ended, one way or the other."""

    async def ask(
        self, method: str, path: str, body: Any, *, event: Open | None = None
    ) -> Reply | None:
        """Send one request. None: outcome unknown; noted for `event` unless it never went out."""
        url = path if path.startswith("http") else self._victim.url + path
        data = None if body is None else json.dumps(body)
        try:
            async with self._session.request(
                method,
                URL(url, encoded=True),
                data=data,
                headers={"Content-Type": "application/json"},
            ) as answer:
                text = await answer.read()
                return answer.status, json.loads(text) if text else {}
        except (aiohttp.ClientError, ConnectionError) as error:
            # aiohttp sends a PUT or GET again by itself: that the second try met no server
            # does not tell that the first one came to nothing.
            is_unsent = isinstance(error, aiohttp.ClientConnectorError) and method == "POST"
            if event is not None and not is_unsent:
                event.unknown()
            await asyncio.sleep(0)
            return None
        except asyncio.CancelledError:
            if event is not None:
                event.unknown()  # the load ends when all commands have, not when all are answered
            raise
        finally:
            self.progress.set()

    async def upload(self, request: Json, data: bytes) -> bool:
        """A presigned PUT, until it is answered; whether it was taken."""
        backend = request["backend"]
        while True:
            await self._victim.is_up.wait()
            try:
                async with self._session.request(
                    backend["method"],
                    URL(backend["url"], encoded=True),
                    data=data,
                    headers=backend["headers"],
                ) as answer:
                    await answer.read()
                    if answer.status < 500:
                        return answer.status == 200
            except (aiohttp.ClientError, ConnectionError):
                await asyncio.sleep(0)

    async def digest(self, spec: Json) -> str | None:
        """The digest of a body wherever it is; None when the connection broke."""
        if spec["mode"] == "inline":
            return digest_of(base64.b64decode(spec["inlineBase64"], validate=True))
        backend = spec["storageGetRequest"]["backend"]
        try:
            async with self._session.request(
                backend["method"], URL(backend["url"], encoded=True), headers=backend["headers"]
            ) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, ConnectionError):
            return None
        return digest_of(data) if answer.status == 200 else f"HTTP {answer.status}"

    async def response(self, response: Json | None) -> list[str] | None:
        """A response as histories hold it; `["unread"]` when the connection broke."""
        if response is None:
            return None
        if response["status"] == "error":
            return ["error", response["code"], response["message"]]
        found = await self.digest(response["response"])
        return ["unread"] if found is None else ["success", found]


def inline(data: bytes) -> Json:
    """A body within the message."""
    return {"mode": "inline", "inlineBase64": base64.b64encode(data).decode()}
