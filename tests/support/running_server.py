"""A running server and a client, with which tests call its HTTP routes."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from arc_server.app import RunningServer
from arc_server.auth.tokens import Scope, new_token

OWN = "own"
OTHER = "other"


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    json: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        is_json = self.headers.get("Content-Type") == "application/json"
        self.json = json.loads(self.body) if is_json else None

    @property
    def code(self) -> str | None:
        """The code of an error answer, which must be a whole one."""
        assert self.json is not None, self
        assert set(self.json) >= {"code", "message", "retryable", "httpStatusCode"}, self
        assert self.json["httpStatusCode"] == self.status
        return self.json["code"]


@dataclass
class Client:
    """Calls a server as the owner of `token`."""

    server: RunningServer
    session: aiohttp.ClientSession
    token: str | None = None

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: Any = None,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send one request; `path` may be a whole URL, sent as it is."""
        sent = dict(headers or {})
        token = self.token if token is None else token
        if token:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        if isinstance(data, bytes):
            data = io.BytesIO(data)  # aiohttp warns of large bytes
        url = path if path.startswith("http") else self.server.url + path
        async with self.session.request(
            method, URL(url, encoded=True), data=data, headers=sent, allow_redirects=False
        ) as answer:
            return Answer(answer.status, CIMultiDict(answer.headers), await answer.read())

    async def create(self, deployment: str = OWN, **fields: Any) -> str:
        """Make a command; its id."""
        request = {"deploymentId": deployment, "command": "report", "params": inline(b"{}")}
        answer = await self.call("POST", "/v1/commands", request | fields)
        assert answer.status == 200, answer
        return answer.json["commandId"]

    async def lease(self, deployment: str = OWN, **fields: Any) -> list[dict[str, Any]]:
        """Lease; the leases."""
        request = {"deploymentId": deployment, "maxLeases": 10}
        answer = await self.call("POST", "/v1/commands/leases", request | fields)
        assert answer.status == 200, answer
        return answer.json["leases"]

    async def status(self, command_id: str) -> dict[str, Any]:
        """Where a command stands."""
        answer = await self.call("GET", f"/v1/commands/{command_id}")
        assert answer.status == 200, answer
        return answer.json


def inline(data: bytes) -> dict[str, str]:
    """A body in a message."""
    return {"mode": "inline", "inlineBase64": b64encode(data).decode()}


def success(data: bytes = b"{}") -> dict[str, Any]:
    """A response."""
    return {"status": "success", "response": inline(data)}


async def make_token(
    server: RunningServer,
    scope: Scope,
    deployment_id: str | None = None,
    *,
    revoked: bool = False,
    **bounds: Any,
) -> str:
    """A token that the server knows."""
    deployments = None if deployment_id is None else [deployment_id]
    made = new_token(scope, deployments, datetime.now(UTC), **bounds)
    await server.parts.store.put_token(made.stored, made.secret)
    if revoked:
        await server.parts.store.revoke_token(made.stored.token_id, datetime.now(UTC))
    return made.text


@asynccontextmanager
async def admin_client(server: RunningServer) -> AsyncIterator[Client]:
    """A client with an admin's token."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        yield Client(server, session, await make_token(server, Scope.ADMIN))


Serve = Callable[..., AbstractAsyncContextManager[Client]]
"""Start a server with other limits than the default; gives a client."""
