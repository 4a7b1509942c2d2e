"""The alert rules under Prometheus' own promtool (`make test-alerts`)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import promtool
from tests.support.monitoring import ALERTS, ALERTS_TEST

pytestmark = pytest.mark.alerts


@pytest.fixture(scope="module")
def tool() -> Path:
    found = promtool.find()
    if found is None:
        pytest.skip("promtool is not here: `make test-alerts` fetches it, or says why it cannot")
    return found


def run(tool: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tool, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_prometheus_takes_the_rules(tool: Path) -> None:
    done = run(tool, "check", "rules", ALERTS)

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_in_its_trouble_and_not_for_a_sound_server(tool: Path) -> None:
    done = run(tool, "test", "rules", ALERTS_TEST)

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_never_fires_would_be_found(tool: Path, tmp_path: Path) -> None:
    for file in (ALERTS, ALERTS_TEST):
        (tmp_path / file.name).write_text(
            file.read_text().replace("arc_server_disk_level >= 2", "arc_server_disk_level >= 9")
        )

    done = run(tool, "test", "rules", tmp_path / ALERTS_TEST.name)

    assert done.returncode == 1
    assert "alertname: ArcDiskFull" in done.stdout + done.stderr
