"""The places on the disk: configured, from systemd, or the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from arc_agent.config.places import audit_directory, control_socket, data_directory
from arc_agent.config.reading import read
from arc_agent.config.sections import Config

OF_SYSTEMD = {"STATE_DIRECTORY": "/var/lib/arc-agent:/b", "RUNTIME_DIRECTORY": "/run/arc-agent"}
OF_THE_USER = {"XDG_STATE_HOME": "/state"}


def config(**given: Any) -> Config:
    return read(None, {}, {"server.url": "https://a.b", "deployment": "d", **given})


@pytest.mark.parametrize(
    ("environ", "data", "audit", "control"),
    [
        (
            OF_SYSTEMD,
            "/var/lib/arc-agent",
            "/var/lib/arc-agent/audit",
            "/run/arc-agent/control.sock",
        ),
        (
            OF_THE_USER,
            "/state/arc-agent",
            "/state/arc-agent/audit",
            "/state/arc-agent/control.sock",
        ),
    ],
)
def test_a_place_is_where_systemd_says_or_the_users_own(
    environ: Mapping[str, str], data: str, audit: str, control: str
) -> None:
    assert data_directory(config(), environ) == Path(data)
    assert audit_directory(config(), environ) == Path(audit)
    assert control_socket(config(), environ) == Path(control)


def test_without_a_word_of_the_environment_the_state_is_in_the_home_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ops")

    assert data_directory(config(), {}) == Path("/home/ops/.local/state/arc-agent")


def test_a_configured_place_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ops")
    given = {"data_dir": "~/data", "audit.directory": "/audit", "control.socket": "/c.sock"}

    assert data_directory(config(**given), OF_SYSTEMD) == Path("/home/ops/data")
    assert audit_directory(config(**given), OF_SYSTEMD) == Path("/audit")
    assert control_socket(config(**given), OF_SYSTEMD) == Path("/c.sock")


def test_audit_log_and_socket_follow_a_configured_data_directory() -> None:
    given = config(data_dir="/data")

    assert audit_directory(given, OF_SYSTEMD) == Path("/data/audit")
    assert control_socket(given, OF_THE_USER) == Path("/data/control.sock")
