"""Why a command waits: what a sender is told, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from arc_protocol.messages.agents import AgentRegistration, AgentStatus
from arc_protocol.messages.base import State
from arc_protocol.messages.commands import CommandStatus
from arc_protocol.messages.leases import LeaseInfo, RenewRequest
from arc_protocol.messages.waiting import NOTHING_KNOWN, Waiting, WaitingLease
from arc_server.ports.reach import EVERYTHING, Reach
from arc_server.service import known_agents, waiting
from arc_server.service.unnamed_pollers import UNREGISTERED_SILENCE
from tests.support.clocks import START
from tests.support.reaches import only
from tests.support.service_fakes import Gate
from tests.support.service_world import World, daemon

TARGET = daemon("t1")
PAUSED = AgentStatus(state="paused", note="new disk", until=START + timedelta(hours=1))


async def register(
    world: World,
    agent_id: str = "a1",
    deployment_id: str = "d1",
    within: Reach = EVERYTHING,
    **more: Any,
) -> None:
    facts = {"version": "1", "hostname": f"host of {agent_id}", "handlers": [], "target": TARGET}
    message = AgentRegistration(deployment_id=deployment_id, **(facts | more))
    await world.agents.register(agent_id, message, within=within)


async def old_command(world: World) -> str:
    """A command that has begun to wait."""
    created = await world.create(target="t1")
    world.clock.advance(1)
    return created.command_id


async def reason(world: World, command_id: str) -> Waiting | None:
    return (await world.status(command_id)).waiting


async def report(world: World, lease: LeaseInfo, *waiting: WaitingLease) -> None:
    """Return what a holder does that renews a lease."""
    request = RenewRequest(lease_ids=[lease.lease_id], agent_id="a1", waiting=list(waiting) or None)
    await world.leases.renew(request)


def approval(lease: LeaseInfo) -> WaitingLease:
    return WaitingLease(lease_id=lease.lease_id, reason="approval", until=START)


# The reasons


async def test_nothing_is_said_of_a_command_that_has_just_come(world: World) -> None:
    created = await world.create()

    assert await reason(world, created.command_id) is None
    world.clock.advance(1)
    assert await reason(world, created.command_id) is not None


async def test_a_young_server_says_that_no_agent_was_ever_seen(world: World) -> None:
    command_id = await old_command(world)

    found = await reason(world, command_id)

    assert found is not None
    assert (found.reason, found.hostname, found.since) == ("never_seen", None, None)
    assert found.now == world.clock.now()
    assert found.is_absent is None, "a receiver that does not register may be there"
    world.clock.advance(UNREGISTERED_SILENCE.total_seconds())
    later = await reason(world, command_id)
    assert later is not None
    assert later.is_absent
    assert later.tag != found.tag


async def test_an_agent_of_another_target_or_deployment_takes_nothing(world: World) -> None:
    await register(world, "a1", target=daemon("t2"))
    await register(world, "a2", deployment_id="d2")
    command_id = await old_command(world)

    found = await reason(world, command_id)

    assert found is not None
    assert found.reason == "never_seen"


async def test_an_agent_without_a_target_may_take_every_command(world: World) -> None:
    await register(world, target=None)

    assert await reason(world, await old_command(world)) is None


async def test_a_silent_agent_is_named_with_the_time_since_when(world: World) -> None:
    await register(world)
    await world.create(target="t1")
    world.clock.advance(UNREGISTERED_SILENCE.total_seconds())

    found = await reason(world, await old_command(world))

    assert found is not None
    assert (found.reason, found.hostname) == ("silent", "host of a1")
    assert found.since == START
    assert found.is_absent


async def test_a_sign_of_life_counts_that_is_not_stored_yet(world: World) -> None:
    await register(world)
    world.clock.advance(world.limits.silent_seconds)
    await world.poll(target=TARGET, agent="a1")

    assert await reason(world, await old_command(world)) is None


async def test_an_agent_that_said_goodbye_is_named(world: World) -> None:
    await register(world)
    world.clock.advance(5)
    await register(world, status=AgentStatus(state="gone"))

    found = await reason(world, await old_command(world))

    assert found is not None
    assert (found.reason, found.hostname) == ("gone", "host of a1")
    assert found.since == START + timedelta(seconds=5)


async def test_a_pause_is_told_with_host_note_and_end(world: World) -> None:
    await register(world, status=PAUSED)

    found = await reason(world, await old_command(world))

    assert found is not None
    assert (found.reason, found.hostname) == ("paused", "host of a1")
    assert (found.note, found.until) == (PAUSED.note, PAUSED.until)
    assert found.is_absent is None


async def test_while_one_agent_takes_commands_the_others_are_no_reason(world: World) -> None:
    await register(world, "a1", status=PAUSED)
    await register(world, "a2")
    await register(world, "a3", status=AgentStatus(state="gone"))

    assert await reason(world, await old_command(world)) is None


async def test_of_several_paused_agents_the_one_is_told_that_resumes_first(world: World) -> None:
    for_ever = AgentStatus(state="paused")
    await register(world, "a0", status=for_ever)
    await register(world, "a1", status=msgspec.structs.replace(PAUSED, until=START))
    await register(world, "a2", status=PAUSED)

    found = await reason(world, await old_command(world))

    assert found is not None
    assert found.hostname == "host of a1"


async def test_a_start_that_was_replaced_is_no_reason(world: World) -> None:
    await register(world, "a1", status=PAUSED)
    command_id = await old_command(world)
    assert await reason(world, command_id) is not None

    await register(world, "a2", replaces="a1")

    assert await reason(world, command_id) is None
    assert await reason(world.restarted(), command_id) is None


@pytest.mark.parametrize("named", [True, False])
async def test_a_receiver_that_does_not_register_may_be_busy_for_long(
    world: World, named: bool
) -> None:
    await world.poll(target=TARGET if named else None)
    command_id = await old_command(world)

    assert await reason(world, command_id) is None
    world.clock.advance(UNREGISTERED_SILENCE.total_seconds())
    found = await reason(world, command_id)
    assert found is not None
    assert (found.reason, found.hostname, found.since) == ("silent", None, START)


async def test_a_command_that_waits_for_its_upload_or_is_pushed_has_no_reason(
    world: World,
) -> None:
    uploaded = await world.upload(10)
    await world.push_to("https://w.example.com", "d2")
    pushed = await world.create("d2")
    world.clock.advance(1)

    assert await reason(world, uploaded.command_id) is None
    assert await reason(world, pushed.command_id) is None


async def test_an_approval_is_told_while_the_holder_reports_it(world: World) -> None:
    await register(world)
    command_id = await old_command(world)
    lease = await world.lease(target=TARGET, agent="a1")
    assert await reason(world, command_id) is None
    reported_at = world.clock.now()

    await report(world, lease, approval(lease))
    world.clock.advance(20)
    await report(world, lease, approval(lease))
    found = await reason(world, command_id)

    assert found is not None
    assert (found.reason, found.hostname, found.until) == ("approval", "host of a1", START)
    assert found.since == reported_at
    await report(world, lease)
    assert await reason(world, command_id) is None


async def test_a_report_counts_for_the_lease_that_it_names(world: World) -> None:
    await register(world)
    command_id = await old_command(world)
    first = await world.lease(target=TARGET, agent="a1")
    other = await world.create(target="t1")
    await report(world, first, approval(first))
    await world.leases.release(first.lease_id)
    await world.lease(target=TARGET, agent="a1")
    await world.lease(target=TARGET, agent="a1")

    await report(world, first, WaitingLease(lease_id="lease_of_another", reason="approval"))

    assert await reason(world, command_id) is None
    assert await reason(world, other.command_id) is None


async def test_a_holder_that_falls_silent_is_told(world: World) -> None:
    await register(world)
    command_id = await old_command(world)
    await world.lease(target=TARGET, agent="a1", seconds=3_600)
    world.clock.advance(world.limits.silent_seconds)

    found = await reason(world, command_id)

    assert found is not None
    assert (found.reason, found.hostname) == ("silent", "host of a1")


@pytest.mark.parametrize("is_read_before", [True, False])
async def test_a_holder_is_its_credentials_whatever_another_says_under_its_name(
    world: World, is_read_before: bool
) -> None:
    mine, other = only("d1", "cred_1", TARGET), only("d1", "cred_2", TARGET)
    gone = AgentStatus(state="gone")
    await register(world, within=mine)
    command_id = await old_command(world)
    await world.lease(target=TARGET, agent="a1", seconds=3_600, within=mine)
    if is_read_before:
        assert await reason(world, command_id) is None

    await register(world, within=other, hostname="stranger", status=gone)
    await register(world, "a2", within=other, replaces="a1")
    assert await reason(world, command_id) is None

    await register(world, within=mine, status=gone)
    found = await reason(world, command_id)
    assert found is not None
    assert (found.reason, found.hostname) == ("gone", "host of a1")


async def test_a_tag_changes_with_what_is_told_and_not_with_the_time(world: World) -> None:
    await register(world, status=PAUSED)
    command_id = await old_command(world)
    first = await reason(world, command_id)
    world.clock.advance(10)
    again = await reason(world, command_id)
    await register(world, status=msgspec.structs.replace(PAUSED, note="no disk"))
    other = await reason(world, command_id)

    assert first is not None
    assert again is not None
    assert other is not None
    assert first.now != again.now
    assert first.tag == again.tag != other.tag


# The wait


class Told:
    """A sender that waits and knows no reason, or one."""

    def __init__(self, world: World, command_id: str, known: str = NOTHING_KNOWN) -> None:
        self.task = asyncio.ensure_future(world.status(command_id, 30, known=known))
        self._world = world

    async def waits(self) -> bool:
        await self._world.quiet()
        return not self.task.done()

    async def status(self) -> CommandStatus:
        async with asyncio.timeout(10):
            return await self.task


async def resume(world: World) -> None:
    await register(world)


async def goodbye(world: World) -> None:
    await register(world, status=AgentStatus(state="gone"))


async def poll(world: World) -> None:
    await world.lease(target=TARGET, agent="a1")


async def new_agent(world: World) -> None:
    await register(world, "a2")


async def unnamed_poll(world: World) -> None:
    await world.lease()


@pytest.mark.parametrize(
    ("change", "reason"),
    [(resume, None), (goodbye, "gone"), (poll, None), (new_agent, None), (unnamed_poll, None)],
)
async def test_a_sender_that_waits_is_woken_by_a_change(
    world: World, change: Callable[[World], Any], reason: str | None
) -> None:
    await register(world, status=PAUSED)
    command_id = await old_command(world)
    known = (await world.status(command_id)).waiting
    assert known is not None
    sender = Told(world, command_id, known.tag)
    assert await sender.waits()
    await register(world, status=PAUSED)
    assert await sender.waits(), "the agent repeats its registration: nothing is new"

    await change(world)

    told = (await sender.status()).waiting
    assert (None if told is None else told.reason) == reason


async def test_a_sender_is_told_at_once_what_it_does_not_know(world: World) -> None:
    await register(world, status=PAUSED)
    command_id = await old_command(world)

    told = await Told(world, command_id).status()

    assert told.waiting is not None
    assert told.waiting.reason == "paused"


async def test_a_sender_is_told_of_an_approval_and_of_its_end(world: World) -> None:
    await register(world)
    command_id = await old_command(world)
    lease = await world.lease(target=TARGET, agent="a1")
    sender = Told(world, command_id)
    assert await sender.waits()

    await report(world, lease, approval(lease))
    told = (await sender.status()).waiting
    assert told is not None
    sender = Told(world, command_id, told.tag)
    assert await sender.waits()
    await report(world, lease)

    assert (await sender.status()).waiting is None


async def test_silence_alone_wakes_a_sender(world: World) -> None:
    await register(world)
    command_id = await old_command(world)
    world.clock.advance(world.limits.silent_seconds - 1.05)
    sender = Told(world, command_id)
    assert await sender.waits()
    world.clock.advance(0.1)

    told = (await sender.status()).waiting

    assert told is not None
    assert told.reason == "silent"


async def test_a_sender_that_names_no_tag_is_woken_by_the_end_only(world: World) -> None:
    await register(world, status=PAUSED)
    command_id = await old_command(world)
    sender = asyncio.ensure_future(world.status(command_id, 30))
    await world.quiet()
    await resume(world)
    lease = await world.lease(target=TARGET, agent="a1")
    await world.quiet()
    assert not sender.done()

    await world.respond(lease)

    assert (await sender).state is State.SUCCEEDED


async def test_a_wait_that_runs_out_brings_the_reason(world: World) -> None:
    await register(world, status=PAUSED)
    command_id = await old_command(world)
    known = await reason(world, command_id)
    assert known is not None

    unasked = await world.status(command_id, 0.05)
    asked = await world.status(command_id, 0.05, known=known.tag)

    assert unasked.waiting is not None
    assert unasked.waiting.tag == known.tag
    assert asked.waiting is not None
    assert asked.waiting.tag == known.tag


# The costs


async def test_a_command_that_ends_at_once_costs_no_query_for_its_reason(world: World) -> None:
    await register(world)
    created = await world.create(target="t1")
    world.store.calls.clear()
    sender = Told(world, created.command_id)
    assert await sender.waits()

    await world.respond(await world.lease(target=TARGET, agent="a1"))

    assert (await sender.status()).state is State.SUCCEEDED
    assert not {"get", "latest_agents"} & set(world.store.calls)


async def test_the_agents_of_a_deployment_are_read_once_for_all_senders(world: World) -> None:
    await register(world, status=PAUSED)
    command_ids = [await old_command(world) for _ in range(3)]
    world.store.calls.clear()

    for _ in range(2):
        await asyncio.gather(*(reason(world, each) for each in command_ids))

    assert world.store.calls.count("latest_agents") == 1


async def test_what_an_agent_says_while_its_deployment_is_read_counts(world: World) -> None:
    await register(world, status=PAUSED)
    command_id = await old_command(world)
    gate = world.store.gates["latest_agents"] = Gate()
    looking = asyncio.ensure_future(reason(world, command_id))
    await gate.arrived.wait()
    await register(world)
    gate.open()

    assert await looking is None
    assert await reason(world, command_id) is None


async def test_no_more_agents_and_deployments_are_remembered_than_may_be(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_agents, "MAX_KEPT_AGENTS", 2)
    monkeypatch.setattr(known_agents, "MAX_DEPLOYMENTS", 1)
    await register(world, "a1", status=PAUSED)
    command_id = await old_command(world)
    other = await world.create("d2")
    world.clock.advance(1)
    world.store.calls.clear()

    async def reads_of(read: str, agents: int) -> int:
        """Return how often agents are read for the reason of a command, once so many have come."""
        before = world.store.calls.count("latest_agents")
        for number in range(agents):
            await world.poll(agent=f"unregistered {number}", target=daemon("t2"))
        assert await reason(world, read) is not None or agents
        return world.store.calls.count("latest_agents") - before

    assert await reads_of(command_id, 0) == 1
    assert await reads_of(command_id, 0) == 0
    assert await reads_of(command_id, 2) == 1, "too many agents: read again"
    assert await reads_of(other.command_id, 0) == 1
    assert await reads_of(command_id, 0) == 1, "too many deployments: read again"


async def test_the_poll_of_a_client_that_went_is_no_later_sign_of_life(world: World) -> None:
    await register(world)
    polling = asyncio.ensure_future(world.poll(agent="a1", target=TARGET, wait=30))
    await world.quiet()
    world.clock.advance(30)

    await world.create(target="t1")
    await polling

    (agent,) = (await world.agents.list("d1")).agents
    assert agent.last_seen_at == START


async def test_a_read_that_fails_is_made_again(world: World) -> None:
    await register(world, status=PAUSED)
    command_id = await old_command(world)
    world.store.away = {"latest_agents"}
    with pytest.raises(Exception, match="away"):
        await reason(world, command_id)
    world.store.away = set()

    assert await reason(world, command_id) is not None


async def test_no_more_reports_are_kept_than_may_be(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MAX_REPORTS", 1)
    await register(world)
    leases = []
    for _ in range(2):
        await old_command(world)
        leases.append(await world.lease(target=TARGET, agent="a1"))
    for lease in leases:
        await report(world, lease, approval(lease))

    found = [await reason(world, lease.command_id) for lease in leases]

    assert [each is not None for each in found] == [False, True]
