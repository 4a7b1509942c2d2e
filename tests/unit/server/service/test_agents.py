"""Agents: who they are, when they were heard of, what they hold."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec
import pytest

from arc_protocol.errors import Forbidden, StoreUnavailable
from arc_protocol.messages.agents import (
    AgentRegistration,
    AgentStatus,
    DeploymentPresence,
    HandlerInfo,
    ReceiverInfo,
)
from arc_protocol.messages.leases import RenewRequest
from arc_server.ports.records import Deployment
from arc_server.service.unnamed_pollers import (
    MAX_REMEMBERED,
    MAX_TARGETS_REMEMBERED,
    UNREGISTERED_SILENCE,
    UnnamedPollers,
)
from tests.support.clocks import START
from tests.support.reaches import only
from tests.support.service_fakes import Gate
from tests.support.service_world import World, daemon


def registration(deployment_id: str = "d1", hostname: str = "host") -> AgentRegistration:
    return AgentRegistration(
        deployment_id=deployment_id,
        target=daemon("t1"),
        version="1.0",
        hostname=hostname,
        handlers=[HandlerInfo(name="run", params_schema={"type": "object"})],
    )


async def test_an_agent_is_listed_with_what_it_said_and_holds(world: World) -> None:
    await world.agents.register("a1", registration())
    created = await world.create(target="t1")
    lease = await world.lease(target=daemon("t1"), agent="a1")

    (agent,) = (await world.agents.list(None)).agents

    assert agent.agent_id == "a1"
    assert agent.deployment_id == "d1"
    assert agent.target == daemon("t1")
    assert agent.handlers == [HandlerInfo(name="run")]
    (whole,) = (await world.agents.list(None, with_schemas=True)).agents
    assert whole.handlers == registration().handlers
    assert [held.command_id for held in agent.holding] == [created.command_id]
    assert agent.holding[0].lease_expires_at == lease.lease_expires_at
    await world.respond(lease)
    assert (await world.agents.list("d1")).agents[0].holding == []


async def test_schemas_that_are_too_large_are_not_kept_and_the_agent_is(world: World) -> None:
    schema = {"description": "x" * world.limits.max_schemas_bytes}
    handlers = [HandlerInfo(name="run", description="Runs", params_schema=schema)]
    large = msgspec.structs.replace(registration(), handlers=handlers)
    await world.agents.register("a1", large)

    (agent,) = (await world.agents.list(None, with_schemas=True)).agents

    assert agent.handlers == [HandlerInfo(name="run", description="Runs")]


async def test_an_agent_that_is_paused_shows_as_such_until_it_says_otherwise(world: World) -> None:
    paused = AgentStatus(state="paused", note="new disk", until=START)
    await world.agents.register("a1", msgspec.structs.replace(registration(), status=paused))
    (before,) = (await world.agents.list(None)).agents
    await world.agents.register("a1", registration())
    (after,) = (await world.agents.list(None)).agents

    assert before.status == paused
    assert after.status is None


async def test_polls_and_renewals_are_signs_of_life(world: World) -> None:
    await world.agents.register("a1", registration())
    await world.create()
    seen = []
    lease_ids: list[str] = []
    for step in range(3):
        world.clock.advance(10)
        if step == 1:
            lease_ids = [lease.lease_id for lease in (await world.poll(agent="a1")).leases]
        elif step == 2:
            await world.leases.renew(RenewRequest(lease_ids=lease_ids, agent_id="a1"))
        (agent,) = (await world.agents.list(None)).agents
        assert agent.first_seen_at == START
        seen.append((agent.last_seen_at - START).total_seconds())

    assert seen == [0, 20, 30]


async def test_nobody_makes_an_agent_look_alive_but_itself(world: World) -> None:
    await world.agents.register("a1", registration("d1"))
    await world.agents.register("a1", registration("d2", "elsewhere"), within=only("d2"))
    await world.create(deployment_id="d2")
    world.clock.advance(10)

    (lease,) = (await world.poll("d2", agent="a1", within=only("d2"))).leases
    await world.leases.renew(RenewRequest(lease_ids=[lease.lease_id], agent_id="a1"))
    await world.leases.renew(RenewRequest(lease_ids=["lease_x"], agent_id="a1"), within=only("d2"))

    (here,) = (await world.agents.list("d1")).agents
    (there,) = (await world.agents.list("d2")).agents
    assert here.last_seen_at == START
    assert here.hostname == registration("d1").hostname
    assert (there.last_seen_at - START).total_seconds() == 10
    assert [held.command_id for held in there.holding] == [lease.command_id]
    assert here.holding == []


async def test_the_sweeper_stores_who_was_heard_of(world: World) -> None:
    await world.agents.register("a1", registration())
    await world.pass_time(1)
    await world.poll(agent="a1")
    await world.pass_time(world.sweep_limits.presence_seconds)

    (agent,) = (await world.restarted().agents.list(None)).agents

    assert agent.last_seen_at > START


@pytest.mark.parametrize("how", ["away", "gone"])
async def test_what_was_heard_is_not_forgotten_when_it_cannot_be_stored(
    world: World, how: str
) -> None:
    await world.agents.register("a1", registration())
    world.clock.advance(10)
    await world.poll(agent="a1")

    if how == "away":
        world.store.away = {"touch_agents"}
        with pytest.raises(StoreUnavailable):
            await world.agents.list(None)
        world.store.away = set()
    else:
        gate = world.store.gates["touch_agents"] = Gate()
        listing = asyncio.ensure_future(world.agents.list(None))
        await gate.arrived.wait()
        listing.cancel()
        await asyncio.gather(listing, return_exceptions=True)
        gate.open()

    (agent,) = (await world.agents.list(None)).agents
    assert agent.last_seen_at == world.clock.now()


async def test_agents_not_seen_for_long_are_left_out(world: World) -> None:
    await world.agents.register("old", registration())
    world.clock.advance(world.limits.agents_seen_within_seconds + 1)
    await world.agents.register("new", registration())

    found = (await world.agents.list(None, with_old=True)).agents
    assert [agent.agent_id for agent in found] == ["new"]


def start_of(replaces: str | None = None, state: str | None = None) -> AgentRegistration:
    """The registration of a start, perhaps after another one in the same place."""
    status = None if state is None else AgentStatus(state=state)
    return msgspec.structs.replace(registration(), replaces=replaces, status=status)


async def listed(world: World, *, with_old: bool = False) -> dict[str, bool]:
    """The agents in the list, and whether each is gone."""
    found = (await world.agents.list(None, with_old=with_old)).agents
    return {agent.agent_id: bool(agent.is_gone) for agent in found}


async def test_an_agent_that_said_goodbye_is_gone_at_once(world: World) -> None:
    await world.agents.register("a1", start_of())
    await world.agents.register("a2", start_of())
    await world.agents.register("a1", start_of(state="gone"))

    assert await listed(world) == {"a1": True, "a2": False}


async def test_an_agent_is_gone_that_gives_no_sign_of_life_until_it_gives_one(
    world: World,
) -> None:
    await world.agents.register("a1", start_of())
    world.clock.advance(world.limits.silent_seconds - 1)
    assert await listed(world) == {"a1": False}
    world.clock.advance(1)
    assert await listed(world) == {"a1": True}

    await world.poll(agent="a1", target=daemon("t1"))

    assert await listed(world) == {"a1": False}


async def test_no_agent_is_silent_while_the_server_was_not_there_to_hear(world: World) -> None:
    await world.agents.register("a1", start_of())
    world.clock.advance(3_600)

    restarted = world.restarted()

    assert await listed(restarted) == {"a1": False}
    world.clock.advance(world.limits.silent_seconds)
    assert await listed(restarted) == {"a1": True}


async def test_a_restarted_agent_takes_the_place_of_its_last_start(world: World) -> None:
    await world.agents.register("a1", start_of())
    world.clock.advance(1)
    await world.agents.register("a2", start_of(replaces="a1"))
    world.clock.advance(1)
    await world.agents.register("a3", start_of(replaces="a2"))

    assert await listed(world) == {"a3": False}
    assert await listed(world, with_old=True) == {"a1": True, "a2": True, "a3": False}


async def test_a_clone_takes_no_place_of_an_agent_that_goes_on(world: World) -> None:
    await world.agents.register("a1", start_of())
    world.clock.advance(1)
    await world.agents.register("a2", start_of(replaces="a1"))
    world.clock.advance(1)

    await world.poll(agent="a1", target=daemon("t1"))

    assert await listed(world) == {"a1": False, "a2": False}


async def test_an_agent_takes_no_place_in_another_deployment(world: World) -> None:
    await world.agents.register("a1", registration("d2"))
    world.clock.advance(1)
    await world.agents.register("a2", start_of(replaces="a1"), within=only("d1"))

    assert await listed(world) == {"a1": False, "a2": False}


async def test_agents_that_left_long_ago_are_listed_on_request(world: World) -> None:
    await world.agents.register("old", start_of())
    world.clock.advance(world.limits.gone_agents_listed_seconds + 1)
    await world.agents.register("new", start_of())

    assert await listed(world) == {"new": False}
    assert await listed(world, with_old=True) == {"old": True, "new": False}


async def test_bound_callers_register_and_see_their_own_deployment(world: World) -> None:
    await world.agents.register("a1", registration("d1"), within=only("d1"))
    await world.agents.register("a2", registration("d2"))

    with pytest.raises(Forbidden):
        await world.agents.register("a3", registration("d2"), within=only("d1"))
    with pytest.raises(Forbidden):
        await world.agents.list("d2", within=only("d1"))
    listed = await world.agents.list(None, within=only("d1"))

    assert [agent.agent_id for agent in listed.agents] == ["a1"]


async def test_receivers_that_do_not_say_who_they_are_leave_a_trace(world: World) -> None:
    world.clock.advance(5)
    await world.poll()
    polled_at = world.clock.now()
    world.clock.advance(30)

    of_all = await world.agents.list(None)
    found = (await world.agents.list("d1")).presence
    other = (await world.agents.list("d2")).presence

    assert of_all.presence is None
    assert found == DeploymentPresence(
        now=world.clock.now(), watched_since=START, polled_at=polled_at
    )
    assert other is not None
    assert other.polled_at is None


async def test_receivers_that_do_not_register_are_listed_by_target(world: World) -> None:
    await world.agents.register("a1", registration("d1"))
    await world.poll("d1", agent="a1")
    await world.poll("d2")
    await world.poll("d1", target=daemon("t1"))
    world.clock.advance(60)
    await world.poll("d1", target=daemon("t2"))
    now = world.clock.now()

    of_d1 = [
        ReceiverInfo(deployment_id="d1", target=daemon("t1"), last_seen_at=START),
        ReceiverInfo(deployment_id="d1", target=daemon("t2"), last_seen_at=now),
    ]
    of_d2 = ReceiverInfo(deployment_id="d2", last_seen_at=START)
    assert (await world.agents.list(None)).receivers == [*of_d1, of_d2]
    assert (await world.agents.list("d1")).receivers == of_d1
    assert (await world.agents.list(None, within=only("d2"))).receivers == [of_d2]
    world.clock.advance(world.limits.gone_agents_listed_seconds - 30)
    assert (await world.agents.list(None)).receivers == of_d1[1:]
    assert (await world.agents.list(None, with_old=True)).receivers == [*of_d1, of_d2]


def test_no_more_targets_of_a_deployment_are_remembered_than_may_be() -> None:
    pollers = UnnamedPollers(START)
    for number in range(MAX_TARGETS_REMEMBERED + 5):
        pollers.mark("d1", daemon(f"t{number}"), START + timedelta(seconds=number))

    remembered = pollers.receivers("d1", START - timedelta(hours=1))
    assert len(remembered) == MAX_TARGETS_REMEMBERED
    assert remembered[0].target == daemon("t5")


def test_a_poll_is_news_that_comes_after_a_long_silence() -> None:
    pollers = UnnamedPollers(START)
    later = START + UNREGISTERED_SILENCE

    polls = [(None, START), (None, START + timedelta(seconds=5)), (daemon("t1"), START)]
    assert [pollers.mark("d1", *poll) for poll in polls] == [True, False, True]
    assert pollers.mark("d1", daemon("t1"), later)
    assert pollers.polled_at("d1", "t1") == later
    assert pollers.polled_at("d1", "t2") == START + timedelta(seconds=5)


async def test_a_deployment_that_is_pushed_to_says_so(world: World) -> None:
    await world.store.put_deployment(
        Deployment(deployment_id="d1", targets=(), push_url="https://w.example.com"), START
    )

    presence = (await world.agents.list("d1")).presence

    assert presence is not None
    assert presence.is_pushed


def test_silence_means_nothing_once_too_many_are_to_be_remembered() -> None:
    pollers = UnnamedPollers(START)
    late = START + timedelta(hours=1)
    for number in range(MAX_REMEMBERED + 1):
        pollers.mark(f"d{number}", None, late)

    assert pollers.of("d0", late, is_pushed=False).watched_since == late
    assert pollers.of(f"d{MAX_REMEMBERED}", late, is_pushed=False).polled_at == late
