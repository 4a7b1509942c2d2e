"""The benchmarks run; what they measure is judged on a quiet machine, by people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(program: str, *options: str) -> str:
    """Run a benchmark to its end; what it printed."""
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), *options], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_lifecycles_are_measured_against_the_trivial_route_and_in_a_full_store() -> None:
    cores = sorted(os.sched_getaffinity(0))
    stored = ("--stored", "500", "--pending", "50", "--deployments", "5")

    printed = run(
        "lifecycle.py",
        *("--seconds", "0.3", "--senders", "2", "--json", *stored),
        *("--server-core", str(cores[0]), "--driver-core", str(cores[-1])),
    )

    rows = {row["name"]: row for row in json.loads(printed)}
    full = "500 stored, 50 pending, 5 deployments"
    assert set(rows) == {
        "healthz", "lifecycle", "lifecycle, step by step",
        "empty", "empty, at rest", full, f"{full}, at rest",
    }  # fmt: skip
    assert all(row["per_second"] > 0 for row in rows.values())
    assert rows["lifecycle"]["p50_ms"] > rows["healthz"]["p50_ms"]
