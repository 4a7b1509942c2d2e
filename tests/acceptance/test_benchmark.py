"""The benchmarks run to their end; their figures are judged on a quiet machine, by people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import waiting
from tests.support.world import World

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


def test_whole_commands_are_measured_with_each_process_and_with_a_spool_of_its_own(
    tmp_path: Path,
) -> None:
    results = tmp_path / "results.json"

    printed = run(
        "end_to_end.py",
        *("--seconds", "1", "--handlers", "exec", "--at-once", "0", "2", "--waiting", "0"),
        *("--profile", "--json", str(results)),
    )

    rows = {row["case"]: row for row in json.loads(results.read_text())["rows"]}
    waits = "async, 64 at once, 0 in the spool"
    assert set(rows) == {"exec, at rest", "exec, 2 at once", waits}
    busy = rows["exec, 2 at once"]  # the kernel counts in ticks, and at rest a second has few
    assert busy["agent_cpu"] > busy["agent_main_cpu"] > 0
    assert min(busy["server_cpu"], busy["sender_cpu"], busy["trivial_cpu"]) > 0
    assert busy["started_cpu"] > 0
    assert "arc_agent." in printed, "the profile names functions of the agent"


async def test_responses_that_wait_fit_the_spool_of_an_agent(world: World) -> None:
    await world.server()
    agent = await world.agent("rest")
    agent.terminate()
    await agent.ended()

    waiting.fill(world.directory / "rest", 3, "http://127.0.0.1:9")
    agent = await world.agent("rest", is_awaited=False)

    assert len(world.spooled("rest")) == waiting.count(world.directory / "rest") == 3
    await agent.logged("upload.refused", times=3)  # read back, with their bodies and their URLs
