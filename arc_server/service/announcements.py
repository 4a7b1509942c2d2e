"""Announcements wake the requests, and the push loop, that a change of commands concerns.

Both services, the sweeper and the outbox announce what they have committed. An announcement never
fails and reads nothing: a waiter that needs to know more reads the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from arc_protocol import lifecycle
from arc_protocol.messages.base import State
from arc_server.ports.pushes import PushOutlet
from arc_server.ports.records import CommandRecord, CommandWithResponse, Completion, StoredResponse
from arc_server.service.result_waiters import ResultWaiters
from arc_server.service.work_waiters import Foretold, WorkWaiters


class Announcements:
    """All that waits in this process. For the event loop only."""

    def __init__(self) -> None:
        self.work = WorkWaiters()
        self.results = ResultWaiters()
        self.push_outlet: PushOutlet | None = None
        """The outbox, while it takes commands as they are created."""
        self._push = asyncio.Event()
        self.is_closed = False

    def announce_created(
        self, command: CommandRecord, foretold: Foretold | None, *, is_delayed: bool = False
    ) -> None:
        """Announce a new command that was foretold to a poll, if there was one.

        One that `is_delayed` wakes no poll: the sweeper announces it when its instant has come.
        """
        if is_delayed and not command.is_push:
            self.results.wake_for_reasons(command.command_id)
        elif foretold is None or not foretold.is_taken(command.command_id):
            self.announce(command)
        elif foretold.target_id is None:  # if that poll leaves, it wakes none that names the target
            self.work.wake_named(command.deployment_id, command.target.resource_id)

    def announce(self, command: CommandRecord) -> None:
        """Wake the waiters of a command that has ended, or that is ready to be leased or pushed."""
        if command.state in lifecycle.TERMINAL:
            self.results.wake(command.command_id)
            return
        self.results.wake_for_reasons(command.command_id)
        if command.state is not State.PENDING:
            return
        if command.is_push:
            self.push_ready()
        else:
            self.work.wake(command.deployment_id, command.target.resource_id)

    def announce_swept(self, commands: Sequence[CommandRecord]) -> None:
        """Announce commands that have changed without a request for them.

        The holder of a lease that lapsed did not renew it, so its poll that still waits may be a
        connection without a client. The poll is ended, or the command would go straight back there.
        """
        for command in commands:
            if command.state is State.PENDING and command.lease_holder is not None:
                self.work.dismiss(
                    (command.deployment_id, command.lease_holder, command.lease_credential)
                )
            self.announce(command)

    def announce_completion(self, completion: Completion, response: StoredResponse) -> bool:
        """Announce a submitted response; return True if the command has ended with it."""
        command = completion.command
        is_kept = completion.changed and command.state is not State.EXPIRED
        if completion.changed:
            ended = CommandWithResponse(command=command, response=response if is_kept else None)
            self.results.wake(command.command_id, ended)
        return is_kept

    def announce_cancel(self, command: CommandRecord) -> None:
        """Announce a cancelled command, to the senders or to its holder."""
        if command.state in lifecycle.TERMINAL:
            self.announce(command)
        elif command.state is State.DISPATCHED and command.lease_holder and command.lease_id:
            holder = (command.deployment_id, command.lease_holder, command.lease_credential)
            self.work.request_cancel(holder, command.lease_id)

    def push_ready(self) -> None:
        """Wake the push loop."""
        self._push.set()

    async def wait_for_push(self, seconds: float | None) -> None:
        """Wait until a push is due or that much time has passed."""
        try:
            async with asyncio.timeout(seconds):
                await self._push.wait()
        except TimeoutError:
            return
        self._push.clear()

    def close(self) -> None:
        """End every wait, and let no request wait again: the server stops."""
        self.is_closed = True
        self._push.set()
        self.work.close()
        self.results.close()
