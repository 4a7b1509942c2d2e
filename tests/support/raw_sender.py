"""The wire by hand: requests as docs/protocol.md writes them, of senders and of lease holders."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

TERMINAL = ("SUCCEEDED", "FAILED", "EXPIRED")
DEPLOYMENT = "site-1"
JSON = {"Content-Type": "application/json"}

Json = dict[str, Any]


def inline(data: bytes) -> Json:
    """A body within the message."""
    return {"mode": "inline", "inlineBase64": base64.b64encode(data).decode()}


def success(data: bytes) -> Json:
    """The response of a handler that returned."""
    return {"status": "success", "response": inline(data)}


def failure(code: str, message: str) -> Json:
    """The response of a handler that failed."""
    return {"status": "error", "code": code, "message": message}


class Refused(AssertionError):
    """An answer with another status than the test expects."""

    def __init__(self, answer: aiohttp.ClientResponse, text: str) -> None:
        super().__init__(f"{answer.method} {answer.url}: {answer.status} {text}")
        self.status = answer.status


class Sender:
    """One client of one server. Every answer but 200 fails the test unless `expect` names it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self._session = session
        self.url = url
        self._token = token

    def through(self, url: str) -> Sender:
        """Return this client with another way to the server."""
        return Sender(self._session, url, self._token)

    async def call(self, method: str, path: str, body: Any = None, *, expect: int = 200) -> Any:
        """One request with the bearer token to a path below /v1; the answer's JSON, if any."""
        headers = {"Authorization": f"Bearer {self._token}", **JSON}
        url = f"{self.url}/v1{path}"
        async with self._session.request(method, url, data=_json(body), headers=headers) as answer:
            return await self._judged(answer, expect)

    async def signed(self, method: str, url: str, body: Any, *, expect: int = 200) -> Any:
        """One request to a pre-authorised URL: no token, and the URL as it was given."""
        async with self._session.request(
            method, _as_is(url), data=_json(body), headers=JSON
        ) as answer:
            return await self._judged(answer, expect)

    async def _judged(self, answer: aiohttp.ClientResponse, expect: int) -> Any:
        text = await answer.text()
        if answer.status != expect:
            raise Refused(answer, text)
        return json.loads(text) if text else None

    # the sender's half

    async def create(self, command: str, params: bytes | Json = b"null", **fields: Any) -> str:
        """Create with an inline body, bytes as they are or a value as JSON; the command's id."""
        data = params if isinstance(params, bytes) else json.dumps(params).encode()
        created = await self.call(
            "POST",
            "/commands",
            {"deploymentId": DEPLOYMENT, "command": command, "params": inline(data), **fields},
        )
        return created["commandId"]

    async def create_uploaded(
        self, command: str, size: int, chunks: AsyncIterator[bytes], **fields: Any
    ) -> str:
        """Create with a storage body, upload it in chunks, say so; the command's id."""
        created = await self.call(
            "POST",
            "/commands",
            {
                "deploymentId": DEPLOYMENT,
                "command": command,
                "params": {"mode": "storage", "size": size},
                **fields,
            },
        )
        assert created["next"] == "upload"
        assert created["state"] == "PENDING_UPLOAD"
        await self.upload(created["storageUpload"]["putRequest"], chunks)
        path = f"/commands/{created['commandId']}/upload-complete"
        completed = await self.call("POST", path, {"size": size})
        assert completed["state"] == "PENDING"
        return created["commandId"]

    async def status(self, command_id: str, wait_seconds: float = 0) -> Json:
        """Where it stands."""
        return await self.call("GET", f"/commands/{command_id}?waitSeconds={wait_seconds}")

    async def result(self, command_id: str, seconds: float = 30.0) -> Json:
        """Wait until it is terminal, through outages of the server too; its status then."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            assert left > 0, f"{command_id} did not end within {seconds} s"
            try:
                status = await self.status(command_id, min(left, 20))
            except aiohttp.ClientError:
                continue
            if status["state"] in TERMINAL:
                return status

    async def commands(self, **which: str) -> list[Json]:
        """All commands of a list, page by page."""
        found: list[Json] = []
        cursor = ""
        while True:
            query = "&".join(f"{name}={value}" for name, value in which.items())
            page = await self.call("GET", f"/commands?limit=500&{query}{cursor}")
            found += page["commands"]
            if "cursor" not in page:
                return found
            cursor = f"&cursor={page['cursor']}"

    # the holder's half

    async def lease(
        self, *, wait_seconds: float = 0, lease_seconds: int = 60, max_leases: int = 1, **more: Any
    ) -> list[Json]:
        """Ask for work."""
        answer = await self.call(
            "POST",
            "/commands/leases",
            {
                "deploymentId": DEPLOYMENT,
                "maxLeases": max_leases,
                "leaseSeconds": lease_seconds,
                "waitSeconds": wait_seconds,
                **more,
            },
        )
        return answer["leases"]

    async def respond(self, lease: Json, response: Json, *, expect: int = 200) -> Any:
        """Hand in a response where the envelope says."""
        handling = lease["envelope"]["responseHandling"]
        return await self.signed("PUT", handling["submitResponseUrl"], response, expect=expect)

    # bodies

    async def upload(self, request: Json, chunks: AsyncIterator[bytes]) -> None:
        """Use a presigned PUT."""
        backend = request["backend"]
        async with self._session.request(
            backend["method"], _as_is(backend["url"]), data=chunks, headers=backend["headers"]
        ) as answer:
            assert answer.status == 200, await answer.text()

    async def body(self, spec: Json) -> bytes:
        """A body, wherever it is."""
        if spec["mode"] == "inline":
            return base64.b64decode(spec["inlineBase64"], validate=True)
        return b"".join([chunk async for chunk in self.download(spec["storageGetRequest"])])

    async def digest(self, spec: Json) -> tuple[int, str]:
        """Length and SHA-256 of a body, without holding it when it is stored."""
        if spec["mode"] == "inline":
            data = await self.body(spec)
            return len(data), hashlib.sha256(data).hexdigest()
        digest = hashlib.sha256()
        length = 0
        async for chunk in self.download(spec["storageGetRequest"]):
            digest.update(chunk)
            length += len(chunk)
        return length, digest.hexdigest()

    async def download(self, request: Json) -> AsyncIterator[bytes]:
        """Use a presigned GET."""
        backend = request["backend"]
        async with self._session.request(
            backend["method"], _as_is(backend["url"]), headers=backend["headers"]
        ) as answer:
            assert answer.status == 200, await answer.text()
            async for chunk in answer.content.iter_chunked(256 * 1024):
                yield chunk


def _json(body: Any) -> BytesIO | None:
    """A value as the body of a request."""
    return None if body is None else BytesIO(json.dumps(body).encode())


def _as_is(url: str) -> URL:
    """A URL that is sent byte for byte."""
    assert urlsplit(url).scheme in ("http", "https"), url
    return URL(url, encoded=True)
