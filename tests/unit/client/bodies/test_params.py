"""Params of every kind that can be sent, and sent twice."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from arc_client.bodies.params import SPOOL_IN_MEMORY_BYTES, Body, body_of
from arc_client.errors import InvalidParams

LARGE = os.urandom(SPOOL_IN_MEMORY_BYTES + 12_345)


async def twice(body: Body) -> bytes:
    """The bytes of a body, read a second time after a first."""
    first = b"".join([chunk async for chunk in body.chunks()])
    second = b"".join([chunk async for chunk in body.chunks()])
    assert first == second == body.data()
    assert len(second) == body.size
    return second


@dataclass
class Point:
    """Something that msgspec writes as JSON."""

    x: int


@pytest.mark.parametrize(
    ("params", "sent"),
    [
        ({"a": "ü"}, '{"a":"ü"}'.encode()),
        ("text", b'"text"'),
        (None, b"null"),
        ([1, 2.5], b"[1,2.5]"),
        (Point(3), b'{"x":3}'),
        (b"\x00raw", b"\x00raw"),
        (bytearray(b"raw"), b"raw"),
        (memoryview(b"xraw")[1:], b"raw"),
    ],
)
async def test_values_become_json_and_bytes_stay_as_they_are(params: Any, sent: bytes) -> None:
    async with body_of(params) as body:
        assert await twice(body) == sent


@pytest.mark.parametrize("params", [object(), {1, object()}, lambda: None])
async def test_what_has_no_form_in_json_is_refused(params: Any) -> None:
    with pytest.raises(InvalidParams, match="no form in JSON"):
        async with body_of(params):
            pass


async def test_a_path_is_streamed_and_closed_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "params"
    path.write_bytes(LARGE)

    async with body_of(path) as body:
        assert await twice(body) == LARGE

    assert str(path) not in _open_files()


async def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParams, match=r"cannot read .*nothing: No such file"):
        async with body_of(tmp_path / "nothing"):
            pass


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParams, match="Is a directory"):
        async with body_of(tmp_path):
            pass


async def test_a_file_is_read_from_where_it_stands_and_left_open(tmp_path: Path) -> None:
    path = tmp_path / "params"
    path.write_bytes(b"skip:" + LARGE)

    with path.open("rb") as file:
        file.seek(5)
        async with body_of(file) as body:
            assert await twice(body) == LARGE
        assert not file.closed


async def test_a_buffer_in_memory_is_read_from_where_it_stands() -> None:
    buffer = io.BytesIO(b"skip:rest")
    buffer.seek(5)

    async with body_of(buffer) as body:
        assert await twice(body) == b"rest"


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["in memory", "in a temporary file"])
async def test_a_pipe_can_be_sent_twice_whatever_its_size(data: bytes) -> None:
    reading, writing = os.pipe()
    writer = threading.Thread(target=_write_all, args=(writing, data))
    writer.start()

    with os.fdopen(reading, "rb") as pipe:
        async with body_of(pipe) as body:
            assert await twice(body) == data
    writer.join()


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["in memory", "in a temporary file"])
async def test_an_async_iterable_can_be_sent_twice_whatever_its_size(data: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(data), 100_000):
            yield data[begin : begin + 100_000]

    async with body_of(chunks()) as body:
        assert await twice(body) == data


async def test_small_chunks_are_collected_before_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [b"line %d\n" % number for number in range(20_000)]
    hops: list[object] = []
    to_thread = asyncio.to_thread

    async def counted(call: Any, *arguments: Any) -> Any:
        hops.append(call)
        return await to_thread(call, *arguments)

    async def chunks() -> AsyncIterator[bytes]:
        for line in lines:
            yield line

    monkeypatch.setattr(asyncio, "to_thread", counted)
    async with body_of(chunks()) as body:
        writes = len(hops)
        sent = await twice(body)

    assert sent == b"".join(lines)
    assert writes < 10


async def test_a_text_file_is_refused() -> None:
    with pytest.raises(InvalidParams, match="binary"):
        async with body_of(Text()):
            pass


async def test_what_a_file_grew_by_meanwhile_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first")

    async with body_of(path) as body:
        path.write_bytes(b"first and more")
        assert await twice(body) == b"first"


async def test_a_file_that_became_shorter_is_not_sent_as_if_it_were_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first and more")

    async with body_of(path) as body:
        path.write_bytes(b"first")
        with pytest.raises(InvalidParams, match="shorter"):
            await twice(body)
        with pytest.raises(InvalidParams, match="shorter"):
            body.data()


class Text:
    """Something that reads as text."""

    def read(self, size: int = -1) -> str:
        """A character."""
        return "ü"

    def seekable(self) -> bool:
        """Return False."""
        return False


def _write_all(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb") as pipe:
        pipe.write(data)


def _open_files() -> set[str]:
    fds = Path("/proc/self/fd")
    return {os.readlink(fd) for fd in fds.iterdir() if fd.is_symlink() and os.path.lexists(fd)}
