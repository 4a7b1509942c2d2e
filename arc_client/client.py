"""The sender: create a command, wait for it, and fetch its result."""

# ruff: noqa: ASYNC109  # these time-outs end a wait and nothing else: the command goes on

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypedDict, TypeVar, Unpack, cast

import msgspec

from arc_client.bodies.params import NO_PARAMS, Body, body_of
from arc_client.bodies.results import body_of_result, decoded, inline_bytes, write_file
from arc_client.bodies.sealed import Seals
from arc_client.bodies.signing import new_nonce, read_signing_key, sign
from arc_client.errors import ConfigurationError, InvalidParams, ResultUnreadable
from arc_client.wire import events
from arc_client.wire.connection import ANSWER_SECONDS, Connection
from arc_client.wire.create import Sending
from arc_client.wire.progress_callbacks import Watch
from arc_client.wire.retry import Clock, SystemClock, retried
from arc_client.wire.transfer import Download, Location
from arc_client.wire.wait import POLL_SECONDS, look, until_end
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.agents import AgentInfo, AgentList
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import DEFAULT_INLINE_BYTES, InlineBody, StorageBody
from arc_protocol.messages.commands import (
    CommandList,
    CommandStatus,
    CreateCommandRequest,
    CreateCommandResponse,
)
from arc_protocol.messages.events import EventList
from arc_runtime.key_files import PrivateKey

T = TypeVar("T")

ANYTHING: Final = cast("type[Any]", Any)
"""For `returns`: whatever the JSON says."""
WAIT_SECONDS: Final = 60.0
"""How long `invoke` and `wait` wait unless told otherwise, as every public sender does."""
RETRY_SECONDS: Final = 30.0
"""For how long a request that fails in passing is tried again."""

FIRST_WAIT_SECONDS: Final = 1.0
"""How long `invoke` asks the server to hold the create for the result: most commands are quick, and
those need no second request."""

_PAGE: Final = 100
"""How many commands a page of a list has at most."""


class SendOptions(TypedDict, total=False):
    """How a command is sent; all of it optional, None is absent."""

    deadline: float | timedelta | datetime | None
    """When the server gives the command up: seconds from now by this machine's clock, or an
    instant."""
    target: str | None
    """One of several targets of the deployment, by its resource id."""
    idempotency_key: str | None
    """A command with a key that was used before is not run again: its result is returned. A fresh
    one unless given."""
    max_attempts: int | None
    """How often the command may be tried on an agent; the server's default unless given."""


class Command:
    """A command that was sent, to ask about or to wait for."""

    def __init__(
        self,
        client: Client,
        created: CreateCommandResponse,
        key: str,
        *,
        waited_seconds: float = 0,
    ) -> None:
        self._client = client
        self.id: Final = created.command_id
        self.state: Final = created.state
        """Where it stood when it was sent: further on, for a key that was used before."""
        self.idempotency_key: Final = key
        self._status = created.status
        self.waited_seconds: Final = waited_seconds if created.status is not None else 0
        """How long the server was asked to wait for its end before it answered."""

    async def result(
        self, *, timeout: float | None = WAIT_SECONDS, returns: type[T] = ANYTHING
    ) -> T:
        """Wait for it; see Client.wait."""
        return await self._client.result_of(await self.end(timeout=timeout), returns)

    async def end(self, *, timeout: float | None = WAIT_SECONDS) -> CommandStatus:
        """Wait until it is SUCCEEDED, FAILED or EXPIRED; see Client.wait_for_end."""
        if self._status is not None and self._status.state in TERMINAL:
            return self._status
        return await self._client.wait_for_end(self.id, timeout=timeout, is_known=True)

    async def status(self) -> CommandStatus:
        """Where it stands now; see Client.status."""
        return await self._client.status(self.id)

    async def cancel(self) -> CommandStatus:
        """Stop it; see Client.cancel."""
        return await self._client.cancel(self.id)

    def __repr__(self) -> str:
        return f"Command({self.id!r})"


class Client:
    """A sender's connection to one server.

        async with Client("https://arc.example.com", token_file="/etc/arc/token") as arc:
            report = await arc.invoke("edge-7", "reports.generate", {"month": "2026-10"})

    Every create carries an idempotency key, so that whatever fails in passing is tried again
    without running anything twice. One client serves any number of tasks of one event loop.
    The errors are drawn in arc_client.errors.
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
        clock: Clock | None = None,
        signing_key: str | Path | None = None,
        encrypt_to: str | Path | None = None,
    ) -> None:
        """Nothing is sent yet. Raises ConfigurationError.

        `server_url`, `token`, `token_file`, `ca_file`: see Connection. `retry_seconds`: for how
        long a request that fails in passing is tried again before its error is raised.
        `inline_bytes`: params above it are uploaded. It is fixed and not learnt from the server's
        answers, because a key must be sent with the same body each time; a server moves an inline
        body that is too large for it by itself. `poll_seconds`: how long one status request asks
        the server to hold it; less than what a proxy on the way cuts off at. `watch` is told what
        happens; `clock` is for tests. `signing_key`: a private key's file (`arc keys new`); every
        command is signed with it. `encrypt_to`: the file of a host's public key (`arc-agent keys
        new`); the params are sealed for it, and results must be sealed for the signing key.
        """
        self._connection = Connection(
            server_url, token=token, token_file=token_file, ca_file=ca_file
        )
        self._retry_seconds = retry_seconds
        self._inline_bytes = inline_bytes
        self._poll_seconds = poll_seconds
        self._watch = watch or Watch()
        self._clock = clock or SystemClock()
        self._signing_key = None if signing_key is None else read_signing_key(signing_key)
        self._seals = None if encrypt_to is None else _seals(self._signing_key, encrypt_to)

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
        **options: Unpack[SendOptions],
    ) -> T:
        """Send a command, wait for it and return its result.

        `params`: JSON-able, or bytes, a Path, a binary file, an async iterable (params.body_of).
        `timeout`: seconds to wait once the server has the command; None waits for ever. When they
        are over the command goes on, unless it has a deadline. `returns`: the type of the result
        (a struct, a dataclass, `bytes` for what is not JSON). `options`: see SendOptions.

        Raises CommandFailed, CommandExpired, CommandTimeout and the rest of arc_client.errors.
        Cancelling this call does not cancel the command.
        """
        status = await self._invoke(deployment, command, params, options, timeout)
        return await self.result_of(status, returns)

    async def invoke_to_file(
        self,
        path: str | Path,
        deployment: str,
        command: str,
        params: Any = NO_PARAMS,
        *,
        timeout: float | None = WAIT_SECONDS,
        **options: Unpack[SendOptions],
    ) -> int:
        """As `invoke`, but stream the result into a file, byte for byte. Returns its size.

        The file appears whole or not at all. Raises OSError too.
        """
        status = await self._invoke(deployment, command, params, options, timeout)
        return await self.result_to_file(path, status)

    async def send(
        self,
        deployment: str,
        command: str,
        params: Any = NO_PARAMS,
        **options: Unpack[SendOptions],
    ) -> Command:
        """Create a command, params and all, and do not wait for it. See `invoke`.

        Errors carry the `idempotency_key` in `context`: the same call with it is safe to repeat.
        """
        return await self._send(deployment, command, params, options, self._retry_seconds)

    async def wait(
        self,
        command_id: str,
        *,
        timeout: float | None = WAIT_SECONDS,
        returns: type[T] = ANYTHING,
    ) -> T:
        """Wait for a command and return its result, as `invoke` does."""
        status = await self.wait_for_end(command_id, timeout=timeout)
        return await self.result_of(status, returns)

    async def wait_to_file(
        self, path: str | Path, command_id: str, *, timeout: float | None = WAIT_SECONDS
    ) -> int:
        """Wait for a command and stream its result into a file, as `invoke_to_file` does."""
        status = await self.wait_for_end(command_id, timeout=timeout)
        return await self.result_to_file(path, status)

    async def wait_for_end(
        self, command_id: str, *, timeout: float | None = WAIT_SECONDS, is_known: bool = False
    ) -> CommandStatus:
        """Wait until a command is SUCCEEDED, FAILED or EXPIRED, and return its status.

        Unless the caller knows that it is there (`is_known`), it must first be found within
        `retry_seconds`; from then on a request that fails in passing ends nothing while there is
        time left. Raises CommandTimeout, and what `status` does.
        """
        if not is_known:
            await self._find(command_id, self._patience(timeout))
        status = await until_end(
            self._connection,
            command_id,
            timeout=timeout,
            poll_seconds=self._poll_seconds,
            clock=self._clock,
            watch=self._watch,
        )
        return status if self._seals is None else self._seals.told(status)

    async def status(self, command_id: str) -> CommandStatus:
        """Where a command stands, with its response when it is terminal. Raises CommandNotFound."""
        status = await self._find(command_id, self._retry_seconds)
        return status if self._seals is None else self._seals.told(status)

    async def list(
        self,
        *,
        deployment: str | None = None,
        state: State | None = None,
        command: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[CommandStatus]:
        """Commands, newest first, fetched page by page while you iterate; `limit` in all.

        Raises NotFound or MethodNotAllowed on a server that knows part 1 of the protocol only.
        """
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            url = self._connection.url(
                "commands",
                query={
                    "deploymentId": deployment,
                    "state": state,
                    "command": command,
                    "limit": min(left, _PAGE) if left is not None else None,
                    "cursor": cursor,
                },
            )
            page = await self._get(url, CommandList)
            for status in page.commands[:left]:
                yield status
            left = left - len(page.commands) if left is not None else None
            cursor = page.cursor
            if cursor is None:
                return

    async def events(self, command_id: str, *, after: int = 0) -> EventList:
        """What a command's handler has said after a place, and how far it is.

        Raises CommandNotFound; NotFound or MethodNotAllowed on a server that keeps no events.
        """
        return await self._again(
            lambda: events.look(self._connection, command_id, after=after, wait_seconds=0),
            self._retry_seconds,
        )

    async def follow(self, command_id: str) -> AsyncGenerator[EventList]:
        """The same as it happens, until the command has ended and all is heard."""
        async with aclosing(
            events.follow(
                self._connection, command_id, poll_seconds=self._poll_seconds, clock=self._clock
            )
        ) as heard:
            async for each in heard:
                yield each

    async def cancel(self, command_id: str) -> CommandStatus:
        """Stop a command, and return where it stands.

        One that no agent has is FAILED with CANCELLED at once; an agent that runs it is told, and
        `cancel_requested` is set meanwhile. One that has ended stays as it is. Raises
        CommandNotFound; NotFound or MethodNotAllowed on a server that knows part 1 only.
        """
        url = self._connection.url("commands", command_id, "cancel")
        return await self._again(
            lambda: self._connection.call("POST", url, CommandStatus), self._retry_seconds
        )

    async def agents(
        self, *, deployment: str | None = None, schemas: bool = False
    ) -> Sequence[AgentInfo]:
        """Who is there to run commands, when they were last seen, and what they are running.

        `schemas` asks for what their handlers take and return, too.

        Raises NotFound or MethodNotAllowed on a server that knows part 1 of the protocol only.
        """
        agents = (await self.roll_call(deployment, schemas=schemas)).agents
        return [a for a in agents if deployment is None or a.deployment_id == deployment]

    async def roll_call(self, deployment: str | None, *, schemas: bool = False) -> AgentList:
        """The same, and what else the server knows of who serves the deployment, if it tells.

        Raises as `agents` does.
        """
        query = {"deploymentId": deployment, "schemas": "true" if schemas else None}
        return await self._get(self._connection.url("agents", query=query), AgentList)

    async def result_of(self, status: CommandStatus, returns: type[T] = ANYTHING) -> T:
        """The result of a command that has ended, in memory; see `invoke` for `returns`."""
        if self._seals is None and isinstance(body := body_of_result(status), InlineBody):
            return decoded(inline_bytes(body, status.command_id), returns, status.command_id)
        data = bytearray()
        async with aclosing(self.result_chunks(status)) as chunks:
            async for chunk in chunks:
                data += chunk
        return decoded(data, returns, status.command_id)

    async def result_to_file(self, path: str | Path, status: CommandStatus) -> int:
        """Stream the result of a command that has ended into a file; see `invoke_to_file`."""
        async with aclosing(self.result_chunks(status)) as chunks:
            return await write_file(Path(path), chunks)

    async def result_chunks(self, status: CommandStatus) -> AsyncGenerator[bytes]:
        """The bytes of the result of a command that has ended, as they come in.

        Whatever breaks on the way is taken up where it broke. Raises CommandFailed,
        CommandExpired, ResultUnreadable.
        """
        async with aclosing(self._chunks_as_sent(status)) as sent:
            if self._seals is None:
                async for chunk in sent:
                    yield chunk
                return
            async with aclosing(self._seals.opened(status.command_id, sent)) as opened:
                async for chunk in opened:
                    yield chunk

    async def _chunks_as_sent(self, status: CommandStatus) -> AsyncGenerator[bytes]:
        """The same, sealed if it is."""
        body = body_of_result(status)
        command_id = status.command_id
        if isinstance(body, InlineBody):
            yield inline_bytes(body, command_id)
            return
        url = self._connection.url("commands", command_id)
        known: StorageBody | None = body

        async def locate() -> Location:
            nonlocal known
            latest, known = known, None
            if latest is None:  # the URL that we had did not do: it may have expired
                found = body_of_result(await self._find(command_id, self._retry_seconds))
                latest = found if isinstance(found, StorageBody) else None
            if latest is None or latest.storage_get_request is None:
                raise ResultUnreadable(
                    "the server does not say where the result is", command_id=command_id
                )
            return Location(latest.storage_get_request, url, latest.size)

        async with aclosing(
            Download(
                self._connection,
                locate,
                command_id=command_id,
                clock=self._clock,
                retry_seconds=self._retry_seconds,
                watch=self._watch,
            )
        ) as download:
            async for chunk in download:
                yield chunk

    async def _invoke(
        self,
        deployment: str,
        command: str,
        params: Any,
        options: SendOptions,
        timeout: float | None,
    ) -> CommandStatus:
        """Create a command and wait for its end; a quick one ends within the first request."""
        wait = FIRST_WAIT_SECONDS if timeout is None else min(FIRST_WAIT_SECONDS, timeout)
        sent = await self._send(
            deployment, command, params, options, self._patience(timeout), wait_seconds=wait
        )
        return await sent.end(timeout=None if timeout is None else timeout - sent.waited_seconds)

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
        """Create a command and upload what is too large to go with it."""
        key = options.get("idempotency_key")
        key = str(uuid.uuid4()) if key is None else key
        try:
            async with body_of(params) as plain, self._sealed(plain) as body:
                is_inline = body.size <= self._inline_bytes
                if is_inline and not body.is_in_memory:
                    data = await _data_of(body)
                    body = Body(data, size=len(data))
                request = CreateCommandRequest(
                    deployment_id=deployment,
                    command=command,
                    params=InlineBody.of(body.data()) if is_inline else StorageBody(size=body.size),
                    deadline=_instant(options.get("deadline")),
                    idempotency_key=key,
                    target_resource_id=options.get("target"),
                    max_attempts=options.get("max_attempts"),
                    wait_seconds=wait_seconds or None,
                )
                request, nonce = await self._signed(request, body)
                sending = Sending(
                    self._connection,
                    request,
                    body,
                    clock=self._clock,
                    retry_seconds=patience,
                    watch=self._watch,
                )
                created = await sending.create()
                if self._seals is not None:
                    self._seals.sent(created.command_id, nonce)
                    if created.status is not None:
                        told = self._seals.told(created.status)
                        created = msgspec.structs.replace(created, status=told)
                self._watch.created(created)
                if not is_inline and created.state is State.PENDING_UPLOAD:
                    created = await sending.upload(created)
                    self._watch.created(created)
        except ArcError as error:
            error.context = {**error.context, "idempotency_key": key}
            raise
        return Command(self, created, key, waited_seconds=wait_seconds or 0)

    @asynccontextmanager
    async def _sealed(self, body: Body) -> AsyncGenerator[Body]:
        """The body as it is sent."""
        if self._seals is None:
            yield body
            return
        async with self._seals.sealed(body) as sealed:
            yield sealed

    async def _signed(
        self, request: CreateCommandRequest, body: Body
    ) -> tuple[CreateCommandRequest, str]:
        """The same with its signature, if this sender signs, and the nonce of that.

        Once for each command: every retry sends it again.
        """
        if self._signing_key is None:
            return request, ""
        nonce = new_nonce()
        sealed = None if self._seals is None else self._seals.sealing
        signature = await sign(self._signing_key, request, body, nonce=nonce, sealed=sealed)
        return msgspec.structs.replace(request, signature=signature), nonce

    async def _find(self, command_id: str, patience: float) -> CommandStatus:
        """The status of a command, at once."""
        return await self._again(
            lambda: look(
                self._connection, command_id, wait_seconds=0, limit_seconds=ANSWER_SECONDS
            ),
            patience,
        )

    async def _get(self, url: str, kind: type[T]) -> T:
        """A GET, tried again while it fails in passing."""
        return await self._again(
            lambda: self._connection.call("GET", url, kind), self._retry_seconds
        )

    async def _again(self, work: Callable[[], Awaitable[T]], patience: float) -> T:
        """Do it until it succeeds, fails for good, or the patience ends."""

        def tell(error: BaseException) -> None:
            if isinstance(error, ArcError):
                self._watch.retrying(error)

        return await retried(
            work,
            clock=self._clock,
            until=self._clock.monotonic() + patience,
            on_retry=tell,
        )

    def _patience(self, timeout: float | None) -> float:
        """For how long to try again when the caller does not want to wait longer than that."""
        return self._retry_seconds if timeout is None else min(self._retry_seconds, timeout)


def _seals(key: PrivateKey | None, host: str | Path) -> Seals:
    """What is between this sender and a host. Raises ConfigurationError."""
    if key is None:
        raise ConfigurationError("to encrypt, a signing key is needed: it is what results are for")
    return Seals(key, host)


async def _data_of(body: Body) -> bytes:
    """All of a body. Raises InvalidParams."""
    return body.data() if body.is_in_memory else await asyncio.to_thread(body.data)


def _instant(deadline: float | timedelta | datetime | None) -> datetime | None:
    """A deadline as an instant in UTC. Raises InvalidParams when it has no offset or is absurd."""
    if deadline is None:
        return None
    try:
        if isinstance(deadline, datetime):
            if deadline.tzinfo is None:
                raise InvalidParams("the deadline has no time zone")
            return deadline.astimezone(UTC)
        if not isinstance(deadline, timedelta):
            deadline = timedelta(seconds=deadline)
        return datetime.now(UTC) + deadline
    except (OverflowError, ValueError) as error:
        raise InvalidParams("the deadline lies outside the calendar") from error
