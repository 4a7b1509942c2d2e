"""The sync client serves programs without an event loop: it runs one in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from arc_client.bodies.params import NO_PARAMS
from arc_client.client import (
    ANYTHING,
    MAX_MEMORY_BYTES,
    MAX_RESULT_BYTES,
    RETRY_SECONDS,
    WAIT_SECONDS,
    Client,
    Command,
)
from arc_client.list_filters import ListFilter
from arc_client.retries import Retried
from arc_client.send_options import SendOptions
from arc_client.wire.create import INLINE_BYTES
from arc_client.wire.progress_callbacks import ProgressCallbacks
from arc_client.wire.wait import POLL_SECONDS
from arc_protocol.lifecycle import ShownState
from arc_protocol.messages.agents import AgentInfo, AgentList
from arc_protocol.messages.commands import AttemptInfo, CommandStatus
from arc_protocol.messages.events import EventList

T = TypeVar("T")


class SyncCommand:
    """A command that was sent, to read its status or to wait for its result."""

    def __init__(self, client: SyncClient, command: Command) -> None:
        self._client = client
        self.id: Final = command.id
        self.state: Final = command.state
        """The state when it was sent: later than PENDING if the key was used before."""
        self.idempotency_key: Final = command.idempotency_key

    def result(self, *, timeout: float | None = WAIT_SECONDS, returns: type[T] = ANYTHING) -> T:
        """Wait for the command and return its result. Raises what Client.wait does."""
        status = self._client.wait_for_end(self.id, timeout=timeout, is_known=True)
        return self._client.result_of(status, returns)

    def status(self) -> CommandStatus:
        """Return its present status. Raises what Client.status does."""
        return self._client.status(self.id)

    def cancel(self) -> CommandStatus:
        """Cancel the command. Raises what Client.cancel does."""
        return self._client.cancel(self.id)

    def __repr__(self) -> str:
        return f"SyncCommand({self.id!r})"


class SyncClient:
    """A sync client sends commands to one server. Safe from any thread.

        with SyncClient("https://arc.example.com", token_file="/etc/arc/token") as arc:
            report = arc.invoke("edge-7", "reports.generate", {"month": "2026-10"})

    Every method returns and raises what the method of that name of Client does. An interrupt
    (Ctrl-C) ends the wait for an answer, not the command.
    """

    def __init__(
        self,
        server_url: str | None = None,
        *,
        token: str | None = None,
        token_file: str | Path | None = None,
        ca_file: str | Path | None = None,
        allow_http: bool | None = None,
        retry_seconds: float = RETRY_SECONDS,
        inline_bytes: int = INLINE_BYTES,
        poll_seconds: int = POLL_SECONDS,
        callbacks: ProgressCallbacks | None = None,
        signing_key: str | Path | None = None,
        encrypt_to: str | Path | None = None,
        allow_hosts: Sequence[str] | None = None,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
        max_result_bytes: int = MAX_RESULT_BYTES,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Check the arguments, which are those of Client; start no thread yet.

        `callbacks` are called in the client's own thread. Raises ConfigurationError.
        """
        self._client = Client(
            server_url,
            token=token,
            token_file=token_file,
            ca_file=ca_file,
            allow_http=allow_http,
            retry_seconds=retry_seconds,
            inline_bytes=inline_bytes,
            poll_seconds=poll_seconds,
            callbacks=callbacks,
            signing_key=signing_key,
            encrypt_to=encrypt_to,
            allow_hosts=allow_hosts,
            max_memory_bytes=max_memory_bytes,
            max_result_bytes=max_result_bytes,
            environ=environ,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        # A daemon thread, so that a program that forgets to close its client can still end.
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
        asyncio.run_coroutine_threadsafe(_close(self._client), loop).result()
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
        wait_for_agent: bool = True,
        **options: Unpack[SendOptions],
    ) -> T:
        """Send a command, wait for it and return its result."""
        return self._run(
            self._client.invoke(
                deployment,
                command,
                params,
                timeout=timeout,
                returns=returns,
                wait_for_agent=wait_for_agent,
                **options,
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
        wait_for_agent: bool = True,
        **options: Unpack[SendOptions],
    ) -> int:
        """Send a command, stream its result into a file, and return the size."""
        return self._run(
            self._client.invoke_to_file(
                path,
                deployment,
                command,
                params,
                timeout=timeout,
                wait_for_agent=wait_for_agent,
                **options,
            )
        )

    def send(
        self,
        deployment: str,
        command: str,
        params: Any = NO_PARAMS,
        **options: Unpack[SendOptions],
    ) -> SyncCommand:
        """Create a command and do not wait for it."""
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
        """Wait for a command and return its result."""
        return self._run(self._client.wait(command_id, timeout=timeout, returns=returns))

    def wait_to_file(
        self, path: str | Path, command_id: str, *, timeout: float | None = WAIT_SECONDS
    ) -> int:
        """Wait for a command, stream its result into a file, and return the size."""
        return self._run(self._client.wait_to_file(path, command_id, timeout=timeout))

    def wait_for_end(
        self, command_id: str, *, timeout: float | None = WAIT_SECONDS, is_known: bool = False
    ) -> CommandStatus:
        """Wait until a command has ended, and return its status."""
        return self._run(self._client.wait_for_end(command_id, timeout=timeout, is_known=is_known))

    def status(self, command_id: str) -> CommandStatus:
        """Return the status of a command."""
        return self._run(self._client.status(command_id))

    def list(
        self, *, limit: int | None = None, **which: Unpack[ListFilter]
    ) -> Generator[CommandStatus]:
        """Yield commands, newest first; each page is fetched when it is needed."""
        return self._each(self._client.list(limit=limit, **which))

    def counts(self, *, deployment: str | None = None) -> Mapping[ShownState, int] | None:
        """Return how many commands are in each state, of a deployment or of all."""
        return self._run(self._client.counts(deployment=deployment))

    def cancel(self, command_id: str) -> CommandStatus:
        """Cancel a command and return its status."""
        return self._run(self._client.cancel(command_id))

    def retry(
        self,
        command_id: str,
        *,
        idempotency_key: str | None = None,
        deadline: float | timedelta | datetime | None = None,
    ) -> SyncCommand:
        """Run a command that has ended again, as a new command."""
        again = self._client.retry(command_id, idempotency_key=idempotency_key, deadline=deadline)
        return SyncCommand(self, self._run(again))

    def retry_all(self, **which: Unpack[ListFilter]) -> Generator[Retried]:
        """Run the commands of a filter that have ended again, and yield what became of each.

        The new command of an outcome is one of Client: its `id` and `state` can be read.
        """
        return self._each(self._client.retry_all(**which))

    def attempts(self, command_id: str) -> Sequence[AttemptInfo]:
        """Return the attempts of a command, in order."""
        return self._run(self._client.attempts(command_id))

    def events(self, command_id: str, *, after: int = 0) -> EventList:
        """Return what a command's handler has logged since `after`, and its progress."""
        return self._run(self._client.events(command_id, after=after))

    def agents(
        self, *, deployment: str | None = None, schemas: bool = False, old: bool = False
    ) -> Sequence[AgentInfo]:
        """Return the agents and their handlers."""
        return self._run(self._client.agents(deployment=deployment, schemas=schemas, old=old))

    def roll_call(
        self, deployment: str | None, *, schemas: bool = False, old: bool = False
    ) -> AgentList:
        """Return the agents, and what the server knows of receivers that do not register."""
        return self._run(self._client.roll_call(deployment, schemas=schemas, old=old))

    def result_of(self, status: CommandStatus, returns: type[T] = ANYTHING) -> T:
        """Return the result of a command that has ended."""
        return self._run(self._client.result_of(status, returns))

    def result_to_file(self, path: str | Path, status: CommandStatus) -> int:
        """Stream the result of a command that has ended into a file, and return the size."""
        return self._run(self._client.result_to_file(path, status))

    def result_chunks(self, status: CommandStatus) -> Generator[bytes]:
        """Yield the result of a command that has ended as it arrives."""
        return self._each(self._client.result_chunks(status))

    def _each(self, source: AsyncGenerator[T]) -> Generator[T]:
        """Step an async generator of the loop from this thread."""
        end = object()

        async def step() -> T | object:
            return await anext(source, end)

        try:
            while (item := self._run(step())) is not end:
                yield item  # pyright: ignore[reportReturnType]  # all but `end` are a T
        finally:
            if self._loop is not None:  # a client that was closed meanwhile has closed it
                self._run(source.aclose())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop's thread and wait for it; an interrupt here cancels it there."""
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is not open: use it in a `with` statement")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _close(client: Client) -> None:
    """Close the client and cancel the work that other threads have left on the loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await client.__aexit__(None, None, None)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
