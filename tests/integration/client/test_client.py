"""The library against a fake server of either kind, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from arc_client import (
    Client,
    CommandCancelled,
    CommandFailed,
    CommandTimeout,
    InvalidParams,
    ResultUnreadable,
    ServerUnreachable,
    SyncClient,
    TokenRefused,
)
from arc_client.wire.wait import ANSWER_SECONDS
from arc_protocol.errors import CommandNotFound, IdempotencyKeyReused, MethodNotAllowed, NotFound
from tests.support.fake_server import FakeServer, Hasty, agent, answer, broken, echo, one_kind

LARGE = os.urandom(3_000_000)


@pytest.fixture
async def arc(server: FakeServer) -> AsyncIterator[Client]:
    """A client of the server, with the token that it asks for."""
    server.token = "right"
    async with Client(server.url, token="right", retry_seconds=5, clock=Hasty()) as client:
        yield client


async def test_a_command_goes_out_and_its_result_comes_back(
    server: FakeServer, arc: Client
) -> None:
    assert await arc.invoke("dep", "echo", {"ü": [1, 2.5, None]}) == {"ü": [1, 2.5, None]}


async def test_large_bytes_go_up_and_come_back_through_the_store(
    server: FakeServer, arc: Client
) -> None:
    assert await arc.invoke("dep", "echo", LARGE, returns=bytes) == LARGE

    assert server.uploads == {"cmd_1": 1}
    for method, path, headers in server.requests:
        assert ("Authorization" in headers) != path.startswith("/blobs/"), path
        if path.startswith("/blobs/"):
            assert headers["x-ms-blob-type"] == "BlockBlob"
            assert "?sig=s%2f" in path, "the signed URL is used byte for byte"
            assert "Content-Type" not in headers
        assert method in ("POST", "GET", "PUT")


async def test_a_failure_carries_what_its_handler_said(server: FakeServer, arc: Client) -> None:
    with pytest.raises(CommandFailed) as raised:
        await arc.invoke("dep", "fail", {"code": "E_DISK"})

    error = raised.value
    assert (error.code, error.message, error.details) == ("E_DISK", "it did not work", "line 3")
    assert error.command_id == "cmd_1"


@one_kind
async def test_a_result_is_streamed_into_a_file(
    server: FakeServer, arc: Client, tmp_path: Path
) -> None:
    params = tmp_path / "params"
    params.write_bytes(LARGE)

    assert await arc.invoke_to_file(tmp_path / "out", "dep", "echo", params) == len(LARGE)

    assert (tmp_path / "out").read_bytes() == LARGE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "params"]


@one_kind
@pytest.mark.parametrize("knows_ranges", [True, False], ids=["by range", "by skipping"])
async def test_a_download_that_breaks_goes_on_where_it_was(
    server: FakeServer, arc: Client, knows_ranges: bool
) -> None:
    server.knows_ranges = knows_ranges
    server.cut_downloads_after = [1_000_000, 500_000, 0, 1_500_000]

    assert await arc.invoke("dep", "echo", LARGE, returns=bytes) == LARGE

    assert server.cut_downloads_after == []
    ranges = [headers.get("Range") for _, path, headers in server.requests if "/result" in path]
    assert ranges[0] is None
    assert all(text is not None for text in ranges[2:])


async def test_an_upload_that_breaks_and_one_that_is_refused_begin_again(
    server: FakeServer, arc: Client
) -> None:
    server.faults["put-blob"] = [broken, answer(503), answer(409)]

    assert await arc.invoke("dep", "echo", LARGE, returns=bytes) == LARGE

    assert server.count("PUT", "/params") == 4
    assert server.commands["cmd_1"].runs == 1
    assert len(server.commands) == 1


async def test_whatever_breaks_on_the_way_the_command_runs_once(
    server: FakeServer, arc: Client
) -> None:
    server.faults["create"] = [broken, answer(502), answer(429, **{"Retry-After": "0"})]
    server.faults["complete"] = [broken, answer(500)]
    server.faults["status"] = [broken, answer(503)]
    server.faults["get-blob"] = [broken, answer(403)]

    assert await arc.invoke("dep", "echo", LARGE, returns=bytes) == LARGE

    assert not any(server.faults.values())
    assert len(server.commands) == 1
    assert server.commands["cmd_1"].runs == 1


async def test_a_create_whose_answer_got_lost_is_found_again(
    server: FakeServer, arc: Client
) -> None:
    lost = asyncio.Event()

    async def slow(params: bytes) -> bytes:
        await lost.wait()
        return params

    server.handlers["slow"] = slow
    first = await arc.send("dep", "slow", [7], idempotency_key="k")
    again = await arc.send("dep", "slow", [7], idempotency_key="k")
    lost.set()

    assert first.id == again.id
    assert again.state == "DISPATCHED"
    assert await again.result() == [7]
    with pytest.raises(IdempotencyKeyReused):
        await arc.send("dep", "slow", [8], idempotency_key="k")


async def test_a_server_that_restarts_in_the_middle_of_a_wait_is_waited_for(
    server: FakeServer, arc: Client
) -> None:
    finish = asyncio.Event()

    async def slow(params: bytes) -> bytes:
        await finish.wait()
        return params

    server.handlers["slow"] = slow
    waiting = asyncio.ensure_future(arc.invoke("dep", "slow", 7))
    await server.until(lambda: server.count("GET", "/v1/commands/cmd_1") > 0)
    port, command = server.port, server.commands["cmd_1"]
    handling, command.task = command.task, None

    await server.stop()
    server.url, old = "", server.url
    await server.start(port)
    assert server.url == old
    finish.set()

    assert await waiting == 7
    assert handling is not None
    await handling
    assert command.runs == 1


async def test_a_time_out_leaves_the_command_running(server: FakeServer, arc: Client) -> None:
    finish = asyncio.Event()

    async def slow(params: bytes) -> bytes:
        await finish.wait()
        return params

    server.handlers["slow"] = slow
    with pytest.raises(CommandTimeout) as raised:
        await arc.invoke("dep", "slow", 7, timeout=0.2)
    finish.set()

    assert raised.value.state == "DISPATCHED"
    assert await arc.wait(raised.value.command_id) == 7


async def test_no_time_at_all_is_one_look(server: FakeServer, arc: Client) -> None:
    sent = await arc.send("dep", "nobody")

    with pytest.raises(CommandTimeout):
        await sent.result(timeout=0)

    assert server.count("GET", sent.id) == 1


@one_kind
async def test_a_server_that_is_not_there_is_said_to_be(arc: Client) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"

        async with Client(url, retry_seconds=0.1) as nowhere:
            with pytest.raises(ServerUnreachable, match=f"cannot reach {url}: Connection refused"):
                await nowhere.invoke("dep", "echo")


@one_kind
async def test_a_server_that_does_not_answer_costs_no_more_than_the_time_there_is(
    server: FakeServer, arc: Client
) -> None:
    sent = await arc.send("dep", "nobody")
    loop = asyncio.get_running_loop()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with Client(f"http://127.0.0.1:{silent.getsockname()[1]}") as stopped:
            begun = loop.time()
            with pytest.raises(CommandTimeout, match="gave no answer in time"):
                await stopped.wait_for_end(sent.id, timeout=0.2, is_known=True)
            took = loop.time() - begun

    assert took < ANSWER_SECONDS


@one_kind
async def test_a_wrong_token_is_told_from_a_wrong_id(server: FakeServer, arc: Client) -> None:
    with pytest.raises(CommandNotFound):
        await arc.status("cmd_99")
    async with Client(server.url, token="wrong") as stranger:
        with pytest.raises(TokenRefused):
            await stranger.status("cmd_1")


@one_kind
async def test_a_server_that_speaks_no_tls_is_said_to(server: FakeServer) -> None:
    async with Client(server.url.replace("http:", "https:"), retry_seconds=0) as arc:
        with pytest.raises(ServerUnreachable, match="TLS: the other side does not speak TLS"):
            await arc.invoke("dep", "echo")


@one_kind
async def test_a_file_that_shrinks_during_the_upload_is_said_to(
    server: FakeServer, arc: Client, tmp_path: Path
) -> None:
    path = tmp_path / "params"
    path.write_bytes(LARGE)

    def shrink(request: object) -> object:
        path.write_bytes(b"short")
        return answer(503)(None)  # type: ignore[arg-type]

    server.faults["create"] = [shrink]  # type: ignore[list-item]
    with pytest.raises(InvalidParams, match="shorter") as raised:
        await arc.send("dep", "echo", path)

    assert raised.value.context["idempotency_key"]


@one_kind
async def test_a_stream_of_chunks_can_be_left_in_the_middle(
    server: FakeServer, arc: Client
) -> None:
    sent = await arc.send("dep", "echo", LARGE)
    status = await arc.wait_for_end(sent.id)

    async with aclosing(arc.result_chunks(status)) as chunks:
        first = await anext(chunks)

    assert LARGE.startswith(first)
    assert await arc.result_of(status, bytes) == LARGE


@one_kind
async def test_a_result_that_is_gone_is_unreadable_and_not_a_failure(
    server: FakeServer, arc: Client
) -> None:
    server.faults["get-blob"] = [answer(404)] * 50

    with pytest.raises(ResultUnreadable, match="HTTP 404"):
        await arc.invoke("dep", "echo", LARGE, returns=bytes)


@one_kind
async def test_many_at_once_share_one_client(server: FakeServer, arc: Client) -> None:
    results = await asyncio.gather(*(arc.invoke("dep", "echo", n) for n in range(50)))

    assert results == list(range(50))


async def test_commands_are_listed_page_by_page_newest_first(
    server: FakeServer, arc: Client
) -> None:
    for n in range(5):
        await arc.invoke("dep" if n % 2 else "other", "echo", n)

    if not server.knows_extensions:
        with pytest.raises(MethodNotAllowed):
            _ = [one async for one in arc.list()]
        return
    assert [one.command_id async for one in arc.list()] == [f"cmd_{n}" for n in (5, 4, 3, 2, 1)]
    assert [one.command_id async for one in arc.list(limit=3)] == ["cmd_5", "cmd_4", "cmd_3"]
    assert [one.command_id async for one in arc.list(deployment="dep")] == ["cmd_4", "cmd_2"]
    assert [one async for one in arc.list(limit=0)] == []


async def test_a_command_that_runs_is_cancelled_through_its_holder(
    server: FakeServer, arc: Client
) -> None:
    async def slow(params: bytes) -> bytes:
        await asyncio.Event().wait()
        return params

    server.handlers["slow"] = slow
    sent = await arc.send("dep", "slow")
    if not server.knows_extensions:
        with pytest.raises(NotFound):
            await sent.cancel()
        return

    assert (await sent.cancel()).cancel_requested
    with pytest.raises(CommandCancelled):
        await sent.result()


async def test_who_is_there(server: FakeServer, arc: Client) -> None:
    server.agents = [agent("a1", "dep"), agent("a2", "other")]

    if not server.knows_extensions:
        with pytest.raises(NotFound):
            await arc.agents()
        return
    assert [one.agent_id for one in await arc.agents()] == ["a1", "a2"]
    assert [one.agent_id for one in await arc.agents(deployment="dep")] == ["a1"]


async def test_without_an_event_loop_it_is_the_same(server: FakeServer, tmp_path: Path) -> None:
    def program() -> None:
        with SyncClient(server.url) as arc:
            assert arc.invoke("dep", "echo", {"a": 1}) == {"a": 1}
            assert arc.invoke("dep", "echo", LARGE, returns=bytes) == LARGE
            assert arc.invoke_to_file(tmp_path / "out", "dep", "echo", LARGE) == len(LARGE)
            sent = arc.send("dep", "echo", 7, idempotency_key="k")
            assert sent.result() == arc.wait(sent.id) == 7
            assert sent.status().state == "SUCCEEDED"
            status = arc.wait_for_end(sent.id)
            assert b"".join(arc.result_chunks(status)) == b"7"
            with pytest.raises(CommandFailed):
                arc.invoke("dep", "fail", {})
            if server.knows_extensions:
                assert len(list(arc.list())) == 5
                assert next(arc.list()).command_id == "cmd_5"
                assert sent.cancel().state == "SUCCEEDED"
                assert arc.agents() == []
        with pytest.raises(RuntimeError, match="`with` statement"):
            arc.status("cmd_1")

    await asyncio.to_thread(program)
    gc.collect()


@one_kind
async def test_an_iteration_that_is_left_at_the_end_of_the_client_hangs_nothing(
    server: FakeServer,
) -> None:
    server.handlers["echo"] = echo

    def program() -> None:
        with SyncClient(server.url) as arc:
            chunks = arc.result_chunks(arc.wait_for_end(arc.send("dep", "echo", LARGE).id))
            next(chunks)
        chunks.close()

    await asyncio.wait_for(asyncio.to_thread(program), 20)


@one_kind
async def test_memory_does_not_grow_with_a_body(server: FakeServer, tmp_path: Path) -> None:
    """In a process of its own, whose highest mark is its own."""
    size = 64 * 1024 * 1024
    params = tmp_path / "params"
    with params.open("wb") as file:
        file.truncate(size)
    server.handlers["echo"] = echo
    program = f"""
import asyncio, resource, sys
from pathlib import Path
from arc_client import Client
async def main():
    async with Client({server.url!r}) as arc:
        await arc.invoke("dep", "echo", 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await arc.invoke_to_file({str(tmp_path / "out")!r}, "dep", "echo", Path({str(params)!r}))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()

    assert process.returncode == 0
    assert int(out) < 24 * 1024, "kilobytes"
    assert (tmp_path / "out").stat().st_size == size
    digest = hashlib.sha256(bytes(size)).hexdigest()
    with (tmp_path / "out").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest
