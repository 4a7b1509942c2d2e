"""A server of the base protocol only, of either public generation, over HTTP.

    async with BaseProtocolServer(era=3) as server:
        command_id = server.send("reports.generate", b"{}")
        ...  # an agent at server.url
        await server.until(lambda: server.command(command_id).is_terminal)

It has no long poll (it answers at once and ignores `waitSeconds`), no renewal, no cancelling, no
list, no agents: those are 404 or 405 with an empty body. Every request is recorded. `planned` makes
the next requests of a route fail: a status answers that; "drop" hangs up before anything is done;
"lose" does it and hangs up without an answer.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from aiohttp import web

from tests.support.base_protocol_commands import BaseProtocolCommands, Command, Era, Json, Refusal
from tests.support.listening import stop_serving
from tests.support.waiting import Changes

Fault = int | Literal["drop", "lose"]
BODY_LIMIT = 2 * 1024 * 1024
"""axum's default, which public servers leave as it is; blobs are not bound by it."""
BODY = web.RequestKey("body", bytes)
DAEMON: Json = {"resourceId": "default", "resourceType": "daemon"}


class PlainText(Exception):
    """An error answer of the framework or of an object store: no JSON."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    route: str
    """create, status, upload, response, payload, lease, release, put_blob, get_blob or unknown."""
    method: str
    target: str
    """Path and query, byte for byte."""
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class BaseProtocolServer:
    """The fake on a free port of 127.0.0.1."""

    def __init__(
        self,
        era: Era = 3,
        *,
        token: str | None = None,
        target: Json = DAEMON,
        behind: str = "",
    ) -> None:
        """`token` is wanted as bearer where given. `behind` is a path that a proxy has put before.

        The server itself does not know of it: absolute URLs lack it.
        """
        self.requests: list[Seen] = []
        self.planned: defaultdict[str, list[Fault]] = defaultdict(list)
        self._era: Era = era
        self._token, self._target, self._behind = token, target, behind
        self._changes = Changes()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=BODY_LIMIT, middlewares=[self._around])
        application.add_routes(self._routes(f"{self._behind}/v1"))
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.origin = f"http://{host}:{port}"
        self.url = f"{self.origin}{self._behind}/v1"
        """What agents and Rust senders are given."""
        self.state = BaseProtocolCommands(self._era, f"{self.origin}/v1", self._target)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            await stop_serving(self._runner)

    # for tests

    def send(
        self, command: str, params: bytes = b"{}", *, deployment_id: str = "dep", **fields: Any
    ) -> str:
        """Store a command as if a sender had; its id. `fields` are further ones of create."""
        inline = {"mode": "inline", "inlineBase64": b64encode(params).decode()}
        request = {"deploymentId": deployment_id, "command": command, "params": inline, **fields}
        return str(self.state.create(request)["commandId"])

    def command(self, command_id: str) -> Command:
        """A command as it stands."""
        return self.state.commands[command_id]

    def seen(self, route: str) -> list[Seen]:
        """The requests of one route so far."""
        return [request for request in self.requests if request.route == route]

    async def until(self, holds: Callable[[], bool], *, seconds: float = 20) -> None:
        """Wait until something holds; looked at after every request. Raises TimeoutError."""
        await self._changes.until(holds, seconds)

    # around every request

    @web.middleware
    async def _around(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Record it, let a planned fault happen, and write errors as the manager does."""
        route = request.match_info.route.name or "unknown"
        body = await self._body(request, route)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Seen(route, request.method, request.raw_path, headers, body or b""))
        fault = self.planned[route].pop(0) if self.planned[route] else None
        try:
            if fault == "drop":
                return self._hang_up(request)
            if isinstance(fault, int):
                return web.Response(status=fault, text="as planned")
            if body is None:
                return web.Response(status=413, text="length limit exceeded")
            request[BODY] = body
            answer = await handler(request)
        except Refusal as refusal:
            answer = web.json_response(refusal.body(), status=refusal.status)
        except PlainText as refusal:
            answer = web.Response(status=refusal.status, text=refusal.text)
        except web.HTTPException as error:  # 404 and 405 have an empty body there
            answer = web.Response(status=error.status)
        finally:
            self._changes.notify()
        return self._hang_up(request) if fault == "lose" else answer

    async def _body(self, request: web.Request, route: str) -> bytes | None:
        """The whole body; None when it is above the limit."""
        if route == "put_blob":
            return b"".join([chunk async for chunk in request.content.iter_any()])
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            return None

    def _hang_up(self, request: web.Request) -> web.Response:
        """Close the connection without an answer."""
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    # routes

    def _routes(self, base: str) -> list[web.RouteDef]:
        """All there are."""
        commands = f"{base}/commands"
        return [
            web.post(commands, self._create, name="create"),
            web.post(f"{commands}/leases", self._lease, name="lease"),
            web.post(f"{commands}/leases/{{lease_id}}/release", self._release, name="release"),
            web.get(f"{commands}/{{id:(?!leases$)[^/]+}}", self._status, name="status"),
            web.post(f"{commands}/{{id}}/upload-complete", self._upload, name="upload"),
            web.put(f"{commands}/{{id}}/response", self._respond, name="response"),
            web.get(f"{commands}/{{id}}/payload", self._payload, name="payload"),
            web.put(f"{base}/storage/{{path:.+}}", self._put_blob, name="put_blob"),
            web.get(f"{base}/storage/{{path:.+}}", self._get_blob, name="get_blob"),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        body = self._json(request, deploymentId=str, command=str, params=dict)
        self._admit(request)
        return web.json_response(self.state.create(body))

    async def _status(self, request: web.Request) -> web.Response:
        self._admit(request)
        return web.json_response(self.state.status(request.match_info["id"]))

    async def _upload(self, request: web.Request) -> web.Response:
        self._json(request, size=int)
        self._admit(request)
        return web.json_response(self.state.upload_complete(request.match_info["id"]))

    async def _respond(self, request: web.Request) -> web.Response:
        body = self._json(request, status=str)
        command_id = request.match_info["id"]
        if "Authorization" in request.headers:
            self._admit(request)
        elif not self._is_signed(request, "response", command_id, "response_token"):
            raise Refusal(401, "UNAUTHORIZED", "a bearer token or a signature is needed")
        self.state.respond(command_id, body)
        return web.Response()

    async def _payload(self, request: web.Request) -> web.Response:
        self._admit(request)
        command = self.state.commands.get(request.match_info["id"])
        if command is None:
            raise Refusal(404, "COMMAND_NOT_FOUND", "no such command")
        inline = {"mode": "inline", "inlineBase64": b64encode(command.params or b"").decode()}
        answer: Json = {"commandId": command.command_id, "params": inline}
        return web.json_response(
            {**answer, **({"response": command.response} if command.response else {})}
        )

    async def _lease(self, request: web.Request) -> web.Response:
        body = self._json(request, deploymentId=str)
        for name in ("maxLeases", "leaseSeconds"):
            if name in body and type(body[name]) is not int:
                raise self._wrong_shape(name)
        if self._era == 3 and not isinstance(body.get("target"), dict):
            raise self._wrong_shape("target")
        self._admit(request)
        return web.json_response(self.state.lease(body))

    async def _release(self, request: web.Request) -> web.Response:
        self._admit(request)
        self.state.release(request.match_info["lease_id"])
        return web.Response()

    async def _put_blob(self, request: web.Request) -> web.Response:
        path = self._signed_path(request, "put")
        self.state.blobs[path] = request[BODY]
        return web.Response()

    async def _get_blob(self, request: web.Request) -> web.Response:
        path = self._signed_path(request, "get")
        if path not in self.state.blobs:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        return web.Response(body=self.state.blobs[path])

    # checks

    def _json(self, request: web.Request, **fields: type) -> Json:
        """The body, or the plain text answers that come before a look at the token."""
        if request.content_type != "application/json":
            raise PlainText(415, "Expected request with `Content-Type: application/json`")
        try:
            body = json.loads(request[BODY])
        except ValueError:
            raise PlainText(400, "Failed to parse the request body as JSON") from None
        for name, kind in fields.items():
            if not isinstance(body, dict) or type(body.get(name)) is not kind:
                raise self._wrong_shape(name)
        return body

    def _wrong_shape(self, name: str) -> PlainText:
        """422 in plain text."""
        return PlainText(422, f"Failed to deserialize the JSON body into the target type: {name}")

    def _admit(self, request: web.Request) -> None:
        """401 unless the bearer token is right."""
        if self._token and request.headers.get("Authorization") != f"Bearer {self._token}":
            raise Refusal(401, "UNAUTHORIZED", "a bearer token is needed")

    def _is_signed(self, request: web.Request, purpose: str, subject: str, name: str) -> bool:
        """Return True if the query carries our signature, still good."""
        expires = request.query.get("expires", "")
        if not expires.isdigit() or int(expires) < self.state.now().timestamp():
            return False
        return request.query.get(name) == self.state.signature(purpose, subject, int(expires))

    def _signed_path(self, request: web.Request, operation: str) -> str:
        """The blob's path. Object stores refuse a bearer token beside a signature."""
        path = request.match_info["path"]
        if "Authorization" in request.headers:
            raise PlainText(400, "<Error>Only one auth mechanism allowed</Error>")
        if not self._is_signed(request, operation, path, "sig"):
            raise PlainText(403, "<Error><Code>SignatureDoesNotMatch</Code></Error>")
        return path
