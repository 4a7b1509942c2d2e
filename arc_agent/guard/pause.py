"""The pause decides whether this agent takes on work.

An operator on the host can pause or stop the agent, for a while or until further notice. A part
that cannot do its duty, such as a full disk, stops it too. An operator's order survives a restart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from arc_agent.host.data_dir import sync_directory
from arc_protocol.messages.agents import AgentStatus

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_FILE: Final = "pause.json"
_RECHECK_SECONDS: Final = 25.0
"""The longest wait before the order is read again, because the wall clock may be set."""
MAX_NOTE_CHARS: Final = 256


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's order."""

    state: Literal["paused", "stopped"]
    note: str | None = None
    until: float | None = None
    """POSIX time, which means the same after a restart. None: until an operator resumes."""


class Pause:
    """The order in force, and the troubles of parts. Lives in the main loop."""

    def __init__(self, directory: Path, now: Callable[[], float] = time.time) -> None:
        """Read the order in the directory. A file that cannot be read stops the agent."""
        self._path = directory / _FILE
        self._now = now
        self._listeners: list[Callable[[], None]] = []
        self._troubles: dict[str, str] = {}
        self._order = self._read()
        if self._order is not None:
            log.warning("pause.on", state=self._order.state, note=self._order.note)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the order or a trouble changes."""
        self._listeners.append(listener)

    @property
    def is_on(self) -> bool:
        """Return True if the agent must take on nothing."""
        return self.wait_seconds() is not None

    @property
    def troubles(self) -> Mapping[str, str]:
        """Return the parts that cannot do their duty, each with the reason."""
        return dict(self._troubles)

    def wait_seconds(self) -> float | None:
        """Return how long to take on nothing before asking again; None when work is welcome.

        Ends a pause whose time is over.
        """
        order = self._order
        left = _RECHECK_SECONDS
        if order is not None and order.until is not None:
            left = order.until - self._now()
            if left <= 0:
                log.info("pause.over", note=order.note)
                self._order = order = None
                with suppress(OSError):  # at the next start it is over as well
                    self.resume()
                self._notify()
        if order is None and not self._troubles:
            return None
        return min(max(left, 0.0) if order is not None else _RECHECK_SECONDS, _RECHECK_SECONDS)

    def status(self) -> AgentStatus | None:
        """Return the status for the server; None when work is welcome."""
        if not self.is_on:
            return None
        if self._order is None:
            return AgentStatus(state="degraded", note=", ".join(sorted(self._troubles)))
        until = self._order.until
        return AgentStatus(
            state=self._order.state,
            note=self._order.note,
            until=datetime.fromtimestamp(until, UTC) if until is not None else None,
        )

    def apply(self, order: Order) -> str | None:
        """Take on nothing from now on. Return why the order will not survive a restart, if so."""
        self._order = order
        log.warning("pause.on", state=order.state, note=order.note)
        self._notify()
        try:
            self._write(order)
        except OSError as error:
            log.error("pause.not_kept", reason=str(error))
            return error.strerror or str(error)
        return None

    def resume(self) -> bool:
        """Revoke the order. Return True if there was one. Raises OSError."""
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)
        was_on, self._order = self._order is not None, None
        if was_on:
            log.info("pause.off")
            self._notify()
        return was_on

    def set_trouble(self, part: str, reason: str | None) -> None:
        """Note that a part of the agent cannot do its duty; with None, that it can again."""
        before = set(self._troubles)
        if reason is None:
            self._troubles.pop(part, None)
        else:
            self._troubles[part] = reason
        if before != set(self._troubles):
            self._notify()

    def _read(self) -> Order | None:
        """Return the order in the file."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Order)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.error("pause.unreadable", file=str(self._path), reason=str(error))
            return Order(state="stopped", note=f"{_FILE} cannot be read; `arc-agent resume`")

    def _write(self, order: Order) -> None:
        """Make an order durable. Raises OSError."""
        part = self._path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(order))
            file.flush()
            os.fsync(descriptor)
        part.replace(self._path)
        sync_directory(self._path.parent)

    def _notify(self) -> None:
        """Call the listeners."""
        for listener in self._listeners:
            listener()
