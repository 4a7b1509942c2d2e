"""The benchmark runs; what it measures is judged on a quiet machine, by people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "lifecycle.py"


def test_the_benchmark_measures_lifecycles_against_the_trivial_route() -> None:
    cores = sorted(os.sched_getaffinity(0))
    options = ["--seconds", "0.3", "--senders", "2", "--stored", "0", "--json"]
    options += ["--server-core", str(cores[0]), "--driver-core", str(cores[-1])]

    ran = subprocess.run(
        [sys.executable, str(PROGRAM), *options], capture_output=True, text=True, timeout=60
    )

    assert ran.returncode == 0, ran.stderr
    rows = {row["name"]: row for row in json.loads(ran.stdout)}
    assert set(rows) == {"healthz", "lifecycle", "lifecycle, step by step"}
    assert all(row["per_second"] > 0 for row in rows.values())
    assert rows["lifecycle"]["p50_ms"] > rows["healthz"]["p50_ms"]
