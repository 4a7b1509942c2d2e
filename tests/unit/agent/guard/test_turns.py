"""Turns: who goes first, who waits, and what a waiting command gives away."""

from __future__ import annotations

import asyncio

import pytest

from arc_agent.guard.turns import KeyedTurns, Turns
from tests.support.waiting import settle


async def test_places_are_taken_in_the_order_of_arrival() -> None:
    turns = Turns(lambda: 1)
    entered: list[str] = []

    async def take(key: str) -> None:
        await turns.take(key)
        entered.append(key)

    tasks = [asyncio.create_task(take(key)) for key in "abc"]
    await settle()
    assert entered == ["a"]
    assert turns.free == 0
    turns.release("a")
    await settle()
    turns.release("b")
    await asyncio.gather(*tasks)

    assert entered == ["a", "b", "c"]


async def test_a_key_that_has_a_place_needs_no_second_one() -> None:
    turns = Turns(lambda: 1)

    assert turns.try_take("a")
    assert turns.try_take("a")
    await turns.take("a")

    assert turns.has("a")
    turns.release("a")
    turns.release("a")
    assert turns.free == 1


async def test_a_free_place_belongs_to_the_key_that_waits() -> None:
    limit = 0
    turns = Turns(lambda: limit)
    waiting = asyncio.create_task(turns.take("first"))
    await settle()
    limit = 1

    assert not turns.try_take("second")
    turns.wake()
    await waiting
    assert turns.has("first")


async def test_a_key_that_stops_waiting_lets_the_next_one_in() -> None:
    turns = Turns(lambda: 1)
    turns.try_take("inside")
    gone = asyncio.create_task(turns.take("gone"))
    stays = asyncio.create_task(turns.take("stays"))
    await settle()
    gone.cancel()
    await asyncio.wait({gone})

    turns.release("inside")
    await stays
    assert turns.has("stays")
    assert not turns.has("gone")


def test_each_change_is_reported() -> None:
    changes: list[None] = []
    turns = Turns(lambda: 2, lambda: changes.append(None))

    turns.try_take("a")
    turns.release("unknown")
    assert changes == []
    turns.release("a")
    turns.wake()

    assert len(changes) == 2


class Limited:
    """Turns by name with limits that a test changes, and two slots."""

    def __init__(self) -> None:
        self.limits: dict[str, int | None] = {"tight": 1}
        self.max_waiting = 1
        self.slots = Turns(lambda: 2)
        self.turns = KeyedTurns(
            limit_of=self.limits.get, slots=self.slots, max_waiting=lambda: self.max_waiting
        )


@pytest.fixture
def limited() -> Limited:
    return Limited()


async def test_a_name_without_a_limit_lets_everyone_in(limited: Limited) -> None:
    for number in range(5):
        await limited.turns.take("free", f"l{number}")

    assert limited.turns.try_take("free", "l9")


async def test_a_waiting_command_gives_its_slot_to_another(limited: Limited) -> None:
    limited.slots.try_take("l1")
    limited.slots.try_take("l2")
    await limited.turns.take("tight", "l1")
    waiting = asyncio.create_task(limited.turns.take("tight", "l2"))
    await settle()

    assert limited.turns.is_waiting("l2")
    assert limited.turns.is_full
    assert limited.slots.free == 1

    limited.turns.release("l1")
    await waiting
    assert not limited.turns.is_waiting("l2")
    assert not limited.turns.is_full


async def test_a_limit_that_is_lifted_lets_the_waiting_in(limited: Limited) -> None:
    await limited.turns.take("tight", "l1")
    waiting = asyncio.create_task(limited.turns.take("tight", "l2"))
    await settle()
    assert not waiting.done()

    limited.limits["tight"] = None
    limited.turns.wake()
    await waiting


async def test_a_command_that_is_cancelled_waits_no_more(limited: Limited) -> None:
    await limited.turns.take("tight", "l1")
    waiting = asyncio.create_task(limited.turns.take("tight", "l2"))
    await settle()
    waiting.cancel()
    await asyncio.wait({waiting})

    assert not limited.turns.is_waiting("l2")
    limited.turns.release("l1")
    assert limited.turns.try_take("tight", "l3")
