"""arc_agent.testing: handlers are run as the agent runs them, without a server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arc_agent import CommandFailed, Context, Retry, handler
from arc_agent.handlers.registry import HandlerError
from arc_agent.testing import run, start


class Report(msgspec.Struct):
    rows: int


class Pool:
    name = "the pool"


@handler("report")
async def report(params: Report, ctx: Context) -> Report:
    return Report(params.rows + ctx.attempt)


@handler("misfit")
def misfit() -> int:
    return "no"  # type: ignore[return-value]


@handler("file")
def in_a_file(ctx: Context) -> Path:
    path = ctx.directory / "out"
    path.write_bytes(b"x" * 300_000)
    return path


@handler("stream")
async def stream() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


@handler("pooled")
def pooled(params: dict[str, Any], pool: Pool) -> str:
    return f"{pool.name} {params}"


@handler("fails")
def fails(params: str) -> None:
    raise {"own": CommandFailed("SEALED", "shut", "since noon"), "any": OSError("boom")}.get(
        params, Retry("later", after=5)
    )


@handler("bytes")
async def as_bytes(ctx: Context) -> bytes:
    return await ctx.open_params().read()


@handler("restarts")
def restarts(ctx: Context) -> None:
    ctx.expect_restart({"done": 1})


async def test_params_and_results_are_those_of_the_agent() -> None:
    assert (await run(report, {"rows": 1}, attempt=2)).json() == {"rows": 3}
    assert (await run(report, Report(5))).json() == {"rows": 6}
    wrong = await run(report, {"rows": "1"})
    assert (wrong.code, wrong.is_ok) == ("INVALID_PARAMS", False)
    assert wrong.message.startswith("params.rows: Expected `int`")
    assert (await run(misfit)).code == "INVALID_RESULT"
    with pytest.raises(AssertionError, match="INVALID_PARAMS"):
        wrong.json()


async def test_files_streams_and_bytes_are_read_to_their_end() -> None:
    assert (await run(in_a_file)).data == b"x" * 300_000
    assert (await run(stream)).data == b"ab"
    assert (await run(as_bytes, b"\x00\xff")).data == b"\x00\xff"


async def test_what_lifespans_provide_is_given_by_hand() -> None:
    assert (await run(pooled, {"a": 1}, provide=[Pool()])).json() == "the pool {'a': 1}"
    with pytest.raises(HandlerError, match="which no lifespan provides"):
        await run(pooled, {})


async def test_errors_are_what_a_sender_sees() -> None:
    own, other, again = [await run(fails, which) for which in ("own", "any", "again")]

    assert (own.code, own.message, own.details) == ("SEALED", "shut", "since noon")
    assert (other.code, other.message) == ("HANDLER_ERROR", "OSError: boom")
    assert "Traceback" in (other.details or "")
    assert (again.retry_after, again.message, again.is_ok) == (5.0, "later", False)
    assert (await run(restarts)).restart_result == {"done": 1}


async def test_a_run_can_be_cancelled() -> None:
    begun = asyncio.Event()

    @handler("waits")
    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    @handler("loops")
    def loops(ctx: Context) -> None:
        while not ctx.is_cancelled:
            time.sleep(0.001)

    for function in (waits, loops):
        async with start(function) as running:
            if function is waits:
                await begun.wait()
            running.cancel()
            assert (await running.result()).code == "CANCELLED"


async def test_nothing_is_left_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    await run(in_a_file)

    assert os.listdir(tmp_path) == []


async def test_a_function_that_is_no_handler_is_refused() -> None:
    with pytest.raises(HandlerError, match="is @handler missing"):
        await run(lambda: None)
