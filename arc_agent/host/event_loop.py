"""The event loop of the process goes on until the agent ends: no task of a handler ends it.

asyncio lets SystemExit and KeyboardInterrupt of any task, and a call of `loop.stop()`, end the
loop. The loop is whole then: it is run again, and the task has failed alone.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final

import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_BROKEN: Final = 1


def run_to_end(main: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine in a new event loop; return its exit code. Raises its exceptions."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)
        while True:
            try:
                return loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt, asyncio.CancelledError, RuntimeError) as error:
                if _is_interrupted(error) or (task.done() and isinstance(error, RuntimeError)):
                    raise
                if task.done():
                    log.critical("agent.ended", exc_info=error)
                    return _BROKEN
                log.critical(
                    "handler.ended_loop",
                    exc_info=error,
                    hint="a task of a handler called sys.exit() or stopped the event loop",
                )


def _is_interrupted(error: BaseException) -> bool:
    """Return True for Ctrl-C before the agent handles it."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return is_default and isinstance(error, KeyboardInterrupt)
