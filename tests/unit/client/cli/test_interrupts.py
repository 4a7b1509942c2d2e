"""Ctrl-C, by real signals in this very process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from arc_client.cli.interrupts import Interrupted, Interrupts


class Person:
    """Says what it is asked to."""

    def __init__(self, *, has_question: bool = True) -> None:
        self.has_question = has_question
        self.asked = asyncio.Event()
        self.lines: list[bytes] = []
        self.heard = asyncio.Event()

    def ask(self) -> bool:
        """Note that there was a question."""
        self.asked.set()
        return self.has_question

    async def answered(self, line: bytes) -> None:
        """Note an answer."""
        self.lines.append(line)
        self.heard.set()


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """A process that a Ctrl-C reaches, even if the suite itself runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def answers() -> Iterator[tuple[int, int]]:
    """A pipe to answer through."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


async def started(interrupts: Interrupts, work: asyncio.Event) -> asyncio.Task[bool]:
    """Some work under way, ended by the event."""
    task = asyncio.ensure_future(interrupts.around(work.wait()))
    await asyncio.sleep(0)
    return task


async def test_without_an_interrupt_it_is_just_the_work() -> None:
    done = asyncio.Event()
    done.set()

    assert await Interrupts().around(done.wait())
    with pytest.raises(ZeroDivisionError):
        await Interrupts().around(failing())


async def test_afterwards_a_ctrl_c_cancels_the_main_task_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    done = asyncio.Event()
    done.set()

    await Interrupts().around(done.wait())

    assert signal.getsignal(signal.SIGINT) is before


async def test_where_nobody_can_be_asked_the_first_leaves_and_ends_the_work() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.ensure_future(Interrupts().around(work()))
    await asyncio.sleep(0)
    interrupt()

    with pytest.raises(Interrupted):
        await task
    assert ended.is_set()


async def test_the_first_asks_and_a_line_is_the_answer(answers: tuple[int, int]) -> None:
    person, done = Person(), asyncio.Event()
    interrupts = Interrupts(person.ask, person.answered, answers_fd=answers[0])
    task = await started(interrupts, done)

    interrupt()
    await person.asked.wait()
    os.write(answers[1], b"y\n")
    await person.heard.wait()
    done.set()

    assert await task
    assert person.lines == [b"y\n"]


async def test_after_an_answer_the_next_asks_again(answers: tuple[int, int]) -> None:
    person, done = Person(), asyncio.Event()
    interrupts = Interrupts(person.ask, person.answered, answers_fd=answers[0])
    task = await started(interrupts, done)

    for _ in range(2):
        interrupt()
        await person.asked.wait()
        person.asked.clear()
        os.write(answers[1], b"n\n")
        await person.heard.wait()
        person.heard.clear()
    done.set()

    assert await task
    assert person.lines == [b"n\n", b"n\n"]


async def test_a_second_instead_of_an_answer_leaves(answers: tuple[int, int]) -> None:
    person = Person()
    interrupts = Interrupts(person.ask, person.answered, answers_fd=answers[0])
    task = await started(interrupts, asyncio.Event())

    interrupt()
    await person.asked.wait()
    interrupt()

    with pytest.raises(Interrupted):
        await task
    assert person.lines == []


async def test_with_nothing_to_ask_about_the_first_leaves(answers: tuple[int, int]) -> None:
    person = Person(has_question=False)
    interrupts = Interrupts(person.ask, person.answered, answers_fd=answers[0])
    task = await started(interrupts, asyncio.Event())

    interrupt()

    with pytest.raises(Interrupted):
        await task


async def test_work_that_ends_while_the_question_stands_is_done(answers: tuple[int, int]) -> None:
    person, done = Person(), asyncio.Event()
    interrupts = Interrupts(person.ask, person.answered, answers_fd=answers[0])
    task = await started(interrupts, done)

    interrupt()
    await person.asked.wait()
    done.set()

    assert await task


async def test_a_job_in_the_background_is_not_interrupted() -> None:
    done = asyncio.Event()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        task = await started(Interrupts(), done)
        interrupt()
        done.set()
        assert await task
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


async def failing() -> bool:
    """Work that fails."""
    raise ZeroDivisionError
