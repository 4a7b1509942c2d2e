"""The audit log records every decision about a command, in a chain that shows changes.

The disk thread writes it: lines that wait together are written and fsynced together. Params,
results and secrets are never in it, only their sizes and digests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import structlog

from arc_agent.config.sections import AuditSection
from arc_agent.guard.audit_chain import AuditChain, Line, SyncFailed
from arc_agent.host.data_dir import is_passing
from arc_agent.host.disk_thread import DiskThread

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_RETRY_SECONDS: Final = 5.0
_BACKLOG_LINES: Final = 10_000
"""Lines kept until the disk can be written again; the oldest go first."""


class AuditError(Exception):
    """A log that cannot be opened; the message is one clear line."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """True if another try may succeed without an operator's help."""


class AuditUnavailable(Exception):
    """A line could not be made durable: what it speaks of must not happen."""


class _Item(msgspec.Struct, frozen=True):
    """A line for the disk thread, or None to try the backlog again."""

    line: Line | None
    is_awaited: bool
    """A caller waits until it is durable."""


class Audit:
    """The log, open. `note` and `record` may be called from the main loop only."""

    def __init__(
        self,
        directory: Path,
        settings: AuditSection,
        disk: DiskThread,
        *,
        logs_lines: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Log every line too with `logs_lines`: journald keeps it where the agent cannot write."""
        self.directory = directory
        self._chain = AuditChain(directory, settings)
        self._disk = disk
        self._logs_lines = logs_lines
        self._now = now
        self._backlog: list[Line] = []
        self._lost = 0
        self._trouble: str | None = None
        self._failure: str | None = None
        self._on_trouble: Callable[[str | None], None] = lambda _: None
        self._on_failure: Callable[[], None] = lambda: None
        self._retrying: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def open(
        self,
        *,
        on_trouble: Callable[[str | None], None],
        on_failure: Callable[[], None],
        **fields: Any,
    ) -> None:
        """Continue where the last process ended, with an `opened` line of `fields`.

        `on_trouble` is called, in this loop, with a reason when nothing can be written, and with
        None when it can be again; `on_failure` when an fsync failed. Raises AuditError.
        """
        self._on_trouble, self._on_failure = on_trouble, on_failure
        try:
            torn = await self._disk.call(self._chain.open)
        except OSError as error:
            raise AuditError(
                f"the audit log {self.directory} cannot be used: {error.strerror}",
                may_pass=is_passing(error),
            ) from None
        self.note("opened", **fields, **({"torn_bytes": torn} if torn else {}))

    async def close(self) -> None:
        """Write what waits, and close the file."""
        self._is_closed = True
        if self._retrying is not None:
            self._retrying.cancel()
        self.note("closed")
        await self._disk.call(self._end)

    def note(self, event: str, **fields: Any) -> None:
        """Write a line soon. It is durable with the next line that a caller waits for."""
        self._disk.put(self, _Item(Line(event, fields, self._now()), False))

    async def record(self, event: str, **fields: Any) -> None:
        """Write a line and wait until it is durable. Raises AuditUnavailable."""
        await self._disk.write(self, _Item(Line(event, fields, self._now()), True))

    # In the disk thread

    def write(self, items: Sequence[_Item]) -> Sequence[AuditUnavailable | None]:
        """Write the lines, and those of before that the disk has refused."""
        if self._failure is not None:
            return [AuditUnavailable(self._failure)] * len(items)
        lines = [*self._backlog, *[item.line for item in items if item.line is not None]]
        lines = lines or [Line("available", {}, self._now())]
        if self._lost:
            lines.insert(0, Line("lost", {"lines": self._lost}, self._now()))
        syncs = any(item.is_awaited for item in items)
        try:
            written = self._chain.append(lines, syncs=syncs)
        except OSError as error:
            reason = error.strerror or str(error)
            if isinstance(error, SyncFailed):
                self._fail(reason)
            self._keep([item.line for item in items if item.line and not item.is_awaited], reason)
            return [AuditUnavailable(reason)] * len(items)
        self._backlog = []
        if self._trouble is not None:
            self._trouble = None
            log.info("audit.available", lost=self._lost)
            self._disk.in_loop(lambda: self._on_trouble(None))
        self._lost = 0
        if self._logs_lines:
            _log_lines(written)
        return [None] * len(items)

    def _keep(self, lines: Sequence[Line], reason: str) -> None:
        """Keep the lines that no caller waits for, and try again later."""
        if self._trouble is None:
            log.error(
                "audit.unavailable", reason=reason, hint="no command is started until it can write"
            )
            self._disk.in_loop(lambda: self._on_trouble(reason))
        self._trouble = reason
        kept = [*self._backlog, *lines]
        self._lost += max(0, len(kept) - _BACKLOG_LINES)
        self._backlog = kept[-_BACKLOG_LINES:]
        self._disk.in_loop(self._retry_later)

    def _fail(self, reason: str) -> None:
        """Write nothing more in this process."""
        self._failure = reason
        log.critical("audit.failed", reason=reason)
        self._disk.in_loop(self._on_failure)

    def _end(self) -> None:
        """Make the last lines durable and close the file."""
        try:
            if self._failure is None:
                self._chain.sync()
        except SyncFailed as error:
            self._fail(error.strerror or str(error))
        self._chain.close()

    # In the main loop

    def _retry_later(self) -> None:
        """Try again in a while, if no line comes before."""
        if self._retrying is None and not self._is_closed and self._failure is None:
            loop = asyncio.get_running_loop()
            self._retrying = loop.call_later(_RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        """Let the disk thread try again."""
        self._retrying = None
        self._disk.put(self, _Item(None, False))


def _log_lines(lines: Sequence[bytes]) -> None:
    """Log lines as events, with their digests."""
    for line in lines:
        fields = cast("dict[str, Any]", msgspec.json.decode(line))
        event = fields.pop("event")
        log.info("audit", what=event, **fields, sha256=sha256(line).hexdigest())
