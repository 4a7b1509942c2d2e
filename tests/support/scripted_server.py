"""A server that says to an agent exactly what a test wants it to say, over real HTTP.

It keeps no lifecycle: leases are put into a queue by the test, and everything that the agent sends
is recorded. `faults[route]` makes the next requests of a route fail: a status answers that, "drop"
hangs up without an answer, "page" answers 200 with a web page; "hold" waits until `let_go`;
"bare 404" and "html 404" answer that without our error body, as a proxy does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self

from aiohttp import web

from tests.support.listening import stop_serving
from tests.support.waiting import Changes

Fault = int | Literal["drop", "page", "hold", "bare 403", "bare 404", "html 404"]
DEPLOYMENT = "dep-1"
_TARGET = {"resourceId": "default", "resourceType": "daemon"}


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    route: str
    method: str
    path: str
    """With its query, byte for byte."""
    headers: dict[str, str]
    body: bytes
    at: float

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class ScriptedServer:
    """On a free port of 127.0.0.1, or on the one that it had before."""

    def __init__(self, *, knows_extensions: bool = True) -> None:
        self.knows_extensions = knows_extensions
        self.requests: list[Seen] = []
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.always: dict[str, Fault] = {}
        """A fault of every request of a route, until taken out."""
        self.lease_seconds = 60.0
        self.held_polls = 0
        """Lease requests that wait for a command."""
        self.cancelled: set[str] = set()
        self.lost: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.cut_blob_after: deque[int] = deque()
        """The next GETs of a blob break off after so many bytes."""
        self.takes_ranges = True
        self.takes_many = False
        """True if responses may be handed in together."""
        self.refusals: dict[str, int] = {}
        """What responses that are handed in together are answered, by command id, if not 200."""
        self.keeps_events = True
        self.refusal = "PLANNED"
        """The code of planned refusals."""
        self._queue: deque[dict[str, Any]] = deque()
        self._changes = Changes()
        self._let_go = asyncio.Event()
        self._count = 0
        self._port = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> Self:
        """Listen."""
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    async def stop(self) -> None:
        """Be gone; what waits is cut off."""
        self.let_go()
        if self._runner is not None:
            await stop_serving(self._runner)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    # for tests

    def send(
        self,
        command: str,
        params: Any = None,
        *,
        raw: bytes | None = None,
        command_id: str | None = None,
        stored: bool = False,
        deadline_in: float | None = None,
        change: Callable[[dict[str, Any]], Any] | None = None,
    ) -> str:
        """Queue a lease; its id. `change` may spoil it first."""
        self._count += 1
        lease_id = f"lease_{self._count}"
        command_id = command_id or f"cmd_{self._count}"
        data = raw if raw is not None else json.dumps(params).encode()
        now = datetime.now(UTC)
        body: dict[str, Any] = {"mode": "inline", "inlineBase64": b64encode(data).decode()}
        if stored:
            self.blobs[f"params-{command_id}"] = data
            body = {
                "mode": "storage",
                "size": len(data),
                "storageGetRequest": self.presigned("GET", f"params-{command_id}"),
            }
        envelope: dict[str, Any] = {
            "protocol": "arc.v1",
            "deploymentId": DEPLOYMENT,
            "target": _TARGET,
            "commandId": command_id,
            "attempt": 1,
            "command": command,
            "params": body,
            "responseHandling": {
                "maxInlineBytes": 1000,
                "submitResponseUrl": f"{self.url}/v1/commands/{command_id}/response"
                f"?response_token=secret&lease={lease_id}",
                "storageUploadRequest": self.presigned("PUT", f"response-{command_id}"),
            },
        }
        if deadline_in is not None:
            envelope["deadline"] = stamp(now + timedelta(seconds=deadline_in))
        lease: dict[str, Any] = {
            "leaseId": lease_id,
            "leaseExpiresAt": stamp(now + timedelta(seconds=self.lease_seconds)),
            "commandId": command_id,
            "attempt": 1,
            "envelope": envelope,
        }
        if self.knows_extensions:
            lease["leaseSeconds"] = self.lease_seconds
        if change is not None:
            change(lease)
        self._queue.append(lease)
        self._tell()
        return lease_id

    def presigned(self, method: str, name: str) -> dict[str, Any]:
        """A presigned request to a blob of this server."""
        return {
            "backend": {
                "type": "http",
                "url": f"{self.url}/blobs/{name}?signature=s3cret",
                "method": method,
                "headers": {"x-ms-blob-type": "BlockBlob"},
            },
            "expiration": stamp(datetime.now(UTC) + timedelta(hours=1)),
            "operation": method.lower(),
            "path": f"arc/{name}",
        }

    def seen(self, route: str) -> list[Seen]:
        """The requests of one route."""
        return [request for request in self.requests if request.route == route]

    def responses(self, command_id: str | None = None) -> list[Any]:
        """The responses that were handed in, as JSON."""
        return [
            request.json()
            for request in self.seen("response")
            if command_id is None or f"/{command_id}/" in request.path
        ]

    async def response(self, number: int = 1) -> Any:
        """The n-th response that was handed in."""
        await self.until(lambda: len(self.responses()) >= number)
        return self.responses()[number - 1]

    async def until(self, holds: Callable[[], bool], *, seconds: float = 15) -> None:
        """Wait until something holds; looked at whenever anything happens here."""
        await self._changes.until(holds, seconds)

    def let_go(self) -> None:
        """End every "hold"."""
        self._let_go.set()

    def _tell(self) -> None:
        self._changes.notify()

    # answers

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        route = _route(request)
        body = await request.read()
        loop = asyncio.get_running_loop()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(
            Seen(route, request.method, request.raw_path, headers, body, loop.time())
        )
        self._tell()
        fault = self.faults[route].popleft() if self.faults[route] else self.always.get(route)
        if fault == "hold":
            await self._let_go.wait()
        elif fault == "drop":
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        elif fault == "page":
            return web.Response(text="<html>Sign in</html>", content_type="text/html")
        elif isinstance(fault, str):
            kind, status = fault.split()
            kind = "text/html" if kind == "html" else "text/plain"
            return web.Response(status=int(status), text="no such page", content_type=kind)
        elif fault is not None:
            return web.json_response(
                {"code": self.refusal, "message": "", "retryable": False, "httpStatusCode": fault},
                status=fault,
                headers={"Retry-After": "0"} if fault == 429 else {},
            )
        answer = getattr(self, f"_{route}", None)
        if answer is None or (route in ("renew", "agents") and not self.knows_extensions):
            return web.Response(status=404)
        if (route == "respond" and not self.takes_many) or (
            route == "events" and not self.keeps_events
        ):
            return web.Response(status=404)
        result: web.StreamResponse = await answer(request, body)
        self._tell()
        return result

    async def _leases(self, request: web.Request, body: bytes) -> web.StreamResponse:
        asked = json.loads(body)
        seconds = asked.get("waitSeconds", 0) if self.knows_extensions else 0
        until = asyncio.get_running_loop().time() + seconds
        self.held_polls += 1
        try:
            while not self._queue:
                left = until - asyncio.get_running_loop().time()
                if left <= 0 or request.transport is None or request.transport.is_closing():
                    break
                with suppress(TimeoutError):
                    await self._changes.until(lambda: bool(self._queue), min(left, 0.5))
        finally:
            self.held_polls -= 1
        if request.transport is None or request.transport.is_closing():
            return web.Response()  # the client is gone
        leases = [self._queue.popleft() for _ in range(min(len(self._queue), asked["maxLeases"]))]
        for lease in leases:  # they are for the target that is asked for, unless spoiled
            if lease.get("envelope", {}).get("target") == _TARGET:
                lease["envelope"]["target"] = asked.get("target") or _TARGET
        return web.json_response({"leases": leases})

    async def _renew(self, _request: web.Request, body: bytes) -> web.StreamResponse:
        asked = json.loads(body)
        held = [each for each in asked["leaseIds"] if each not in self.lost]
        expires = stamp(datetime.now(UTC) + timedelta(seconds=self.lease_seconds))
        return web.json_response(
            {
                "renewed": [
                    {
                        "leaseId": each,
                        "leaseExpiresAt": expires,
                        "leaseSeconds": self.lease_seconds,
                    }
                    for each in held
                ],
                "lost": [each for each in asked["leaseIds"] if each in self.lost],
                "cancelled": [each for each in held if each in self.cancelled],
            }
        )

    async def _response(self, _request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.Response()

    async def _respond(self, _request: web.Request, body: bytes) -> web.StreamResponse:
        return web.json_response(
            {
                "refused": [
                    {
                        "leaseId": each["leaseId"],
                        "error": {
                            "code": "PLANNED",
                            "message": "",
                            "retryable": False,
                            "httpStatusCode": self.refusals[each["commandId"]],
                        },
                    }
                    for each in json.loads(body)["responses"]
                    if each["commandId"] in self.refusals
                ]
            }
        )

    async def _events(self, _request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.Response()

    async def _release(self, _request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.Response()

    async def _agents(self, _request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.Response()

    async def _put_blob(self, request: web.Request, body: bytes) -> web.StreamResponse:
        self.blobs[request.path.removeprefix("/blobs/")] = body
        return web.Response()

    async def _get_blob(self, request: web.Request, _body: bytes) -> web.StreamResponse:
        data = self.blobs.get(request.path.removeprefix("/blobs/"))
        if data is None:
            return web.Response(status=404)
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if self.takes_ranges:
            headers["Accept-Ranges"] = "bytes"
        start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        status, part = 200, data
        if start and self.takes_ranges:
            status, part = 206, data[int(start[1]) :]
            headers["Content-Range"] = f"bytes {start[1]}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(part)
        await response.prepare(request)
        if self.cut_blob_after:
            await response.write(part[: self.cut_blob_after.popleft()])
            if request.transport is not None:
                request.transport.close()
            return response
        await response.write(part)
        await response.write_eof()
        return response


def _route(request: web.Request) -> str:
    """Return which of the routes a request is for."""
    path = request.path.removeprefix("/v1")
    if request.method == "POST" and path == "/commands/leases":
        return "leases"
    if request.method == "POST" and path == "/commands/leases/renew":
        return "renew"
    if request.method == "POST" and path == "/commands/leases/respond":
        return "respond"
    if path.endswith("/release"):
        return "release"
    if path.endswith("/events"):
        return "events"
    if path.endswith("/response"):
        return "response"
    if path.startswith("/agents/"):
        return "agents"
    if path.startswith("/blobs/"):
        return "put_blob" if request.method == "PUT" else "get_blob"
    return "unknown"


def stamp(moment: datetime) -> str:
    """RFC 3339 with Z."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def inline(response: Any) -> bytes:
    """The bytes of an inline success."""
    assert response["status"] == "success", response
    return b64decode(response["response"]["inlineBase64"])
