"""A proxy in front of the server refuses large bodies: each try costs, and none may be for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import pytest

from arc_client import ArcError, Client, UploadFailed
from arc_client.wire.create import UPLOAD_TRIES
from tests.support.large_bodies import ask_for
from tests.support.limiting_proxy import LimitingProxy, Refusal, larger_than
from tests.support.octets import digest_of
from tests.support.processes import Process
from tests.support.raw_sender import DEPLOYMENT
from tests.support.world import World

LARGE: Final = 3_000_000
LIMIT: Final = 1_000_000
QUICK: Final[Mapping[str, Any]] = {
    "server": {"max_back_off_seconds": 0.1},
    "poll": {"wait_seconds": 1},
}
FEW_TRIES, MANY_TRIES = 8, 16


async def large_result(world: World, proxy: LimitingProxy, **config: Any) -> tuple[Process, str]:
    """Start an agent behind a proxy, and a command whose result is large."""
    agent = await world.agent("agent", url=proxy.url, lease_seconds=3, config={**QUICK, **config})
    return agent, await world.sender.create("blob", ask_for(LARGE, 100))


@pytest.mark.parametrize(
    ("refusal", "tries"),
    [
        (413, FEW_TRIES),
        (400, FEW_TRIES),
        (403, FEW_TRIES),
        (404, FEW_TRIES),
        (502, MANY_TRIES),
        (504, MANY_TRIES),
        ("cut", MANY_TRIES),
        ("page 200", MANY_TRIES),
    ],
)
async def test_a_result_that_a_proxy_refuses_fails_its_command_after_some_tries(
    world: World, refusal: Refusal, tries: int
) -> None:
    await world.server()
    async with LimitingProxy(world.url, larger_than(LIMIT), refusal) as proxy:
        agent, command_id = await large_result(world, proxy)
        status = await world.sender.result(command_id, 60)
        await agent.logged("response.replaced", 30)
        events = [line["event"] for line in agent.log]

    response = status["response"]
    assert (status["state"], response["code"]) == ("FAILED", "STORAGE_OPERATION_FAILED")
    assert f"{LARGE} bytes" in response["message"]
    if isinstance(refusal, int):
        assert str(refusal) in response["message"]
        assert response["details"] == f'{{"status":{refusal},"bytes":{LARGE}}}'
    assert len(proxy.refused) >= tries
    # More, until another request has passed.
    most = 2 * tries + 12
    assert len(proxy.refused) <= (2 * most if refusal == "cut" else most)  # aiohttp repeats these
    assert events.count("response.blocked") == events.count("response.replaced") == 1
    assert "contact.lost" not in events


@pytest.mark.parametrize("refusal", [413, 403])
async def test_a_refusal_before_the_body_was_read_counts_too(
    world: World, refusal: Refusal
) -> None:
    await world.server()
    async with LimitingProxy(world.url, larger_than(LIMIT), refusal) as proxy:
        proxy.reads_all = False
        _, command_id = await large_result(world, proxy)
        status = await world.sender.result(command_id, 60)

    assert status["response"]["code"] == "STORAGE_OPERATION_FAILED"


async def test_a_small_result_that_a_firewall_dislikes_fails_its_command_too(world: World) -> None:
    await world.server()
    ids: list[str] = []

    def refuses(request: Any) -> bool:
        return request.path.endswith("/response") and request.content_length > 300

    async with LimitingProxy(world.url, refuses, 403) as proxy:
        await world.agent("agent", url=proxy.url, lease_seconds=3, config=QUICK)
        ids.append(await world.sender.create("blob", ask_for(1000, 100)))
        status = await world.sender.result(ids[0], 60)

    assert status["response"]["code"] == "STORAGE_OPERATION_FAILED"
    assert "403" in status["response"]["message"]


async def test_other_results_pass_while_one_is_refused(world: World) -> None:
    await world.server()
    async with LimitingProxy(world.url, larger_than(LIMIT)) as proxy:
        slow = {"server": {"max_back_off_seconds": 30}}
        _, command_id = await large_result(world, proxy, **slow)
        async with asyncio.timeout(30):
            await proxy.changes.until(lambda: bool(proxy.refused))
        for number in range(5):
            other = await world.sender.create("count", {"n": number})
            assert (await world.sender.result(other))["state"] == "SUCCEEDED"
        assert (await world.sender.status(command_id))["state"] == "DISPATCHED"


async def test_a_cancel_ends_the_tries_of_a_result_that_a_proxy_refuses(world: World) -> None:
    await world.server()
    async with LimitingProxy(world.url, larger_than(LIMIT)) as proxy:
        slow = {"server": {"max_back_off_seconds": 30}}
        _, command_id = await large_result(world, proxy, **slow)
        await proxy.changes.until(lambda: len(proxy.refused) >= 3)
        await world.sender.call("POST", f"/commands/{command_id}/cancel")
        status = await world.sender.result(command_id, 30)

    assert (status["state"], status["response"]["code"]) == ("FAILED", "CANCELLED")
    assert f"{LARGE} bytes" in status["response"]["message"]
    assert len(proxy.refused) < FEW_TRIES


async def test_a_result_arrives_when_the_proxy_lets_it_through_in_time(world: World) -> None:
    await world.server()
    async with LimitingProxy(world.url, larger_than(LIMIT)) as proxy:
        _, command_id = await large_result(world, proxy)
        await proxy.changes.until(lambda: len(proxy.refused) >= 3)
        proxy.refuses = lambda _: False
        status = await world.sender.result(command_id, 60)

    assert status["state"] == "SUCCEEDED"
    answered = await world.sender.digest(status["response"]["response"])
    assert answered[0] == LARGE
    assert answered[1] == digest_of(LARGE, 7)


async def test_a_result_is_kept_while_the_proxy_refuses_errors_as_well(world: World) -> None:
    await world.server()

    def refuses(request: Any) -> bool:
        return request.path.endswith("/response") or request.method == "PUT"

    async with LimitingProxy(world.url, lambda _: False, 403) as proxy:
        _, command_id = await large_result(world, proxy, poll={"wait_seconds": 0.2})
        proxy.refuses = refuses
        await proxy.changes.until(lambda: len(proxy.refused) >= 3 * FEW_TRIES, 60)
        assert (await world.sender.status(command_id))["state"] == "DISPATCHED"
        assert world.spooled("agent") == [command_id]
        proxy.refuses = lambda _: False
        status = await world.sender.result(command_id, 60)

    assert status["state"] in ("SUCCEEDED", "FAILED")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("refusal", [413, 400, 403, 502, 504, "cut", "page 200"])
@pytest.mark.parametrize("reads_all", [True, False])
async def test_params_that_a_proxy_refuses_fail_after_some_uploads(
    served: World, refusal: Refusal, reads_all: bool
) -> None:
    async with LimitingProxy(served.url, larger_than(LIMIT), refusal) as proxy:
        proxy.reads_all = reads_all
        async with Client(proxy.url, token_file=served.tokens["admin"]) as arc:
            with pytest.raises(UploadFailed) as raised:
                await arc.send(DEPLOYMENT, "blob", bytes(LARGE))

    assert f"{LARGE:,} bytes" in str(raised.value)
    assert len(proxy.refused) <= 2 * UPLOAD_TRIES
    if isinstance(refusal, int) and reads_all:
        assert str(refusal) in str(raised.value)
        assert raised.value.context["status"] == refusal


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("refusal", [413, 400, 403, 502, "cut"])
async def test_a_create_that_a_proxy_refuses_fails_with_its_size(
    served: World, refusal: Refusal
) -> None:
    async with (
        LimitingProxy(served.url, larger_than(20_000), refusal) as proxy,
        Client(
            proxy.url, token_file=served.tokens["admin"], retry_seconds=0.5, inline_bytes=100_000
        ) as arc,
    ):
        with pytest.raises(ArcError) as raised:
            await arc.send(DEPLOYMENT, "blob", bytes(50_000))

    assert "50,000 bytes" in str(raised.value)
    if isinstance(refusal, int):
        assert str(refusal) in str(raised.value)
