"""What belongs to the whole process and a handler may have changed: put back after each run."""

from __future__ import annotations

import locale
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_FIRST_MASK = 0o077
"""In force for the moment in which the agent's own mask is read."""


class ProcessState:
    """Working directory, file mode mask, locale and signal handlers, as they were at the start.

    Handlers run in the agent's process. What one leaves changed would change how all others run,
    how the agent writes files, and how it stops. Use it in the main thread.
    """

    def __init__(self) -> None:
        self._directory = _directory()
        self._mask = os.umask(_FIRST_MASK)
        os.umask(self._mask)
        self._locale = locale.setlocale(locale.LC_ALL)
        self._signals: dict[signal.Signals, Any] = {}

    def keep_signals(self, numbers: Iterable[signal.Signals]) -> None:
        """From now on the handlers of these signals are put back, too."""
        self._signals = {number: signal.getsignal(number) for number in numbers}

    def put_back(self, command: str, command_id: str) -> None:
        """Undo what has changed, and say after which command it showed."""
        changed: list[str] = []
        if os.umask(self._mask) != self._mask:  # sets and tells in one call
            changed.append("umask")
        if self._directory is not None and _directory() != self._directory:
            changed.append("directory")
            with suppress(OSError):
                os.chdir(self._directory)
        if locale.setlocale(locale.LC_ALL) != self._locale:
            changed.append("locale")
            locale.setlocale(locale.LC_ALL, self._locale)
        for number, handler in self._signals.items():
            if signal.getsignal(number) is not handler:
                changed.append(number.name)
                signal.signal(number, handler)
        if changed:
            log.error(
                "handler.changed_process", command=command, command_id=command_id, what=changed
            )


def _directory() -> str | None:
    """The working directory; None when it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None
