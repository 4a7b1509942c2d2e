"""`arc` as a person sees it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.support.fake_server import FakeServer, one_kind
from tests.support.shell import terminal

pytestmark = one_kind
LARGE = 3_000_000
CTRL_C = b"\x03"


@pytest.fixture
def finish(server: FakeServer) -> asyncio.Event:
    """A handler `slow` that returns when this is set."""
    event = asyncio.Event()

    async def slow(params: bytes) -> bytes:
        await event.wait()
        return params

    server.handlers["slow"] = slow
    return event


async def test_json_is_laid_out_and_coloured(server: FakeServer) -> None:
    async with terminal("invoke", "dep", "echo", "--params", '{"a":[1.10]}', url=server.url) as tty:
        assert await tty.end() == 0
        await tty.until("}\r\n")

        assert '{\r\n  "a": [\r\n    1.10\r\n  ]\r\n}\r\n' in tty.shown
        assert "\x1b[" in tty.raw


async def test_bars_move_while_bodies_do(server: FakeServer, tmp_path: Path) -> None:
    server.progress_gate = asyncio.Event()
    params = tmp_path / "params"
    params.write_bytes(b'"' + b"x" * LARGE + b'"')
    out = tmp_path / "out"

    async with terminal(
        "invoke", "dep", "echo", "--params", f"@{params}", "--out", out, url=server.url
    ) as tty:
        await tty.until("upload")
        server.progress_gate.set()
        await tty.until("download")
        assert await tty.end() == 0

    assert "3.0/3.0 MB" in tty.shown
    assert out.read_bytes() == params.read_bytes()


async def test_what_the_handler_says_is_shown_while_it_runs(
    server: FakeServer, finish: asyncio.Event
) -> None:
    async with terminal("invoke", "dep", "slow", url=server.url) as tty:
        await tty.until("cmd_1 DISPATCHED")
        await server.say("cmd_1", "reading the tables\x1b[2J")
        await tty.until("reading the tables")
        await server.say("cmd_1", progress={"done": 3.0, "total": 4.0, "text": "tables"})
        await tty.until("75%")
        await server.say("cmd_1", "the last words")
        finish.set()
        assert await tty.end() == 0
        await tty.until("the last words")

    assert "\x1b[2J" not in tty.raw


async def test_ctrl_c_offers_to_cancel_and_yes_cancels(
    server: FakeServer, finish: asyncio.Event
) -> None:
    async with terminal("invoke", "dep", "slow", url=server.url) as tty:
        await tty.until("cmd_1 DISPATCHED")
        tty.press(CTRL_C)
        await tty.until("Cancel cmd_1? [y/N]")
        tty.press(b"y\n")
        assert await tty.end() == 1
        await tty.until("error: command cmd_1 was cancelled")

    assert server.commands["cmd_1"].cancel_requested


async def test_no_goes_on_waiting(server: FakeServer, finish: asyncio.Event) -> None:
    async with terminal("invoke", "dep", "slow", "--params", "7", url=server.url) as tty:
        await tty.until("cmd_1 DISPATCHED")
        tty.press(CTRL_C)
        await tty.until("[y/N]")
        tty.press(b"\n")
        await tty.until("] (Ctrl-C again: leave it running) \r\n")
        finish.set()
        assert await tty.end() == 0
        await tty.until("7\r\n")

    assert not server.commands["cmd_1"].cancel_requested


async def test_a_second_ctrl_c_leaves(server: FakeServer, finish: asyncio.Event) -> None:
    async with terminal("invoke", "dep", "slow", url=server.url) as tty:
        await tty.until("cmd_1 DISPATCHED")
        tty.press(CTRL_C)
        await tty.until("[y/N]")
        tty.press(CTRL_C)
        assert await tty.end() == 130
        await tty.until("\ninterrupted; command cmd_1 goes on\r\n  Wait on: arc wait cmd_1")

    assert not server.commands["cmd_1"].cancel_requested
    finish.set()


async def test_a_result_that_comes_while_the_question_stands_is_shown(
    server: FakeServer, finish: asyncio.Event
) -> None:
    async with terminal("wait", "cmd_1", url=server.url) as tty:
        await tty.until("COMMAND_NOT_FOUND")
    async with terminal("invoke", "dep", "slow", "--params", "[7]", url=server.url) as tty:
        await tty.until("cmd_1 DISPATCHED")
        tty.press(CTRL_C)
        await tty.until("[y/N]")
        finish.set()
        assert await tty.end() == 0
        await tty.until("[\r\n  7\r\n]\r\n")


async def test_with_stdout_in_a_pipe_the_result_is_as_it_came_and_bars_are_on_the_terminal(
    server: FakeServer, finish: asyncio.Event
) -> None:
    reading, writing = os.pipe()
    async with terminal(
        "invoke", "dep", "slow", "--params", '{"a":  1}', url=server.url, stdout=writing
    ) as tty:
        os.close(writing)
        await tty.until("cmd_1 DISPATCHED")
        finish.set()
        assert await tty.end() == 0

    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b'{"a":  1}\n'


async def test_ctrl_c_while_the_result_comes_in_leaves_no_half_of_it(
    server: FakeServer, tmp_path: Path
) -> None:
    async def export(params: bytes) -> bytes:
        return bytes(LARGE)

    server.handlers["export"] = export
    server.progress_gate = asyncio.Event()
    out = tmp_path / "out"
    async with terminal("invoke", "dep", "export", "--out", out, url=server.url) as tty:
        await tty.until("download")
        tty.press(CTRL_C)
        assert await tty.end() == 130
        await tty.until("command cmd_1 has ended\r\n  Its result: arc wait cmd_1")
    server.progress_gate.set()

    assert list(tmp_path.iterdir()) == []


async def test_bytes_are_kept_off_the_terminal(server: FakeServer) -> None:
    async def image(params: bytes) -> bytes:
        return b"\x89PNG\x00"

    server.handlers["image"] = image
    async with terminal("invoke", "dep", "image", url=server.url) as tty:
        assert await tty.end() == 2
        await tty.until("arc wait cmd_1 --out FILE")

    assert "PNG" not in tty.shown


async def test_lists_are_tables(server: FakeServer) -> None:
    async with terminal("invoke", "dep", "echo", "--no-wait", url=server.url) as tty:
        assert await tty.end() == 0
    async with terminal("list", url=server.url) as tty:
        assert await tty.end() == 0
        await tty.until("SUCCEEDED")
        assert "\x1b[1mID" in tty.raw
