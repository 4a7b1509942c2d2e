"""Uploads by signed URLs: judged by the command's state, one at a time, as large as announced."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from arc_server.blobs.collection_hold import NAME as HOLD
from arc_server.config.sections import QuotaSection, RetentionSection
from tests.support.running_server import OWN, Client, Serve, success
from tests.support.store_quotas import usage
from tests.support.waiting import until

PART = 2 << 20
"""More than is held in memory before it goes to the disk."""


async def announced(client: Client, size: int | None = 10) -> tuple[str, str]:
    """A command whose params are awaited: its id and the upload URL."""
    body = {"deploymentId": OWN, "command": "big", "params": {"mode": "storage", "size": size}}
    created = (await client.call("POST", "/v1/commands", body)).json
    return created["commandId"], created["storageUpload"]["putRequest"]["backend"]["url"]


def upload_url(lease: dict[str, Any]) -> str:
    return lease["envelope"]["responseHandling"]["storageUploadRequest"]["backend"]["url"]


def kept(client: Client) -> list[str]:
    """The files of bodies and of unfinished uploads."""
    root = client.server.parts.blobs.root
    return [str(path) for path in root.rglob("*") if path.is_file() and path.name != HOLD]


async def test_no_more_bytes_come_by_a_url_than_were_announced(client: Client) -> None:
    _, url = await announced(client, 10)

    larger = await client.call("PUT", url, data=b"x" * 11, token="")
    forged = await client.call("PUT", url.replace("size=10", "size=11"), data=b"x", token="")
    unbounded = await client.call("PUT", url.replace("&size=10", ""), data=b"x", token="")

    assert (larger.status, larger.code) == (413, "PAYLOAD_TOO_LARGE")
    assert (forged.status, unbounded.status) == (401, 401)
    assert kept(client) == []
    assert (await client.call("PUT", url, data=b"x" * 10, token="")).status == 200


async def test_params_come_only_while_the_command_waits_for_them(client: Client) -> None:
    command_id, url = await announced(client)
    await client.call("POST", f"/v1/commands/{command_id}/cancel")

    answer = await client.call("PUT", url, data=b"x" * 10, token="")

    assert (answer.status, answer.code) == (409, "CONFLICT")
    assert kept(client) == []


@pytest.mark.parametrize("end", ["a response", "a cancel"])
async def test_no_result_comes_to_a_command_that_has_ended(client: Client, end: str) -> None:
    command_id = await client.create()
    (lease,) = await client.lease()
    path = f"/v1/commands/{command_id}"
    if end == "a cancel":
        await client.call("POST", f"{path}/cancel")
        await client.call("POST", f"/v1/commands/leases/{lease['leaseId']}/release")
    else:
        await client.call("PUT", f"{path}/response", success())

    answer = await client.call("PUT", upload_url(lease), data=b"x", token="")

    assert (answer.status, answer.code) == (409, "CONFLICT")
    assert kept(client) == []


async def test_a_lapsed_lease_that_no_agent_took_since_may_still_upload(client: Client) -> None:
    await client.create()
    (lease,) = await client.lease()
    await client.call("POST", f"/v1/commands/leases/{lease['leaseId']}/release")

    assert (await client.call("PUT", upload_url(lease), data=b"x", token="")).status == 200


class Slow:
    """A body that comes when the test lets it."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def chunks(self) -> Any:
        yield b"x" * PART
        self.begun.set()
        await self.go_on.wait()
        yield b"x" * PART


async def test_a_body_that_comes_while_its_command_ends_is_not_kept(client: Client) -> None:
    command_id, url = await announced(client, 2 * PART)
    slow = Slow()

    sent = asyncio.create_task(client.call("PUT", url, data=slow.chunks(), token=""))
    await slow.begun.wait()
    await until(lambda: bool(kept(client)))
    await client.call("POST", f"/v1/commands/{command_id}/cancel")
    slow.go_on.set()

    answer = await sent
    assert (answer.status, answer.code) == (409, "CONFLICT")
    assert kept(client) == []


async def test_an_upload_ends_the_one_before_it_of_the_same_body(client: Client) -> None:
    _, url = await announced(client, 2 * PART)
    slow = [Slow() for _ in range(4)]
    sent: list[asyncio.Task[Any]] = []
    for each in slow:
        sent.append(asyncio.create_task(client.call("PUT", url, data=each.chunks(), token="")))
        await each.begun.wait()
        await until(lambda: len(kept(client)) == 1)

    slow[-1].go_on.set()
    answers = await asyncio.gather(*sent, return_exceptions=True)

    assert answers[-1].status == 200
    for answer in answers[:-1]:
        assert isinstance(answer, Exception) or answer.code == "CONFLICT"
    assert len(kept(client)) == 1


async def stored(client: Client) -> int:
    """The bytes that count for the deployment."""
    return (await usage(client.server.parts.store, OWN))["stored_bytes"]  # type: ignore[arg-type]


async def recounted(client: Client) -> int:
    """The bytes that count, counted anew."""
    await client.server.parts.store.recount_usage(OWN)
    return await stored(client)


async def nothing_left(client: Client) -> bool:
    """True once no upload counts whose command has ended."""
    return not await client.server.parts.store.left_uploads(10)


async def test_params_of_unannounced_size_count_as_they_arrive(serve: Serve) -> None:
    async with serve(quotas=QuotaSection(max_stored_bytes=3 * PART)) as client:
        first, second = await announced(client, None), await announced(client, None)
        assert (await client.call("PUT", first[1], data=b"x" * 2 * PART, token="")).status == 200
        assert await stored(client) == 2 * PART

        announcing = await client.call("PUT", second[1], data=b"x" * 2 * PART, token="")
        slow = Slow()
        slow.go_on.set()
        streaming = await client.call("PUT", second[1], data=slow.chunks(), token="")

        for refused in (announcing, streaming):
            assert (refused.status, refused.code) == (429, "QUOTA_EXCEEDED")
        assert len(kept(client)) == 1
        assert (await client.call("PUT", second[1], data=b"x" * PART, token="")).status == 200
        assert await stored(client) == 3 * PART
        done = {"size": PART}
        await client.call("POST", f"/v1/commands/{second[0]}/upload-complete", done)
        assert await stored(client) == 3 * PART


async def test_uploads_at_the_same_time_count_together(serve: Serve) -> None:
    async with serve(quotas=QuotaSection(max_stored_bytes=3 * PART)) as client:
        slow = [Slow() for _ in range(2)]
        sent: list[asyncio.Task[Any]] = []
        for each in slow:
            _, url = await announced(client, None)
            sent.append(asyncio.create_task(client.call("PUT", url, data=each.chunks(), token="")))
            await each.begun.wait()
        await until(lambda: len(kept(client)) == 2)
        answers: list[Any] = []
        for each, upload in zip(slow, sent, strict=True):
            each.go_on.set()
            answers.append(await upload)

        assert [answer.status for answer in answers] == [200, 429]
        assert await stored(client) == 2 * PART


@pytest.mark.parametrize("size", [10, None])
async def test_what_was_uploaded_for_a_cancelled_command_counts_until_it_is_removed(
    serve: Serve, size: int | None
) -> None:
    async with serve(retention=RetentionSection(interval_seconds=0.05)) as client:
        command_id, url = await announced(client, size)
        await client.call("PUT", url, data=b"x" * 10, token="")
        assert await stored(client) == 10

        await client.call("POST", f"/v1/commands/{command_id}/cancel")
        await until(lambda: not kept(client))
        await until(lambda: nothing_left(client))

        assert (await client.status(command_id))["state"] == "FAILED"
        assert await stored(client) == await recounted(client) < 100


async def test_a_result_takes_the_place_of_what_earlier_leases_have_uploaded(
    client: Client,
) -> None:
    await client.create()
    for _ in range(3):
        (lease,) = await client.lease()
        assert (await client.call("PUT", upload_url(lease), data=b"x", token="")).status == 200
        (file,) = kept(client)
        assert lease["leaseId"] in file
        release = {"reason": "drain"}
        await client.call("POST", f"/v1/commands/leases/{lease['leaseId']}/release", release)
