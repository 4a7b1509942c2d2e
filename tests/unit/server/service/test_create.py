"""Create: what is stored, what is answered, what a repeat gets, and what is refused."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from arc_protocol.errors import (
    ArcError,
    CommandTargetAmbiguous,
    CommandTargetIdInvalid,
    CommandTargetNotFound,
    DeploymentNotFound,
    Forbidden,
    IdempotencyKeyReused,
    InvalidCommand,
    PayloadTooLarge,
    StorageOperationFailed,
    StoreUnavailable,
)
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import HttpBackend, InlineBody, PresignedRequest, StorageBody
from arc_server.ports.reach import EVERYTHING
from arc_server.ports.records import CommandFilter, Deployment
from arc_server.service.limits import CommandLimits
from tests.support.clocks import START
from tests.support.reaches import only
from tests.support.service_world import SMALL_LIMITS, World, daemon, inline_of, path_of


async def stored(world: World) -> int:
    """Return how many commands there are."""
    found = await world.search.list(CommandFilter(), cursor=None, limit=1_000, within=EVERYTHING)
    return len(found.commands)


async def test_a_small_body_is_kept_inline_and_ready_at_once(world: World) -> None:
    created = await world.create(params=b'{"a":1}')

    assert created.state is State.PENDING
    assert created.next == "poll"
    assert created.storage_upload is None
    assert created.inline_allowed_up_to == world.limits.inline_bytes
    lease = await world.lease()
    assert lease.command_id == created.command_id
    assert inline_of(lease.envelope.params) == b'{"a":1}'
    assert not world.blobs.blobs


@pytest.mark.parametrize("over", [0, 1])
async def test_the_inline_limit_decides_where_a_body_goes(world: World, over: int) -> None:
    data = bytes(SMALL_LIMITS.inline_bytes + over)

    created = await world.create(params=data)

    assert created.state is State.PENDING
    assert created.next == "poll"
    params = (await world.lease()).envelope.params
    if over:
        assert isinstance(params, StorageBody)
        assert params.size == len(data)
        assert world.blobs.blobs == {path_of(params): data}
        assert world.blobs.sealed == {path_of(params)}
    else:
        assert inline_of(params) == data
        assert not world.blobs.blobs


@pytest.mark.parametrize("size", [None, 0, 5, 5_000])
async def test_a_storage_body_of_any_size_waits_for_its_upload(
    world: World, size: int | None
) -> None:
    created = await world.upload(size)

    assert created.state is State.PENDING_UPLOAD
    assert created.next == "upload"
    assert created.storage_upload is not None
    put = created.storage_upload.put_request
    assert put.operation == "put"
    assert created.command_id in put.path
    assert put.expiration == created.storage_upload.expires_at
    assert put.expiration == START + timedelta(seconds=world.limits.upload_url_seconds)
    assert (await world.poll()).leases == []


async def test_a_repeat_answers_the_first_command_in_its_current_state(world: World) -> None:
    first = await world.create(key="k1", max_attempts=1)
    again = await world.create(key="k1")
    assert again.command_id == first.command_id
    assert again.state is State.PENDING

    lease = await world.lease()
    assert (await world.create(key="k1")).state is State.DISPATCHED
    await world.respond(lease)

    assert (await world.create(key="k1")).state is State.SUCCEEDED
    assert await stored(world) == 1


async def test_a_repeat_is_answered_after_its_deadline_too(world: World) -> None:
    deadline = world.clock.now() + timedelta(seconds=10)
    first = await world.create(key="k1", deadline_in=10)
    world.clock.advance(60)
    await world.sweeper.tick()

    again = await world.create(key="k1", deadline_in=(deadline - world.clock.now()).total_seconds())

    assert again.command_id == first.command_id
    assert again.state is State.EXPIRED
    assert again.next == "poll"


async def test_a_repeat_while_the_upload_is_awaited_gets_a_fresh_url(world: World) -> None:
    first = await world.upload(5, key="k1")
    world.clock.advance(world.limits.upload_url_seconds + 1)

    again = await world.upload(5, key="k1")

    assert again.command_id == first.command_id
    assert again.state is State.PENDING_UPLOAD
    assert again.next == "upload"
    assert first.storage_upload is not None
    assert again.storage_upload is not None
    assert again.storage_upload.put_request.path == first.storage_upload.put_request.path
    assert again.storage_upload.expires_at > world.clock.now()
    await world.put(again.storage_upload.put_request, b"12345")
    await world.commands.upload_complete(again.command_id, 5)
    assert (await world.upload(5, key="k1")).next == "poll"


@pytest.mark.parametrize("size", [10, 5_000])
async def test_a_key_with_other_params_is_refused_and_leaves_nothing_behind(
    world: World, size: int
) -> None:
    first = await world.create(params=bytes(size), key="k1")
    blobs = dict(world.blobs.blobs)

    for other in (b"x" * size, bytes(size + 1), StorageBody(size=size)):
        with pytest.raises(IdempotencyKeyReused):
            await world.create(params=other, key="k1")

    assert world.blobs.blobs == blobs
    assert await stored(world) == 1
    assert (await world.create(params=bytes(size), key="k1")).command_id == first.command_id
    assert world.blobs.blobs == blobs


async def test_a_key_is_scoped_by_deployment_target_and_command(world: World) -> None:
    for name in ("t1", "t2"):
        await world.poll("d3", target=daemon(name))
    ids = {
        (await world.create("d1", key="k")).command_id,
        (await world.create("d2", key="k")).command_id,
        (await world.create("d1", key="k", command="other")).command_id,
        (await world.create("d3", key="k", target="t1")).command_id,
        (await world.create("d3", key="k", target="t2")).command_id,
        (await world.create("d1", key="")).command_id,
        (await world.create("d1", key=None)).command_id,
    }
    assert len(ids) == 7


@pytest.mark.parametrize(
    "params",
    [
        "A",
        "AAA",
        "AA=A",
        "AAAA=",
        "A===",
        "AA==\n",
        "AA\n==",
        "aa--",
        "aa__",
        "AB==",
        "é===",
        "\x00===",
    ],
)
async def test_base64_that_is_none_is_refused_and_nothing_is_stored(
    world: World, params: str
) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await world.create(params=InlineBody(inline_base64=params))

    assert refused.value.context["field"] == "params.inlineBase64"
    assert await stored(world) == 0
    assert not world.blobs.blobs


async def test_an_upload_above_the_limit_is_refused(world: World) -> None:
    with pytest.raises(PayloadTooLarge):
        await world.upload(SMALL_LIMITS.max_blob_bytes + 1)
    await world.upload(SMALL_LIMITS.max_blob_bytes)

    assert await stored(world) == 1


async def test_a_url_of_the_senders_own_is_refused(world: World) -> None:
    own = PresignedRequest(
        backend=HttpBackend(url="http://169.254.169.254/", method="GET", headers={}),
        expiration=START,
        operation="get",
        path="x",
    )
    with pytest.raises(InvalidCommand) as refused:
        await world.create(params=StorageBody(size=3, storage_get_request=own))

    assert refused.value.context["field"] == "params.storageGetRequest"
    assert await stored(world) == 0


@pytest.mark.parametrize("seconds", [-1, 0])
@pytest.mark.parametrize("size", [10, 5_000])
async def test_a_deadline_that_is_not_in_the_future_is_refused(
    world: World, seconds: float, size: int
) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await world.create(params=bytes(size), deadline_in=seconds)

    assert refused.value.message.startswith("deadline")
    assert await stored(world) == 0
    assert not world.blobs.blobs


async def test_a_deadline_a_moment_away_is_accepted(world: World) -> None:
    created = await world.create(deadline_in=0.000001)

    assert created.state is State.PENDING


@pytest.mark.parametrize("attempts", [-1, 0, SMALL_LIMITS.max_attempts + 1, 2**70])
async def test_attempts_out_of_bounds_are_refused(world: World, attempts: int) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await world.create(max_attempts=attempts)

    assert refused.value.context["field"] == "maxAttempts"
    assert await stored(world) == 0


async def test_attempts_are_as_asked_for_or_the_default(world: World) -> None:
    default = await world.create()
    most = await world.create(max_attempts=SMALL_LIMITS.max_attempts)

    assert (await world.status(default.command_id)).max_attempts == 5
    assert (await world.status(most.command_id)).max_attempts == SMALL_LIMITS.max_attempts


# targets


async def test_without_any_target_a_command_is_for_the_implicit_one(world: World) -> None:
    created = await world.create()

    status = await world.status(created.command_id)

    assert status.target == daemon("default")


async def test_the_first_target_inherits_commands_and_keys_of_the_implicit_one(
    world: World,
) -> None:
    waiting = await world.create(key="k1")
    awaited = await world.upload(3, key="k2")

    lease = await world.lease(target=daemon("t1"))

    assert lease.command_id == waiting.command_id
    assert lease.envelope.target == daemon("t1")
    assert (await world.status(awaited.command_id)).target == daemon("t1")
    again = await world.create(key="k1")
    named = await world.create(key="k1", target="t1")
    assert again.command_id == named.command_id == waiting.command_id
    upload = await world.upload(3, key="k2", target="t1")
    assert upload.command_id == awaited.command_id
    assert await stored(world) == 2


async def test_a_second_target_inherits_nothing(world: World) -> None:
    await world.poll(target=daemon("t1"))
    created = await world.create()

    assert (await world.poll(target=daemon("t2"))).leases == []
    assert (await world.lease(target=daemon("t1"))).command_id == created.command_id


async def test_a_sender_may_name_a_target_first_and_it_inherits_too(world: World) -> None:
    waiting = await world.create()
    named = await world.create(target="t1")

    leases = (await world.poll(target=daemon("t1"), count=5)).leases

    assert [lease.command_id for lease in leases] == [waiting.command_id, named.command_id]


async def test_with_several_targets_and_no_default_one_has_to_be_named(world: World) -> None:
    for name in ("t1", "t2"):
        await world.poll(target=daemon(name))

    with pytest.raises(CommandTargetAmbiguous):
        await world.create(params=bytes(5_000))

    assert not world.blobs.blobs
    assert await stored(world) == 0


async def test_a_misspelled_target_is_not_registered_beside_the_right_one(world: World) -> None:
    await world.poll(target=daemon("vault-agent"))

    with pytest.raises(CommandTargetNotFound):
        await world.create(params=bytes(5_000), target="vault-agnet")

    assert not world.blobs.blobs
    created = await world.create()
    assert (await world.status(created.command_id)).target == daemon("vault-agent")


async def test_an_explicit_default_is_taken(world: World) -> None:
    deployment = Deployment(
        deployment_id="d1", targets=[daemon("t1"), daemon("t2")], default_target_id="t2"
    )
    await world.raw_store.put_deployment(deployment, world.clock.now())

    created = await world.create()

    assert (await world.status(created.command_id)).target == daemon("t2")
    assert (await world.lease()).command_id == created.command_id


async def test_an_id_with_a_colon_is_no_target(world: World) -> None:
    with pytest.raises(CommandTargetIdInvalid):
        await world.create(params=bytes(5_000), target="a:b")

    assert not world.blobs.blobs
    assert await stored(world) == 0


async def test_an_empty_id_is_no_target(world: World) -> None:
    with pytest.raises(CommandTargetNotFound):
        await world.create(target="")


async def test_without_auto_registration_unknown_names_are_refused(
    world_of: type[World],
) -> None:
    world = world_of(limits=CommandLimits(auto_register=False, inline_bytes=100))

    with pytest.raises(DeploymentNotFound):
        await world.create(params=bytes(500))
    await world.raw_store.put_deployment(
        Deployment(deployment_id="d1", targets=[daemon("t1")]), world.clock.now()
    )
    with pytest.raises(CommandTargetNotFound):
        await world.create(params=bytes(500), target="t2")
    created = await world.create(params=bytes(500))

    assert len(world.blobs.blobs) == 1
    assert (await world.poll(target=daemon("t2"))).leases == []
    assert (await world.poll("d9")).leases == []
    assert (await world.lease(target=daemon("t1"))).command_id == created.command_id


# callers


async def test_a_bound_caller_creates_for_its_deployment_only(world: World) -> None:
    with pytest.raises(Forbidden):
        await world.create("d2", within=only("d1"), params=bytes(5_000))
    await world.create("d1")
    await world.create("d1", within=only("d1"))

    assert not world.blobs.blobs
    assert await stored(world) == 2


# failures


async def test_a_store_that_is_away_keeps_the_sender_from_believing_anything(
    world: World,
) -> None:
    world.store.away = {"create"}
    with pytest.raises(StoreUnavailable):
        await world.create(params=bytes(5_000), key="k1")
    world.store.away = set()

    created = await world.create(params=bytes(5_000), key="k1")

    assert created.state is State.PENDING
    params = (await world.lease()).envelope.params
    assert world.blobs.blobs[path_of(params)] == bytes(5_000)
    assert await stored(world) == 1


async def test_a_blob_store_that_is_away_leaves_no_command(world: World) -> None:
    world.blobs.refuse["write"] = StorageOperationFailed("no disk")

    with pytest.raises(StorageOperationFailed):
        await world.create(params=bytes(5_000))

    assert await stored(world) == 0


@pytest.mark.parametrize("operation", ["seal", "delete"])
async def test_what_is_stored_is_acknowledged_even_if_tidying_up_fails(
    world: World, operation: str
) -> None:
    world.blobs.refuse[operation] = StorageOperationFailed("no disk")

    first = await world.create(params=bytes(5_000), key="k1")
    again = await world.create(params=bytes(5_000), key="k1")

    assert again.command_id == first.command_id
    assert await stored(world) == 1
    with pytest.raises(IdempotencyKeyReused):
        await world.create(params=bytes(5_001), key="k1")


async def test_every_refusal_has_a_code_that_is_no_retry(world: World) -> None:
    with pytest.raises(ArcError) as refused:
        await world.create(max_attempts=0)

    assert not refused.value.retryable
    assert msgspec.json.encode(dict(refused.value.context))
