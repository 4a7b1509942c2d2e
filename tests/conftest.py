"""All tests share the choice of long tests, and that Ctrl-C reaches the processes they start."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from arc_runtime.logs import redaction

LEFT_OUT = "not big and not chaos and not host and not docs and not proxies"


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


@pytest.fixture(autouse=True)
def _no_known_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the secrets of earlier tests: one called `secret` masks that word in later logs."""
    monkeypatch.setattr(redaction, "_KNOWN", redaction.KnownSecrets())
