"""Requests that come again because a process died before it could answer, and before it sealed."""

from __future__ import annotations

import pytest

from arc_protocol.errors import InvalidStateTransition
from arc_protocol.messages.bodies import StorageBody, SuccessResponse
from tests.support.service_world import World, path_of

LARGE = bytes(5_000)


async def test_a_repeated_upload_complete_seals_what_it_finds_unsealed(world: World) -> None:
    created = await world.upload(len(LARGE))
    assert created.storage_upload is not None
    await world.put(created.storage_upload.put_request, LARGE)
    await world.commands.upload_complete(created.command_id, len(LARGE))
    path = path_of((await world.lease()).envelope.params)
    world.blobs.sealed.clear()  # as a process leaves it that dies after its commit

    with pytest.raises(InvalidStateTransition):
        await world.commands.upload_complete(created.command_id, len(LARGE))

    assert world.blobs.sealed == {path}


async def test_a_repeated_response_seals_what_it_finds_unsealed(world: World) -> None:
    await world.create()
    lease = await world.lease()
    upload = lease.envelope.response_handling.storage_upload_request
    await world.put(upload, LARGE)
    response = SuccessResponse(response=StorageBody(size=len(LARGE), storage_put_used=True))
    await world.leases.submit_response(lease.command_id, response, lease_id=lease.lease_id)
    world.blobs.sealed.clear()

    await world.leases.submit_response(lease.command_id, response, lease_id=lease.lease_id)

    assert world.blobs.sealed == {upload.path}
