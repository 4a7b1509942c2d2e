"""Many responses at once, and late ones: a command ends once, by its latest holder's response."""

from __future__ import annotations

import asyncio

from tests.support.raw_sender import Refused, failure, success
from tests.support.waiting import until
from tests.support.world import World

LEASE_SECONDS = 2


async def test_fifty_concurrent_creates_with_one_key_make_one_command(world: World):
    await world.server()

    ids = await asyncio.gather(
        *(world.sender.create("report", {"n": 1}, idempotencyKey="once") for _ in range(50))
    )

    assert len(set(ids)) == 1
    assert [status["commandId"] for status in await world.sender.commands()] == ids[:1]
    [lease] = await world.sender.lease(max_leases=10)
    assert lease["commandId"] == ids[0]


async def test_forty_concurrent_opposite_responses_have_one_outcome(world: World):
    await world.server()
    command_id = await world.sender.create("report")
    [lease] = await world.sender.lease()
    waiting = asyncio.create_task(world.sender.status(command_id, 30))
    good = {f"good {n}".encode() for n in range(20)}
    bad = {f"bad {n}" for n in range(20)}

    await asyncio.gather(
        *(
            world.sender.respond(lease, response)
            for pair in zip(
                map(success, sorted(good)),
                (failure("HANDLER_ERROR", text) for text in sorted(bad)),
                strict=True,
            )
            for response in pair
        )
    )

    seen = await waiting
    for status in (seen, await world.sender.status(command_id)):
        assert status["response"] == seen["response"]
        if status["state"] == "SUCCEEDED":
            assert status["response"]["status"] == "success"
            assert await world.sender.body(status["response"]["response"]) in good
        else:
            assert status["state"] == "FAILED"
            assert status["response"]["status"] == "error"
            assert status["response"]["message"] in bad


async def test_a_stale_leases_response_is_refused_and_the_newer_holders_stands(world: World):
    await world.server()
    command_id = await world.sender.create("report")
    [stale] = await world.sender.lease(lease_seconds=1)
    [newer] = await world.sender.lease(lease_seconds=60, wait_seconds=20)
    assert (newer["commandId"], newer["attempt"]) == (command_id, 2)

    refusal = None
    try:
        await world.sender.respond(stale, success(b"stale"))
    except Refused as refused:
        refusal = refused
    assert refusal is not None
    assert refusal.status == 409
    assert '"LEASE_LOST"' in str(refusal)
    assert (await world.sender.status(command_id))["state"] == "DISPATCHED"
    await world.sender.respond(newer, success(b"newer"))

    status = await world.sender.status(command_id)
    assert status["state"] == "SUCCEEDED"
    assert await world.sender.body(status["response"]["response"]) == b"newer"


async def test_an_agent_frozen_past_its_lease_is_refused_and_the_second_holders_result_stands(
    world: World,
):
    await world.server()
    # It freezes after its handler is done, with the response on disk and not yet submitted.
    delays = {"ARC_FAILPOINT": "agent.after_spool=sleep(3)"}
    frozen = await world.agent("frozen", lease_seconds=LEASE_SECONDS, env=delays)
    command_id = await world.sender.create("hold", {"gate": "open"})
    await world.noted(command_id)
    world.open_gate("open", agent="frozen")
    await until(lambda: world.spooled("frozen") == [command_id])
    frozen.pause()

    await world.agent("second", lease_seconds=LEASE_SECONDS)
    again = await world.noted(command_id, times=2)
    assert (again["agent"], again["attempt"]) == ("second", 2)
    frozen.resume()
    refused = await frozen.logged("response.too_late", command_id=command_id)
    assert refused["status"] == 409
    assert (await world.sender.status(command_id))["state"] == "DISPATCHED"
    world.open_gate("open", agent="second")
    status = await world.sender.result(command_id)

    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 2)
    assert b'"second"' in await world.sender.body(status["response"]["response"])
    await until(lambda: world.spooled("frozen") == [])


async def test_an_agent_frozen_in_its_handler_gives_up_a_command_that_another_has_finished(
    world: World,
):
    await world.server()
    frozen = await world.agent("frozen", lease_seconds=LEASE_SECONDS)
    command_id = await world.sender.create("hold", {"gate": "open"})
    await world.noted(command_id)
    frozen.pause()

    await world.agent("second", lease_seconds=LEASE_SECONDS)
    await world.noted(command_id, times=2)
    world.open_gate("open")
    first = await world.sender.result(command_id)
    frozen.resume()
    await frozen.logged("command.ended", command_id=command_id)
    other = await world.sender.create("count", {"n": 2})
    await world.sender.result(other)
    await until(lambda: world.spooled("frozen") == [])

    status = await world.sender.status(command_id)
    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 2)
    assert status["response"] == first["response"]
    assert b'"second"' in await world.sender.body(status["response"]["response"])
