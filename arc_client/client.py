"""The client creates a command, waits for it, and fetches its result."""

# ruff: noqa: ASYNC109  # these time-outs end a wait and nothing else: the command goes on

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack, cast

import msgspec

from arc_client.bodies.params import NO_PARAMS, Body, body_of
from arc_client.bodies.results import decoded, write_file
from arc_client.bodies.sealed import SenderSeals
from arc_client.bodies.signing import new_nonce, read_signing_key, sign
from arc_client.environment import access_of, file_of
from arc_client.errors import AgentAbsent, ConfigurationError
from arc_client.list_filters import ListFilter, check_filtered, query_of
from arc_client.retries import Retried, retry_each
from arc_client.send_options import SendOptions, checked_tags, instant_of
from arc_client.wire.connection import ANSWER_SECONDS, SenderConnection
from arc_client.wire.create import INLINE_BYTES, Creation
from arc_client.wire.events import follow_events, read_events
from arc_client.wire.idempotency import new_idempotency_key
from arc_client.wire.progress_callbacks import ProgressCallbacks
from arc_client.wire.result_reader import ResultLimits, ResultReader
from arc_client.wire.retry import SystemWaitClock, WaitClock, retried
from arc_client.wire.wait import POLL_SECONDS, read_status, wait_for_end
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import TERMINAL, ShownState
from arc_protocol.messages.agents import AgentInfo, AgentList
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import InlineBody, StorageBody
from arc_protocol.messages.commands import (
    AttemptInfo,
    AttemptList,
    CommandCounts,
    CommandList,
    CommandStatus,
    CreateCommandRequest,
    CreateCommandResponse,
    RetryRequest,
)
from arc_protocol.messages.events import EventList
from arc_runtime.key_files import PrivateKey

T = TypeVar("T")

ANYTHING: Final = cast("type[Any]", Any)
"""For `returns`: decode JSON to dicts, lists and plain values."""
WAIT_SECONDS: Final = 60.0
"""The time that `invoke` and `wait` wait by default, as every public sender does."""
RETRY_SECONDS: Final = 30.0
"""The time for which a request that fails in passing is tried again."""
MAX_MEMORY_BYTES: Final = 256 * 1024 * 1024
"""The largest result that `invoke` reads into memory: a server may lie about its size."""
MAX_RESULT_BYTES: Final = 5 * 1024 * 1024 * 1024
"""The largest result that is written to a file: as large as a server stores by default."""

FIRST_WAIT_SECONDS: Final = 1.0
"""The time for which `invoke` asks the server to hold the create: most commands are quick, and
those need no second request."""

MAX_AGENT_PAGES: Final = 1_000
"""The pages of agents that are read: a server that never ends is not followed for ever."""
_PAGE: Final = 100
"""The most commands on a page of a list."""


class Command:
    """A command that was sent, to read its status or to wait for its result."""

    def __init__(
        self,
        client: Client,
        created: CreateCommandResponse,
        key: str,
        *,
        held_seconds: float = 0,
    ) -> None:
        self._client = client
        self.id: Final = created.command_id
        self.state: Final = created.state
        """The state when it was sent: later than PENDING if the key was used before."""
        self.idempotency_key: Final = key
        self.is_new: Final = not created.is_replay and created.created is not False
        """False: an earlier create with this key made the command."""
        self._status = created.status
        self.held_seconds: Final = held_seconds
        """The seconds for which the server held the create until the command's end."""

    async def result(
        self, *, timeout: float | None = WAIT_SECONDS, returns: type[T] = ANYTHING
    ) -> T:
        """Wait for the command and return its result. Raises what Client.wait does."""
        return await self._client.result_of(await self.end(timeout=timeout), returns)

    async def end(self, *, timeout: float | None = WAIT_SECONDS) -> CommandStatus:
        """Wait until the command has ended. Raises what Client.wait_for_end does."""
        return self.last or await self._client.wait_for_end(self.id, timeout=timeout, is_known=True)

    @property
    def last(self) -> CommandStatus | None:
        """Return the status of a command that ended while it was sent, None for any other."""
        status = self._status
        return status if status is not None and status.state in TERMINAL else None

    async def status(self) -> CommandStatus:
        """Return its present status. Raises what Client.status does."""
        return await self._client.status(self.id)

    async def cancel(self) -> CommandStatus:
        """Cancel the command. Raises what Client.cancel does."""
        return await self._client.cancel(self.id)

    def __repr__(self) -> str:
        return f"Command({self.id!r})"


class Client:
    """A client sends commands to one server.

        async with Client("https://arc.example.com", token_file="/etc/arc/token") as arc:
            report = await arc.invoke("edge-7", "reports.generate", {"month": "2026-10"})

    Every create carries an idempotency key, so a request that fails in passing is tried again
    without running anything twice. One client serves any number of tasks of one event loop. Every
    error is in the tree of arc_client.errors.
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
        clock: WaitClock | None = None,
        signing_key: str | Path | None = None,
        encrypt_to: str | Path | None = None,
        allow_hosts: Sequence[str] | None = None,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
        max_result_bytes: int = MAX_RESULT_BYTES,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Check the arguments; send nothing yet. Raises ConfigurationError.

        Server, token, `ca_file`, `allow_http`, `signing_key` and `allow_hosts` come from `environ`
        unless they are given, from the variables that `arc` reads (arc_client.environment).
        `server_url` may end in `/v1`. A token file is read again when its token is refused.
        `ca_file` holds the certificates (PEM) to trust in place of the system's.
        `allow_http`: the server may be at an `http://` URL off loopback.
        `retry_seconds`: how long a request that fails in passing is tried again.
        `inline_bytes`: larger params are uploaded. The limit is not learnt from the server, because
        a key must be sent with the same body each time; a server moves an inline body that is too
        large for it by itself. `poll_seconds`: how long one status request asks the server to hold
        it; keep it below what a proxy on the way cuts off at. `clock` is for tests.
        `signing_key`: the file of a private key (`arc keys new`) that signs every command.
        `encrypt_to`: the file of a host's public key (`arc-agent keys new`); params are sealed for
        that host, and results must be sealed for the signing key.
        `allow_hosts`: private hosts (`blobs.corp`, `*.corp`, `10.2.0.0/16`) that the server may
        send this client to for large params and results, besides itself and public hosts.
        `max_memory_bytes` and `max_result_bytes`: the largest results that are read into memory,
        and into a file; a larger one raises ResultUnreadable.
        """
        access = access_of(
            environ,
            server_url=server_url,
            token=token,
            token_file=token_file,
            ca_file=ca_file,
            allow_http=allow_http,
            allow_hosts=allow_hosts,
        )
        self._connection = SenderConnection(**access._asdict())
        self._retry_seconds = retry_seconds
        self._inline_bytes = inline_bytes
        self._poll_seconds = poll_seconds
        self._callbacks = callbacks or ProgressCallbacks()
        self._clock = clock or SystemWaitClock()
        signing_key = signing_key or file_of(environ, "ARC_SIGNING_KEY_FILE")
        self._signing_key = None if signing_key is None else read_signing_key(signing_key)
        self._seals = None if encrypt_to is None else _seals(self._signing_key, encrypt_to)
        self._results = ResultReader(
            self._connection,
            lambda command_id: self._read_status(command_id, self._retry_seconds),
            seals=self._seals,
            clock=self._clock,
            retry_seconds=retry_seconds,
            limits=ResultLimits(max_memory_bytes, max_result_bytes),
            callbacks=self._callbacks,
        )

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._connection.close()

    async def invoke(
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
        """Send a command, wait for it and return its result.

        `params`: a JSON value, or bytes, a Path, a binary file, an async iterable of bytes.
        `timeout`: seconds to wait once the server has the command; None waits for ever. A wait that
        runs out leaves the command running, until its deadline if it has one. `returns`: the type
        of the result (a struct, a dataclass, `bytes` for a result that is not JSON).
        `wait_for_agent`: False cancels the command and raises AgentAbsent as soon as it is certain
        that no agent is there to take it. A command that an earlier call made with this
        `idempotency_key` is not cancelled.

        Raises CommandFailed, CommandExpired, CommandTimeout and the rest of arc_client.errors.
        Cancelling this call does not cancel the command.
        """
        status = await self._invoke(
            deployment, command, params, options, timeout, wait_for_agent=wait_for_agent
        )
        return await self.result_of(status, returns)

    async def invoke_to_file(
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
        """Send a command, stream its result into a file byte for byte, and return the size.

        The file appears whole or not at all. Raises what `invoke` does, and OSError.
        """
        status = await self._invoke(
            deployment, command, params, options, timeout, wait_for_agent=wait_for_agent
        )
        return await self.result_to_file(path, status)

    async def send(
        self,
        deployment: str,
        command: str,
        params: Any = NO_PARAMS,
        **options: Unpack[SendOptions],
    ) -> Command:
        """Create a command, upload its params if they are large, and do not wait for it.

        An error carries the `idempotency_key` in its `context`: to repeat the call with it is safe.
        """
        return await self._send(deployment, command, params, options, self._retry_seconds)

    async def wait(
        self,
        command_id: str,
        *,
        timeout: float | None = WAIT_SECONDS,
        returns: type[T] = ANYTHING,
    ) -> T:
        """Wait for a command and return its result. Raises what `invoke` does."""
        status = await self.wait_for_end(command_id, timeout=timeout)
        return await self.result_of(status, returns)

    async def wait_to_file(
        self, path: str | Path, command_id: str, *, timeout: float | None = WAIT_SECONDS
    ) -> int:
        """Wait for a command, stream its result into a file, and return the size.

        Raises what `invoke_to_file` does.
        """
        status = await self.wait_for_end(command_id, timeout=timeout)
        return await self.result_to_file(path, status)

    async def wait_for_end(
        self, command_id: str, *, timeout: float | None = WAIT_SECONDS, is_known: bool = False
    ) -> CommandStatus:
        """Wait until a command is SUCCEEDED, FAILED or EXPIRED, and return its status.

        The command must first be found within `retry_seconds`, unless the caller knows that it
        exists (`is_known`). After that a request that fails in passing does not end the wait.
        Raises CommandTimeout, and what `status` does.
        """
        begun_at = self._clock.monotonic()
        if not is_known:
            await self._read_status(command_id, self._patience(timeout), timeout)
        return await self._wait(command_id, timeout, self._clock.monotonic() - begun_at)

    async def _wait(
        self,
        command_id: str,
        timeout: float | None,
        waited_seconds: float,
        *,
        on_absent: Callable[[str], Awaitable[None]] | None = None,
    ) -> CommandStatus:
        """Wait for the rest of a time-out until a command has ended."""
        status = await wait_for_end(
            self._connection,
            command_id,
            timeout=timeout,
            waited_seconds=waited_seconds,
            on_absent=on_absent,
            poll_seconds=self._poll_seconds,
            clock=self._clock,
            callbacks=self._callbacks,
        )
        return self._with_opened_error(status)

    async def status(self, command_id: str) -> CommandStatus:
        """Return the status of a command, with its response once it has ended.

        Raises CommandNotFound.
        """
        return self._with_opened_error(await self._read_status(command_id, self._retry_seconds))

    async def list(
        self, *, limit: int | None = None, **which: Unpack[ListFilter]
    ) -> AsyncGenerator[CommandStatus]:
        """Yield commands, newest first, at most `limit`; each page is fetched when it is needed.

        Raises NotFound or MethodNotAllowed on a server that has the base protocol only,
        OperationNotSupported on one that does not know a filter.
        """
        fields = query_of(which)
        cursor: str | None = None
        remaining = limit
        while remaining is None or remaining > 0:
            size = min(remaining, _PAGE) if remaining is not None else None
            query = {**fields, "limit": size, "cursor": cursor}
            page = await self._get(self._connection.url("commands", query=query), CommandList)
            check_filtered(fields, page)
            for status in page.commands[:remaining]:
                yield status
            remaining = remaining - len(page.commands) if remaining is not None else None
            cursor = page.cursor
            if cursor is None:
                return

    async def counts(self, *, deployment: str | None = None) -> Mapping[ShownState, int] | None:
        """Return how many commands are in each state, of a deployment or of all.

        None for a token that may see some names of commands only. Raises NotFound or
        MethodNotAllowed on a server that does not count.
        """
        url = self._connection.url("commands", "counts", query={"deploymentId": deployment})
        counts = (await self._get(url, CommandCounts)).counts
        return None if counts is None else {each: counts.get(each, 0) for each in ShownState}

    async def attempts(self, command_id: str) -> Sequence[AttemptInfo]:
        """Return the attempts of a command, in order: who held it, when, and how that ended.

        Raises CommandNotFound; NotFound or MethodNotAllowed on a server that does not keep them.
        """
        url = self._connection.url("commands", command_id, "attempts")
        return (await self._get(url, AttemptList)).attempts

    async def events(self, command_id: str, *, after: int = 0) -> EventList:
        """Return the lines that a command's handler has logged since `after`, and its progress.

        Raises CommandNotFound; NotFound or MethodNotAllowed on a server that keeps no events.
        """
        return await self._with_retries(
            lambda: read_events(self._connection, command_id, after=after, wait_seconds=0),
            self._retry_seconds,
        )

    async def follow(self, command_id: str) -> AsyncGenerator[EventList]:
        """Yield a command's events as they happen, until it has ended and all were read.

        Raises what `events` does.
        """
        async with aclosing(
            follow_events(
                self._connection, command_id, poll_seconds=self._poll_seconds, clock=self._clock
            )
        ) as batches:
            async for batch in batches:
                yield batch

    async def cancel(self, command_id: str) -> CommandStatus:
        """Cancel a command and return its status.

        A command that no agent holds is FAILED with CANCELLED at once. An agent that runs it is
        notified, and `cancel_requested` is set until it has stopped. A command that has ended stays
        as it is. Raises CommandNotFound; NotFound or MethodNotAllowed on a server that has the base
        protocol only.
        """
        url = self._connection.url("commands", command_id, "cancel")
        return await self._with_retries(
            lambda: self._connection.call("POST", url, CommandStatus), self._retry_seconds
        )

    async def retry(
        self,
        command_id: str,
        *,
        idempotency_key: str | None = None,
        deadline: float | timedelta | datetime | None = None,
    ) -> Command:
        """Run a command that has ended again, with the same params, as a new command.

        Without a `deadline` the new command has as much time as the old one had. An error carries
        the `idempotency_key` in its `context`: to repeat the call with it is safe. Raises
        CommandNotFound; InvalidStateTransition for a command that has not ended; Conflict when its
        params are no longer stored, or when it was signed: its sender has to send it anew; NotFound
        or MethodNotAllowed on a server that has the base protocol only.
        """
        key = new_idempotency_key() if idempotency_key is None else idempotency_key
        url = self._connection.url("commands", command_id, "retry")
        request = RetryRequest(idempotency_key=key, deadline=instant_of(deadline))
        try:
            created = await self._with_retries(
                lambda: self._connection.call("POST", url, CreateCommandResponse, message=request),
                self._retry_seconds,
            )
        except ArcError as error:
            error.context = {**error.context, "idempotency_key": key}
            raise
        return Command(self, created, key)

    async def retry_all(self, **which: Unpack[ListFilter]) -> AsyncGenerator[Retried]:
        """Run the commands of a filter that have ended again, and yield what became of each.

        Each new command has an idempotency key that is made from the id of the old one. So a retry
        that broke off can be begun anew: no command runs again twice. Without `state` and `states`
        the filter finds those that FAILED otherwise than by a cancel.

        Raises what `list` does, and the errors of `retry` that do not concern one command alone.
        """
        if which.get("state") is None and which.get("states") is None:
            which = {**which, "states": [ShownState.FAILED]}
        found = [status.command_id async for status in self.list(**which)]
        async with aclosing(self.retry_each(found)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def retry_each(self, command_ids: Iterable[str]) -> AsyncGenerator[Retried]:
        """Run commands again that have ended, as `retry_all` does, and yield what became of each.

        Raises the errors of `retry` that do not concern one command alone.
        """

        async def retry(command_id: str, key: str) -> Command:
            return await self.retry(command_id, idempotency_key=key)

        async with aclosing(retry_each(retry, command_ids)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def agents(
        self, *, deployment: str | None = None, schemas: bool = False, old: bool = False
    ) -> Sequence[AgentInfo]:
        """Return the agents: when each was last seen, what it runs and which handlers it has.

        `schemas` asks for the schemas of params and results, too; `old` for agents that were
        started anew since, or have been gone for long. Raises NotFound or MethodNotAllowed on a
        server that has the base protocol only.
        """
        agents = (await self.roll_call(deployment, schemas=schemas, old=old)).agents
        return [a for a in agents if deployment is None or a.deployment_id == deployment]

    async def roll_call(
        self, deployment: str | None, *, schemas: bool = False, old: bool = False
    ) -> AgentList:
        """Return the agents, and what the server knows of receivers that do not register.

        Raises what `agents` does.
        """
        query = {
            "deploymentId": deployment,
            "schemas": "true" if schemas else None,
            "all": "true" if old else None,
        }
        first = page = await self._get(self._connection.url("agents", query=query), AgentList)
        agents = list(first.agents)
        for _ in range(MAX_AGENT_PAGES):
            if page.cursor is None:
                break
            following = query | {"cursor": page.cursor}
            page = await self._get(self._connection.url("agents", query=following), AgentList)
            agents += page.agents
        if page is not first:  # a page is in order, pages are not
            agents.sort(key=lambda agent: agent.last_seen_at, reverse=True)
        return msgspec.structs.replace(first, agents=agents, cursor=page.cursor)

    async def result_of(self, status: CommandStatus, returns: type[T] = ANYTHING) -> T:
        """Return the result of a command that has ended, decoded as `invoke` does.

        Raises CommandFailed, CommandExpired, ResultUnreadable.
        """
        return decoded(await self._results.read(status), returns, status.command_id)

    async def result_to_file(self, path: str | Path, status: CommandStatus) -> int:
        """Stream the result of a command that has ended into a file, and return the size.

        The file appears whole or not at all. Raises what `result_of` does, and OSError.
        """
        async with aclosing(self._results.chunks(status)) as chunks:
            return await write_file(Path(path), chunks)

    def result_chunks(self, status: CommandStatus) -> AsyncGenerator[bytes]:
        """Yield the result of a command that has ended as it arrives.

        A download that breaks goes on where it broke. Raises what `result_of` does.
        """
        return self._results.chunks(status)

    async def _invoke(
        self,
        deployment: str,
        command: str,
        params: Any,
        options: SendOptions,
        timeout: float | None,
        *,
        wait_for_agent: bool,
    ) -> CommandStatus:
        """Create a command and wait for its end; a quick one ends within the first request."""
        wait = FIRST_WAIT_SECONDS if timeout is None else min(FIRST_WAIT_SECONDS, timeout)
        sent = await self._send(
            deployment, command, params, options, self._patience(timeout), wait_seconds=wait
        )
        # A retry of this very call may find the command that its first try made.
        is_own = sent.is_new or options.get("idempotency_key") is None
        gives_up = is_own and not wait_for_agent
        return sent.last or await self._wait(
            sent.id,
            timeout,
            sent.held_seconds,
            on_absent=partial(self._give_up, sent.id) if gives_up else None,
        )

    async def _give_up(self, command_id: str, reason: str) -> None:
        """Cancel a command. Raises AgentAbsent, unless an agent has taken it meanwhile."""
        status = await self.cancel(command_id)
        if status.state is State.FAILED and status.dispatched_at is None:
            raise AgentAbsent(reason, command_id=command_id)

    async def _send(
        self,
        deployment: str,
        command: str,
        params: Any,
        options: SendOptions,
        patience: float,
        *,
        wait_seconds: float | None = None,
    ) -> Command:
        """Seal, sign and create a command."""
        key = options.get("idempotency_key")
        key = new_idempotency_key() if key is None else key

        async def create(body: Body) -> Command:
            is_inline = body.size <= self._inline_bytes
            if is_inline and not body.is_in_memory:
                body = Body(await asyncio.to_thread(body.data), size=body.size)
            request = CreateCommandRequest(
                deployment_id=deployment,
                command=command,
                params=InlineBody.of(body.data()) if is_inline else StorageBody(size=body.size),
                deadline=instant_of(options.get("deadline")),
                idempotency_key=key,
                target_resource_id=options.get("target"),
                max_attempts=options.get("max_attempts"),
                wait_seconds=wait_seconds or None,
                tags=checked_tags(options.get("tags")),
                not_before=instant_of(options.get("not_before"), "not_before"),
            )
            created, held_seconds = await self._create(request, body, patience)
            return Command(self, created, key, held_seconds=held_seconds)

        try:
            async with body_of(params) as body:
                if self._seals is None:
                    return await create(body)
                async with self._seals.sealed(body) as sealed:
                    return await create(sealed)
        except ArcError as error:
            error.context = {**error.context, "idempotency_key": key}
            raise

    async def _create(
        self, request: CreateCommandRequest, body: Body, patience: float
    ) -> tuple[CreateCommandResponse, float]:
        """Sign and create a command, and upload params that are too large to go with it.

        Return the answer, and for how long it was held for the command's end.
        """
        nonce = ""
        if self._signing_key is not None:
            # Signed once: every retry sends the same signature, or it would be another command.
            nonce = new_nonce()
            sealed = None if self._seals is None else self._seals.sealing
            signature = await sign(self._signing_key, request, body, nonce=nonce, sealed=sealed)
            request = msgspec.structs.replace(request, signature=signature)
        creation = Creation(
            self._connection,
            request,
            body,
            clock=self._clock,
            retry_seconds=patience,
            callbacks=self._callbacks,
        )
        created = await creation.create()
        if self._seals is not None:
            self._seals.remember(created.command_id, nonce)
            if created.status is not None:
                status = self._seals.with_opened_error(created.status)
                created = msgspec.structs.replace(created, status=status)
        self._callbacks.on_created(created)
        if created.state is State.PENDING_UPLOAD:
            created = await creation.upload(created)
            self._callbacks.on_created(created)
        return created, creation.held_seconds

    def _with_opened_error(self, status: CommandStatus) -> CommandStatus:
        """Return the status with the error that its host sealed. Raises ResultUnreadable."""
        return status if self._seals is None else self._seals.with_opened_error(status)

    async def _read_status(
        self, command_id: str, patience: float, timeout: float | None = None
    ) -> CommandStatus:
        """Return the status of a command, as the host sent it. No request takes longer than
        `timeout`."""
        limit = ANSWER_SECONDS if timeout is None else min(ANSWER_SECONDS, timeout + 1)
        return await self._with_retries(
            lambda: read_status(self._connection, command_id, limit_seconds=limit),
            patience,
        )

    async def _get(self, url: str, kind: type[T]) -> T:
        """Return the answer to a GET, tried again while it fails in passing."""
        return await self._with_retries(
            lambda: self._connection.call("GET", url, kind), self._retry_seconds
        )

    async def _with_retries(self, work: Callable[[], Awaitable[T]], patience: float) -> T:
        """Repeat a request until it succeeds, fails for good, or `patience` seconds are over."""
        return await retried(
            work,
            clock=self._clock,
            until=self._clock.monotonic() + patience,
            on_retry=self._callbacks.on_retry,
        )

    def _patience(self, timeout: float | None) -> float:
        """Return how many seconds to try again for a caller who waits no longer than `timeout`."""
        return self._retry_seconds if timeout is None else min(self._retry_seconds, timeout)


def _seals(key: PrivateKey | None, host: str | Path) -> SenderSeals:
    """Return the seals between a signing key and a host. Raises ConfigurationError."""
    if key is None:
        raise ConfigurationError("encryption needs a signing key: results are sealed for it")
    return SenderSeals(key, host)
