"""All tests share the choice of long tests, and put back what they change of their process."""

from __future__ import annotations

import logging
import os
import signal
import sys
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from arc_runtime.logs import redaction
from arc_runtime.startup.light_imports import import_structlog
from tests.support.processes import NO_BALLAST

# As the programs import it: with rich, an exception that a test logs is rendered with its local
# variables, which takes a minute when one of them is a large body.
import_structlog()

os.environ.update(NO_BALLAST)  # for the servers that inherit the environment

# Where the environment forbids bytecode, every program that a test starts compiles ARC first, which
# is a quarter of its CPU, and every worker all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 << 30
"""The directories of all tests at one time are far smaller; a container's 64 MB would not do."""

LEFT_OUT = "not big and not chaos and not host and not docs and not proxies and not alerts"


def pytest_configure(config: pytest.Config) -> None:
    """`-m` on the command line decides alone; without one, the marked tests stay out.

    Workers of xdist inherit the expression of the process that started them, not its arguments:
    an explicit empty one becomes one that is true of every test.
    """
    given = any(str(argument).startswith("-m") for argument in config.invocation_params.args)
    if given and not config.option.markexpr:
        config.option.markexpr = "big or not big"
    elif not config.option.markexpr:
        config.option.markexpr = LEFT_OUT
        _use_memory()


def _use_memory() -> None:
    """Let the tests' directories lie in memory if there is room: an fsync costs nothing there.

    The tests that ask what a disk does (chaos, big) choose by a marker, and stay on the disk.
    """
    with suppress(OSError):
        place = os.statvfs(MEMORY)
        has_room = place.f_bavail * place.f_frsize >= MEMORY_BYTES
        runs_programs = not place.f_flag & os.ST_NOEXEC
        if has_room and runs_programs and os.access(MEMORY, os.W_OK):
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Restore Python's own handling of SIGINT, and the default in every process a test starts.

    A shell that starts the suite in the background has it ignore SIGINT, and its children too.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _no_open_connections() -> Iterator[None]:
    """Fail the test whose event loop closes before a connection does.

    Its transport would be a warning in the test that happens to run when it is collected.
    """
    close: Any = BaseSelectorEventLoop.close

    def closed(loop: Any) -> None:
        left = [each for each in loop._transports.values() if each._sock is not None]
        shown = str(left)
        for transport in left:
            transport.abort()
            transport._sock.close()
            transport._sock = None  # its end is said: no warning when it is collected
        close(loop)
        assert not left, f"open when the event loop closed: {shown}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseSelectorEventLoop, "close", closed)
        yield


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Put the logging of the process back: the log of a program would go on in later tests."""
    import structlog

    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**before)
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _no_known_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the secrets of earlier tests: one called `secret` masks that word in later logs."""
    monkeypatch.setattr(redaction, "_KNOWN", redaction.KnownSecrets())
