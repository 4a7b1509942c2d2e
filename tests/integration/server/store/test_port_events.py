"""Events and progress that holders report while they run a command."""

from __future__ import annotations

from typing import Any

import pytest

from arc_protocol.codec import encode
from arc_protocol.errors import CommandNotFound, LeaseLost
from arc_protocol.messages.base import State
from arc_protocol.messages.events import EventsRequest, LogLine, Progress
from arc_server.ports.events import LATE_SECONDS, LINE_BYTES, most_stored_with_events
from arc_server.ports.records import CommandRecord
from arc_server.ports.store import Store
from tests.support.reaches import only
from tests.support.store_quotas import quotas, usage
from tests.support.store_samples import DEPLOYMENT, NOW, RESULT, after, create, lease, leased


def lines(*numbers: int) -> list[LogLine]:
    return [LogLine(number=n, at=after(n), level="info", message=f"line {n}") for n in numbers]


def said(command: CommandRecord, *numbers: int, **more: Any) -> EventsRequest:
    return EventsRequest(lease_id=command.lease_id or "", lines=lines(*numbers), **more)


async def heard(store: Store, command: CommandRecord, since: int = 0) -> list[tuple[int, str]]:
    page = await store.events(command.command_id, since, 1000)
    assert page is not None
    return [(line.place, line.message) for line in page.lines]


async def test_lines_are_kept_in_order_and_read_from_any_place(store: Store) -> None:
    held = await leased(store)

    await store.add_events(held.command_id, said(held, 1, 2), NOW, 100)
    told = await store.add_events(held.command_id, said(held, 3), NOW, 100)

    assert told == held
    assert await heard(store, held) == [(1, "line 1"), (2, "line 2"), (3, "line 3")]
    assert await heard(store, held, 2) == [(3, "line 3")]
    page = await store.events(held.command_id, 0, 1)
    assert page is not None
    assert [(line.at, line.level, line.attempt) for line in page.lines] == [(after(1), "info", 1)]
    assert (page.command, page.progress, page.dropped) == (held, None, 0)


async def test_lines_that_are_sent_again_are_not_recorded_again(store: Store) -> None:
    held = await leased(store)

    await store.add_events(held.command_id, said(held, 1, 2), NOW, 100)
    await store.add_events(held.command_id, said(held, 1, 2, 3), NOW, 100)

    assert await heard(store, held) == [(1, "line 1"), (2, "line 2"), (3, "line 3")]


async def test_the_next_holder_counts_from_one_again_and_its_places_go_on(
    store: Store,
) -> None:
    held = await leased(store)
    await store.add_events(held.command_id, said(held, 1, 2, dropped=4), NOW, 100)
    await store.release(held.lease_id or "", NOW, costs_attempt=True)
    (grant,) = (await lease(store)).grants

    await store.add_events(held.command_id, said(grant.command, 1, dropped=1), NOW, 100)

    page = await store.events(held.command_id, 0, 100)
    assert page is not None
    assert [(line.place, line.attempt) for line in page.lines] == [(1, 1), (2, 1), (3, 2)]
    assert page.dropped == 5


async def test_the_last_lines_stay_and_the_rest_is_counted(store: Store) -> None:
    held = await leased(store)

    await store.add_events(held.command_id, said(held, 1, 2, dropped=7), NOW, 3)
    await store.add_events(held.command_id, said(held, 3, 4, 5, 6, 7, dropped=7), NOW, 3)

    assert await heard(store, held) == [(5, "line 5"), (6, "line 6"), (7, "line 7")]
    page = await store.events(held.command_id, 0, 100)
    assert page is not None
    assert page.dropped == 7 + 4


async def test_the_latest_progress_is_what_is_known_until_another_holder_begins(
    store: Store,
) -> None:
    held = await leased(store)
    await store.add_events(held.command_id, said(held, progress=Progress(done=1, total=9)), NOW, 9)
    await store.add_events(held.command_id, said(held, progress=Progress(done=2, text="x")), NOW, 9)
    await store.add_events(held.command_id, said(held, 1), NOW, 9)

    page = await store.events(held.command_id, 0, 100)
    assert page is not None
    assert page.progress == Progress(done=2, text="x")

    await store.release(held.lease_id or "", NOW, costs_attempt=True)
    (grant,) = (await lease(store)).grants
    await store.add_events(held.command_id, said(grant.command), NOW, 9)
    page = await store.events(held.command_id, 0, 100)
    assert page is not None
    assert page.progress is None


async def test_only_the_latest_holder_is_heard_also_after_the_end(store: Store) -> None:
    first = await leased(store)
    await store.release(first.lease_id or "", NOW, costs_attempt=True)
    (grant,) = (await lease(store)).grants
    second = grant.command

    with pytest.raises(LeaseLost):
        await store.add_events(first.command_id, said(first, 1), NOW, 9)
    with pytest.raises(CommandNotFound):
        await store.add_events("cmd_unknown", said(first, 1), NOW, 9)
    with pytest.raises(CommandNotFound):
        await store.add_events(second.command_id, said(second, 1), NOW, 9, within=only("another"))
    await store.complete(second.command_id, second.lease_id, RESULT, after(1))
    await store.add_events(
        second.command_id, said(second, 1), NOW, 9, within=only(second.deployment_id)
    )

    assert await heard(store, second) == [(1, "line 1")]
    assert await store.events("cmd_unknown", 0, 9) is None


async def test_events_that_come_long_after_the_end_are_refused(store: Store) -> None:
    held = await leased(store)
    await store.complete(held.command_id, held.lease_id, RESULT, after(1))

    await store.add_events(held.command_id, said(held, 1), after(1 + LATE_SECONDS), 9)
    with pytest.raises(LeaseLost):
        await store.add_events(held.command_id, said(held, 2), after(2 + LATE_SECONDS), 9)

    assert await heard(store, held) == [(1, "line 1")]


async def stored_bytes(store: Any) -> int:
    return (await usage(store, DEPLOYMENT))["stored_bytes"]


async def test_events_count_in_the_stored_bytes_until_they_are_gone(store: Store) -> None:
    held = await leased(store)
    before = await stored_bytes(store)
    line = len("line 1") + LINE_BYTES
    short, longer = Progress(done=1), Progress(done=1, text="é" * 9)

    await store.add_events(held.command_id, said(held, 1, 2, progress=longer), NOW, 3)
    first = await stored_bytes(store)
    await store.add_events(held.command_id, said(held, 3, 4, progress=short), NOW, 3)
    second = await stored_bytes(store)
    await store.add_events(held.command_id, said(held, 5, 6, 7, 8, 9), NOW, 3)
    await store.release(held.lease_id or "", NOW, costs_attempt=False)
    (grant,) = (await lease(store)).grants
    await store.add_events(held.command_id, said(grant.command), NOW, 3)

    assert first == before + 2 * line + len(encode(longer))
    assert second == before + 3 * line + len(encode(short))
    assert await stored_bytes(store) == before + 3 * line
    await store.complete(held.command_id, grant.command.lease_id, RESULT, NOW)
    ended = await stored_bytes(store)
    await store.strip_events(State.SUCCEEDED, (0, 0), after(1), 10)
    assert await stored_bytes(store) == ended - 3 * line


@pytest.mark.parametrize("how", ["delete", "purge"])
async def test_a_command_that_is_removed_gives_the_bytes_of_its_events_back(
    store: Store, how: str
) -> None:
    held = await leased(store)
    await store.add_events(held.command_id, said(held, 1, progress=Progress(done=1)), NOW, 9)
    await store.complete(held.command_id, held.lease_id, RESULT, NOW)

    if how == "delete":
        await store.delete_command(held.command_id)
    else:
        await store.purge_commands(State.SUCCEEDED, after(1), after(1), 10)

    assert await stored_bytes(store) == 0


async def test_past_the_quota_lines_are_dropped_and_counted_and_nothing_else_is_refused(
    store: Store,
) -> None:
    held = await leased(store)
    used = await stored_bytes(store)
    limits = quotas(max_stored_bytes=used + used // 3 + 50)
    assert used < most_stored_with_events(limits) < used + 50
    progress = Progress(done=1, total=2, text="half")

    for number in (1, 2, 3):
        request = said(held, number, dropped=4, progress=progress)
        await store.add_events(held.command_id, request, NOW, 9, limits)

    page = await store.events(held.command_id, 0, 9)
    assert page is not None
    assert [(line.place, line.message) for line in page.lines] == [(1, "line 1")]
    assert page.dropped == 4 + 2
    assert page.progress == Progress(done=1, total=2)
    await store.complete(held.command_id, held.lease_id, RESULT, NOW)


async def test_events_leave_room_for_creates(store: Store) -> None:
    limits = quotas(max_stored_bytes=1_000)
    held = await leased(store)

    for number in range(1, 100):
        await store.add_events(held.command_id, said(held, number), NOW, 100, limits)

    await create(store, quotas=limits)
    assert most_stored_with_events(limits) <= await stored_bytes(store) < 1_000
