"""What is known of a command on its way, and how a person sees it: on a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arc_client.cli.explain import printable
from arc_client.cli.output import say
from arc_client.wire.progress_callbacks import ProgressCallbacks
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.base import State
from arc_protocol.messages.commands import CommandStatus, CreateCommandResponse
from arc_protocol.messages.events import EventList
from arc_protocol.messages.events import Progress as HandlerProgress

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class CommandProgress(ProgressCallbacks):
    """Remembers where the command is; shows nothing."""

    is_shown = False
    """Whether a person sees what is remembered."""

    def __init__(self, command_id: str | None = None) -> None:
        """`command_id`: when it is known beforehand."""
        self.command_id = command_id
        self.state: State | None = None
        self.is_replay = False
        """Whether an earlier create with the same key made the command."""

    @property
    def is_over(self) -> bool:
        """Whether the command has ended, as far as is known."""
        return self.state in TERMINAL

    def on_created(self, answer: CreateCommandResponse) -> None:
        """The server has the command."""
        self.command_id = answer.command_id
        self.state = answer.state
        self.is_replay = bool(answer.is_replay)

    def on_status(self, status: CommandStatus) -> None:
        """A status was read while waiting."""
        self.state = status.state

    def pause(self) -> None:
        """Leave the terminal to a question."""

    def resume(self) -> None:
        """Go on showing."""

    def note(self, text: str) -> None:
        """A line that stays."""
        say(printable(text))

    def close(self) -> None:
        """Show nothing any more."""


class TerminalProgress(CommandProgress):
    """The same, shown on stderr: bars for what moves, a clock while nothing does."""

    is_shown = True

    def __init__(self, command_id: str | None = None) -> None:
        super().__init__(command_id)
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, markup=False)
        self._shown: Progress | None = None
        self._kind = ""
        self._is_paused = False
        self._is_told = False
        self._progress: HandlerProgress | None = None

    def on_created(self, answer: CreateCommandResponse) -> None:
        """The server has the command."""
        super().on_created(answer)
        self._is_told = False
        if answer.state is not State.PENDING_UPLOAD:
            self.waiting()

    def on_upload(self, sent: int, total: int) -> None:
        """So many bytes of the params went out."""
        self._move("upload", sent, total)

    def on_status(self, status: CommandStatus) -> None:
        """A status was read while waiting."""
        super().on_status(status)
        self._is_told = False
        self.close() if self.is_over else self.waiting()

    def waiting(self) -> None:
        """Nothing moves; show the clock, and where the command stands."""
        if self._is_paused or self.command_id is None:
            return
        if self._progress is not None and self._kind == "progress":
            return  # it says more
        text = f"{printable(self.command_id)} {self.state or ''}"
        shown = self._show("wait")
        shown.update(shown.task_ids[0], description=text)

    def on_events(self, events: EventList) -> None:
        """The command's handler said something: lines stay, how far it is moves."""
        for line in events.lines:
            mark = "" if line.level == "info" else f"{line.level}: "
            self.note(f"  {mark}{line.message}")
        progress = events.progress
        if progress is None or self._is_paused or self.is_over:
            return
        self._progress = progress
        shown = self._show("progress")
        text = progress.text if progress.text is not None else self.command_id or ""
        shown.update(
            shown.task_ids[0],
            description=printable(text),
            completed=progress.done,
            total=progress.total,
        )

    def on_download(self, received: int, total: int | None) -> None:
        """So many bytes of the result came in."""
        self._move("download", received, total)

    def on_retry(self, error: ArcError) -> None:
        """Say once what is wrong; until it works again."""
        if not self._is_told:
            self.note(f"{error.message}; trying again")
        self._is_told = True

    def pause(self) -> None:
        """Leave the terminal to a question."""
        self.close()
        self._is_paused = True

    def resume(self) -> None:
        """Go on showing."""
        self._is_paused = False
        self.waiting()

    def note(self, text: str) -> None:
        """A line that stays, above what moves."""
        (self._shown.console if self._shown else self._console).print(printable(text))

    def close(self) -> None:
        """Show nothing any more."""
        shown, self._shown = self._shown, None
        if shown is not None:
            shown.stop()

    def _move(self, kind: str, done: int, total: int | None) -> None:
        if self._is_paused:
            return
        shown = self._show(kind)
        shown.update(shown.task_ids[0], completed=done, total=total)

    def _show(self, kind: str) -> Progress:
        """The bar of a kind, in place of what is shown now."""
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
    """What a bar has."""
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
