"""A finished command becomes its result, or the error that it stands for."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import msgspec

from arc_client.errors import CommandExpired, ResultUnreadable, failure_of
from arc_protocol.codec import UNREADABLE
from arc_protocol.messages.base import State
from arc_protocol.messages.bodies import BodySpec, InlineBody, SuccessResponse
from arc_protocol.messages.commands import CommandStatus

T = TypeVar("T")


def body_of_result(status: CommandStatus) -> BodySpec:
    """Return the result of a command that SUCCEEDED.

    Raises CommandFailed, CommandExpired, and ResultUnreadable when the server has no result.
    """
    match status.state, status.response:
        case State.SUCCEEDED, SuccessResponse(response=body):
            return body
        case State.EXPIRED, _:
            raise CommandExpired(
                f"command {status.command_id} expired: its deadline passed before it was done",
                command_id=status.command_id,
            )
        case (_, SuccessResponse()) | (State.SUCCEEDED, _):
            raise ResultUnreadable(
                "the server has no result of it", command_id=status.command_id, state=status.state
            )
        case _, response:
            raise failure_of(status.command_id, response)


def inline_bytes(body: InlineBody, command_id: str) -> bytes:
    """Return the bytes of a result within the status. Raises ResultUnreadable if damaged."""
    try:
        return body.data()
    except ValueError as error:
        raise ResultUnreadable(f"the result is damaged: {error}", command_id=command_id) from error


def decoded(data: bytes | bytearray, returns: type[T], command_id: str) -> T:
    """Return a result as the type that the caller asked for: `bytes` as they are, else from JSON.

    Raises ResultUnreadable when it is not JSON, or not of that type.
    """
    if returns is bytes:
        return cast("T", bytes(data))
    try:
        return msgspec.json.decode(data, type=returns)
    except msgspec.ValidationError as error:
        why = f"is not what was asked for: {error}"
    except UNREADABLE as error:
        why = f"is {len(data)} bytes that are not JSON ({error}); ask for bytes"
    raise ResultUnreadable(f"the result {why}", command_id=command_id)


async def write_file(path: Path, chunks: AsyncIterator[bytes]) -> int:
    """Write a result to a file, which appears whole or not at all, and return its size.

    A device or a pipe is written to directly. Raises OSError.
    """
    target, is_replaceable = await asyncio.to_thread(_target, path)
    if not is_replaceable:
        with await asyncio.to_thread(target.open, "wb", 0) as file:
            return await _copy(chunks, file)
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with await asyncio.to_thread(partial.open, "xb") as file:
            size = await _copy(chunks, file)
        await asyncio.to_thread(partial.replace, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return size


def is_special(path: Path) -> bool:
    """Return True for a device, a pipe, or a descriptor such as /dev/stdout: no regular file.

    It is opened by its own name: the name that a pipe's link leads to is no path.
    """
    directory = os.path.realpath(path.absolute().parent)
    is_descriptor = directory == "/dev" or directory.startswith("/proc/")
    return is_descriptor or (path.exists() and not path.is_file())


def _target(path: Path) -> tuple[Path, bool]:
    """Return the file to write, and True if another file may take its place."""
    if is_special(path):
        return path, False
    return Path(os.path.realpath(path)), True


async def _copy(chunks: AsyncIterator[bytes], file: IO[Any]) -> int:
    """Write all chunks, and return how many bytes they had."""
    size = 0
    async for chunk in chunks:
        await asyncio.to_thread(file.write, chunk)
        size += len(chunk)
    return size
