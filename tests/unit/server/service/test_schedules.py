"""Polls, creates and hang-ups interleaved in every way that the event loop could.

Each call of the store is a door before it and a door behind it. A schedule is the order in which
the doors open; all of them are walked, depth first, each in a world of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

import pytest

from arc_protocol.messages.base import State
from arc_protocol.messages.leases import LeaseResponse
from arc_server.ports.records import CommandFilter
from arc_server.service.waits import Wait
from tests.model.memory import MemoryStore
from tests.support.service_world import World

_actor: ContextVar[str] = ContextVar("actor")


async def quiet() -> None:
    """Until everything has come to its next door, its sleep or its end."""
    loop: Any = asyncio.get_running_loop()
    await asyncio.sleep(0)
    while loop._ready:  # nothing here waits for anything else but its time
        await asyncio.sleep(0)


class Doors:
    """Where actors wait to go on. A choice opens one of them, or lets a hang-up happen."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self.actions: dict[str, Callable[[], None]] = {}
        self.is_open = False

    async def wait(self) -> None:
        actor = _actor.get("")
        if self.is_open or not actor:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(actor, []).append(future)
        await future

    def choices(self) -> list[str]:
        return sorted([*self._waiting, *self.actions])

    def choose(self, name: str) -> None:
        if name in self.actions:
            self.actions.pop(name)()
            return
        future = self._waiting[name].pop(0)
        if not self._waiting[name]:
            del self._waiting[name]
        if not future.done():
            future.set_result(None)


class StoreWithDoors:
    """A store in memory; the methods that change who may lease what have doors."""

    GUARDED: Final = frozenset({"lease", "create", "release"})

    def __init__(self, store: MemoryStore, doors: Doors) -> None:
        self._store = store
        self._doors = doors

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in self.GUARDED:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._doors.wait()
            try:
                return await method(*args, **kwargs)
            finally:
                await self._doors.wait()

        return call


class Scene:
    """One world, its actors, and what came of them."""

    def __init__(self) -> None:
        self.doors = Doors()
        self.store = MemoryStore()
        self.world = World(StoreWithDoors(self.store, self.doors), is_flaky=False)
        self.polls: dict[str, asyncio.Task[LeaseResponse]] = {}
        self.holds: dict[str, Wait] = {}
        self.others: list[asyncio.Task[Any]] = []

    def _start(self, name: str, act: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
        async def run() -> Any:
            _actor.set(name)
            return await act()

        return asyncio.ensure_future(run())

    def poll(self, name: str) -> None:
        hold = self.holds[name] = Wait()
        self.polls[name] = self._start(name, lambda: self.world.poll(wait=60, hold=hold))

    async def asleep(self, name: str) -> None:
        """A poll that has looked already."""
        self.poll(name)
        for _ in range(2):
            await quiet()
            self.doors.choose(name)
        await quiet()
        assert not self.doors.choices()

    def create(self, name: str) -> None:
        self.others.append(self._start(name, self.world.create))

    def release(self, name: str, lease_id: str) -> None:
        act = lambda: self.world.leases.release(lease_id)  # noqa: E731
        self.others.append(self._start(name, act))

    def hang_up(self, name: str) -> None:
        self.doors.actions[f"{name} hangs up"] = lambda: self.holds[name].end(
            ConnectionResetError("gone")
        )

    async def check(self) -> None:
        """Check that a poll looks for each ready command, and that each lease has a holder."""
        listed = await self.store.list(CommandFilter(), None, 100)
        ready = {c.command_id for c in listed.commands if c.state is State.PENDING}
        leased = {c.lease_id for c in listed.commands if c.state is State.DISPATCHED}
        delivered = [
            lease.lease_id
            for poll in self.polls.values()
            if poll.done() and poll.exception() is None
            for lease in poll.result().leases
        ]
        asleep = [name for name, poll in self.polls.items() if not poll.done()]
        assert not (ready and asleep), "a command is ready and a poll sleeps"
        assert sorted(delivered) == sorted(id_ for id_ in leased if id_), "leased without a holder"
        assert {c.attempt for c in listed.commands} <= {1, 2}

    async def end(self) -> None:
        self.doors.is_open = True
        self.world.close()
        await asyncio.gather(*self.polls.values(), *self.others, return_exceptions=True)


async def walk(set_up: Callable[[Scene], Awaitable[None]]) -> tuple[int, int]:
    """Every schedule of a scene; how many there are, and of how many steps the longest is."""
    path: list[int] = []
    count = longest = 0
    while True:
        scene = Scene()
        await set_up(scene)
        widths: list[int] = []
        taken: list[str] = []
        await quiet()
        while choices := scene.doors.choices():
            at = len(widths)
            if at == len(path):
                path.append(0)
            widths.append(len(choices))
            taken.append(choices[path[at]])
            scene.doors.choose(choices[path[at]])
            await quiet()
        try:
            await scene.check()
        except AssertionError as error:
            error.add_note(f"in the schedule {taken}")
            raise
        await scene.end()
        count += 1
        longest = max(longest, len(widths))
        del path[len(widths) :]
        while path and path[-1] == widths[len(path) - 1] - 1:
            path.pop()
        if not path:
            return count, longest
        path[-1] += 1


async def a_poll_a_create_and_a_hang_up(scene: Scene) -> None:
    scene.poll("A")
    scene.create("C")
    scene.hang_up("A")


async def one_leaves_and_one_stays(scene: Scene) -> None:
    await scene.asleep("A")
    await scene.asleep("B")
    scene.create("C")
    scene.hang_up("A")


async def one_comes_and_one_waits(scene: Scene) -> None:
    await scene.asleep("B")
    scene.poll("A")
    scene.create("C")


async def two_creates_for_two_polls(scene: Scene) -> None:
    await scene.asleep("A")
    await scene.asleep("B")
    scene.create("C")
    scene.create("D")


async def two_who_look_and_a_create(scene: Scene) -> None:
    scene.poll("A")
    scene.poll("B")
    scene.create("C")


async def one_who_waits_and_one_who_looks_and_leaves(scene: Scene) -> None:
    await scene.asleep("B")
    scene.poll("A")
    scene.create("C")
    scene.hang_up("A")


async def one_who_looks_and_one_who_waits_and_leaves(scene: Scene) -> None:
    await scene.asleep("A")
    scene.poll("B")
    scene.create("C")
    scene.hang_up("A")


async def a_release_for_a_poll_that_leaves(scene: Scene) -> None:
    await scene.world.create()
    lease = await scene.world.lease()
    await scene.asleep("A")
    await scene.asleep("B")
    scene.release("R", lease.lease_id)
    scene.hang_up("A")


@pytest.mark.parametrize(
    "set_up",
    [
        a_poll_a_create_and_a_hang_up,
        one_leaves_and_one_stays,
        one_comes_and_one_waits,
        two_creates_for_two_polls,
        two_who_look_and_a_create,
        one_who_waits_and_one_who_looks_and_leaves,
        one_who_looks_and_one_who_waits_and_leaves,
        a_release_for_a_poll_that_leaves,
    ],
    ids=lambda set_up: set_up.__name__,
)
async def test_no_schedule_loses_a_wakeup_or_leases_to_nobody(
    set_up: Callable[[Scene], Awaitable[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    count, longest = await walk(set_up)

    with capsys.disabled():
        print(f"\n  {set_up.__name__}: {count} schedules of up to {longest} steps walked")
    assert count > 1
