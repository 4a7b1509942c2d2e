"""A host on which no file descriptors are left: a command that needs one is put off, not failed."""

from __future__ import annotations

import errno
from typing import Final

import structlog

from arc_agent.handlers.context import Retry

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

PUT_OFF_SECONDS: Final = 5.0
"""The wait until a command that found no descriptors comes again."""


def lacks_descriptors(error: BaseException) -> bool:
    """Return True for an error of the system that says that no file can be opened now."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def put_off(error: BaseException, what: str) -> Retry | None:
    """Return what puts off the command of a handler that found no descriptors, None otherwise.

    `what` names the handler or program in the log and in the message.
    """
    if not isinstance(error, OSError) or not lacks_descriptors(error):
        return None
    log.error(
        "handler.no_descriptors",
        handler=what,
        reason=error.strerror,
        hint="raise LimitNOFILE, or run fewer commands at a time",
    )
    return Retry(f"{what}: {error.strerror}", after=PUT_OFF_SECONDS)
