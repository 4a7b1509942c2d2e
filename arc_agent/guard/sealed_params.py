"""HostSeals open params that only this host can read, and seal results that only the sender can.

The signature asks for it (`sealed`): it names the host's key that the params are sealed for, and
the sender's key for the result. Errors of handlers are sealed too. Refusals of the host (policy,
signature, time) are not, because they may go to a sender that was not verified.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from arc_agent.guard.in_force import InForce
from arc_agent.guard.signatures import Signed
from arc_agent.handlers.context import ParamsSource
from arc_agent.host.data_dir import DataDir
from arc_agent.jobs.job import Job
from arc_agent.jobs.outcome import Ended, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.responses import STORAGE_FAILED
from arc_agent.jobs.result_files import BodyWriter, StoredBody
from arc_agent.net.bodies import NoRoom
from arc_protocol.codec import encode
from arc_protocol.messages.bodies import ErrorResponse
from arc_protocol.signatures import SEALED_ERROR, Sealing, decode_base64url

if TYPE_CHECKING:
    from arc_protocol.sealing import Opener, Sealer

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

UNREADABLE: Final = "UNSEAL_FAILED"
_CHUNK_BYTES: Final = 1024 * 1024
_ROOM_CHECK_BYTES: Final = 16 * 1024 * 1024
_MAX_ERROR_BYTES: Final = 8_000
"""The length of an error before it is sealed: it goes into `details`, which is bounded."""


class HostSeals:
    """Opens params and seals results with this host's keys, in threads."""

    def __init__(self, *, live: InForce, data_dir: DataDir, has_room: Callable[[], bool]) -> None:
        """Refuse bodies while `has_room` returns False: the disk is full."""
        self._live = live
        self._data_dir = data_dir
        self._has_room = has_room

    async def open(self, job: Job, sealing: Sealing, source: ParamsSource) -> ParamsSource:
        """Return the params as they were before they were sealed. Raises Ended."""
        key = self._live.host_keys.get(sealing.to)
        if key is None:
            raise _refusal(job, f"they are for the key {sealing.to}, which this host has not")
        from arc_protocol.sealing import SealBroken, params_opener  # loads nacl: 4 MB

        try:
            return await asyncio.to_thread(self._open, job, source, params_opener(key))
        except SealBroken as error:
            raise _refusal(job, str(error)) from None
        except (NoRoom, OSError) as error:
            log.error("params.no_room", command_id=job.lease.command_id, reason=str(error))
            raise Ended(GivenBack("no_room")) from None

    async def seal(self, job: Job, signed: Signed, outcome: Outcome) -> Outcome:
        """Return a handler's outcome as only the command's sender can read it."""
        sealing = signed.claims.sealed
        if sealing is None or not isinstance(outcome, Succeeded | Failed):
            return outcome
        key = self._live.host_keys.get(sealing.to)
        if key is None:  # a reload took it away while the handler ran
            return Failed(UNREADABLE, "the key to seal the result with is gone")
        from arc_protocol.sealing import result_sealer

        sealer = result_sealer(key, decode_base64url(sealing.reply_to), signed.claims.nonce)
        if isinstance(outcome, Failed):
            return _sealed_error(outcome, sealer)
        try:
            body = await asyncio.to_thread(self._seal, job, outcome.body, sealer)
        except NoRoom as error:
            return Failed(STORAGE_FAILED, str(error))
        except OSError as error:
            return Failed(STORAGE_FAILED, f"the result could not be stored: {error.strerror}")
        return Succeeded(body)

    def for_small(self, signed: Signed) -> Callable[[bytes], bytes] | None:
        """Return a function that seals a small result; None where results are not sealed."""
        sealing = signed.claims.sealed
        key = None if sealing is None else self._live.host_keys.get(sealing.to)
        if sealing is None or key is None:  # without the key, its params could not be opened
            return None
        from arc_protocol.sealing import result_sealer

        sender, nonce = decode_base64url(sealing.reply_to), signed.claims.nonce

        def seal(data: bytes) -> bytes:
            sealer = result_sealer(key, sender, nonce)
            return sealer.feed(data) + sealer.finish()

        return seal

    def _open(self, job: Job, source: ParamsSource, opener: Opener) -> ParamsSource:
        """Open params. Blocks. Raises SealBroken, NoRoom, OSError."""
        if source.file is None:
            data = opener.feed(source.read()) + opener.finish()
            return ParamsSource(data=data, size=len(data))
        path = job.directory / "opened"
        size, unchecked = 0, _ROOM_CHECK_BYTES
        with source.open() as sealed, path.open("xb") as opened:
            while chunk := sealed.read(_CHUNK_BYTES):
                unchecked += len(chunk)
                if unchecked >= _ROOM_CHECK_BYTES:
                    unchecked = 0
                    if not self._has_room():
                        raise NoRoom("the agent has no room for the params")
                size += opened.write(opener.feed(chunk))
            size += opened.write(opener.finish())
        source.file.unlink()
        return ParamsSource(file=path, size=size)

    def _seal(self, job: Job, body: bytes | StoredBody, sealer: Sealer) -> bytes | StoredBody:
        """Seal a body and remove the plain one. Blocks. Raises NoRoom, OSError."""
        writer = BodyWriter(self._data_dir, job.inline_bytes, self._has_room)
        plain = None if isinstance(body, bytes) else self._data_dir.bodies / body.name
        try:
            if isinstance(body, bytes):
                writer.write(sealer.feed(body))
            else:
                _feed(self._data_dir.bodies / body.name, sealer, writer)
            writer.write(sealer.finish())
            return writer.finish()
        except BaseException:
            writer.discard()
            raise
        finally:
            if plain is not None:
                plain.unlink(missing_ok=True)


def _refusal(job: Job, reason: str) -> Ended:
    """Log that params cannot be opened, and return the command's end."""
    log.warning(
        "params.not_opened",
        command_id=job.lease.command_id,
        command=job.lease.envelope.command,
        reason=reason,
    )
    return Ended(Failed(UNREADABLE, f"the params: {reason}"))


def _feed(file: Path, sealer: Sealer, writer: BodyWriter) -> None:
    """Seal the chunks of a file. The caller writes the seal's end."""
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            writer.write(sealer.feed(chunk))


def _sealed_error(error: Failed, sealer: Sealer) -> Failed:
    """Return an error that only the sender can read. A long one loses its details' beginning."""
    message, details = error.message[:_MAX_ERROR_BYTES], error.details
    data = encode(ErrorResponse(code=error.code, message=message, details=details))
    while len(data) > _MAX_ERROR_BYTES:
        if details:
            details = details[(len(details) + 1) // 2 :]
        else:
            message = message[: len(message) // 2]
        data = encode(
            ErrorResponse(code=error.code[:256], message=message, details=details or None)
        )
    text = b64encode(sealer.feed(data) + sealer.finish()).decode("ascii")
    return Failed(SEALED_ERROR, "the error is sealed for the sender of the command", text)


def read_host_keys(files: list[Path]) -> Mapping[str, bytes]:
    """Return this host's private keys, by name. Raises KeyFileError."""
    from arc_runtime.key_files import SEALING, KeyFileError, read_private

    found: dict[str, bytes] = {}
    for file in files:
        key = read_private(file.expanduser(), SEALING)
        if key.name in found:
            raise KeyFileError(f"{file}: there is another key of the name {key.name}")
        found[key.name] = key.secret
    return found
