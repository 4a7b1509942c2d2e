"""docs/configuration.md and config/*.yaml agree with the configuration classes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, timeout=60, check=False
    )


def test_the_page_says_what_the_classes_say():
    done = run(sys.executable, "scripts/configuration_docs.py", "--check")

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["server", "agent"])
def test_the_commented_example_is_a_good_configuration(program: str):
    done = run(sys.executable, "-m", f"arc_{program}", "check-config", f"config/{program}.yaml")

    assert done.returncode == 0, done.stderr
