"""The sender for programs without an event loop: the same, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from arc_client.bodies.params import NO_PARAMS
from arc_client.client import ANYTHING, RETRY_SECONDS, WAIT_SECONDS, Client, Command, SendOptions
from arc_client.wire.progress_callbacks import Watch
from arc_client.wire.wait import POLL_SECONDS
from arc_protocol.messages.agents import AgentInfo, AgentList
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import DEFAULT_INLINE_BYTES
from arc_protocol.messages.commands import CommandStatus
from arc_protocol.messages.events import EventList

T = TypeVar("T")


class SyncCommand:
    """A command that was sent, to ask about or to wait for."""

    def __init__(self, client: SyncClient, command: Command) -> None:
        self._client = client
        self.id: Final = command.id
        self.state: Final = command.state
        """Where it stood when it was sent: further on, for a key that was used before."""
        self.idempotency_key: Final = command.idempotency_key

    def result(self, *, timeout: float | None = WAIT_SECONDS, returns: type[T] = ANYTHING) -> T:
        """Wait for it; see Client.wait."""
        status = self._client.wait_for_end(self.id, timeout=timeout, is_known=True)
        return self._client.result_of(status, returns)

    def status(self) -> CommandStatus:
        """Where it stands now; see Client.status."""
        return self._client.status(self.id)

    def cancel(self) -> CommandStatus:
        """Stop it; see Client.cancel."""
        return self._client.cancel(self.id)

    def __repr__(self) -> str:
        return f"SyncCommand({self.id!r})"


class SyncClient:
    """A sender's connection to one server, for any number of threads.

        with SyncClient("https://arc.example.com", token_file="/etc/arc/token") as arc:
            report = arc.invoke("edge-7", "reports.generate", {"month": "2026-10"})

    Every method is that of Client with its name. An interrupt (Ctrl-C) ends the wait for an
    answer, not the command.
    """

    def __init__(
        self,
        server_url: str,
        *,
        token: str | None = None,
        token_file: str | Path | None = None,
        ca_file: str | Path | None = None,
        retry_seconds: float = RETRY_SECONDS,
        inline_bytes: int = DEFAULT_INLINE_BYTES,
        poll_seconds: int = POLL_SECONDS,
        watch: Watch | None = None,
        signing_key: str | Path | None = None,
        encrypt_to: str | Path | None = None,
    ) -> None:
        """Nothing is sent and no thread started yet; see Client. Raises ConfigurationError.

        `watch` is called in the client's own thread.
        """
        self._client = Client(
            server_url,
            token=token,
            token_file=token_file,
            ca_file=ca_file,
            retry_seconds=retry_seconds,
            inline_bytes=inline_bytes,
            poll_seconds=poll_seconds,
            watch=watch,
            signing_key=signing_key,
            encrypt_to=encrypt_to,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        # A daemon, so that a program that forgets to close its client can still end.
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="arc-client", daemon=True
        )
        self._thread.start()
        self._run(self._client.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._thread is not None
        loop, self._loop = self._loop, None
        asyncio.run_coroutine_threadsafe(_wind_up(self._client), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()

    def invoke(
        self,
        deployment: str,
        command: str,
        params: Any = NO_PARAMS,
        *,
        timeout: float | None = WAIT_SECONDS,
        returns: type[T] = ANYTHING,
        **options: Unpack[SendOptions],
    ) -> T:
        """Send a command, wait for it and return its result; see Client.invoke."""
        return self._run(
            self._client.invoke(
                deployment, command, params, timeout=timeout, returns=returns, **options
            )
        )

    def invoke_to_file(
        self,
        path: str | Path,
        deployment: str,
        command: str,
        params: Any = NO_PARAMS,
        *,
        timeout: float | None = WAIT_SECONDS,
        **options: Unpack[SendOptions],
    ) -> int:
        """As `invoke`, but stream the result into a file; see Client.invoke_to_file."""
        return self._run(
            self._client.invoke_to_file(
                path, deployment, command, params, timeout=timeout, **options
            )
        )

    def send(
        self,
        deployment: str,
        command: str,
        params: Any = NO_PARAMS,
        **options: Unpack[SendOptions],
    ) -> SyncCommand:
        """Create a command and do not wait for it; see Client.send."""
        return SyncCommand(
            self, self._run(self._client.send(deployment, command, params, **options))
        )

    def wait(
        self,
        command_id: str,
        *,
        timeout: float | None = WAIT_SECONDS,
        returns: type[T] = ANYTHING,
    ) -> T:
        """Wait for a command and return its result; see Client.wait."""
        return self._run(self._client.wait(command_id, timeout=timeout, returns=returns))

    def wait_to_file(
        self, path: str | Path, command_id: str, *, timeout: float | None = WAIT_SECONDS
    ) -> int:
        """Wait for a command and stream its result into a file; see Client.wait_to_file."""
        return self._run(self._client.wait_to_file(path, command_id, timeout=timeout))

    def wait_for_end(
        self, command_id: str, *, timeout: float | None = WAIT_SECONDS, is_known: bool = False
    ) -> CommandStatus:
        """Wait until a command has ended; see Client.wait_for_end."""
        return self._run(self._client.wait_for_end(command_id, timeout=timeout, is_known=is_known))

    def status(self, command_id: str) -> CommandStatus:
        """Where a command stands; see Client.status."""
        return self._run(self._client.status(command_id))

    def list(
        self,
        *,
        deployment: str | None = None,
        state: State | None = None,
        command: str | None = None,
        limit: int | None = None,
    ) -> Generator[CommandStatus]:
        """Commands, newest first, fetched while you iterate; see Client.list."""
        return self._each(
            self._client.list(deployment=deployment, state=state, command=command, limit=limit)
        )

    def cancel(self, command_id: str) -> CommandStatus:
        """Stop a command; see Client.cancel."""
        return self._run(self._client.cancel(command_id))

    def events(self, command_id: str, *, after: int = 0) -> EventList:
        """What a command's handler has said; see Client.events."""
        return self._run(self._client.events(command_id, after=after))

    def agents(
        self, *, deployment: str | None = None, schemas: bool = False
    ) -> Sequence[AgentInfo]:
        """Who is there to run commands; see Client.agents."""
        return self._run(self._client.agents(deployment=deployment, schemas=schemas))

    def roll_call(self, deployment: str | None, *, schemas: bool = False) -> AgentList:
        """The same, and what else the server knows; see Client.roll_call."""
        return self._run(self._client.roll_call(deployment, schemas=schemas))

    def result_of(self, status: CommandStatus, returns: type[T] = ANYTHING) -> T:
        """The result of a command that has ended, in memory; see Client.result_of."""
        return self._run(self._client.result_of(status, returns))

    def result_to_file(self, path: str | Path, status: CommandStatus) -> int:
        """Stream the result of a command that has ended into a file; see Client.result_to_file."""
        return self._run(self._client.result_to_file(path, status))

    def result_chunks(self, status: CommandStatus) -> Generator[bytes]:
        """The bytes of a result as they come in; see Client.result_chunks."""
        return self._each(self._client.result_chunks(status))

    def _each(self, source: AsyncGenerator[T]) -> Generator[T]:
        """An async generator, stepped from here."""
        end = object()

        async def step() -> T | object:
            return await anext(source, end)

        try:
            while (item := self._run(step())) is not end:
                yield item  # pyright: ignore[reportReturnType]  # all but `end` are a T
        finally:
            if self._loop is not None:  # closed while somebody was still iterating: nothing to do
                self._run(source.aclose())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it on the loop's thread and wait for it; an interrupt here cancels it there."""
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is not open: use it in a `with` statement")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _wind_up(client: Client) -> None:
    """Close the client and end whatever other threads left running on the loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await client.__aexit__(None, None, None)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
