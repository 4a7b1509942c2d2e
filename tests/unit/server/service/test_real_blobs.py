"""The paths and calls that the service makes, against blobs on a disk and signed links."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from arc_protocol.errors import Conflict, NotFound
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import BodySpec, InlineBody, StorageBody, SuccessResponse
from arc_protocol.messages.commands import Payload, RetryRequest
from arc_server.blobs.local import LocalBlobStore
from arc_server.server_keys import Signer
from tests.support.service_world import BASE, World, inline_of, path_of, success

LARGE = bytes(range(256)) * 40


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[LocalBlobStore]:
    store = LocalBlobStore(tmp_path / "blobs", Signer(tmp_path / "keys"))
    yield store
    await store.close()


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


async def read(blobs: LocalBlobStore, body: BodySpec) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(path_of(body))])


async def test_large_bodies_of_every_kind_go_through_real_files(
    world_of: Callable[..., World], blobs: LocalBlobStore
) -> None:
    world = world_of(blobs=blobs)
    await world.sweeper.tick()

    inline = await world.create(params=LARGE)
    uploaded = await world.upload(len(LARGE))
    assert uploaded.storage_upload is not None
    await world.put(uploaded.storage_upload.put_request, LARGE)
    await world.commands.upload_complete(uploaded.command_id, len(LARGE))
    small = await world.upload(5)
    assert small.storage_upload is not None
    await world.put(small.storage_upload.put_request, b"12345")
    await world.commands.upload_complete(small.command_id, 5)

    first, second, third = (await world.poll(count=3)).leases
    assert await read(blobs, first.envelope.params) == LARGE
    assert await read(blobs, second.envelope.params) == LARGE
    assert inline_of(third.envelope.params) == b"12345"
    with pytest.raises(Conflict):
        await world.put(uploaded.storage_upload.put_request, LARGE)

    await world.respond(first, success(LARGE[::-1]))
    put = second.envelope.response_handling.storage_upload_request
    await world.put(put, LARGE[::-1])
    await world.respond(
        second, SuccessResponse(response=StorageBody(size=len(LARGE), storage_put_used=True))
    )
    with pytest.raises(Conflict):
        await world.put(put, LARGE)
    for command_id in (inline.command_id, uploaded.command_id):
        status = await world.status(command_id)
        assert status.state is State.SUCCEEDED
        assert isinstance(status.response, SuccessResponse)
        assert await read(blobs, status.response.response) == LARGE[::-1]

    again = await world.commands.retry(uploaded.command_id, RetryRequest(), base_url=BASE)
    (retried,) = (await world.poll()).leases
    assert retried.command_id == again.command_id
    await blobs.delete(path_of(second.envelope.params))
    assert await read(blobs, retried.envelope.params) == LARGE
    with pytest.raises(Conflict):
        await blobs.write(path_of(retried.envelope.params), _nothing(), 9)
    with pytest.raises(NotFound):
        await blobs.link(path_of(second.envelope.params), "arc/commands/x/params")

    repaired = await world.create(params=b"damaged")
    await world.commands.write_payload(repaired.command_id, Payload(params=InlineBody.of(LARGE)))
    (fourth,) = (await world.poll()).leases
    assert await read(blobs, fourth.envelope.params) == LARGE
