"""The agent that a command is about, where no configuration names it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from arc_agent.cli import place
from arc_agent.cli.place import audit_of, socket_of


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an agent that this user has started without a file; none is installed."""
    directory = tmp_path / "arc-agent"
    (directory / "audit").mkdir(parents=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for variable in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "ARC_AGENT_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(place, "_INSTALLED_CONFIG", tmp_path / "none.yaml")
    monkeypatch.setattr(place, "_INSTALLED_SOCKETS", (tmp_path / "installed.sock",))
    return directory


@pytest.fixture
def given() -> argparse.Namespace:
    """A command line that names nothing."""
    return argparse.Namespace(config=None, data_dir=None, socket=None, directory=None)


def test_an_agent_that_this_user_started_is_found(state: Path, given: argparse.Namespace) -> None:
    (state / "control.sock").touch()

    assert socket_of(given) == state / "control.sock"
    assert audit_of(given) == state / "audit"


def test_an_installed_agent_goes_before_it(state: Path, given: argparse.Namespace) -> None:
    (state / "control.sock").touch()
    installed = state.parent / "installed.sock"
    installed.touch()

    assert socket_of(given) == installed


def test_without_any_agent_the_installed_one_is_named(
    state: Path, given: argparse.Namespace
) -> None:
    (state / "audit").rmdir()

    assert socket_of(given) == state.parent / "installed.sock"
    with pytest.raises(ValueError, match="there is no configuration"):
        audit_of(given)
