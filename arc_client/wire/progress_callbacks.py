"""What a caller may want to see while a command is on its way."""

from __future__ import annotations

from arc_protocol.errors import ArcError
from arc_protocol.messages.commands import CommandStatus, CreateCommandResponse
from arc_protocol.messages.events import EventList


class Watch:
    """Told of everything that happens; does nothing. Override what you need, and return quickly."""

    def created(self, answer: CreateCommandResponse) -> None:
        """The server has the command, but not yet its params when the state is PENDING_UPLOAD.

        Told once more when it has those too.
        """

    def uploading(self, sent: int, total: int) -> None:
        """So many bytes of the params went out. Begins again at 0 when the upload does."""

    def looked(self, status: CommandStatus) -> None:
        """A status was read while waiting."""

    def heard(self, events: EventList) -> None:
        """The command's handler said something."""

    def downloading(self, received: int, total: int | None) -> None:
        """So many bytes of the result came in; None when the server does not say how many."""

    def retrying(self, error: ArcError) -> None:
        """Something failed in passing and is about to be tried again."""
