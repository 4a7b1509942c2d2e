"""All tests share the choice of long tests, and that Ctrl-C reaches the processes they start."""

from __future__ import annotations

import os
import signal
import sys
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Iterator
from typing import Any

import pytest

from arc_runtime.logs import redaction
from tests.support.processes import NO_BALLAST

os.environ.update(NO_BALLAST)  # for the servers that inherit the environment

# Where the environment forbids bytecode, every program that a test starts compiles ARC first, which
# is a quarter of its CPU, and every worker all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

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
def _no_known_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the secrets of earlier tests: one called `secret` masks that word in later logs."""
    monkeypatch.setattr(redaction, "_KNOWN", redaction.KnownSecrets())
