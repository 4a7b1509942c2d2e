"""A sender's seals: only the host can read the params, and only the sender can read the result."""

from __future__ import annotations

import asyncio
import tempfile
from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, cast

import msgspec

from arc_client.bodies.params import SPOOL_IN_MEMORY_BYTES, Body
from arc_client.bodies.signing import public_for_replies, secret_for_replies
from arc_client.errors import ConfigurationError, ResultUnreadable
from arc_protocol.codec import decode
from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.bodies import ErrorResponse
from arc_protocol.messages.commands import CommandStatus
from arc_protocol.signatures import SEALED_ERROR, Sealing
from arc_runtime.key_files import SEALING, KeyFileError, PrivateKey, PublicKey, read_public
from arc_runtime.startup.late_module import late_module

if TYPE_CHECKING:
    from arc_protocol import sealing
else:
    sealing = late_module("arc_protocol.sealing")

_MAX_KNOWN: Final = 10_000
"""Commands that have a nonce to check; the result of any other must be for this sender."""


class SenderSeals:
    """A sender's seals stand between its signing key and the public key of one host."""

    def __init__(self, key: PrivateKey, host: str | Path) -> None:
        """Read the one key in the file `host`. Raises ConfigurationError."""
        self._key = key
        self._host = _read_host(Path(host))
        self._nonces: dict[str, str] = {}

    @property
    def sealing(self) -> Sealing:
        """Return the claim for the command's signature."""
        return Sealing(to=self._host.name, reply_to=public_for_replies(self._key))

    @asynccontextmanager
    async def sealed(self, body: Body) -> AsyncGenerator[Body]:
        """Seal a body for the host, for as long as the context lasts. Raises InvalidParams."""
        sealer = sealing.params_sealer(self._host.data)
        with tempfile.SpooledTemporaryFile(SPOOL_IN_MEMORY_BYTES) as spool:
            async for chunk in body.chunks():
                spool.write(await asyncio.to_thread(sealer.feed, chunk))
            spool.write(sealer.finish())
            yield Body(cast("IO[bytes]", spool), size=spool.tell())

    def remember(self, command_id: str, nonce: str) -> None:
        """Keep the nonce that the sealed result of a command must name."""
        self._nonces[command_id] = nonce
        if len(self._nonces) > _MAX_KNOWN:
            del self._nonces[next(iter(self._nonces))]

    async def opened(self, command_id: str, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Yield a result as its handler returned it.

        Raises ResultUnreadable for a result that is not sealed for this command, and at the end
        for one that is cut off.
        """
        opener = sealing.result_opener(
            secret_for_replies(self._key), self._host.data, self._nonces.get(command_id)
        )
        try:
            async for chunk in chunks:
                if opened := await asyncio.to_thread(opener.feed, chunk):
                    yield opened
            if rest := opener.finish():
                yield rest
        except sealing.SealBroken as error:
            raise _unreadable(command_id, error) from error

    def with_opened_error(self, status: CommandStatus) -> CommandStatus:
        """Return the status with the error that its handler ended with. Raises ResultUnreadable.

        An error that is not sealed is returned as it is: it may be the server's or the host's own.
        """
        response = status.response
        if not isinstance(response, ErrorResponse) or response.code != SEALED_ERROR:
            return status
        command_id = status.command_id
        opener = sealing.result_opener(
            secret_for_replies(self._key), self._host.data, self._nonces.get(command_id)
        )
        try:
            data = b64decode(response.details or "", validate=True)
            error = decode(opener.feed(data) + opener.finish(), ErrorResponse)
        except (sealing.SealBroken, ValueError, InvalidCommand) as problem:
            raise _unreadable(command_id, problem) from problem
        return msgspec.structs.replace(status, response=error)


def _read_host(file: Path) -> PublicKey:
    """Return the one key of a file. Raises ConfigurationError."""
    try:
        found = read_public(file, SEALING)
    except KeyFileError as error:
        raise ConfigurationError(f"the host's key: {error}") from error
    if len(found) != 1:
        raise ConfigurationError(f"the host's key: {file} holds {len(found)} keys instead of one")
    return next(iter(found.values()))


def _unreadable(command_id: str, why: Exception) -> ResultUnreadable:
    """Return the error of a result that is not sealed for this sender and command."""
    return ResultUnreadable(f"the sealed result cannot be opened: {why}", command_id=command_id)
