"""Handing finished responses in, until the server has said its last word on each.

In order, as long as the server takes them; a response that alone fails does not hold up the rest.
What is finished while others are on their way goes out together, in one request, to a server that
knows how to take that. Uploads of large bodies go on beside.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

import msgspec
import structlog

from arc_agent.host.clock import MonotonicClock
from arc_agent.host.pulse import Pulse
from arc_agent.jobs.lease_table import LeaseTable
from arc_agent.jobs.spool import Entry, Spool
from arc_agent.net.allowed_hosts import HostRefused
from arc_agent.net.connection import Answer, BackOff, NoContact, Refused, ServerConnection, code_of
from arc_agent.net.server_state import ServerState
from arc_agent.net.transfer import Transfer, TransferRefused
from arc_protocol.codec import decode, encode
from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.base import Message
from arc_protocol.messages.bodies import ErrorResponse, InlineBody, StorageBody, SuccessResponse
from arc_protocol.messages.errors import ErrorBody
from arc_protocol.messages.leases import RespondResponse
from arc_protocol.urls import same_origin
from arc_runtime.failpoints import hit

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_FIRST_SECONDS: Final = 0.1
_QUICK_SECONDS: Final = 1.0
"""While the lease lasts: 100 ms doubling to 1 s (protocol.md 1.4). Later: BackOff."""
_DONE: Final = (404, 409, 410)
_SUBMITS: Final = 4
"""How many are on their way at once while all is well; one at a time after a failure."""
_SHARED: Final = 100
_SHARED_BYTES: Final = 1024 * 1024
"""How many responses share a request at most, and about how large it is."""
_SHARING: Final = "responses"
"""What the server is asked to know for that (POST /commands/leases/respond)."""
_UPLOADS: Final = 2
_INLINE_FALLBACK_BYTES: Final = 20 * 1024 * 1024
"""What is sent inline when its upload URL is no longer accepted: fits a request of 32 MiB."""


class _Progress:
    """What is known of one entry's delivery in this process."""

    def __init__(self) -> None:
        self.failures = 0
        self.due_at = 0.0
        self.is_busy = False
        self.needs_token = False
        """Its pre-authorised URL is refused or missing: the bearer token's way is taken."""
        self.is_unstorable = False
        """Its upload URL is not accepted."""
        self.was_uploaded_again = False
        self.is_alone = False
        """It was handed in together with others, and the server did not take it so."""


class _Submitted(Message, frozen=True, kw_only=True):
    """SubmittedResponse, with a response that was encoded before."""

    lease_id: str
    command_id: str
    response: msgspec.Raw


class _Respond(Message, frozen=True, kw_only=True):
    """RespondRequest, of those."""

    responses: list[_Submitted]


class Delivery:
    """Empties the spool. `run` is a loop of the agent's task group."""

    def __init__(
        self,
        *,
        spool: Spool,
        transfer: Transfer,
        connection: ServerConnection,
        contact: ServerState,
        leases: LeaseTable,
        clock: MonotonicClock,
        back_off: BackOff,
    ) -> None:
        self._spool = spool
        self._transfer = transfer
        self._connection = connection
        self._contact = contact
        self._leases = leases
        self._clock = clock
        self._back_off = back_off
        self._progress: dict[int, _Progress] = {}
        self._submits = 0
        self._uploads = 0
        self._is_sharing = False
        self._paused_until = 0.0
        self._pauses = 0
        """Failures in a row that were about the server, not about one entry."""
        self._in_order_until = 0
        """What an outage has left goes one request at a time: up to this entry, in order."""
        self.pulse = Pulse(clock)
        """Whether it moves: the watchdog looks."""
        self._changed = asyncio.Event()
        self._moved = asyncio.Condition()
        spool.on_change(self._changed.set)

    def kick(self) -> None:
        """Try everything now: the server is back, or time is short."""
        self._paused_until = 0.0
        for progress in self._progress.values():
            progress.due_at = 0.0
        self._changed.set()

    async def settle(self) -> None:
        """Wait until each entry that waits now was tried once, or the server is seen not to answer.

        What is finished goes before new work: the poller asks for this.
        """
        waiting = {entry.seq: self._of(entry).failures for entry in self._spool.entries()}
        pauses = self._pauses
        self.kick()

        def is_settled() -> bool:
            left = {entry.seq for entry in self._spool.entries()}
            return self._pauses > pauses or not any(
                seq in left and self._progress[seq].failures == failures
                for seq, failures in waiting.items()
                if seq in self._progress
            )

        async with self._moved:
            await self._moved.wait_for(is_settled)

    async def flush(self, seconds: float) -> bool:
        """Wait until the spool is empty, for so long at most. Whether it is."""
        self.kick()
        try:
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait_for(lambda: not len(self._spool))
        except TimeoutError:
            log.warning("spool.left", responses=len(self._spool))
        return not len(self._spool)

    async def run(self) -> None:
        """Deliver for ever; ends when cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                seconds = self._start_due(group)
                self.pulse.within(math.inf if seconds is None else seconds)
                try:
                    async with asyncio.timeout(seconds):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    def _start_due(self, group: asyncio.TaskGroup) -> float | None:
        """Start what can be started; the seconds until the next may be, None when none waits."""
        now = self._clock()
        nexts: list[float] = []
        shared: list[tuple[Entry, _Progress]] = []
        room = _SHARED_BYTES
        window = 1 if self._pauses or self._has_backlog() else _SUBMITS
        is_paused = self._paused_until > now
        if is_paused:
            nexts.append(self._paused_until)
        for entry in self._spool.entries():
            may_upload = self._uploads < _UPLOADS and self._spool.has_uploads
            may_submit = not is_paused and self._submits < window
            is_full = len(shared) == _SHARED or room <= 0
            if not may_upload and (is_full or not may_submit):
                break  # nothing further can be started: a long spool is not walked each time
            progress = self._of(entry)
            if progress.is_busy:
                continue
            if progress.due_at > now:
                nexts.append(progress.due_at)
                continue
            if self._must_upload(entry, progress):
                if self._uploads < _UPLOADS:
                    self._uploads += 1
                    progress.is_busy = True
                    group.create_task(self._upload(entry, progress))
                continue
            if not may_submit or is_full:
                continue
            progress.is_busy = True
            if self._may_share(entry, progress):
                shared.append((entry, progress))
                room -= entry.message_bytes
                continue
            self._submits += 1
            group.create_task(self._submit(entry, progress))
        if len(shared) == 1:
            self._submits += 1
            group.create_task(self._submit(*shared[0]))
        elif shared and not self._is_sharing:
            self._submits += 1
            self._is_sharing = True
            group.create_task(self._submit_all(shared))
        else:
            for _, progress in shared:  # in order: they follow when those before have arrived
                progress.is_busy = False
        return max(0.0, min(nexts) - now) if nexts else None

    def _has_backlog(self) -> bool:
        """Whether anything is left of an outage."""
        first = next(self._spool.entries(), None)
        return first is not None and first.seq <= self._in_order_until

    def _server_answers(self) -> None:
        """The server took or judged a response."""
        if self._pauses:
            self._in_order_until = max((entry.seq for entry in self._spool.entries()), default=0)
        self._pauses = 0

    def _of(self, entry: Entry) -> _Progress:
        """The progress of an entry."""
        progress = self._progress.get(entry.seq)
        if progress is None:
            progress = self._progress[entry.seq] = _Progress()
            progress.needs_token = entry.submit_url is None
        return progress

    def _may_share(self, entry: Entry, progress: _Progress) -> bool:
        """Whether a response may go out in one request with others: once, and while it is small."""
        return (
            entry.body is None
            and entry.message_bytes < _SHARED_BYTES
            and not progress.failures
            and not progress.is_alone
            and (progress.needs_token or self._is_ours(entry))
            and self._contact.knows_extensions
            and self._contact.supports(_SHARING)
        )

    def _must_upload(self, entry: Entry, progress: _Progress) -> bool:
        """Whether the body has to go to the store first."""
        return entry.body is not None and not entry.is_uploaded and not progress.is_unstorable

    # Bodies

    async def _upload(self, entry: Entry, progress: _Progress) -> None:
        """Upload a body, once."""
        try:
            await self._store(entry, progress)
        except NoContact as error:
            self._later(entry, progress, error)
            log.debug("upload.failed", command_id=entry.command_id, reason=error.reason)
        except Exception as error:  # nothing about one body may end the delivery of the others
            log.exception("upload.failed", command_id=entry.command_id)
            self._later(entry, progress, error)
        finally:
            self._uploads -= 1
            await self._note(progress)

    async def _store(self, entry: Entry, progress: _Progress) -> None:
        """The upload. Raises NoContact."""
        body = entry.body
        if body is None:
            return
        if entry.upload is None:  # the envelope has nowhere to upload to
            progress.is_unstorable = True
            return
        try:
            path = self._spool.body_path(entry)
            await self._transfer.upload(entry.upload, path, body.size, body.sha256)
        except (TransferRefused, HostRefused, OSError) as error:
            log.error("upload.refused", command_id=entry.command_id, reason=str(error))
            progress.is_unstorable = True
            return
        await self._spool.mark_uploaded(entry)
        progress.failures = 0

    # Messages

    async def _submit(self, entry: Entry, progress: _Progress) -> None:
        """Hand one response in, once."""
        try:
            await self._hand_in(entry, progress)
        except NoContact as error:
            await self._failed(entry, progress, error)
        except Exception as error:  # as above
            log.exception("submit.failed", command_id=entry.command_id)
            self._later(entry, progress, error)
        finally:
            self._submits -= 1
            await self._note(progress)

    async def _hand_in(self, entry: Entry, progress: _Progress) -> None:
        """Send the response and act on the answer. Raises NoContact to try again later."""
        message = await self._message(entry, progress)
        answer = await self._put(entry, progress, message)
        if answer is None:
            return  # tried again at once, the other way
        if answer.is_page or (answer.status >= 400 and code_of(answer) is None):
            # No error of the server's own, which has a code: of something on the way, most likely.
            raise NoContact(
                f"{answer.status} and not a word of the server's own", status=answer.status
            )
        if progress.needs_token or self._is_ours(entry):
            self._contact.succeeded("submit")
        self._server_answers()
        if answer.status < 300 or answer.status in _DONE:
            await self._delivered(entry, answer.status)
        elif answer.status == 400 and entry.is_uploaded and not progress.was_uploaded_again:
            progress.was_uploaded_again = True
            log.warning("upload.missing", command_id=entry.command_id)
            await self._spool.mark_uploaded(entry, False)
        else:
            await self._refused(entry, f"the server answered {answer.status}")

    async def _put(self, entry: Entry, progress: _Progress, message: bytes) -> Answer | None:
        """PUT the message; None when the other way is to be tried. Raises NoContact."""
        if entry.submit_url is not None and not progress.needs_token:
            try:
                return await self._transfer.put_message(entry.submit_url, message)
            except (Refused, HostRefused) as error:
                # The signature has run out, as after a long outage, or leads astray.
                log.info("submit.by_token", command_id=entry.command_id, reason=str(error))
                progress.needs_token = True
                return None
        url = self._connection.url(
            "commands", entry.command_id, "response", query={"lease": entry.lease_id}
        )
        try:
            return await self._connection.call("PUT", url, message)
        except Refused as error:
            if error.status == 403 and error.code is not None:
                return Answer(403, encode({"code": error.code}), {})
            raise

    async def _submit_all(self, shared: list[tuple[Entry, _Progress]]) -> None:
        """Hand several responses in by one request; what gets no answer of its own goes alone."""
        try:
            await self._answered(shared, await self._share(shared))
        except NoContact as error:
            pauses = self._pauses
            if error.status is None:
                await self._failed(*shared[0], error)
            if self._pauses == pauses:  # no outage, in which they wait together
                self._part(shared, error.reason)
        except Exception as error:  # as above
            log.exception("submit.failed", responses=len(shared))
            self._part(shared, str(error))
        finally:
            self._submits -= 1
            self._is_sharing = False
            for _, progress in shared:
                await self._note(progress)

    async def _answered(
        self, shared: list[tuple[Entry, _Progress]], answers: list[ErrorBody | None]
    ) -> None:
        """Act on what the server made of each."""
        pairs = list(zip(shared, answers, strict=True))
        taken = [entry.command_id for (entry, _), refusal in pairs if refusal is None]
        if taken:
            log.info("responses.delivered", command_ids=taken)
        for (entry, progress), refusal in pairs:
            if refusal is None:
                await self._delivered(entry, 200, is_told=True)
            elif refusal.http_status_code in _DONE:
                await self._delivered(entry, refusal.http_status_code)
            else:
                progress.is_alone = True

    def _part(self, shared: list[tuple[Entry, _Progress]], reason: str) -> None:
        """Nobody knows which of them the server does not like: each goes alone."""
        log.debug("submit.apart", responses=len(shared), reason=reason)
        for _, progress in shared:
            progress.is_alone = True

    async def _share(self, shared: list[tuple[Entry, _Progress]]) -> list[ErrorBody | None]:
        """Send responses together: for each what it was refused for, None for what was taken.

        Raises NoContact; with a status when the server answered, but not to each.
        """
        request = _Respond(
            responses=[
                _Submitted(
                    lease_id=entry.lease_id,
                    command_id=entry.command_id,
                    response=msgspec.Raw(await self._message(entry, progress)),
                )
                for entry, progress in shared
            ]
        )
        url = self._connection.url("commands", "leases", "respond")
        try:
            answer = await self._connection.call("POST", url, encode(request))
        except Refused:  # a token that may not: the pre-authorised URLs may
            self._contact.lacks(_SHARING)
            raise
        if answer.status in (404, 405):
            self._contact.lacks(_SHARING)
        if answer.status != 200:
            raise NoContact(f"the server answered {answer.status}", status=answer.status)
        try:
            refused = decode(answer.body, RespondResponse).refused
        except InvalidCommand as error:
            raise NoContact(f"no such answer: {error.message}", status=200) from error
        self._contact.succeeded("submit")
        self._server_answers()
        errors = {refusal.lease_id: refusal.error for refusal in refused}
        return [errors.get(entry.lease_id) for entry, _ in shared]

    async def _message(self, entry: Entry, progress: _Progress) -> bytes:
        """The response as it is sent now."""
        body = entry.body
        if body is None:
            return await self._spool.message(entry) or _lost()
        if not progress.is_unstorable:
            return encode(
                SuccessResponse(response=StorageBody(size=body.size, storage_put_used=True))
            )
        progress.needs_token = True
        if body.size > _INLINE_FALLBACK_BYTES:
            return encode(
                ErrorResponse(
                    code="STORAGE_OPERATION_FAILED",
                    message=f"the result ({body.size} bytes) could not be uploaded",
                )
            )
        try:
            data = await asyncio.to_thread(self._spool.body_path(entry).read_bytes)
        except OSError:
            return _lost()
        return encode(SuccessResponse(response=InlineBody.of(data)))

    async def _delivered(self, entry: Entry, status: int, *, is_told: bool = False) -> None:
        """The server has it, or wants it no more."""
        current = self._spool.get(entry.seq)
        if status >= 300 and current is not None and current.lease_id != entry.lease_id:
            return  # leased to us again meanwhile: it goes out under that lease
        hit("agent.after_submit")
        if is_told:
            log.debug("response.delivered", command_id=entry.command_id, attempt=entry.attempt)
        elif status < 300:
            log.info("response.delivered", command_id=entry.command_id, attempt=entry.attempt)
        else:
            log.warning(
                "response.too_late",
                command_id=entry.command_id,
                attempt=entry.attempt,
                status=status,
            )
        await self._spool.remove(entry, is_taken=status < 300)
        self._forget(entry)

    async def _refused(self, entry: Entry, reason: str) -> None:
        """The server will never take it."""
        log.error("response.refused", command_id=entry.command_id, reason=reason)
        await self._spool.bury(entry, reason)
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        """Nothing more is done for the entry."""
        self._leases.remove(entry.lease_id)
        self._progress.pop(entry.seq, None)

    # Failures

    async def _failed(self, entry: Entry, progress: _Progress, error: NoContact) -> None:
        """Decide whether it is the server that fails, and all wait, or this entry alone."""
        is_ours = progress.needs_token or self._is_ours(entry)
        if is_ours:
            self._contact.failed("submit", error.reason, is_refusal=isinstance(error, Refused))
        is_general = is_ours and (
            self._contact.fails_beyond("submit")
            or (error.status is None and not await self._connection.answers())
        )
        seconds = self._later(entry, progress, error)
        if is_general:
            self._pauses += 1
            self._paused_until = self._clock() + seconds
            progress.due_at = 0.0  # it stays the first

    def _later(self, entry: Entry, progress: _Progress, error: Exception) -> float:
        """Put an entry off; by how many seconds."""
        progress.failures += 1
        now = self._clock()
        lease = self._leases.get(entry.lease_id)
        if lease is not None and lease.ends_at > now and not isinstance(error, Refused):
            seconds = min(_QUICK_SECONDS, _FIRST_SECONDS * 2.0 ** min(progress.failures - 1, 10))
        else:
            seconds = self._back_off.seconds(progress.failures, error)
        progress.due_at = now + seconds
        return seconds

    async def _note(self, progress: _Progress) -> None:
        """An entry was tried: look for the next, and tell who waits."""
        progress.is_busy = False
        self._changed.set()
        async with self._moved:
            self._moved.notify_all()

    def _is_ours(self, entry: Entry) -> bool:
        """Whether the response goes to the configured server itself."""
        return same_origin(entry.submit_url or "", self._connection.url())


def _lost() -> bytes:
    """What is handed in for a result that can no longer be read."""
    return encode(
        ErrorResponse(
            code="STORAGE_OPERATION_FAILED", message="the result was lost on the agent's disk"
        )
    )
