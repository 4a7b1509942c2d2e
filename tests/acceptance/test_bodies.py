"""Bodies of any size arrive as they were sent, both ways, pulled and pushed, in little memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest

from .octets import digest_of, octets, octets_in_time
from .sender import DEPLOYMENT
from .world import World

MEGABYTE = 1_000_000
SMALL = 300
LARGE = 20 * MEGABYTE
RESULT_SEED = 7
MEMORY_ALLOWED = 64 * 1024 * 1024

SIZES = [
    pytest.param(params, result, id=f"{params}-bytes-in-{result}-bytes-out")
    for params in (SMALL, LARGE)
    for result in (SMALL, LARGE)
]


def ask_for(result_bytes: int, length: int) -> bytes:
    """Params of that length: a line that says what to answer, then filling."""
    line = f"{result_bytes} {RESULT_SEED}\n".encode()
    return line + b"".join(octets(length - len(line), seed=1))


async def ask_for_in_time(result_bytes: int, length: int) -> AsyncIterator[bytes]:
    """The same in chunks."""
    line = f"{result_bytes} {RESULT_SEED}\n".encode()
    yield line
    async for chunk in octets_in_time(length - len(line), seed=1):
        yield chunk


@pytest.mark.parametrize(("params_bytes", "result_bytes"), SIZES)
async def test_a_pulled_command_carries_its_bytes_unchanged(
    world: World, params_bytes: int, result_bytes: int
):
    await world.server()
    await world.agent("agent")
    params = ask_for(result_bytes, params_bytes)

    command_id = await world.sender.create("blob", params)
    status = await world.sender.result(command_id)

    run = await world.noted(command_id)
    assert (run["length"], run["sha256"]) == (params_bytes, hashlib.sha256(params).hexdigest())
    assert status["state"] == "SUCCEEDED", status
    answered = await world.sender.digest(status["response"]["response"])
    assert answered == (result_bytes, digest_of(result_bytes, RESULT_SEED))


@pytest.mark.parametrize(("params_bytes", "result_bytes"), SIZES)
async def test_a_pushed_command_carries_its_bytes_unchanged(
    world: World, params_bytes: int, result_bytes: int
):
    worker = await world.push_worker()
    pushed = {"id": DEPLOYMENT, "push_url": worker.url, "push_token": "worker-secret"}
    await world.server({"deployments": [pushed]})
    params = ask_for(result_bytes, params_bytes)

    command_id = await world.sender.create("blob", params)
    status = await world.sender.result(command_id)

    assert worker.params[command_id] == (params_bytes, hashlib.sha256(params).hexdigest())
    assert status["state"] == "SUCCEEDED", status
    answered = await world.sender.digest(status["response"]["response"])
    assert answered == (result_bytes, digest_of(result_bytes, RESULT_SEED))
    assert worker.authorizations == ["Bearer worker-secret"]
    assert [envelope["attempt"] for envelope in worker.envelopes] == [1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", ["blob", "blob-file"])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(40 * MEGABYTE, id="40-megabytes"),
        pytest.param(200 * MEGABYTE, id="200-megabytes", marks=pytest.mark.big),
    ],
)
async def test_memory_does_not_grow_with_the_size_of_a_body(world: World, size: int, command: str):
    server = await world.server()
    agent = await world.agent("agent")
    idle = {process: process.resident_bytes() for process in (server, agent)}

    command_id = await world.sender.create_uploaded(command, size, ask_for_in_time(size, size))
    status = await world.sender.result(command_id, 240)
    answered = await world.sender.digest(status["response"]["response"])

    assert answered == (size, digest_of(size, RESULT_SEED))
    sent = hashlib.sha256()
    async for chunk in ask_for_in_time(size, size):
        sent.update(chunk)
    run = await world.noted(command_id)
    assert (run["length"], run["sha256"]) == (size, sent.hexdigest())
    for process, before in idle.items():
        growth = process.peak_resident_bytes() - before
        print(f"{process.name}: {before / 2**20:.1f} MiB idle, {growth / 2**20:.1f} MiB more")
        assert growth <= MEMORY_ALLOWED, f"{process.name} grew by {growth / 2**20:.1f} MiB"
