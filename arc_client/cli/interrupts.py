"""Interrupts decide what Ctrl-C does while a command is on its way."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_LINE_BYTES: Final = 1024


class Interrupted(Exception):
    """The person left. A command that was sent goes on."""


class Interrupts:
    """Interrupts turn a Ctrl-C into a question, or end the work.

    With `ask`, the first Ctrl-C puts a question while the work goes on, and the next line from
    `answers_fd` goes to `answered`; a second Ctrl-C in place of an answer ends the work. Without
    `ask`, or when it returns False because there is nothing to ask yet, the first one ends it.
    """

    def __init__(
        self,
        ask: Callable[[], bool] | None = None,
        answered: Callable[[bytes], Awaitable[None]] | None = None,
        *,
        answers_fd: int = 0,
    ) -> None:
        self._ask = ask
        self._answered = answered
        self._answers_fd = answers_fd
        self._is_asked = False
        self._left = asyncio.Event()
        self._answering: set[asyncio.Future[None]] = set()

    async def around(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, and return its result. Raises Interrupted, with the work cancelled."""
        loop = asyncio.get_running_loop()
        # A job in the background ignores SIGINT: a Ctrl-C is meant for another job. And only the
        # main thread of a process can handle signals.
        before = signal.getsignal(signal.SIGINT)
        is_ours = (
            threading.current_thread() is threading.main_thread() and before is not signal.SIG_IGN
        )
        if is_ours:
            loop.add_signal_handler(signal.SIGINT, self._interrupted)
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(self._left.wait())
        try:
            await asyncio.wait([task, left], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Interrupted
            return task.result()
        finally:
            if is_ours:
                loop.remove_signal_handler(signal.SIGINT)
                # The loop puts Python's own handler in place, which raises wherever the loop is at
                # that moment. asyncio's, which was there before, cancels the main task.
                signal.signal(signal.SIGINT, before)
            self._stop_listening()
            for unfinished in (task, left, *self._answering):
                unfinished.cancel()
            await asyncio.gather(task, left, *self._answering, return_exceptions=True)

    def _interrupted(self) -> None:
        """Handle a Ctrl-C."""
        if self._is_asked or self._ask is None or not self._ask():
            self._left.set()
            return
        self._is_asked = True
        asyncio.get_running_loop().add_reader(self._answers_fd, self._readable)

    def _readable(self) -> None:
        """Read an answer; the end of the input counts as a no."""
        line = os.read(self._answers_fd, _LINE_BYTES)
        self._stop_listening()
        if self._answered is not None:
            self._answering.add(asyncio.ensure_future(self._answered(line)))

    def _stop_listening(self) -> None:
        if self._is_asked:
            asyncio.get_running_loop().remove_reader(self._answers_fd)
        self._is_asked = False
