"""Bodies of any size arrive as they were sent, both ways, pulled and pushed, in little memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from tests.support.large_bodies import RESULT_SEED, ask_for
from tests.support.octets import digest_of, octets_in_time
from tests.support.raw_sender import DEPLOYMENT
from tests.support.world import World

MEGABYTE = 1_000_000
SMALL = 300
LARGE = 20 * MEGABYTE
MEBIBYTE = 1024 * 1024

SIZES = [(params, result) for params in (SMALL, LARGE) for result in (SMALL, LARGE)]


async def ask_for_in_time(result_bytes: int, length: int) -> AsyncIterator[bytes]:
    """Yield the body in chunks."""
    line = f"{result_bytes} {RESULT_SEED}\n".encode()
    yield line
    async for chunk in octets_in_time(length - len(line), seed=1):
        yield chunk


async def check_answer(world: World, command_id: str, size: int) -> None:
    """The result is there, of that size, and is what was asked for."""
    status = await world.sender.result(command_id, 240)
    assert status["state"] == "SUCCEEDED", status
    answered = await world.sender.digest(status["response"]["response"])
    assert answered == (size, digest_of(size, RESULT_SEED))


async def test_pulled_commands_carry_their_bytes_unchanged(world: World):
    await world.server()
    await world.agent("agent")

    async def carry(params_bytes: int, result_bytes: int) -> None:
        params = ask_for(result_bytes, params_bytes)
        command_id = await world.sender.create("blob", params)
        await check_answer(world, command_id, result_bytes)
        run = await world.noted(command_id)
        assert (run["length"], run["sha256"]) == (params_bytes, hashlib.sha256(params).hexdigest())

    await asyncio.gather(*(carry(*sizes) for sizes in SIZES))


async def test_pushed_commands_carry_their_bytes_unchanged(world: World):
    worker = await world.push_worker()
    pushed = {"id": DEPLOYMENT, "push_url": worker.url, "push_token": "worker-secret"}
    await world.server({"deployments": [pushed]})

    async def carry(params_bytes: int, result_bytes: int) -> None:
        params = ask_for(result_bytes, params_bytes)
        command_id = await world.sender.create("blob", params)
        await check_answer(world, command_id, result_bytes)
        assert worker.params[command_id] == (params_bytes, hashlib.sha256(params).hexdigest())

    await asyncio.gather(*(carry(*sizes) for sizes in SIZES))

    assert set(worker.authorizations) == {"Bearer worker-secret"}
    assert [envelope["attempt"] for envelope in worker.envelopes] == [1] * len(SIZES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("size", "growth_allowed"),
    [
        # Less than one copy of the body, or this would prove nothing.
        pytest.param(40 * MEGABYTE, 24 * MEBIBYTE, id="40-megabytes"),
        pytest.param(200 * MEGABYTE, 64 * MEBIBYTE, id="200-megabytes", marks=pytest.mark.big),
    ],
)
async def test_memory_does_not_grow_with_the_size_of_a_body(
    world: World, size: int, growth_allowed: int
):
    server = await world.server()
    agent = await world.agent("agent")
    idle = {process: process.resident_bytes() for process in (server, agent)}
    sent = hashlib.sha256()
    async for chunk in ask_for_in_time(size, size):
        sent.update(chunk)

    for command in ("blob", "blob-file"):
        command_id = await world.sender.create_uploaded(command, size, ask_for_in_time(size, size))
        await check_answer(world, command_id, size)
        run = await world.noted(command_id)
        assert (run["length"], run["sha256"]) == (size, sent.hexdigest())

    for process, before in idle.items():
        growth = process.peak_resident_bytes() - before
        said = f"{process.name}: {before / MEBIBYTE:.1f} MiB idle, {growth / MEBIBYTE:.1f} MiB more"
        print(said)
        assert growth <= growth_allowed, said
