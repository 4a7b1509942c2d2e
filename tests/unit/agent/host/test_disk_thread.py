"""The disk thread: what waits together is one batch, each caller gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from arc_agent.host.disk_thread import DiskThread


class Recorder:
    """A writer that keeps its batches, and waits while `gate` is closed."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()

    def write(self, items: Sequence[Any]) -> Sequence[Any]:
        self.began.set()
        self.gate.wait(10)
        self.batches.append(list(items))
        return [ValueError(item) if item == "bad" else f"wrote {item}" for item in items]


@pytest.fixture
async def disk() -> AsyncIterator[DiskThread]:
    async with DiskThread() as opened:
        yield opened


async def test_what_waits_together_is_one_batch(disk: DiskThread) -> None:
    recorder = Recorder()
    recorder.gate.clear()
    first = asyncio.create_task(disk.write(recorder, 1))
    await asyncio.to_thread(recorder.began.wait, 10)
    others = [asyncio.create_task(disk.write(recorder, number)) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    recorder.gate.set()

    assert await asyncio.gather(first, *others) == ["wrote 1", "wrote 2", "wrote 3", "wrote 4"]
    assert recorder.batches == [[1], [2, 3, 4]]


async def test_each_caller_gets_its_own_answer(disk: DiskThread) -> None:
    recorder = Recorder()

    answers = await asyncio.gather(
        disk.write(recorder, "good"), disk.write(recorder, "bad"), return_exceptions=True
    )

    assert answers[0] == "wrote good"
    assert isinstance(answers[1], ValueError)


async def test_an_item_without_haste_rides_with_the_next(disk: DiskThread) -> None:
    recorder = Recorder()
    disk.put(recorder, "line")
    lingering = asyncio.create_task(disk.write(recorder, "removal", may_linger=True))
    await asyncio.sleep(0)

    await disk.write(recorder, "response")

    assert recorder.batches == [["line", "removal", "response"]]
    assert await lingering == "wrote removal"


async def test_an_item_without_haste_does_not_delay_another_writer(disk: DiskThread) -> None:
    recorder, other = Recorder(), Recorder()
    lingering = asyncio.create_task(disk.write(recorder, "removal", may_linger=True))
    await asyncio.sleep(0)

    await disk.write(other, "line")

    assert (recorder.batches, other.batches) == ([], [["line"]])
    assert await lingering == "wrote removal"


async def test_items_that_lingered_keep_their_place_before_later_ones(disk: DiskThread) -> None:
    recorder, other = Recorder(), Recorder()
    first = asyncio.create_task(disk.write(recorder, "first", may_linger=True))
    await asyncio.sleep(0)
    await disk.write(other, "line")

    await disk.write(recorder, "second")

    assert recorder.batches == [["first", "second"]]
    assert await first == "wrote first"


async def test_an_item_without_haste_is_written_soon_by_itself(disk: DiskThread) -> None:
    recorder = Recorder()

    assert await disk.write(recorder, "removal", may_linger=True) == "wrote removal"


async def test_an_item_that_no_caller_waits_for_is_written_at_the_end() -> None:
    recorder = Recorder()
    async with DiskThread() as disk:
        disk.put(recorder, "line")

    assert recorder.batches == [["line"]]


async def test_a_call_runs_after_what_was_put_before_it(disk: DiskThread) -> None:
    one, other = Recorder(), Recorder()
    disk.put(one, 1)
    disk.put(other, 2)

    batches = await disk.call(lambda: (list(one.batches), list(other.batches)))

    assert batches == ([[1]], [[2]])


async def test_a_call_that_raises_harms_only_its_caller(disk: DiskThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await disk.call(lambda: 1 / 0)

    assert await disk.call(threading.current_thread) is not threading.current_thread()


async def test_a_thread_may_block_for_an_item(disk: DiskThread) -> None:
    recorder = Recorder()

    assert await asyncio.to_thread(disk.write_blocking, recorder, 1) == "wrote 1"
    with pytest.raises(ValueError, match="bad"):
        await asyncio.to_thread(disk.write_blocking, recorder, "bad")


async def test_a_caller_that_is_gone_costs_the_others_nothing(disk: DiskThread) -> None:
    recorder = Recorder()
    recorder.gate.clear()
    gone = asyncio.create_task(disk.write(recorder, 1))
    await asyncio.to_thread(recorder.began.wait, 10)
    other = asyncio.create_task(disk.write(recorder, 2))
    await asyncio.sleep(0)
    gone.cancel()
    recorder.gate.set()

    assert await other == "wrote 2"
    assert recorder.batches == [[1], [2]]


async def test_when_the_thread_dies_every_caller_is_told_and_the_agent_ends() -> None:
    class Broken:
        def write(self, items: Sequence[Any]) -> Sequence[Any]:
            raise KeyError("a bug")

    died = asyncio.Event()
    async with DiskThread(died.set) as disk:
        with pytest.raises(RuntimeError, match="died"):
            await disk.write(Broken(), 1)
        await died.wait()

        with pytest.raises(KeyError):
            await disk.write(Recorder(), 2)
        with pytest.raises(KeyError):
            disk.write_blocking(Recorder(), 3)
