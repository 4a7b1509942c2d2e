"""Waiting: arm, look, sleep; no wake-up is lost, and none is kept by one who is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from arc_server.service.wakeups import MAX_REMEMBERED_CANCELS, Wakeups, WorkWaiter
from tests.support.service_fakes import settle

POINTS = ("before", "entered", "armed", "looking", "looked", "judged", "asleep")
"""Every point of a wait at which something else may happen."""


class Shelf:
    """Commands that are ready, and one hook that runs at one point of a wait, once."""

    def __init__(self) -> None:
        self.wakeups = Wakeups()
        self.ready: list[str] = []
        self.looks = 0
        self._hooks: dict[str, Callable[[], None]] = {}

    def put(self, name: str = "c1", target: str | None = "t") -> None:
        self.ready.append(name)
        self.wakeups.work_ready("d", target)

    def at(self, point: str, hook: Callable[[], None]) -> None:
        self._hooks[point] = hook

    def reach(self, point: str) -> None:
        self._hooks.pop(point, lambda: None)()

    async def wait(self, target: str | None = "t") -> str | None:
        """What `CommandService.lease` does, with its points named."""
        self.reach("before")
        with self.wakeups.for_work("d", target) as waiter:
            self.reach("entered")
            while True:
                waiter.arm()
                self.reach("armed")
                self.looks += 1
                taken = self.ready.pop(0) if self.ready else None
                self.reach("looking")
                await asyncio.sleep(0)
                self.reach("looked")
                waiter.looked()
                self.reach("judged")
                if taken is not None:
                    return taken
                asyncio.get_running_loop().call_soon(self.reach, "asleep")
                if not await waiter.sleep(5):
                    return None


@pytest.mark.parametrize("point", POINTS)
async def test_a_command_that_becomes_ready_at_any_point_of_a_wait_is_found(point: str) -> None:
    shelf = Shelf()
    shelf.at(point, shelf.put)

    assert await asyncio.wait_for(shelf.wait(), 1) == "c1"

    assert shelf.wakeups.waiting_for_work == 0


@pytest.mark.parametrize("put_at", POINTS[1:])
@pytest.mark.parametrize("leave_at", POINTS[1:])
async def test_one_who_leaves_at_any_point_passes_its_wakeup_on(put_at: str, leave_at: str) -> None:
    shelf = Shelf()
    gone = Shelf()
    gone.wakeups, gone.ready = shelf.wakeups, []

    def leave() -> None:
        raise RuntimeError("gone")

    async def leaver() -> None:
        with pytest.raises((RuntimeError, asyncio.CancelledError)):
            await gone.wait()

    order = POINTS.index(put_at) - POINTS.index(leave_at)
    leaving = asyncio.ensure_future(leaver())
    if leave_at == "asleep":
        gone.at("asleep", lambda: leaving.cancel() and None)
    else:
        gone.at(leave_at, leave)
    if order == 0:
        shelf.put()
    else:
        gone.at(put_at, lambda: shelf.put())
    staying = asyncio.ensure_future(shelf.wait())
    await asyncio.wait((leaving,), timeout=1)
    if not shelf.ready and not staying.done():
        shelf.put()  # it left before the command came

    assert await asyncio.wait_for(staying, 1) == "c1"
    assert shelf.wakeups.waiting_for_work == 0


async def test_a_wakeup_that_ended_in_a_lease_is_not_passed_on() -> None:
    shelf = Shelf()
    first = asyncio.ensure_future(shelf.wait())
    await settle()
    second = asyncio.ensure_future(shelf.wait())
    await settle()

    looks = shelf.looks
    shelf.put()
    await settle()

    assert first.done()
    assert not second.done()
    assert shelf.looks == looks + 1
    second.cancel()


@pytest.mark.parametrize("count", [1, 2, 5, 20])
async def test_as_many_waiters_wake_as_commands_are_ready_first_come_first_served(
    count: int,
) -> None:
    shelf = Shelf()
    waits = [asyncio.ensure_future(shelf.wait()) for _ in range(count + 3)]
    await settle()
    assert shelf.wakeups.waiting_for_work == count + 3

    for number in range(count):
        shelf.put(f"c{number}")
    await settle(60)

    assert [wait.done() for wait in waits] == [True] * count + [False] * 3
    assert sorted(wait.result() or "" for wait in waits[:count]) == sorted(
        f"c{number}" for number in range(count)
    )
    for wait in waits[count:]:
        wait.cancel()
    await settle()
    assert shelf.wakeups.waiting_for_work == 0


async def test_one_call_wakes_as_many_as_it_says() -> None:
    shelf = Shelf()
    waits = [asyncio.ensure_future(shelf.wait()) for _ in range(3)]
    await settle()

    shelf.ready += ["c1", "c2"]
    shelf.wakeups.work_ready("d", "t", count=2)
    await settle()

    assert [wait.done() for wait in waits] == [True, True, False]
    waits[2].cancel()


async def test_one_who_waits_for_the_default_target_hears_of_every_target() -> None:
    shelf = Shelf()
    default = asyncio.ensure_future(shelf.wait(None))
    named = asyncio.ensure_future(shelf.wait("t"))
    other = asyncio.ensure_future(shelf.wait("u"))
    await settle()

    shelf.ready += ["c1"]
    shelf.put("c2")
    await settle()

    assert default.done()
    assert named.done()
    assert not other.done()
    other.cancel()


async def test_a_wait_without_a_wakeup_ends_with_its_time() -> None:
    shelf = Shelf()
    with shelf.wakeups.for_work("d", "t") as waiter:
        waiter.arm()
        waiter.looked()

        assert await waiter.sleep(0.005) is False


async def test_a_wakeup_at_the_very_end_of_the_time_counts() -> None:
    wakeups = Wakeups()
    loop = asyncio.get_running_loop()
    with wakeups.for_work("d", "t") as waiter:
        waiter.arm()
        waiter.looked()
        end = loop.time() + 0.01
        loop.call_at(end, wakeups.work_ready, "d", "t")

        assert await waiter.sleep(end - loop.time()) is True


async def test_a_server_that_closes_ends_every_wait() -> None:
    wakeups = Wakeups()

    async def asleep(waiter: WorkWaiter) -> bool:
        with waiter:
            waiter.arm()
            waiter.looked()
            return await waiter.sleep(30)

    async def for_result() -> object:
        with wakeups.for_result("cmd_1") as waiter:
            return await waiter.sleep(30)

    waits = [
        asyncio.ensure_future(asleep(wakeups.for_work("d", target))) for target in ("t", "u", None)
    ]
    results = [asyncio.ensure_future(for_result()) for _ in range(2)]
    push = asyncio.ensure_future(wakeups.for_push(None))
    await settle()

    wakeups.close()

    assert await asyncio.wait_for(asyncio.gather(*waits), 1) == [True] * 3
    assert await asyncio.wait_for(asyncio.gather(*results), 1) == [None] * 2
    await asyncio.wait_for(push, 1)
    assert wakeups.is_closed
    assert wakeups.waiting_for_work == wakeups.waiting_for_results == 0


async def test_a_close_between_look_and_sleep_ends_the_sleep() -> None:
    wakeups = Wakeups()
    with wakeups.for_work("d", "t") as waiter:
        waiter.arm()
        wakeups.close()
        waiter.looked()

        assert await asyncio.wait_for(waiter.sleep(30), 1) is True


async def test_a_cancel_wakes_its_holder_alone_and_is_told_once() -> None:
    wakeups = Wakeups()
    with (
        wakeups.for_work("d", "t", "a1") as mine,
        wakeups.for_work("d", "t", "a2") as other,
        wakeups.for_work("elsewhere", "t", "a1") as namesake,
    ):
        for waiter in (mine, other, namesake):
            waiter.arm()
            waiter.looked()

        wakeups.cancel_requested("d", "a1", "lease_2")
        wakeups.cancel_requested("d", "a1", "lease_1")
        wakeups.cancel_requested("d", "a1", "lease_1")

        assert await mine.sleep(1) is True
        assert await other.sleep(0) is False
        assert await namesake.sleep(0) is False
        assert wakeups.take_cancels("elsewhere", "a1") == []
        assert wakeups.take_cancels("d", "a1") == ["lease_1", "lease_2"]
        assert wakeups.take_cancels("d", "a1") == []


async def test_a_cancel_before_the_holder_waits_is_kept_for_it() -> None:
    wakeups = Wakeups()

    wakeups.cancel_requested("d", "a1", "lease_1")

    assert wakeups.take_cancels("d", "a1") == ["lease_1"]


async def test_a_wakeup_for_a_cancel_is_not_passed_on_as_one_for_work() -> None:
    wakeups = Wakeups()
    with wakeups.for_work("d", "t") as other:
        with wakeups.for_work("d", "t", "a1") as mine:
            mine.arm()
            other.arm()
            mine.looked()
            other.looked()
            wakeups.cancel_requested("d", "a1", "lease_1")

        assert await other.sleep(0) is False


async def test_cancels_of_holders_that_never_come_back_do_not_pile_up() -> None:
    wakeups = Wakeups()
    for number in range(MAX_REMEMBERED_CANCELS + 10):
        wakeups.cancel_requested("d", f"a{number}", "lease")

    newest = f"a{MAX_REMEMBERED_CANCELS + 9}"
    wakeups.cancel_requested("d", newest, "another")

    assert wakeups.take_cancels("d", "a9") == []
    assert wakeups.take_cancels("d", "a10") == ["lease"]
    assert wakeups.take_cancels("d", newest) == ["another", "lease"]


async def test_a_push_that_becomes_due_before_the_wait_ends_it() -> None:
    wakeups = Wakeups()

    wakeups.push_ready()

    await asyncio.wait_for(wakeups.for_push(None), 1)
    await wakeups.for_push(0.001)


@pytest.mark.parametrize("before", [True, False])
async def test_a_result_is_told_to_all_who_wait_for_it_whenever_it_comes(before: bool) -> None:
    wakeups = Wakeups()
    told: list[object] = []

    async def wait(command_id: str) -> None:
        with wakeups.for_result(command_id) as waiter:
            if before:
                wakeups.finished("cmd_1")
            told.append((command_id, await waiter.sleep(1)))

    waits = [asyncio.ensure_future(wait("cmd_1")) for _ in range(3)]
    await settle()
    wakeups.finished("cmd_2")
    wakeups.finished("cmd_1")
    await asyncio.wait_for(asyncio.gather(*waits), 0.5)

    assert told == [("cmd_1", None)] * 3
    assert wakeups.waiting_for_results == 0


async def test_one_who_stops_waiting_for_a_result_leaves_the_others_waiting() -> None:
    wakeups = Wakeups()

    async def wait() -> None:
        with wakeups.for_result("cmd_1") as waiter:
            await waiter.sleep(30)

    leaver, stayer = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
    await settle()

    leaver.cancel()
    await settle()
    assert wakeups.waiting_for_results == 1
    wakeups.finished("cmd_1")

    await asyncio.wait_for(stayer, 1)
