"""A server stopped, killed or frozen for longer than the leases: no work is lost or repeated."""

from __future__ import annotations

import pytest

from tests.support.processes import let_real_time_pass
from tests.support.world import World

LEASE_SECONDS = 2
OUTAGES = [
    pytest.param(6, 2, id="6-seconds"),
    pytest.param(30, 30, id="30-seconds", marks=pytest.mark.chaos),
]
"""How long the server is away, and the agents' longest back-off (30 s unless configured)."""
UNTIL_BACK_SECONDS = 60


@pytest.mark.parametrize(("outage_seconds", "back_off_seconds"), OUTAGES)
async def test_a_result_that_is_ready_while_the_server_is_down_arrives_once(
    world: World, outage_seconds: int, back_off_seconds: int
):
    patience = {"server": {"max_back_off_seconds": back_off_seconds}}
    server = await world.server()
    await world.agent("holder", lease_seconds=LEASE_SECONDS, config=patience)
    command_id = await world.sender.create("hold", {"gate": "in the outage"})
    await world.noted(command_id)
    await world.agent("idle", lease_seconds=LEASE_SECONDS, config=patience)

    server.kill()
    await server.ended()
    await let_real_time_pass(outage_seconds)
    world.open_gate("in the outage")
    await world.noted(command_id, what="finished")
    await world.server()
    status = await world.sender.result(command_id, UNTIL_BACK_SECONDS)

    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
    assert [run["agent"] for run in world.runs(command_id)] == ["holder"]


@pytest.mark.parametrize(("outage_seconds", "back_off_seconds"), OUTAGES)
async def test_a_handler_that_runs_on_through_an_outage_is_given_to_nobody_else(
    world: World, outage_seconds: int, back_off_seconds: int
):
    patience = {"server": {"max_back_off_seconds": back_off_seconds}}
    server = await world.server()
    holder = await world.agent("holder", lease_seconds=LEASE_SECONDS, config=patience)
    command_id = await world.sender.create("hold", {"gate": "after the outage"})
    await world.noted(command_id)

    server.kill()
    await server.ended()
    await let_real_time_pass(outage_seconds)
    await world.server()
    await world.agent("eager", lease_seconds=LEASE_SECONDS, config=patience)
    await holder.logged("contact.back", UNTIL_BACK_SECONDS)
    await let_real_time_pass(2 * LEASE_SECONDS)
    world.open_gate("after the outage")
    status = await world.sender.result(command_id, UNTIL_BACK_SECONDS)

    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
    assert [run["agent"] for run in world.runs(command_id)] == ["holder"]


@pytest.mark.parametrize(("outage_seconds", "back_off_seconds"), OUTAGES)
async def test_a_server_that_was_stopped_longer_than_the_leases_gives_nothing_to_anybody_else(
    world: World, outage_seconds: int, back_off_seconds: int
):
    patience = {"server": {"max_back_off_seconds": back_off_seconds}}
    server = await world.server()
    await world.agent("holder", lease_seconds=LEASE_SECONDS, config=patience)
    during = await world.sender.create("hold", {"gate": "during"})
    after = await world.sender.create("hold", {"gate": "after"})
    await world.noted(during)
    await world.noted(after)
    await world.agent("idle", lease_seconds=LEASE_SECONDS, config=patience)

    server.pause()
    await let_real_time_pass(outage_seconds)
    world.open_gate("during")
    await world.noted(during, what="finished")
    server.resume()
    first = await world.sender.result(during, UNTIL_BACK_SECONDS)
    await let_real_time_pass(2 * LEASE_SECONDS)
    world.open_gate("after")
    second = await world.sender.result(after, UNTIL_BACK_SECONDS)

    for command_id, status in ((during, first), (after, second)):
        assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
        assert [run["agent"] for run in world.runs(command_id)] == ["holder"]


async def test_an_agent_killed_before_it_submitted_delivers_after_its_restart(world: World):
    await world.server()
    fails = {"ARC_FAILPOINT": "agent.after_spool=kill"}
    first = await world.agent("agent", lease_seconds=30, env=fails)
    command_id = await world.sender.create("count", {"n": 1})
    assert await first.ended() == -9
    assert (await world.sender.status(command_id))["state"] == "DISPATCHED"

    await world.agent("agent", lease_seconds=30)
    status = await world.sender.result(command_id)

    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
    assert len(world.runs(command_id)) == 1


async def test_a_spooled_result_whose_lease_lapsed_is_delivered_before_anything_is_leased(
    world: World,
):
    await world.server()
    fails = {"ARC_FAILPOINT": "agent.after_spool=kill"}
    first = await world.agent("agent", lease_seconds=1, env=fails)
    command_id = await world.sender.create("count", {"n": 1})
    assert await first.ended() == -9
    while (await world.sender.status(command_id))["state"] != "PENDING":
        await let_real_time_pass(0.1)

    await world.agent("agent", lease_seconds=1)
    status = await world.sender.result(command_id)

    assert status["state"] == "SUCCEEDED"
    assert len(world.runs(command_id)) == 1
