"""The state of the whole process that a handler may change, restored after each run."""

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
"""The mask while the agent's own is read: umask(2) cannot read without a write."""


class ProcessState:
    """Working directory, file mode mask, locale and signal handlers, as they were at the start.

    Handlers run in the agent's process. A change that one leaves would affect all others, the
    agent's files, and its end. Use it in the main thread.
    """

    def __init__(self) -> None:
        self._directory = _directory()
        self._mask = os.umask(_FIRST_MASK)
        os.umask(self._mask)
        self._locale = locale.setlocale(locale.LC_ALL)
        self._signals: dict[signal.Signals, Any] = {}

    def keep_signals(self, numbers: Iterable[signal.Signals]) -> None:
        """Restore the handlers of these signals, too, from now on."""
        self._signals = {number: signal.getsignal(number) for number in numbers}

    def restore(self, command: str, command_id: str) -> None:
        """Restore all changes, and log after which command they were found."""
        changed: list[str] = []
        if os.umask(self._mask) != self._mask:  # sets the mask and returns the old one
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
    """Return the working directory; None if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None
