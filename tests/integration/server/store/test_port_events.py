"""Events and progress that holders report while they run a command."""

from __future__ import annotations

from typing import Any

import pytest

from arc_protocol.errors import CommandNotFound, LeaseLost
from arc_protocol.messages.events import EventsRequest, LogLine, Progress
from arc_server.ports.records import CommandRecord
from arc_server.ports.store import Store
from tests.support.reaches import only
from tests.support.store_samples import NOW, RESULT, after, lease, leased


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

    await store.add_events(held.command_id, said(held, 1, 2), 100)
    told = await store.add_events(held.command_id, said(held, 3), 100)

    assert told == held
    assert await heard(store, held) == [(1, "line 1"), (2, "line 2"), (3, "line 3")]
    assert await heard(store, held, 2) == [(3, "line 3")]
    page = await store.events(held.command_id, 0, 1)
    assert page is not None
    assert [(line.at, line.level, line.attempt) for line in page.lines] == [(after(1), "info", 1)]
    assert (page.command, page.progress, page.dropped) == (held, None, 0)


async def test_lines_that_are_sent_again_are_not_recorded_again(store: Store) -> None:
    held = await leased(store)

    await store.add_events(held.command_id, said(held, 1, 2), 100)
    await store.add_events(held.command_id, said(held, 1, 2, 3), 100)

    assert await heard(store, held) == [(1, "line 1"), (2, "line 2"), (3, "line 3")]


async def test_the_next_holder_counts_from_one_again_and_its_places_go_on(
    store: Store,
) -> None:
    held = await leased(store)
    await store.add_events(held.command_id, said(held, 1, 2, dropped=4), 100)
    await store.release(held.lease_id or "", NOW, costs_attempt=True)
    (grant,) = (await lease(store)).grants

    await store.add_events(held.command_id, said(grant.command, 1, dropped=1), 100)

    page = await store.events(held.command_id, 0, 100)
    assert page is not None
    assert [(line.place, line.attempt) for line in page.lines] == [(1, 1), (2, 1), (3, 2)]
    assert page.dropped == 5


async def test_the_last_lines_stay_and_the_rest_is_counted(store: Store) -> None:
    held = await leased(store)

    await store.add_events(held.command_id, said(held, 1, 2, dropped=7), 3)
    await store.add_events(held.command_id, said(held, 3, 4, 5, 6, 7, dropped=7), 3)

    assert await heard(store, held) == [(5, "line 5"), (6, "line 6"), (7, "line 7")]
    page = await store.events(held.command_id, 0, 100)
    assert page is not None
    assert page.dropped == 7 + 4


async def test_the_latest_progress_is_what_is_known_until_another_holder_begins(
    store: Store,
) -> None:
    held = await leased(store)
    await store.add_events(held.command_id, said(held, progress=Progress(done=1, total=9)), 9)
    await store.add_events(held.command_id, said(held, progress=Progress(done=2, text="x")), 9)
    await store.add_events(held.command_id, said(held, 1), 9)

    page = await store.events(held.command_id, 0, 100)
    assert page is not None
    assert page.progress == Progress(done=2, text="x")

    await store.release(held.lease_id or "", NOW, costs_attempt=True)
    (grant,) = (await lease(store)).grants
    await store.add_events(held.command_id, said(grant.command), 9)
    page = await store.events(held.command_id, 0, 100)
    assert page is not None
    assert page.progress is None


async def test_only_the_latest_holder_is_heard_also_after_the_end(store: Store) -> None:
    first = await leased(store)
    await store.release(first.lease_id or "", NOW, costs_attempt=True)
    (grant,) = (await lease(store)).grants
    second = grant.command

    with pytest.raises(LeaseLost):
        await store.add_events(first.command_id, said(first, 1), 9)
    with pytest.raises(CommandNotFound):
        await store.add_events("cmd_unknown", said(first, 1), 9)
    with pytest.raises(CommandNotFound):
        await store.add_events(second.command_id, said(second, 1), 9, only("another"))
    await store.complete(second.command_id, second.lease_id, RESULT, after(1))
    await store.add_events(second.command_id, said(second, 1), 9, only(second.deployment_id))

    assert await heard(store, second) == [(1, "line 1")]
    assert await store.events("cmd_unknown", 0, 9) is None
