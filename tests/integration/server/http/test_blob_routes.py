"""Blobs through the server: streamed, ranged, bounded."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from arc_server.blobs.local import READ_BYTES, TEMPORARY
from arc_server.config.sections import CommandSection
from tests.support.running_server import OWN, Client, Serve, success
from tests.support.waiting import until

BLOCK = 1 << 16


async def upload_url(client: Client, size: int | None = None) -> tuple[str, str]:
    """A command whose params are to be uploaded, and where to."""
    body = {"deploymentId": OWN, "command": "big", "params": {"mode": "storage", "size": size}}
    answer = await client.call("POST", "/v1/commands", body)
    assert answer.json["next"] == "upload"
    return answer.json["commandId"], answer.json["storageUpload"]["putRequest"]["backend"]["url"]


async def download_url(client: Client, data: bytes) -> str:
    """Where an agent reads params of these bytes (above the inline limit)."""
    command_id, url = await upload_url(client)
    assert (await client.call("PUT", url, data=data, token="")).status == 200
    path = f"/v1/commands/{command_id}/upload-complete"
    assert (await client.call("POST", path, {"size": len(data)})).status == 200
    leases = await client.lease()
    params = leases[0]["envelope"]["params"]
    return params["storageGetRequest"]["backend"]["url"]


def unfinished(client: Client) -> list[Path]:
    return list((client.server.parts.blobs.root / TEMPORARY).iterdir())


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "application/json"])
async def test_a_body_goes_up_and_comes_down_as_it_is(
    client: Client, content_type: str | None
) -> None:
    data = os.urandom(3 * READ_BYTES + 1)
    command_id, url = await upload_url(client, len(data))
    headers = {"Content-Type": content_type} if content_type else {}

    answer = await client.call("PUT", url, data=data, token="", headers=headers)

    assert (answer.status, answer.body) == (200, b"")
    path = f"/v1/commands/{command_id}/upload-complete"
    completed = await client.call("POST", path, {"size": len(data)})
    assert completed.json["state"] == "PENDING"
    (lease,) = await client.lease()
    params = lease["envelope"]["params"]
    fetched = await client.call("GET", params["storageGetRequest"]["backend"]["url"], token="")
    assert fetched.body == data
    assert fetched.headers["Content-Length"] == str(len(data))
    assert fetched.headers["Content-Type"] == "application/octet-stream"
    assert fetched.headers["Accept-Ranges"] == "bytes"


async def test_an_agents_large_response_reaches_the_sender(client: Client) -> None:
    data = os.urandom(400_000)
    command_id = await client.create()
    (lease,) = await client.lease()
    handling = lease["envelope"]["responseHandling"]
    put = handling["storageUploadRequest"]["backend"]
    assert put["headers"] == {}

    assert (await client.call(put["method"], put["url"], data=data, token="")).status == 200
    body = {"mode": "storage", "size": len(data), "storagePutUsed": True}
    response = {"status": "success", "response": body}
    url = handling["submitResponseUrl"]
    assert (await client.call("PUT", url, response, token="")).status == 200

    body = (await client.status(command_id))["response"]["response"]
    assert body["size"] == len(data)
    get = body["storageGetRequest"]["backend"]["url"]
    assert (await client.call("GET", get, token="")).body == data
    late = await client.call("PUT", put["url"], data=b"later", token="")
    assert (late.status, late.code) == (409, "CONFLICT")
    assert (await client.call("GET", get, token="")).body == data


async def test_a_body_encoded_by_the_client_is_kept_as_it_came(client: Client) -> None:
    _, url = await upload_url(client)
    headers = {"Content-Encoding": "gzip"}

    answer = await client.call("PUT", url, data=b"not gzip at all", token="", headers=headers)

    assert answer.status == 200


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-", 10, None),
        ("bytes=5-999999999", 5, None),
        ("bytes=-7", -7, None),
    ],
)
async def test_a_range_is_a_206_with_that_part(
    client: Client, asked: str, start: int, end: int | None
) -> None:
    data = os.urandom(READ_BYTES + 100)
    url = await download_url(client, data)

    part = await client.call("GET", url, token="", headers={"Range": asked})
    head = await client.call("HEAD", url, token="", headers={"Range": asked})

    first = start % len(data)
    last = (len(data) if end is None else end) - 1
    assert part.status == head.status == 206
    assert part.body == data[first : last + 1]
    assert part.headers["Content-Range"] == f"bytes {first}-{last}/{len(data)}"
    assert part.headers["Content-Length"] == head.headers["Content-Length"] == str(last - first + 1)


async def test_a_range_outside_the_blob_is_a_416_that_tells_the_size(client: Client) -> None:
    url = await download_url(client, os.urandom(200_000))

    answer = await client.call("GET", url, token="", headers={"Range": "bytes=200000-"})

    assert (answer.status, answer.code) == (416, "RANGE_NOT_SATISFIABLE")
    assert answer.headers["Content-Range"] == "bytes */200000"


async def test_a_download_is_resumed_only_from_the_same_version(client: Client) -> None:
    data = os.urandom(200_000)
    url = await download_url(client, data)
    etag = (await client.call("HEAD", url, token="")).headers["ETag"]

    same = await client.call("GET", url, token="", headers={"Range": "bytes=9-", "If-Range": etag})
    other = await client.call(
        "GET", url, token="", headers={"Range": "bytes=9-", "If-Range": '"another"'}
    )

    assert (same.status, same.body) == (206, data[9:])
    assert (other.status, other.body) == (200, data)


async def test_a_blob_that_is_not_there_is_not_found(client: Client) -> None:
    _, put = await upload_url(client)
    path = URL(put).path.removeprefix("/v1/blobs/")

    for missing in (path, "..", "%2e%2e/keys/signing", "a/b.blob", "%00", "x" * 300):
        answer = await client.call("GET", f"/v1/blobs/{missing}")
        assert (answer.status, answer.code) == (404, "NOT_FOUND")


async def test_a_body_that_announces_too_much_is_refused_unread(serve: Serve) -> None:
    async with serve(commands=small_blobs()) as client:
        _, url = await upload_url(client)

        answer = await client.call("PUT", url, data=b"x" * 1001, token="")

        assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")
        assert unfinished(client) == []


async def test_a_body_that_does_not_say_how_long_it_is_is_cut_off_at_the_limit(
    serve: Serve,
) -> None:
    async with serve(commands=small_blobs()) as client:
        _, url = await upload_url(client)

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * 500

        answer = await client.call("PUT", url, data=chunks(), token="")

        assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")
        await until(lambda: unfinished(client) == [])
        assert (await client.call("PUT", url, data=b"x" * 1000, token="")).status == 200


def small_blobs() -> Any:
    return CommandSection(max_blob_bytes=1000)


async def test_an_upload_that_breaks_off_leaves_nothing(client: Client) -> None:
    command_id, url = await upload_url(client)
    host, _, port = client.server.url.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    target = url.removeprefix(client.server.url)

    writer.write(f"PUT {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n".encode())
    writer.write(b"x" * 2_000_000)
    await until(lambda: unfinished(client) != [])
    writer.close()
    await writer.wait_closed()

    await until(lambda: unfinished(client) == [])
    path = f"/v1/commands/{command_id}/upload-complete"
    answer = await client.call("POST", path, {"size": 3_000_000})
    assert (answer.status, answer.code) == (400, "INVALID_COMMAND")
    assert (await client.status(command_id))["state"] == "PENDING_UPLOAD"


async def test_an_upload_of_another_size_than_announced_is_not_accepted(client: Client) -> None:
    command_id, url = await upload_url(client, 5)
    assert (await client.call("PUT", url, data=b"1234", token="")).status == 200

    path = f"/v1/commands/{command_id}/upload-complete"
    answer = await client.call("POST", path, {"size": 5})

    assert (answer.status, answer.code) == (400, "INVALID_COMMAND")
    assert (await client.call("PUT", url, data=b"12345", token="")).status == 200
    assert (await client.call("POST", path, {"size": 5})).status == 200


async def test_a_disk_that_is_full_is_a_507(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = await upload_url(client)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("arc_server.blobs.local.os.write", full)
        answer = await client.call("PUT", url, data=b"x" * 10, token="")

    assert (answer.status, answer.code) == (507, "INSUFFICIENT_STORAGE")
    assert unfinished(client) == []
    assert (await client.call("PUT", url, data=b"x" * 10, token="")).status == 200


async def test_a_disk_that_fails_in_the_middle_of_a_download_ends_the_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await download_url(client, os.urandom(3 * READ_BYTES))
    real, calls = os.pread, 0

    def failing(handle: int, length: int, offset: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, "Input/output error")
        return real(handle, length, offset)

    monkeypatch.setattr("arc_server.blobs.local.os.pread", failing)

    with pytest.raises(aiohttp.ClientPayloadError):
        await client.call("GET", url, token="")


async def test_200_mb_each_way_take_bounded_memory_of_the_server(client: Client) -> None:
    block = os.urandom(BLOCK)
    count = 200 * (1 << 20) // BLOCK
    expected = hashlib.sha256()
    for _ in range(count):
        expected.update(block)
    command_id, url = await upload_url(client)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield block

    tracemalloc.start()
    try:
        assert (await client.call("PUT", url, data=chunks(), token="")).status == 200
        path = f"/v1/commands/{command_id}/upload-complete"
        await client.call("POST", path, {"size": count * BLOCK})
        (lease,) = await client.lease()
        get = lease["envelope"]["params"]["storageGetRequest"]["backend"]["url"]
        digest = hashlib.sha256()
        async with client.session.get(URL(get, encoded=True)) as answer:
            async for chunk in answer.content.iter_any():
                digest.update(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert digest.digest() == expected.digest()
    assert peak < 32 << 20  # of server and client together


async def test_the_response_of_a_lapsed_attempt_cannot_overwrite_the_next_ones(
    client: Client,
) -> None:
    command_id = await client.create()
    (first,) = await client.lease()
    path = f"/v1/commands/leases/{first['leaseId']}/release"
    await client.call("POST", path)
    (second,) = await client.lease()
    stale, fresh = (
        lease["envelope"]["responseHandling"]["storageUploadRequest"]["backend"]["url"]
        for lease in (first, second)
    )

    assert (await client.call("PUT", fresh, data=b"y" * 200_000, token="")).status == 200
    refused = await client.call("PUT", stale, data=b"n" * 200_000, token="")
    assert (refused.status, refused.code) == (409, "LEASE_LOST")
    body = {"mode": "storage", "size": 200_000, "storagePutUsed": True}
    url = second["envelope"]["responseHandling"]["submitResponseUrl"]
    response = {"status": "success", "response": body}
    assert (await client.call("PUT", url, response, token="")).status == 200

    get = (await client.status(command_id))["response"]["response"]["storageGetRequest"]
    assert (await client.call("GET", get["backend"]["url"], token="")).body == b"y" * 200_000
    late = await client.call(
        "PUT", first["envelope"]["responseHandling"]["submitResponseUrl"], success(), token=""
    )
    assert (late.status, late.code) == (409, "LEASE_LOST")
    assert (await client.status(command_id))["response"]["response"]["mode"] == "storage"
