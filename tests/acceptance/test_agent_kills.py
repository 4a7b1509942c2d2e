"""Kills of the agent, long outages and full disks lose no result."""

from __future__ import annotations

import errno
import random
import subprocess
from collections import Counter
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Process, let_real_time_pass
from tests.support.waiting import until
from tests.support.world import World

KILLS = [
    pytest.param(4, 40, id="4-kills"),
    pytest.param(50, 500, id="50-kills", marks=[pytest.mark.chaos, pytest.mark.timeout(900)]),
]
OUTAGES = [
    pytest.param(4, 40, id="4-seconds"),
    pytest.param(600, 200, id="10-minutes", marks=[pytest.mark.chaos, pytest.mark.timeout(900)]),
]
MOST_LINES = 60
DISK_BYTES = 8 << 20


async def create_many(world: World, command: str, number: int, **params: Any) -> list[str]:
    """That many commands, in order, which no number of kills makes FAILED."""
    return [
        await world.sender.create(command, {"n": n, **params}, maxAttempts=100)
        for n in range(number)
    ]


async def all_succeed(world: World, commands: list[str], seconds: float) -> None:
    """Wait for all of them."""
    for command_id in commands:
        status = await world.sender.result(command_id, seconds)
        assert status["state"] == "SUCCEEDED", status


@pytest.mark.parametrize(("kills", "number"), KILLS)
async def test_an_agent_that_is_killed_at_random_moments_loses_no_result(
    world: World, kills: int, number: int
):
    source = random.Random(kills)
    await world.server()
    config = {"max_concurrent": 8}
    many, once = [], []
    for _ in range(number // 2):
        many += await create_many(world, "count", 1)
        once += await create_many(world, "once", 1)
    for _ in range(kills):
        agent = await world.agent("killed", config=config, is_awaited=False)
        seen = agent.log
        await until(lambda seen=seen: seen)  # it runs
        await let_real_time_pass(source.uniform(0.2, 1.5))
        agent.kill()
        await agent.ended()
    agent = await world.agent("killed", config=config)
    await all_succeed(world, many, 120)
    doubtful = 0
    for command_id in once:
        status = await world.sender.result(command_id, 120)
        if status["state"] == "FAILED":
            assert status["response"]["code"] == "MAYBE_EXECUTED", status
            doubtful += 1

    assert await until(lambda: not world.spooled("killed")) is True
    left = [path for path in (world.directory / "killed" / "tmp").iterdir() if path.is_dir()]
    assert left == []
    assert list((world.directory / "killed" / "bodies").iterdir()) == []
    finished = Counter(run["command_id"] for run in world.runs(what="finished"))
    again = sum(finished[each] > 1 for each in many)
    print(
        f"{kills} kills, {number} commands: every result arrived; of those that may run again"
        f" {again} did; of those that must not {doubtful} were answered MAYBE_EXECUTED"
    )
    assert set(finished) >= set(many)
    begun = Counter(run["command_id"] for run in world.runs())
    assert all(begun[each] <= 1 for each in once)
    assert sum(finished[each] == 0 for each in once) <= doubtful


@pytest.mark.parametrize(("outage_seconds", "number"), OUTAGES)
async def test_results_of_a_long_outage_arrive_in_order_once_with_few_words(
    world: World, outage_seconds: int, number: int
):
    server = await world.server()
    agent = await world.agent(
        "lonely",
        lease_seconds=2,
        config={
            "max_concurrent": number,
            "server": {"max_back_off_seconds": 2 if outage_seconds < 60 else 30},
            "lease": {"seconds": 2, "run_on_seconds": 3600},
        },
    )
    commands = await create_many(world, "hold", number, gate="out")
    await until(lambda: len(world.runs()) == number)
    server.kill()
    await server.ended()
    await agent.logged("contact.lost")
    before = len(agent.log)
    world.open_gate("out")
    await until(lambda: world.count_finished() == number)
    await let_real_time_pass(outage_seconds)
    assert sorted(world.spooled("lonely")) == sorted(commands)
    queued = world.spooled("lonely")
    await world.server()
    await agent.logged("contact.back", 60)
    await all_succeed(world, commands, 60)
    await until(lambda: not world.spooled("lonely"))

    await until(lambda: len(delivered_by(agent)) == number)
    told, delivered = agent.log[before:], delivered_by(agent)
    print(f"{outage_seconds} s without a server, {number} results: {len(told)} lines")
    assert len(told) <= MOST_LINES
    assert sorted(delivered) == sorted(queued)
    assert all(count == 1 for count in Counter(run["command_id"] for run in world.runs()).values())
    # The one that was tried all the while goes alone, beside the rest.
    assert all(abs(delivered.index(each) - place) <= 2 for place, each in enumerate(queued))


def delivered_by(agent: Process) -> list[str]:
    """The commands whose responses were taken, in order, alone or together."""
    return [
        command_id
        for each in agent.log
        if each["event"] in ("response.delivered", "responses.delivered")
        for command_id in each.get("command_ids") or [each["command_id"]]
    ]


def no_namespaces() -> str:
    """Why a file system of one's own cannot be had; empty when it can."""
    probe = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True
    )
    return "" if probe.returncode == 0 else f"no user namespaces: {probe.stderr.decode().strip()}"


@pytest.mark.skipif(bool(no_namespaces()), reason=no_namespaces())
async def test_an_agent_whose_disk_fills_and_empties_loses_nothing_and_says_so(world: World):
    await world.server()
    agent = await _agent_on_a_small_disk(world)
    inside = Path(f"/proc/{agent.pid}/root{world.directory}/small")
    held = await create_many(world, "hold", 4, gate="full")
    await until(lambda: len(world.runs()) == 4)
    ballast = inside / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while _put(file):
            pass
    world.open_gate("full")
    await all_succeed(world, held, 30)
    waiting = await create_many(world, "count", 4)
    await agent.logged("spool.full")

    async def shown() -> list[Any]:
        listed = await world.sender.call("GET", "/agents")
        return [each.get("status") for each in listed["agents"]]

    async def says_disk() -> bool:
        return any(each and "disk" in each.get("note", "") for each in await shown())

    # The audit log's part of it may be in the note as well: it stands on the same disk.
    await until(says_disk)
    assert [each for each in waiting if world.runs(each)] == []
    ballast.unlink()
    await all_succeed(world, waiting, 30)

    assert len(agent.events("spool.full")) == 1
    assert len(agent.events("spool.has_room")) == 1
    assert len(world.runs(what="finished")) == 8


async def _agent_on_a_small_disk(world: World) -> Process:
    """An agent whose data directory is a file system of its own."""
    name = "small"
    (world.directory / name).mkdir()
    mount = f"mount -t tmpfs -o size={DISK_BYTES} none {world.directory / name}"
    return await world.agent(
        name,
        lease_seconds=5,
        config={"spool": {"min_free_bytes": 1 << 20}, "poll": {"interval_seconds": 0.5}},
        program=("/usr/bin/unshare", "-Urm", "sh", "-c", f'{mount} && exec "$@"', "sh"),
    )


def _put(file: FileIO) -> int:
    """Write some; how many bytes the disk took."""
    try:
        return file.write(bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return 0
