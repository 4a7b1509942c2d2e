"""Calls of systemctl, answered from a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from arc_runtime.install.host import InstallError
from arc_runtime.install.services import Systemctl, run_command, systemd_version

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "{place}/asked"
case "$1" in
--version) echo "systemd 254 (254.1)" ;;
show)
    line=$(head -n 1 "{place}/states")
    [ "$(wc -l < "{place}/states")" -gt 1 ] && sed -i 1d "{place}/states"
    set -- $line
    echo "ActiveState=$1"; echo "InvocationID=$2"; echo "NRestarts=$3" ;;
esac
"""


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Print what systemctl answers from now on: `active old 0`; the last one stays."""
    script = tmp_path / "bin/systemctl"
    script.parent.mkdir()
    script.write_text(SYSTEMCTL.format(place=tmp_path))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")

    def say(*lines: str) -> None:
        (tmp_path / "states").write_text("".join(f"{line}\n" for line in lines))

    return say


def test_a_unit_is_ready_when_its_new_process_says_so(
    states: Callable[..., None], tmp_path: Path
) -> None:
    states("active old 0", "active old 0", "deactivating old 0", "activating new 0", "active new 0")

    assert Systemctl().restart("arc-agent.service", 30)

    asked = (tmp_path / "asked").read_text()
    assert "restart --no-block arc-agent.service" in asked


def test_the_time_of_stopping_does_not_count(states: Callable[..., None]) -> None:
    states("active old 0", *["deactivating old 0"] * 6, "active new 0")

    assert Systemctl().restart("arc-agent.service", 0.3)


@pytest.mark.parametrize(
    "lines",
    [
        ("active old 0", "activating new 0"),
        ("active old 0", "activating new 0", "activating newer 1", "active newest 2"),
        ("active old 0", "failed new 0"),
        ("inactive  0", "inactive  0"),
    ],
    ids=["too late", "fell over at first", "failed", "never started"],
)
def test_a_unit_that_does_not_come_up_is_not_ready(
    states: Callable[..., None], lines: tuple[str, ...]
) -> None:
    states(*lines)

    assert not Systemctl().restart("arc-agent.service", 0.5)


@pytest.mark.parametrize(
    ("state", "is_active"), [("active", True), ("activating", True), ("failed", False)]
)
def test_a_unit_that_is_about_to_run_counts_as_running(
    states: Callable[..., None], state: str, is_active: bool
) -> None:
    states(f"{state} x 0")

    assert Systemctl().is_active("arc-agent.service") is is_active


def test_the_version_of_systemd_is_read(states: Callable[..., None]) -> None:
    assert systemd_version() == 254


def test_no_systemd_has_no_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert systemd_version() == 0


def test_a_command_that_fails_says_what_it_said() -> None:
    with pytest.raises(InstallError, match="ended with 3: no such thing"):
        run_command(["sh", "-c", "echo no such thing >&2; exit 3"])
    with pytest.raises(InstallError, match="no-such-program"):
        run_command(["/no-such-program"])
