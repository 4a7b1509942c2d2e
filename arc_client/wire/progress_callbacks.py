"""Progress callbacks let a caller show what happens while a command is on its way."""

from __future__ import annotations

from arc_protocol.errors import ArcError
from arc_protocol.messages.commands import CommandStatus, CreateCommandResponse
from arc_protocol.messages.events import EventList


class ProgressCallbacks:
    """Progress callbacks do nothing by default. Override what you need, and return quickly."""

    def on_created(self, answer: CreateCommandResponse) -> None:
        """Show that the server has the command, without its params while it is PENDING_UPLOAD.

        Called once more when the params are uploaded.
        """

    def on_upload(self, sent: int, total: int) -> None:
        """Show that `sent` of `total` bytes of the params went out; 0 when it starts anew."""

    def on_status(self, status: CommandStatus) -> None:
        """Show a status that was read during a wait."""

    def on_waiting(self, status: CommandStatus) -> None:
        """Show that a command waits for another reason now: `status.waiting`, None for no reason.

        Called during a wait, after `on_status`.
        """

    def on_events(self, events: EventList) -> None:
        """Show what the command's handler has logged, and its progress."""

    def on_download(self, received: int, total: int | None) -> None:
        """Show that `received` bytes of the result arrived; `total` is None when it is unknown."""

    def on_retry(self, error: ArcError) -> None:
        """Show that a request failed in passing and is about to be tried again."""
