"""Waiting: arm, look, sleep; no wake-up is lost, and none is kept by one who is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from arc_server.ports.records import Holder
from arc_server.service.announcements import Announcements
from arc_server.service.work_waiters import MAX_REMEMBERED_CANCELS, WorkWaiter
from tests.support.waiting import settle

POINTS = ("before", "entered", "armed", "looking", "looked", "judged", "asleep")
"""Every point of a wait at which something else may happen."""


def holder(agent_id: str, *, deployment: str = "d", credential: str | None = "cred_1") -> Holder:
    """An agent of deployment `d`."""
    return deployment, agent_id, credential


class Shelf:
    """Commands that are ready, and one hook that runs at one point of a wait, once."""

    def __init__(self) -> None:
        self.announcements = Announcements()
        self.ready: list[str] = []
        self.looks = 0
        self._hooks: dict[str, Callable[[], None]] = {}

    def put(self, name: str = "c1", target: str | None = "t") -> None:
        self.ready.append(name)
        self.announcements.work.wake("d", target)

    def at(self, point: str, hook: Callable[[], None]) -> None:
        self._hooks[point] = hook

    def reach(self, point: str) -> None:
        self._hooks.pop(point, lambda: None)()

    async def wait(self, target: str | None = "t") -> str | None:
        """Return what `LeaseService.lease` does, with its points named."""
        self.reach("before")
        with self.announcements.work.waiter("d", target) as waiter:
            self.reach("entered")
            while True:
                waiter.arm()
                self.reach("armed")
                self.looks += 1
                taken = self.ready.pop(0) if self.ready else None
                self.reach("looking")
                await asyncio.sleep(0)
                self.reach("looked")
                waiter.looked(())
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

    assert shelf.announcements.work.count == 0


@pytest.mark.parametrize("put_at", POINTS[1:])
@pytest.mark.parametrize("leave_at", POINTS[1:])
async def test_one_who_leaves_at_any_point_passes_its_wakeup_on(put_at: str, leave_at: str) -> None:
    shelf = Shelf()
    gone = Shelf()
    gone.announcements, gone.ready = shelf.announcements, []

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
    assert shelf.announcements.work.count == 0


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
    assert shelf.announcements.work.count == count + 3

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
    assert shelf.announcements.work.count == 0


async def test_one_call_wakes_as_many_as_it_says() -> None:
    shelf = Shelf()
    waits = [asyncio.ensure_future(shelf.wait()) for _ in range(3)]
    await settle()

    shelf.ready += ["c1", "c2"]
    shelf.announcements.work.wake("d", "t", count=2)
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
    with shelf.announcements.work.waiter("d", "t") as waiter:
        waiter.arm()
        waiter.looked(())

        assert await waiter.sleep(0.005) is False


async def test_a_wakeup_at_the_very_end_of_the_time_counts() -> None:
    announcements = Announcements()
    loop = asyncio.get_running_loop()
    with announcements.work.waiter("d", "t") as waiter:
        waiter.arm()
        waiter.looked(())
        end = loop.time() + 0.01
        loop.call_at(end, announcements.work.wake, "d", "t")

        assert await waiter.sleep(end - loop.time()) is True


async def test_a_server_that_closes_ends_every_wait() -> None:
    announcements = Announcements()

    async def asleep(waiter: WorkWaiter) -> bool:
        with waiter:
            waiter.arm()
            waiter.looked(())
            return await waiter.sleep(30)

    async def for_result() -> object:
        with announcements.results.waiter("cmd_1") as waiter:
            return await waiter.sleep(30)

    waits = [
        asyncio.ensure_future(asleep(announcements.work.waiter("d", target)))
        for target in ("t", "u", None)
    ]
    results = [asyncio.ensure_future(for_result()) for _ in range(2)]
    push = asyncio.ensure_future(announcements.wait_for_push(None))
    await settle()

    announcements.close()

    assert await asyncio.wait_for(asyncio.gather(*waits), 1) == [True] * 3
    assert await asyncio.wait_for(asyncio.gather(*results), 1) == [None] * 2
    await asyncio.wait_for(push, 1)
    assert announcements.is_closed
    assert announcements.work.count == announcements.results.count == 0


async def test_a_close_between_look_and_sleep_ends_the_sleep() -> None:
    announcements = Announcements()
    with announcements.work.waiter("d", "t") as waiter:
        waiter.arm()
        announcements.close()
        waiter.looked(())

        assert await asyncio.wait_for(waiter.sleep(30), 1) is True


async def test_a_cancel_wakes_its_holder_alone_and_is_told_once() -> None:
    announcements = Announcements()
    namesake_elsewhere = holder("a1", deployment="elsewhere")
    with (
        announcements.work.waiter("d", "t", holder("a1")) as mine,
        announcements.work.waiter("d", "t", holder("a2")) as other,
        announcements.work.waiter("d", "t", holder("a1", credential="cred_2")) as namesake,
        announcements.work.waiter("elsewhere", "t", namesake_elsewhere) as elsewhere,
    ):
        for waiter in (mine, other, namesake, elsewhere):
            waiter.arm()
            waiter.looked(())

        announcements.work.request_cancel(holder("a1"), "lease_2")
        announcements.work.request_cancel(holder("a1"), "lease_1")
        announcements.work.request_cancel(holder("a1"), "lease_1")

        assert await mine.sleep(1) is True
        assert await other.sleep(0) is False
        assert await namesake.sleep(0) is False
        assert await elsewhere.sleep(0) is False
        assert announcements.work.take_cancels(namesake_elsewhere) == []
        assert announcements.work.take_cancels(holder("a1")) == ["lease_1", "lease_2"]
        assert announcements.work.take_cancels(holder("a1")) == []


async def test_a_cancel_before_the_holder_waits_is_kept_for_it() -> None:
    announcements = Announcements()

    announcements.work.request_cancel(holder("a1"), "lease_1")

    assert announcements.work.take_cancels(holder("a1")) == ["lease_1"]


async def test_a_wakeup_for_a_cancel_is_not_passed_on_as_one_for_work() -> None:
    announcements = Announcements()
    with announcements.work.waiter("d", "t") as other:
        with announcements.work.waiter("d", "t", holder("a1")) as mine:
            mine.arm()
            other.arm()
            mine.looked(())
            other.looked(())
            announcements.work.request_cancel(holder("a1"), "lease_1")

        assert await other.sleep(0) is False


async def test_cancels_of_holders_that_never_come_back_do_not_pile_up() -> None:
    announcements = Announcements()
    for number in range(MAX_REMEMBERED_CANCELS + 10):
        announcements.work.request_cancel(holder(f"a{number}"), "lease")

    newest = f"a{MAX_REMEMBERED_CANCELS + 9}"
    announcements.work.request_cancel(holder(newest), "another")

    assert announcements.work.take_cancels(holder("a9")) == []
    assert announcements.work.take_cancels(holder("a10")) == ["lease"]
    assert announcements.work.take_cancels(holder(newest)) == ["another", "lease"]


async def test_a_push_that_becomes_due_before_the_wait_ends_it() -> None:
    announcements = Announcements()

    announcements.push_ready()

    await asyncio.wait_for(announcements.wait_for_push(None), 1)
    await announcements.wait_for_push(0.001)


@pytest.mark.parametrize("before", [True, False])
async def test_a_result_is_told_to_all_who_wait_for_it_whenever_it_comes(before: bool) -> None:
    announcements = Announcements()
    told: list[object] = []

    async def wait(command_id: str) -> None:
        with announcements.results.waiter(command_id) as waiter:
            if before:
                announcements.results.wake("cmd_1")
            told.append((command_id, await waiter.sleep(1)))

    waits = [asyncio.ensure_future(wait("cmd_1")) for _ in range(3)]
    await settle()
    announcements.results.wake("cmd_2")
    announcements.results.wake("cmd_1")
    await asyncio.wait_for(asyncio.gather(*waits), 0.5)

    assert told == [("cmd_1", None)] * 3
    assert announcements.results.count == 0


async def test_one_who_stops_waiting_for_a_result_leaves_the_others_waiting() -> None:
    announcements = Announcements()

    async def wait() -> None:
        with announcements.results.waiter("cmd_1") as waiter:
            await waiter.sleep(30)

    leaver, stayer = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
    await settle()

    leaver.cancel()
    await settle()
    assert announcements.results.count == 1
    announcements.results.wake("cmd_1")

    await asyncio.wait_for(stayer, 1)
