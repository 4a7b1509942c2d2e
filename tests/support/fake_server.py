"""A small server in the test's own loop: the base protocol alone, or with the extensions.

Written from docs/protocol.md and not from arc_server, so that it shows what the page says.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from arc_client.wire.retry import SystemWaitClock
from tests.support.listening import stop_serving

TERMINAL = {"SUCCEEDED", "FAILED", "EXPIRED"}
NOW = "2026-11-24T20:00:00Z"
Handler = Callable[[bytes], Awaitable[bytes]]
one_kind = pytest.mark.parametrize("server", [True], indirect=True, ids=[""])
"""Where the server's kind makes no difference."""


class HandlerFailed(Exception):
    """What a fake handler raises to fail its command."""

    def __init__(self, code: str, message: str, details: str | None = None) -> None:
        super().__init__(message)
        self.response = {"status": "error", "code": code, "message": message}
        if details is not None:
            self.response["details"] = details


@dataclass
class StoredCommand:
    """One command of the fake."""

    command_id: str
    create: dict[str, Any]
    state: str
    params: bytes | None = None
    response: dict[str, Any] | None = None
    result: bytes | None = None
    attempt: int = 1
    cancel_requested: bool = False
    runs: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    said: list[str] = field(default_factory=list)
    progress: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    """What its status says in place of what a fake knows."""


@dataclass
class FakeServer:
    """Runs each command's handler by itself as soon as its params are there.

    A command without a handler stays PENDING. `token` is asked for unless None.
    """

    knows_extensions: bool = True
    token: str | None = None
    inline_limit: int = 150_000
    handlers: dict[str, Handler] = field(default_factory=dict)
    agents: list[dict[str, Any]] = field(default_factory=list)
    old_agents: set[str] = field(default_factory=set[str])
    """The ids of agents that are listed on request only."""
    faults: dict[str, list[Callable[[web.Request], web.StreamResponse]]] = field(
        default_factory=dict
    )
    """By route name: answers to give before the true one is given again."""
    receivers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    waiting: dict[str, Any] | None = None
    """Why commands wait that have not ended, if the server knows extensions."""
    commands: dict[str, StoredCommand] = field(default_factory=dict)
    by_key: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    expired_signatures: set[str] = field(default_factory=set)
    cut_downloads_after: list[int] = field(default_factory=list)
    """How many bytes each of the next downloads gets before its connection is cut."""
    knows_ranges: bool = True
    lies: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """By PUT or GET: what presigned requests say in place of the truth."""
    uploads: Counter[str] = field(default_factory=Counter)
    seen: asyncio.Condition = field(default_factory=asyncio.Condition)
    url: str = ""
    progress_gate: asyncio.Event | None = None
    """When set, the store answers uploads and goes on with downloads only once this is."""
    _runner: web.AppRunner | None = None
    _signature: int = 0

    async def start(self, port: int = 0) -> None:
        """Serve on a free port, or on the one it had."""
        app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[self._around])
        app.add_routes(
            [
                web.post("/v1/commands", self._create, name="create"),
                web.post("/v1/commands/{id}/upload-complete", self._complete, name="complete"),
                web.get("/v1/commands/{id}", self._status, name="status"),
                web.put("/blobs/{id}/params", self._put_blob, name="put-blob"),
                web.get("/blobs/{id}/result", self._get_blob, name="get-blob"),
            ]
        )
        if self.knows_extensions:
            app.add_routes(
                [
                    web.get("/v1/commands", self._list, name="list"),
                    web.post("/v1/commands/{id}/cancel", self._cancel, name="cancel"),
                    web.get("/v1/agents", self._agents, name="agents"),
                    web.get("/v1/commands/{id}/events", self._events, name="events"),
                ]
            )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port it serves on."""
        assert self._runner is not None
        return self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop serving; what is stored stays."""
        for command in self.commands.values():
            if command.task is not None:
                command.task.cancel()
        if self._runner is not None:
            await stop_serving(self._runner)

    async def until(self, is_so: Callable[[], bool], seconds: float = 10) -> None:
        """Wait until something is so; looked at after each request and each end of a command."""
        async with asyncio.timeout(seconds), self.seen:
            await self.seen.wait_for(is_so)

    def run(self, command_id: str) -> None:
        """Let a handler that was put in place meanwhile have a command that waits for it."""
        self._run(self.commands[command_id])

    def count(self, method: str, path: str) -> int:
        """Return how many requests of that method there were to paths that contain `path`."""
        return sum(m == method and path in p for m, p, _ in self.requests)

    @web.middleware
    async def _around(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path, dict(request.headers)))
        await self._tell()
        route = request.match_info.route.name or ""
        if self.faults.get(route):
            answer = self.faults[route].pop(0)(request)
            if answer.status == 599:
                assert request.transport is not None
                request.transport.abort()
            return answer
        is_blob = request.path.startswith("/blobs/")
        if not is_blob and self.token is not None:
            given = request.headers.get("Authorization", "")
            if given != f"Bearer {self.token}":
                return error(401, "UNAUTHORIZED", "this token is not known")
        try:
            return await handler(request)
        except web.HTTPException as failure:
            if not self.knows_extensions:
                return web.Response(status=failure.status)
            return error(failure.status, "NOT_FOUND", failure.reason)

    async def _tell(self) -> None:
        async with self.seen:
            self.seen.notify_all()

    async def _create(self, request: web.Request) -> web.Response:
        create = await request.json()
        key = create.get("idempotencyKey")
        if key in self.by_key:
            command = self.commands[self.by_key[key]]
            if command.create != create:
                return error(409, "IDEMPOTENCY_KEY_REUSED", "the key was used with other params")
            return web.json_response(self._created(command, is_replay=True))
        command_id = f"cmd_{len(self.commands) + 1}"
        params = create["params"]
        command = self.commands[command_id] = StoredCommand(command_id, create, "PENDING")
        if key is not None:
            self.by_key[key] = command_id
        if params["mode"] == "inline":
            command.params = b64decode(params["inlineBase64"], validate=True)
            self._run(command)
        else:
            command.state = "PENDING_UPLOAD"
        return web.json_response(self._created(command, is_replay=False))

    def _created(self, command: StoredCommand, *, is_replay: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "commandId": command.command_id,
            "state": command.state,
            "inlineAllowedUpTo": self.inline_limit,
            "next": "poll",
        }
        if command.state == "PENDING_UPLOAD" and (self.knows_extensions or not is_replay):
            answer["next"] = "upload"
            answer["storageUpload"] = {
                "putRequest": self._presigned("PUT", f"blobs/{command.command_id}/params"),
                "expiresAt": "2100-01-01T00:00:00Z",
            }
        if self.knows_extensions:
            answer["created"] = not is_replay
        if is_replay and self.knows_extensions:
            answer["isReplay"] = True
        return answer

    def _presigned(self, method: str, path: str) -> dict[str, Any]:
        self._signature += 1
        truth = {
            "type": "http",
            "url": f"{self.url}/{path}?sig=s%2f{self._signature}",
            "method": method,
            "headers": {"x-ms-blob-type": "BlockBlob"},
        }
        return {
            "backend": truth | self.lies.get(method, {}),
            "expiration": "2100-01-01T00:00:00Z",
            "operation": method.lower(),
            "path": path,
        }

    async def _put_blob(self, request: web.Request) -> web.Response:
        command = self.commands[request.match_info["id"]]
        if request.query["sig"] in self.expired_signatures:
            return error(403, "FORBIDDEN", "the signature has expired")
        body = await request.read()
        assert len(body) == int(request.headers["Content-Length"])
        if self.progress_gate is not None:
            await self.progress_gate.wait()
        command.params = body
        self.uploads[command.command_id] += 1
        return web.Response()

    async def _complete(self, request: web.Request) -> web.Response:
        command = self.commands[request.match_info["id"]]
        if command.state != "PENDING_UPLOAD":
            return error(400, "INVALID_STATE_TRANSITION", f"it is {command.state}")
        size = (await request.json())["size"]
        if command.params is None or len(command.params) != size:
            return error(400, "INVALID_COMMAND", "size: nothing of that size was uploaded")
        self._run(command)
        return web.json_response({"commandId": command.command_id, "state": command.state})

    async def _status(self, request: web.Request) -> web.Response:
        command = self.commands.get(request.match_info["id"])
        if command is None:
            return error(404, "COMMAND_NOT_FOUND", f"no such command: {request.match_info['id']}")
        if self.knows_extensions:
            known = request.query.get("waiting")
            try:
                async with asyncio.timeout(float(request.query.get("waitSeconds", "0"))), self.seen:
                    await self.seen.wait_for(
                        lambda: command.state in TERMINAL or known not in (None, self._tag)
                    )
            except TimeoutError:
                pass
        return web.json_response(self._describe(command))

    def _describe(self, command: StoredCommand) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "commandId": command.command_id,
            "state": command.state,
            "attempt": command.attempt,
            "target": {"resourceId": "default", "resourceType": "daemon"},
        }
        if command.state in TERMINAL and command.response is not None:
            answer["response"] = command.response
            if command.result is not None:
                answer["response"] = {"status": "success", "response": self._body(command)}
        if self.knows_extensions:
            answer |= {
                "deploymentId": command.create["deploymentId"],
                "command": command.create["command"],
                "createdAt": "2026-11-23T20:00:00Z",
                "maxAttempts": command.create.get("maxAttempts", 5),
            }
            if command.cancel_requested:
                answer["cancelRequested"] = True
            if self.waiting is not None and command.state not in TERMINAL:
                answer["waiting"] = {"now": NOW, "tag": self._tag, **self.waiting}
        return answer | command.facts

    def _listed(self, command: StoredCommand) -> dict[str, Any]:
        answer = self._describe(command)
        response = answer.pop("response", {})
        return answer | ({"errorCode": response["code"]} if "code" in response else {})

    @property
    def _tag(self) -> str:
        """The tag of the present reason."""
        return "none" if self.waiting is None else f"{self.waiting['reason']}-tag"

    async def wait_for_reason(self, **waiting: Any) -> None:
        """Let commands wait for another reason, or for none."""
        self.waiting = waiting or None
        await self._tell()

    def _body(self, command: StoredCommand) -> dict[str, Any]:
        assert command.result is not None
        if len(command.result) <= self.inline_limit:
            return {"mode": "inline", "inlineBase64": b64encode(command.result).decode()}
        get = self._presigned("GET", f"blobs/{command.command_id}/result")
        size = None if "GET" in self.lies else len(command.result)
        return {"mode": "storage", "size": size, "storageGetRequest": get}

    async def _get_blob(self, request: web.Request) -> web.StreamResponse:
        command = self.commands[request.match_info["id"]]
        if request.query["sig"] in self.expired_signatures:
            return error(403, "FORBIDDEN", "the signature has expired")
        assert command.result is not None
        begin = 0
        response = web.StreamResponse()
        if self.knows_ranges and "Range" in request.headers:
            begin = request.http_range.start or 0
            response.set_status(206)
            last = len(command.result) - 1
            response.headers["Content-Range"] = f"bytes {begin}-{last}/{last + 1}"
        data = command.result[begin:]
        response.content_length = len(data)
        await response.prepare(request)
        if self.cut_downloads_after:
            await response.write(data[: self.cut_downloads_after.pop(0)])
            assert request.transport is not None
            request.transport.close()
            return response
        if self.progress_gate is not None:
            await response.write(data[: len(data) // 2])
            await self.progress_gate.wait()
            data = data[len(data) // 2 :]
        await response.write(data)
        await response.write_eof()
        return response

    async def say(
        self, command_id: str, *lines: str, progress: dict[str, Any] | None = None
    ) -> None:
        """Let the handler of a command say something."""
        command = self.commands[command_id]
        command.said += lines
        command.progress = progress or command.progress
        await self._tell()

    async def _events(self, request: web.Request) -> web.Response:
        command = self.commands.get(request.match_info["id"])
        if command is None:
            return error(404, "COMMAND_NOT_FOUND", f"no such command: {request.match_info['id']}")
        after, was = int(request.query.get("after", "0")), command.progress
        try:
            async with asyncio.timeout(float(request.query.get("waitSeconds", "0"))), self.seen:
                await self.seen.wait_for(
                    lambda: (
                        len(command.said) > after
                        or command.progress != was
                        or command.state in TERMINAL
                    )
                )
        except TimeoutError:
            pass
        lines = [
            {
                "place": place,
                "attempt": 1,
                "at": "2026-11-23T20:00:00Z",
                "level": "info",
                "message": message,
            }
            for place, message in enumerate(command.said[after:], start=after + 1)
        ]
        answer = {
            "lines": lines,
            "next": after + len(lines),
            "state": command.state,
            "attempt": 1,
            "dropped": 0,
        }
        if command.progress is not None:
            answer["progress"] = command.progress
        return web.json_response(answer)

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        found = [
            command
            for command in reversed(self.commands.values())
            if query.get("deploymentId") in (None, command.create["deploymentId"])
            and query.get("state") in (None, command.state)
            and query.get("command") in (None, command.create["command"])
        ]
        begin, limit = int(query.get("cursor", "0")), min(2, int(query.get("limit", "100")))
        page = {"commands": [self._listed(c) for c in found[begin : begin + limit]]}
        if begin + limit < len(found):
            page["cursor"] = str(begin + limit)  # type: ignore[assignment]
        return web.json_response(page)

    async def _cancel(self, request: web.Request) -> web.Response:
        command = self.commands.get(request.match_info["id"])
        if command is None:
            return error(404, "COMMAND_NOT_FOUND", f"no such command: {request.match_info['id']}")
        if command.state in ("PENDING", "PENDING_UPLOAD"):
            await self._end(
                command, "FAILED", {"status": "error", "code": "CANCELLED", "message": "cancelled"}
            )
        elif command.state == "DISPATCHED":
            command.cancel_requested = True
            assert command.task is not None
            command.task.cancel()
        return web.json_response(self._describe(command))

    async def _agents(self, request: web.Request) -> web.Response:
        is_all = request.query.get("all") == "true"
        agents = [each for each in self.agents if is_all or each["agentId"] not in self.old_agents]
        known = {"receivers": self.receivers} if self.receivers else {}
        return web.json_response({"agents": agents, **known})

    def _run(self, command: StoredCommand) -> None:
        command.state = "PENDING"
        handler = self.handlers.get(command.create["command"])
        if handler is not None:
            command.state = "DISPATCHED"
            command.task = asyncio.create_task(self._handle(command, handler))

    async def _handle(self, command: StoredCommand, handler: Handler) -> None:
        assert command.params is not None
        command.runs += 1
        try:
            command.result = await handler(command.params)
        except HandlerFailed as failure:
            await self._end(command, "FAILED", failure.response)
        except asyncio.CancelledError:
            if not command.cancel_requested:
                raise
            await self._end(
                command, "FAILED", {"status": "error", "code": "CANCELLED", "message": "stopped"}
            )
        else:
            await self._end(command, "SUCCEEDED", {})

    async def _end(self, command: StoredCommand, state: str, response: dict[str, Any]) -> None:
        command.state, command.response = state, response
        command.ended.set()
        await self._tell()


def error(status: int, code: str, message: str) -> web.Response:
    """Return an error answer (docs/protocol.md, Errors)."""
    body = {"code": code, "message": message, "retryable": False, "httpStatusCode": status}
    return web.json_response(body, status=status)


def answer(status: int, **headers: str) -> Callable[[web.Request], web.Response]:
    """A fault: an answer of something in front of the server."""
    return lambda request: web.Response(status=status, text="<html>busy</html>", headers=headers)


def broken(request: web.Request) -> web.Response:
    """A fault: the connection breaks without an answer."""
    return web.Response(status=599)


async def echo(params: bytes) -> bytes:
    """A handler that returns its params."""
    return params


async def fail(params: bytes) -> bytes:
    """A handler that fails as its params say."""
    said = json.loads(params)
    raise HandlerFailed(said.get("code", "HANDLER_ERROR"), "it did not work", "line 3")


def agent(agent_id: str, deployment: str) -> dict[str, object]:
    """An agent as a server lists it."""
    return {
        "agentId": agent_id,
        "deploymentId": deployment,
        "version": "1.0",
        "hostname": "host-1",
        "handlers": [{"name": "echo"}],
        "firstSeenAt": "2026-11-23T20:00:00Z",
        "lastSeenAt": "2026-11-23T20:00:00Z",
        "holding": [],
    }


class Hasty(SystemWaitClock):
    """A clock for people who do not like to wait between two tries."""

    async def sleep(self, seconds: float) -> None:
        """Wait a little."""
        await super().sleep(min(seconds, 0.01))
