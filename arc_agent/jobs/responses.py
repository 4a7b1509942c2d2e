"""Responses are made of the value or the exception that a handler ended with."""

from __future__ import annotations

import asyncio
import errno
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import structlog

from arc_agent.handlers import shapes
from arc_agent.handlers.context import CommandFailed
from arc_agent.handlers.no_descriptors import lacks_descriptors
from arc_agent.handlers.shapes import UNTYPED, Misfit
from arc_agent.host.data_dir import DataDir
from arc_agent.host.threads import in_thread
from arc_agent.jobs.job import Job
from arc_agent.jobs.lease_table import End
from arc_agent.jobs.outcome import NO_COST, Dropped, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.result_files import StoredBody, store_bytes, store_file
from arc_agent.net.bodies import NoRoom
from arc_protocol.codec import encode
from arc_protocol.messages.bodies import ErrorResponse, InlineBody, SuccessResponse
from arc_runtime.logs.redaction import mask_known

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

INVALID_RESULT: Final = "INVALID_RESULT"
STORAGE_FAILED: Final = "STORAGE_OPERATION_FAILED"
_SMALL_CHARS: Final = 8 * 1024
_PART_CHARS: Final = 8
"""The size of a value that is encoded in the event loop (20 µs), and what each part of it adds."""
_SMALL_KINDS: Final = frozenset({bool, float, type(None)})
_MAX_CODE_CHARS: Final = 256
_MAX_MESSAGE_CHARS: Final = 4_000
_MAX_DETAILS_CHARS: Final = 16_000
"""The size of an error response stays below what public servers can store (20 kB)."""


async def stored(
    job: Job, value: Any, kind: Any, data_dir: DataDir, has_room: Callable[[], bool]
) -> Succeeded | Failed:
    """Store a result for the spool: bytes, a file, or a JSON value of the handler's `kind`.

    Raises OSError if no file descriptors are left, and only then.
    """
    if isinstance(value, Succeeded | Failed):
        return value  # stored before
    store = partial(_store, job, value, kind, data_dir, has_room)
    try:
        if is_small(value):
            return Succeeded(store())
        return Succeeded(await in_thread(store, "result"))
    except Misfit as error:
        log.warning(
            "result.invalid",
            command_id=job.lease.command_id,
            command=job.lease.envelope.command,
            path=error.path,
        )
        return Failed(INVALID_RESULT, _clean(error.under("result")))
    except NoRoom as error:
        return Failed(STORAGE_FAILED, str(error))
    except asyncio.CancelledError:
        raise
    except OSError as error:
        if lacks_descriptors(error):
            raise
        if isinstance(value, Path) and error.errno in (errno.ENOENT, errno.EACCES):
            return Failed("HANDLER_ERROR", "the result file cannot be read")
        log.error("result.not_stored", command_id=job.lease.command_id, reason=str(error))
        return Failed(STORAGE_FAILED, f"the result could not be stored: {error.strerror}")
    except BaseException as error:  # a result has code of its own, which may even exit
        return failure(job, error, sends_tracebacks=False)


def is_small(value: Any) -> bool:
    """Return True for a plain value that is encoded faster than a thread is woken.

    Large values go to a thread, and so do all that have code of their own.
    """
    room = _SMALL_CHARS
    waiting: list[Any] = [value]
    while waiting:
        part = waiting.pop()
        kind = cast("type[Any]", type(part))
        if kind is str or kind is bytes:
            room -= len(part)
        elif kind is dict:
            room -= _PART_CHARS * len(part)
            waiting += part.keys()
            waiting += part.values()
        elif kind is list or kind is tuple:
            room -= _PART_CHARS * len(part)
            waiting += part
        elif kind is int:
            room -= part.bit_length()
        elif kind not in _SMALL_KINDS:
            return False
        if room < 0:
            return False
    return True


def _store(
    job: Job, value: Any, kind: Any, data_dir: DataDir, has_room: Callable[[], bool]
) -> StoredBody | bytes:
    """Encode a result, or write it to a file. Blocks.

    Raises Misfit for a value that is not of the kind or cannot be sent, NoRoom, OSError.
    """
    is_sent_raw = isinstance(value, Path | bytes | bytearray | memoryview)
    if kind is not UNTYPED and is_sent_raw != shapes.is_raw(kind):
        name = getattr(kind, "__name__", str(kind))
        raise Misfit(f"Expected `{name}`, got `{type(value).__name__}`")
    if isinstance(value, Path):
        return store_file(data_dir, value, job.inline_bytes, has_room)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(cast("bytes", value))
    else:
        data = shapes.write(value, kind)
    return store_bytes(data_dir, data, job.inline_bytes, has_room)


def failure(job: Job, error: BaseException, *, sends_tracebacks: bool) -> Failed:
    """Return the error that a sender gets for an exception; the host's log gets all of it."""
    bound = log.bind(command_id=job.lease.command_id, command=job.lease.envelope.command)
    if isinstance(error, CommandFailed):
        code, details = _clean(error.code), error.details
        bound.info("handler.failed", code=code)
        return Failed(code, _clean(error.message), None if details is None else _clean(details))
    if isinstance(error, NoRoom):
        return Failed(STORAGE_FAILED, str(error))
    try:
        bound.warning("handler.raised", exc_info=error)
    except BaseException:  # to format it runs the handler's code
        bound.warning("handler.raised", kind=type(error).__name__)
    text = _text_of(error)
    text = mask_known(_clean(text))  # the agent's own credentials are no sender's business
    if not sends_tracebacks:
        return Failed("HANDLER_ERROR", text)
    lines = mask_known(_clean("".join(traceback.format_exception(error))))
    return Failed("HANDLER_ERROR", text, lines[-_MAX_DETAILS_CHARS:])


def _text_of(error: BaseException) -> str:
    """Return the kind of an exception, and its text if it has one that can be had."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # its code is the handler's
        return name
    return f"{name}: {text}" if text else name


def what_counts(end: End | None, outcome: Outcome) -> Outcome:
    """Return the outcome of a run: the reason for its stop goes before what it returned."""
    match end:
        case None:
            return outcome
        case End.CANCELLED:
            return Failed("CANCELLED", "the command was cancelled")
        case End.TIMEOUT:
            if isinstance(outcome, GivenBack):
                return outcome
            return Failed("HANDLER_TIMEOUT", "the handler did not end within its time")
        case End.DRAIN:
            after_seconds = outcome.after_seconds if isinstance(outcome, GivenBack) else 0.0
            return GivenBack(NO_COST, after_seconds)
        case End.HALTED:
            return Failed("STOPPED_BY_HOST", "a person on the host ended all that ran there")
        case End.LOST | End.LAPSED:
            return Dropped(end.value)


def message_of(outcome: Succeeded | Failed) -> bytes | None:
    """Return the response as it is submitted; None when the body goes to the store first."""
    if isinstance(outcome, Failed):
        return encode(
            ErrorResponse(
                code=_clean(outcome.code)[:_MAX_CODE_CHARS],
                message=_clean(outcome.message)[:_MAX_MESSAGE_CHARS],
                details=None
                if outcome.details is None
                else _clean(outcome.details)[-_MAX_DETAILS_CHARS:],
            )
        )
    if isinstance(outcome.body, StoredBody):
        return None
    return encode(SuccessResponse(response=InlineBody.of(outcome.body)))


def name_of(outcome: Outcome) -> str:
    """Return the name of an outcome for the log."""
    return outcome.code if isinstance(outcome, Failed) else type(outcome).__name__.lower()


def _clean(text: str) -> str:
    """Return text that UTF-8 can carry: lone surrogates, as of file names, are replaced."""
    return str(text).encode("utf-8", "replace").decode("utf-8")
