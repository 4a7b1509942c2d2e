"""Results: strictly decoded, and never a token to where they are stored."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aioresponses import aioresponses

from arc_client import Client, ResultUnreadable
from arc_client.bodies.results import write_file
from tests.support.client_fakes import download_from, error, status
from tests.support.clocks import SenderClock

STATUS = re.compile(r"^https://h/v1/commands/cmd_1(\?waitSeconds=\d+)?$")
STORED = "http://blobs/r?sig=a%2Fb"


class Report(msgspec.Struct):
    """A typed result."""

    rows: int


async def result(clock: SenderClock, returns: Any = Any) -> Any:
    """Wait for cmd_1 and take its result."""
    async with Client("https://h", token="secret", clock=clock) as arc:
        return await arc.wait("cmd_1", returns=returns)


async def test_json_comes_decoded_typed_or_as_bytes_as_asked_for(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", b'{"rows": 3}'), repeat=True)

    assert await result(clock) == {"rows": 3}
    assert await result(clock, Report) == Report(rows=3)
    assert await result(clock, bytes) == b'{"rows": 3}'


@pytest.mark.parametrize(
    ("data", "returns", "message"),
    [
        (b"", Any, "0 bytes that are not JSON"),
        (b"\xff\x00", Any, "2 bytes that are not JSON"),
        (b"{", Any, "1 bytes that are not JSON"),
        (b"[" * 5000, Any, "not JSON"),
        (b'{"rows":"x"}', Report, r"not what was asked for.*\$.rows"),
    ],
)
async def test_a_result_that_is_not_what_was_asked_for_says_why(
    http: aioresponses, clock: SenderClock, data: bytes, returns: Any, message: str
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", data), repeat=True)

    with pytest.raises(ResultUnreadable, match=message) as raised:
        await result(clock, returns)

    assert raised.value.command_id == "cmd_1"


@pytest.mark.parametrize("text", ["AB", "AB==CD", "A-_=", "AAA\n", "AB=="])
async def test_base64_that_is_not_canonical_is_damage(
    http: aioresponses, clock: SenderClock, text: str
) -> None:
    body = {"mode": "inline", "inlineBase64": text}
    response = {"status": "success", "response": body}
    http.get(STATUS, payload=status("SUCCEEDED", response=response), repeat=True)

    with pytest.raises(ResultUnreadable, match="damaged"):
        await result(clock, bytes)


async def test_a_stored_result_is_fetched_by_its_url_and_without_the_token(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", response=download_from(STORED, 5)), repeat=True)
    http.get(STORED, body=b"12345")

    assert await result(clock) == 12345

    tokens = {
        url.host: "Authorization" in calls[0].kwargs["headers"]
        for (_, url), calls in http.requests.items()
    }
    assert tokens == {"h": True, "blobs": False}


@pytest.mark.parametrize(
    ("url", "resolved"),
    [
        ("/blobs/r?sig=1", "https://h/blobs/r?sig=1"),
        ("../../r", "https://h/r"),
        ("cmd_1/r", "https://h/v1/commands/cmd_1/r"),
    ],
)
async def test_a_relative_url_is_resolved_against_the_request_that_told_it(
    http: aioresponses, clock: SenderClock, url: str, resolved: str
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", response=download_from(url, 1)), repeat=True)
    http.get(resolved, body=b"1")

    assert await result(clock) == 1


@pytest.mark.parametrize("url", ["//evil/r", "file:///etc/passwd", "ftp://h/r", "http://"])
async def test_a_url_that_is_not_http_is_refused(
    http: aioresponses, clock: SenderClock, url: str
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", response=download_from(url, 1)), repeat=True)

    with pytest.raises(ResultUnreadable, match="a URL that is none"):
        await result(clock)


async def test_a_path_on_the_servers_own_disk_is_refused(
    http: aioresponses, clock: SenderClock
) -> None:
    response = download_from("http://x/", 1)
    response["response"]["storageGetRequest"]["backend"] = {
        "type": "local",
        "filePath": "/etc/passwd",
        "operation": "get",
    }
    http.get(STATUS, payload=status("SUCCEEDED", response=response), repeat=True)

    with pytest.raises(ResultUnreadable, match="its own disk"):
        await result(clock, bytes)


@pytest.mark.parametrize(("body", "said"), [(b"123", 5), (b"1234567", 5)])
async def test_a_result_of_another_size_than_was_said_is_not_taken(
    http: aioresponses, clock: SenderClock, body: bytes, said: int
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", response=download_from(STORED, said)), repeat=True)
    http.get(STORED, body=body, repeat=True)

    with pytest.raises(ResultUnreadable, match="bytes"):
        await result(clock, bytes)


async def test_an_expired_url_is_replaced_by_reading_the_status_again(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", response=download_from(STORED, 1)), repeat=2)
    http.get(STORED, status=403, body="<Code>AccessDenied</Code>")
    fresh = "http://blobs/r?sig=fresh"
    http.get(STATUS, payload=status("SUCCEEDED", response=download_from(fresh, 1)))
    http.get(fresh, body=b"7")

    assert await result(clock) == 7


async def test_a_result_that_is_gone_is_not_asked_for_for_ever(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", response=download_from(STORED, 1)), repeat=True)
    http.get(STORED, status=404, body=error("NOT_FOUND", "no such blob"), repeat=True)

    with pytest.raises(ResultUnreadable, match="cannot be fetched: no such blob"):
        await result(clock)

    assert [len(calls) for (_, url), calls in http.requests.items() if url.host == "blobs"] == [2]


async def test_a_result_that_cannot_be_written_leaves_no_file(
    http: aioresponses, clock: SenderClock, tmp_path: Path
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", response=download_from(STORED, 9)), repeat=True)
    http.get(STORED, body=b"123")
    out = tmp_path / "out"
    out.write_bytes(b"what was there")

    async with Client("https://h", clock=clock) as arc:
        with pytest.raises(ResultUnreadable):
            await arc.wait_to_file(out, "cmd_1")

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.read_bytes() == b"what was there"


async def test_a_file_appears_whole_also_behind_a_link(
    http: aioresponses, clock: SenderClock, tmp_path: Path
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", b"whole"), repeat=True)
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")

    async with Client("https://h", clock=clock) as arc:
        assert await arc.wait_to_file(link, "cmd_1") == 5

    assert link.is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"whole"
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]


async def test_a_device_is_written_to_and_not_replaced(
    http: aioresponses, clock: SenderClock
) -> None:
    http.get(STATUS, payload=status("SUCCEEDED", b"whole"), repeat=True)

    async with Client("https://h", clock=clock) as arc:
        await arc.wait_to_file("/dev/null", "cmd_1")

    assert Path("/dev/null").is_char_device()


async def test_a_pipe_is_written_by_the_name_of_its_descriptor() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a "
        yield b"result"

    reader, writer = os.pipe()
    with open(reader, "rb") as read:
        with open(writer, "wb"):
            assert await write_file(Path(f"/dev/fd/{writer}"), chunks()) == 8

        assert read.read() == b"a result"
