"""No file descriptors are left on the host: commands wait or come again, and do not fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PosixPath
from typing import Any, ClassVar

import msgspec
import pytest

from arc_agent import handler
from arc_agent.handlers import no_descriptors
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer, inline


def none_left(number: int = errno.EMFILE) -> OSError:
    """The system's own error."""
    return OSError(number, os.strerror(number))


class Opened(msgspec.Struct):
    """Params that open something, which works at the second try."""

    number: int
    tries: ClassVar[list[int]] = []

    def __post_init__(self) -> None:
        self.tries.append(1)
        if len(self.tries) == 1:
            raise none_left()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_descriptors, "PUT_OFF_SECONDS", 0.01)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("kind", ["sync", "async", "generator"])
async def test_a_handler_that_finds_no_descriptors_comes_again(
    server: ScriptedServer, start: Start, number: int, kind: str
) -> None:
    runs: list[int] = []

    def work() -> bytes:
        runs.append(1)
        if len(runs) == 1:
            raise none_left(number)
        return b"done"

    @handler("x")
    def in_thread() -> bytes:
        return work()

    @handler("x")
    async def in_loop() -> bytes:
        return work()

    @handler("x")
    async def in_parts() -> Any:
        yield work()

    await start(server, {"sync": in_thread, "async": in_loop, "generator": in_parts}[kind])
    server.send("x", command_id="cmd")
    await server.until(lambda: bool(server.seen("release")))
    server.send("x", command_id="cmd")

    assert inline(await server.response()) == b"done"
    assert server.seen("release")[0].json()["reason"] == "retry"
    assert len(server.responses()) == 1


async def test_a_handler_that_must_not_run_twice_fails_when_it_finds_no_descriptors(
    server: ScriptedServer, start: Start
) -> None:
    @handler("x", idempotent=False)
    async def once() -> None:
        raise none_left()

    await start(server, once)
    server.send("x")
    response = await server.response()

    assert response["code"] == "HANDLER_ERROR"
    assert server.seen("release") == []


async def test_params_that_cannot_be_opened_put_off_also_what_must_not_run_twice(
    server: ScriptedServer, start: Start
) -> None:
    @handler("x", idempotent=False)
    async def once(params: Opened) -> int:
        return params.number

    await start(server, once)
    server.send("x", {"number": 7}, command_id="cmd")
    await server.until(lambda: bool(server.seen("release")))
    server.send("x", {"number": 7}, command_id="cmd")

    assert inline(await server.response()) == b"7"


async def test_a_result_that_finds_no_descriptors_waits_and_the_handler_runs_once(
    server: ScriptedServer, start: Start, tmp_path: Path, logged: list[dict[str, Any]]
) -> None:
    runs: list[int] = []
    opened: list[int] = []
    (tmp_path / "result").write_bytes(b"done")

    class Result(PosixPath):
        def __fspath__(self) -> str:
            opened.append(1)
            if len(opened) <= 2:
                raise none_left()
            return super().__fspath__()

    @handler("x", idempotent=False)
    async def once() -> Path:
        runs.append(1)
        return Result(tmp_path / "result")

    await start(server, once)
    server.send("x")

    assert inline(await server.response()) == b"done"
    assert runs == [1]
    assert server.seen("release") == []
    assert [each["event"] for each in logged].count("handler.no_descriptors") == 1
