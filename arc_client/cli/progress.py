"""The progress of a command on its way, and how a terminal shows it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from arc_client.cli.output import show_message
from arc_client.wire.progress_callbacks import ProgressCallbacks
from arc_client.wire.waiting_reasons import reason_of
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.base import State
from arc_protocol.messages.commands import CommandStatus, CreateCommandResponse
from arc_protocol.messages.events import EventList
from arc_protocol.messages.events import Progress as HandlerProgress
from arc_runtime.terminal.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


_CLOCK_CELLS: Final = 10
"""The cells that the spinner and the clock of a wait take, with the spaces beside them."""


def _is_absent(status: CommandStatus) -> bool:
    """Return True if it is certain that no agent is there to take a command."""
    return status.waiting is not None and bool(status.waiting.is_absent)


class CommandProgress(ProgressCallbacks):
    """A command's progress: its id and state as last read. Shows nothing but messages."""

    is_shown = False
    """True: a person sees it."""
    is_paused = False
    """True: a question stands at the terminal."""

    def __init__(self) -> None:
        self.command_id: str | None = None
        self.state: State | None = None
        self.is_replay = False
        """True: an earlier create with this key made the command."""
        self.gives_up = False
        """True: the command is cancelled if no agent is there to take it."""
        self._status: CommandStatus | None = None
        self._has_reason = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Return True if the command has ended, as far as is known."""
        return self.state in TERMINAL

    def on_created(self, answer: CreateCommandResponse) -> None:
        """Keep the command's id and state."""
        self.command_id = answer.command_id
        self.state = answer.state
        self.is_replay = bool(answer.is_replay) or answer.created is False

    def on_status(self, status: CommandStatus) -> None:
        """Keep the command's state."""
        self.state = status.state
        self._status = status

    @property
    def reason(self) -> str | None:
        """Return why the command waits; None if nothing is known."""
        return None if self._status is None else reason_of(self._status)

    def on_waiting(self, status: CommandStatus) -> None:
        """Write why the command waits, unless it is about to be cancelled for that reason."""
        self._status = status
        self._has_reason.set()
        if not (self.gives_up and _is_absent(status)):
            self._show_reason()

    async def until_absent(self) -> str:
        """Wait until it is certain that no agent is there to take the command; return why."""
        while self._status is None or not _is_absent(self._status):
            self._has_reason.clear()
            await self._has_reason.wait()
        return self.reason or ""

    def _show_reason(self) -> None:
        """Write the reason on a line, when it changes."""
        if self.reason is not None:
            self.show_message(f"still waiting: {self.reason}")

    def pause(self) -> None:
        """Leave the terminal to a question."""

    def resume(self) -> None:
        """Show progress again."""

    def show_message(self, text: str) -> None:
        """Write a line that stays."""
        show_message(text)

    def close(self) -> None:
        """Stop showing progress."""


class TerminalProgress(CommandProgress):
    """A terminal's progress goes to stderr: bars for transfers, a clock during a wait."""

    is_shown = True

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, markup=False)
        self._shown: Progress | None = None
        self._kind = ""
        self._has_shown_trouble = False
        self._handler_progress: HandlerProgress | None = None

    def on_created(self, answer: CreateCommandResponse) -> None:
        """Keep the command's id and state."""
        super().on_created(answer)
        self._has_shown_trouble = False
        if answer.state is not State.PENDING_UPLOAD:
            self.waiting()

    def on_upload(self, sent: int, total: int) -> None:
        """Show how much of the params went out."""
        self._move("upload", sent, total)

    def on_status(self, status: CommandStatus) -> None:
        """Keep the command's state."""
        super().on_status(status)
        self._has_shown_trouble = False
        self.close() if self.is_over else self.waiting()

    def waiting(self) -> None:
        """Show the clock, and the command's state."""
        if self.is_paused or self.command_id is None:
            return
        if self._handler_progress is not None and self._kind == "progress":
            return  # the handler's own progress says more
        text = f"{self.state or ''}" + (f": {printable(self.reason)}" if self.reason else "")
        whole = f"{printable(self.command_id)} {text}"
        if len(whole) <= self._console.width - _CLOCK_CELLS:  # the reason says more than the id
            text = whole
        shown = self._show("wait")
        shown.update(shown.task_ids[0], description=text)

    def _show_reason(self) -> None:
        """Show the reason beside the clock."""
        self.waiting()

    def on_events(self, events: EventList) -> None:
        """Write the handler's lines, which stay, and show its progress."""
        for line in events.lines:
            mark = "" if line.level == "info" else f"{line.level}: "
            self.show_message(f"  {mark}{line.message}")
        progress = events.progress
        if progress is None or self.is_paused or self.is_over:
            return
        self._handler_progress = progress
        shown = self._show("progress")
        text = progress.text if progress.text is not None else self.command_id or ""
        shown.update(
            shown.task_ids[0],
            description=printable(text),
            completed=progress.done,
            total=progress.total,
        )

    def on_download(self, received: int, total: int | None) -> None:
        """Show how much of the result arrived."""
        self._move("download", received, total)

    def on_retry(self, error: ArcError) -> None:
        """Write once what is wrong, until a request succeeds again."""
        if not self._has_shown_trouble:
            self.show_message(f"{error.message}; trying again")
        self._has_shown_trouble = True

    def pause(self) -> None:
        """Leave the terminal to a question."""
        self.close()
        self.is_paused = True

    def resume(self) -> None:
        """Show progress again."""
        self.is_paused = False
        self.waiting()

    def show_message(self, text: str) -> None:
        """Write a line that stays, above what moves."""
        (self._shown.console if self._shown else self._console).print(printable(text))

    def close(self) -> None:
        """Stop showing progress."""
        shown, self._shown = self._shown, None
        if shown is not None:
            shown.stop()

    def _move(self, kind: str, done: int, total: int | None) -> None:
        if self.is_paused:
            return
        shown = self._show(kind)
        shown.update(shown.task_ids[0], completed=done, total=total)

    def _show(self, kind: str) -> Progress:
        """Return the bar of a kind, shown in place of any other."""
        from rich.progress import Progress

        if self._shown is not None and self._kind == kind:
            return self._shown
        self.close()
        self._kind = kind
        self._shown = Progress(
            *_columns(kind), console=self._console, transient=True, redirect_stdout=False
        )
        self._shown.add_task(kind if kind.endswith("load") else "", total=None)
        self._shown.start()
        return self._shown


def _columns(kind: str) -> list[ProgressColumn]:
    """Return the columns of a bar."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    if kind == "wait":
        return [SpinnerColumn(), text, TimeElapsedColumn()]
    if kind == "progress":
        return [text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn()]
    return [text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
