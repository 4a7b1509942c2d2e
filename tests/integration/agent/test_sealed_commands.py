"""Params that only the host can read, and results that only the sender can."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from arc_agent import CommandFailed, Context, handler
from arc_client.bodies.params import Body
from arc_client.bodies.results import body_of_result
from arc_client.bodies.sealed import SenderSeals
from arc_client.errors import CommandFailed as Failure
from arc_client.errors import ResultUnreadable
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import ErrorResponse
from arc_protocol.messages.commands import CommandStatus
from arc_runtime.key_files import SEALING, PrivateKey, write_private
from tests.support.forgeries import OPS, STRANGER, carrying, claims, in_seconds, signature
from tests.support.running_agent import Start, running
from tests.support.scripted_server import ScriptedServer, inline
from tests.support.waiting import until

HOST = PrivateKey("edge-7", SEALING, bytes(range(7, 39)))
OTHER_HOST = PrivateKey("edge-8", SEALING, bytes(range(8, 40)))
SECRET = b'{"password": "hunter2-hunter2"}'


@handler("twice")
async def twice(ctx: Context) -> AsyncIterator[bytes]:
    data = await ctx.open_params().read()

    async def chunks() -> AsyncIterator[bytes]:
        yield data
        yield data

    return chunks()


@handler("fail")
async def fail(ctx: Context) -> None:
    text = (await ctx.open_params().read()).decode()
    ctx.log.info(f"about {text}")
    ctx.progress(1, 2, text)
    raise CommandFailed("WRONG_PASSWORD", f"not {text}", "x" * 20_000 + text)


@handler("restart", idempotent=False)
async def restart(ctx: Context) -> None:
    ctx.expect_restart({"left": (await ctx.open_params().read()).decode()})
    await asyncio.Event().wait()


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings of a host with a key of its own."""
    (tmp_path / "ops.pub").write_text(OPS.public().line)
    write_private(tmp_path / "host.key", HOST)
    signing = {"keys": str(tmp_path / "ops.pub"), "host_keys": [str(tmp_path / "host.key")]}
    return {"signing": signing}


@pytest.fixture
def seals(tmp_path: Path) -> Callable[..., SenderSeals]:
    """Return a function that makes the seals between a sender and a host."""

    def of(host: PrivateKey = HOST, sender: PrivateKey = OPS) -> SenderSeals:
        (tmp_path / f"{host.name}.pub").write_text(host.public().line)
        return SenderSeals(sender, tmp_path / f"{host.name}.pub")

    return of


async def sealed(seals: SenderSeals, data: bytes) -> bytes:
    """Params as they are sent."""
    async with seals.sealed(Body(data, size=len(data))) as body:
        return body.data()


def signed(seals: SenderSeals, data: bytes, command: str) -> tuple[str, str]:
    """A signature of sealed params, and its nonce."""
    told = claims(
        target=None,
        command=command,
        paramsSha256=hashlib.sha256(data).hexdigest(),
        paramsBytes=len(data),
        sealed={"to": seals.sealing.to, "replyTo": seals.sealing.reply_to},
        issuedAt=in_seconds(0),
    )
    return signature(told), told["nonce"]


async def opened(seals: SenderSeals, command_id: str, data: bytes) -> bytes:
    """A result as its sender reads it."""

    async def one() -> AsyncIterator[bytes]:
        yield data

    return b"".join([chunk async for chunk in seals.opened(command_id, one())])


@pytest.mark.parametrize("size", [0, 100, 300_000])
async def test_a_server_sees_neither_params_nor_result(
    server: ScriptedServer,
    start: Start,
    settings: dict[str, Any],
    seals: Callable[..., SenderSeals],
    size: int,
) -> None:
    agent = await start(server, twice, **settings)
    between = seals()
    data = SECRET + os.urandom(size)
    params = await sealed(between, data)
    text, nonce = signed(between, params, "twice")
    between.remember("cmd", nonce)
    is_large = size > 1000

    server.send("twice", raw=params, stored=is_large, command_id="cmd", change=carrying(text))
    response = await server.response()

    result = server.blobs["response-cmd"] if is_large else inline(response)
    assert await opened(between, "cmd", result) == data * 2
    seen = [each.body for each in server.requests] + list(server.blobs.values())
    assert not any(b"hunter2" in each for each in [*seen, result])
    await agent.stop()
    left = [file for file in agent.directory.rglob("*") if file.is_file()]
    assert not any(b"hunter2" in file.read_bytes() for file in left)


async def test_an_error_of_a_handler_is_sealed_and_what_it_says_stays_on_the_host(
    server: ScriptedServer,
    start: Start,
    settings: dict[str, Any],
    seals: Callable[..., SenderSeals],
) -> None:
    agent = await start(server, fail, **settings)
    between = seals()
    params = await sealed(between, SECRET)
    text, nonce = signed(between, params, "fail")
    between.remember("cmd", nonce)

    server.send("fail", raw=params, command_id="cmd", change=carrying(text))
    response = await server.response()
    await agent.stop()  # the last words of a run are sent by then

    assert response["code"] == "SEALED_ERROR"
    assert not any(b"hunter2" in each.body for each in server.requests)
    error = ErrorResponse(
        code=response["code"], message=response["message"], details=response["details"]
    )
    status = CommandStatus(command_id="cmd", state=State.FAILED, attempt=1, response=error)
    with pytest.raises(Failure) as caught:
        body_of_result(between.with_opened_error(status))
    assert caught.value.code == "WRONG_PASSWORD"
    assert caught.value.message == f"not {SECRET.decode()}"
    assert caught.value.details is not None
    assert caught.value.details.endswith(SECRET.decode())
    assert not any(b"hunter2" in each.body for each in server.requests)
    assert not server.seen("events")


async def test_params_that_this_host_cannot_open_are_refused(
    server: ScriptedServer,
    start: Start,
    settings: dict[str, Any],
    seals: Callable[..., SenderSeals],
) -> None:
    await start(server, twice, **settings)
    other, mine = seals(OTHER_HOST), seals()
    for_other = await sealed(other, SECRET)
    for command_id, data, between in (
        ("other", for_other, other),
        ("mislabelled", for_other, mine),
        ("plain", SECRET, mine),
        ("short", (await sealed(mine, SECRET))[:-1], mine),
    ):
        text, _ = signed(between, data, "twice")
        server.send("twice", raw=data, command_id=command_id, change=carrying(text))
    await server.until(lambda: len(server.responses()) == 4)

    assert {each.get("code") for each in server.responses()} == {"UNSEAL_FAILED"}


async def test_a_result_that_is_not_what_the_host_sealed_for_this_command_is_refused(
    server: ScriptedServer,
    start: Start,
    settings: dict[str, Any],
    seals: Callable[..., SenderSeals],
) -> None:
    await start(server, twice, **settings)
    between = seals()
    results: dict[str, bytes] = {}
    for name in ("one", "two"):
        params = await sealed(between, SECRET)
        text, nonce = signed(between, params, "twice")
        between.remember(name, nonce)
        server.send("twice", raw=params, command_id=name, change=carrying(text))
        await server.response(len(results) + 1)
        results[name] = inline(server.responses(name)[0])

    assert await opened(between, "one", results["one"]) == SECRET * 2
    assert await opened(seals(), "one", results["two"]) == SECRET * 2  # it knows no better
    for wrong in (results["two"], SECRET * 2, results["one"][:-1], results["one"] + b"x", b""):
        with pytest.raises(ResultUnreadable):
            await opened(between, "one", wrong)
    for stranger in (seals(sender=STRANGER), seals(OTHER_HOST)):
        with pytest.raises(ResultUnreadable):
            await opened(stranger, "one", results["one"])


async def test_what_a_handler_leaves_for_after_a_restart_is_sealed(
    server: ScriptedServer,
    tmp_path: Path,
    settings: dict[str, Any],
    seals: Callable[..., SenderSeals],
) -> None:
    between = seals()
    params = await sealed(between, SECRET)
    text, nonce = signed(between, params, "restart")
    between.remember("cmd", nonce)
    async with running(server.url, tmp_path, (restart,), settings) as agent:
        server.send("restart", raw=params, command_id="cmd", change=carrying(text))
        await until(lambda: _has_announced(agent.directory / "spool.db"))

    asked = len(server.seen("leases"))
    async with running(server.url, tmp_path, (restart,), settings):
        await server.until(lambda: len(server.seen("leases")) > asked)  # it is up, with its threads
        result = await opened(between, "cmd", inline(await server.response()))

    assert not any(b"hunter2" in each.body for each in server.requests)
    assert b"hunter2" in result


def _has_announced(spool: Path) -> bool:
    """Return True if a result waits for the agent to be back."""
    if not spool.exists():
        return False
    with closing(sqlite3.connect(spool)) as db, suppress(sqlite3.OperationalError):
        return bool(db.execute("SELECT 1 FROM runs WHERE announced IS NOT NULL").fetchall())
    return False
