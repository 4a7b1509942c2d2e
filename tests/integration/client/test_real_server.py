"""The sender against arc_server itself, as a process; commands are handled by a few lines here."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import signal
import subprocess
import sys
import uuid
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from arc_client import (
    AccessDenied,
    Client,
    CommandCancelled,
    CommandExpired,
    CommandFailed,
    InvalidParams,
    ProgressCallbacks,
    TokenRefused,
)
from arc_protocol.errors import (
    CommandNotFound,
    IdempotencyKeyReused,
    InvalidCommand,
    InvalidStateTransition,
)
from arc_protocol.messages.commands import CommandStatus
from tests.support.fake_server import Hasty
from tests.support.shell import arc as run_arc

SERVER = [sys.executable, "-m", "arc_server"]
LARGE = os.urandom(3_000_000)


class RealServer:
    """arc_server on a data directory; it can be stopped and started again on its port."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        self.url = "http://127.0.0.1:0"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it serves."""
        listen = ("--listen", self.url.removeprefix("http://"))
        self._process = subprocess.Popen(
            [*SERVER, "serve", "--data-dir", self.data_dir, *listen, *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        with self._process.stdout as out:
            ready = out.readline().decode()
        assert ready.startswith("READY "), ready
        self.url = ready.removeprefix("READY ").strip()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server that asks for no token, for all tests here."""
    real = RealServer(tmp_path_factory.mktemp("arc") / "server", "--no-auth")
    real.start()
    yield real
    real.stop()


@pytest.fixture
async def arc(server: RealServer) -> AsyncIterator[Client]:
    """A client of the server."""
    async with Client(server.url, clock=Hasty()) as client:
        yield client


@pytest.fixture
def dep() -> str:
    """A deployment of the test's own."""
    return f"dep-{uuid.uuid4()}"


@asynccontextmanager
async def holder(url: str, deployment: str) -> AsyncIterator[list[str]]:
    """A receiver of a deployment's commands: `echo` returns its params, any other fails.

    Yields the ids of the commands that were taken, in order.
    """
    taken: list[str] = []

    async def hold(session: aiohttp.ClientSession) -> None:
        ask = {"deploymentId": deployment, "waitSeconds": 5}
        while True:
            async with session.post(f"{url}/v1/commands/leases", json=ask) as answer:
                leases = (await answer.json())["leases"]
            for lease in leases:
                taken.append(lease["commandId"])
                await _handle(session, lease["envelope"])

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(hold(session))  # what goes wrong there ends the test
        yield taken
        task.cancel()


async def _handle(session: aiohttp.ClientSession, envelope: dict[str, Any]) -> None:
    handling = envelope["responseHandling"]
    if envelope["command"] == "echo":
        data = await _fetch(session, envelope["params"])
        body = await _store(session, data, handling)
        response = {"status": "success", "response": body}
    else:
        response = {"status": "error", "code": "E_DISK", "message": "full", "details": "/var"}
    await _send(session, "PUT", handling["submitResponseUrl"], json=response)


async def _fetch(session: aiohttp.ClientSession, body: dict[str, Any]) -> bytes:
    if body["mode"] == "inline":
        return b64decode(body["inlineBase64"])
    backend = body["storageGetRequest"]["backend"]
    return await _send(session, "GET", backend["url"], headers=backend["headers"])


async def _store(
    session: aiohttp.ClientSession, data: bytes, handling: dict[str, Any]
) -> dict[str, Any]:
    if len(data) <= handling["maxInlineBytes"]:
        return {"mode": "inline", "inlineBase64": b64encode(data).decode()}
    backend = handling["storageUploadRequest"]["backend"]
    await _send(session, "PUT", backend["url"], headers=backend["headers"], data=io.BytesIO(data))
    return {"mode": "storage", "size": len(data), "storagePutUsed": True}


async def _send(session: aiohttp.ClientSession, method: str, url: str, **what: Any) -> bytes:
    async with session.request(method, URL(url, encoded=True), **what) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def test_small_and_large_bodies_go_out_and_come_back(
    server: RealServer, dep: str, arc: Client, tmp_path: Path
) -> None:
    params = tmp_path / "params"
    params.write_bytes(LARGE)

    async with holder(server.url, dep):
        assert await arc.invoke(dep, "echo", {"ü": [1, None]}) == {"ü": [1, None]}
        assert await arc.invoke(dep, "echo", LARGE, returns=bytes) == LARGE
        assert await arc.invoke_to_file(tmp_path / "out", dep, "echo", params) == len(LARGE)

    assert (tmp_path / "out").read_bytes() == LARGE


async def test_the_wait_is_one_long_poll(server: RealServer, dep: str) -> None:
    looked: list[CommandStatus] = []

    class Looking(ProgressCallbacks):
        def on_status(self, status: CommandStatus) -> None:
            looked.append(status)

    async with Client(server.url, callbacks=Looking()) as arc:
        sent = await arc.send(dep, "echo", 7)
        waiting = asyncio.ensure_future(sent.result())
        async with holder(server.url, dep):
            assert await waiting == 7

    assert [status.state for status in looked] == ["SUCCEEDED"]


async def test_a_failure_a_cancel_and_a_deadline_end_a_wait(
    server: RealServer, dep: str, arc: Client
) -> None:
    nobody = await arc.send(dep, "echo")
    assert (await nobody.cancel()).state == "FAILED"
    with pytest.raises(CommandCancelled):
        await nobody.result()
    with pytest.raises(CommandExpired):
        await arc.invoke(dep, "echo", deadline=0.2)

    async with holder(server.url, dep) as taken:
        with pytest.raises(CommandFailed) as raised:
            await arc.invoke(dep, "no-such")

    assert (raised.value.code, raised.value.details) == ("E_DISK", "/var")
    assert taken == [raised.value.command_id]


async def test_what_has_ended_runs_again_by_library_and_command_line(
    server: RealServer, dep: str, arc: Client
) -> None:
    old = await arc.send(dep, "echo", {"n": 1})
    await old.cancel()
    other = await arc.send(dep, "echo", LARGE)
    with pytest.raises(InvalidStateTransition):
        await arc.retry(other.id)
    await other.cancel()

    again = await arc.retry(old.id, idempotency_key="k")
    repeat = await arc.retry(old.id, idempotency_key="k")
    shown = await run_arc("retry", old.id, other.id, url=server.url)
    async with holder(server.url, dep):
        assert await again.result() == {"n": 1}
        assert await arc.wait(shown.out.split()[1].decode(), returns=bytes) == LARGE

    assert (repeat.id, repeat.is_new) == (again.id, False)
    assert (await arc.status(again.id)).retry_of == old.id
    assert shown.code == 0
    status = await run_arc("status", again.id, url=server.url)
    assert f"retry of    {old.id}" in status.out.decode()
    refused = await run_arc("retry", old.id, other.id, "--key", "k", url=server.url)
    assert (refused.code, refused.out) == (2, b"")


async def test_a_key_is_a_promise(server: RealServer, dep: str, arc: Client) -> None:
    async with holder(server.url, dep) as taken:
        first = await arc.invoke(dep, "echo", LARGE, idempotency_key="k", returns=bytes)
        again = await arc.invoke(dep, "echo", LARGE, idempotency_key="k", returns=bytes)
        with pytest.raises(IdempotencyKeyReused):
            await arc.invoke(dep, "echo", 8, idempotency_key="k")

    assert first == again == LARGE
    assert len(taken) == 1


async def test_an_upload_that_was_given_up_is_finished_by_the_same_call(
    server: RealServer, dep: str, arc: Client
) -> None:
    with pytest.raises(InvalidParams, match="Input/output error"):
        await arc.send(dep, "echo", Breaking(LARGE), idempotency_key="k")
    [waiting] = [one async for one in arc.list(deployment=dep)]
    async with holder(server.url, dep):
        result = await arc.invoke(dep, "echo", LARGE, idempotency_key="k", returns=bytes)

    assert waiting.state == "PENDING_UPLOAD"
    assert result == LARGE
    assert [one.command_id async for one in arc.list(deployment=dep)] == [waiting.command_id]


class Breaking(io.BytesIO):
    """A file on a bad disk."""

    def read(self, size: int | None = -1) -> bytes:
        """The first part of it."""
        if self.tell() > 1_000_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


async def test_a_server_that_is_killed_and_started_again_loses_nothing(
    dep: str, tmp_path: Path
) -> None:
    server = RealServer(tmp_path / "server", "--no-auth")
    server.start()
    async with Client(server.url) as arc:
        sent = await arc.send(dep, "echo", 7)
        waiting = asyncio.ensure_future(sent.result(timeout=30))
        await arc.status(sent.id)

        server.stop(signal.SIGKILL)
        server.start()
        async with holder(server.url, dep):
            assert await waiting == 7
    server.stop()


async def test_what_is_wrong_is_refused_by_name(server: RealServer, dep: str, arc: Client) -> None:
    with pytest.raises(CommandNotFound):
        await arc.status("cmd_none")
    with pytest.raises(CommandNotFound):
        await arc.cancel("a/../b?c")
    with pytest.raises(InvalidCommand, match="command"):
        await arc.send(dep, "")
    with pytest.raises(InvalidCommand, match="maxAttempts"):
        await arc.send(dep, "echo", max_attempts=0)
    with pytest.raises(InvalidCommand, match="deadline"):
        await arc.send(dep, "echo", deadline=-5)


async def test_tokens_open_what_they_are_for(dep: str, tmp_path: Path) -> None:
    server = RealServer(tmp_path / "server")
    server.start()
    scope = ("--scope", "sender", "--deployment", dep)
    file = tmp_path / "token"
    file.write_bytes(
        subprocess.check_output(
            [*SERVER, "token", "create", *scope, "--data-dir", server.data_dir],
            stderr=subprocess.DEVNULL,
        )
    )

    async with Client(server.url) as stranger:
        with pytest.raises(TokenRefused):
            await stranger.send(dep, "echo")
    async with Client(server.url, token_file=file) as ours:
        await ours.send(dep, "echo")
        with pytest.raises(AccessDenied):
            await ours.send("other", "echo")
    ended = await run_arc("list", "--token-file", file, "--json", url=server.url)
    server.stop()

    assert [one["deploymentId"] for one in ended.json()] == [dep]


async def test_everything_by_hand(server: RealServer, dep: str) -> None:
    url = server.url
    async with holder(url, dep):
        small = await run_arc("invoke", dep, "echo", "--params", "[7]", url=url)
        large = await run_arc("invoke", dep, "echo", "--params", "-", url=url, stdin=LARGE)
        failed = await run_arc("invoke", dep, "other", url=url)
    listed, status = await asyncio.gather(
        run_arc("list", "--deployment", dep, "--json", url=url),
        run_arc("agents", "--deployment", dep, "--json", url=url),
    )

    assert (small.code, small.out) == (0, b"[7]\n")
    assert (large.code, large.out) == (0, LARGE)
    assert failed.code == 1
    assert "E_DISK: full\n  /var\n" in failed.err
    assert [one["state"] for one in listed.json()] == ["FAILED", "SUCCEEDED", "SUCCEEDED"]
    [receiver] = status.json()  # the holder polls, and does not register
    assert (receiver["deploymentId"], "agentId" in receiver) == (dep, False)


async def test_what_a_command_takes_and_returns_is_described(server: RealServer, dep: str) -> None:
    report = {
        "name": "report",
        "description": "Monthly",
        "idempotent": False,
        "timeoutSeconds": 60,
        "paramsSchema": {
            "type": "object",
            "required": ["month"],
            "properties": {"month": {"type": "string", "description": "As 2026-11"}},
        },
    }
    registration = {
        "deploymentId": dep,
        "version": "1",
        "hostname": "db-7",
        "handlers": [report, {"name": "other"}],
    }
    url = f"{server.url}/v1/agents/a1"
    async with aiohttp.ClientSession() as session, session.put(url, json=registration) as answer:
        assert answer.status == 200

    described, as_json, unknown, listed = await asyncio.gather(
        run_arc("describe", dep, "report", url=server.url),
        run_arc("describe", dep, "report", "--json", url=server.url),
        run_arc("describe", dep, "nothing", url=server.url),
        run_arc("agents", "--deployment", dep, "--handlers", url=server.url),
    )

    assert described.out.decode().splitlines() == [
        "command     report",
        f"deployment  {dep}",
        "about       Monthly",
        "repeatable  no",
        "timeout     1m",
        "hosts       db-7",
        "",
        "params:",
        "FIELD  TYPE    REQUIRED  DEFAULT  ABOUT",
        "month  string  yes                As 2026-11",
        "",
        "result      the agent does not say",
    ]
    assert as_json.json() == [{"handler": report, "hosts": ["db-7"]}]
    assert unknown.code == 1
    assert f"no agent of {dep} has a handler for nothing" in unknown.err
    assert [line.split()[1] for line in listed.out.decode().splitlines()] == [
        "COMMAND",
        "other",
        "report",
    ]
