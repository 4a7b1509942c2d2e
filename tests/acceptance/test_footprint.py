"""The footprint of an idle agent: its memory, its CPU time, its requests."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from tests.support.processes import BIN, let_real_time_pass
from tests.support.raw_sender import DEPLOYMENT
from tests.support.world import World

HEAVY = (
    "asyncpg",
    "cryptography",
    "frozenlist._frozenlist",
    "idna",
    "nacl",
    "numpy",
    "pygments",
    "rich.console",
    "prometheus_client",
    "pydantic",
    "tenacity",
    "uvloop",
    "arc_agent.guard.policy_file",
    "arc_client",
    "arc_server",
)
"""What an agent at rest has no use for."""
MAX_MODULES = 610
"""There were 595 when the large files had been divided; each costs time and memory for good."""
RSS_BYTES = 42 * 1024 * 1024
CPU_SHARE = 0.003
READY_SECONDS = 0.8
STARTS = 5
REST_SECONDS = 60

LIST = """
import os, sys, threading
def show():
    with open(os.environ["LIST"], "w") as file:
        file.write("\\n".join(sorted(sys.modules)))
from arc_agent.cli import run
spare = run._spare_collections
def patched():
    import arc_agent.agent  # as late as the program itself does: order decides what is loaded
    real = arc_agent.agent.Agent._log_ready
    arc_agent.agent.Agent._log_ready = lambda agent: (show(), real(agent))[1]
    spare()
run._spare_collections = patched
from arc_agent.cli.main import main
sys.argv[0] = "arc-agent"
main()
"""


async def test_an_agent_at_rest_has_loaded_nothing_that_it_does_not_use(
    world: World, tmp_path: Path
):
    await world.server()
    listed = tmp_path / "modules"
    agent = await asyncio.create_subprocess_exec(
        str(BIN / "python"),
        *("-c", LIST, "run", "--server", world.url, "--deployment", DEPLOYMENT),
        *("--token-file", str(world.tokens["agent"])),
        env={
            "LIST": str(listed),
            "PATH": "/usr/bin:/bin",
            "ARC_AGENT_DATA_DIR": str(tmp_path / "data"),
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert agent.stderr is not None
    try:
        async with asyncio.timeout(30):
            while b'"ready"' not in (line := await agent.stderr.readline()):
                assert line, "the agent ended"
    finally:
        agent.kill()
        await agent.communicate()

    modules = listed.read_text().splitlines()
    print(f"an agent at rest has loaded {len(modules)} modules")
    loaded = {name for name in modules if name in HEAVY or name.split(".")[0] in HEAVY}
    assert loaded == set()
    assert len(modules) <= MAX_MODULES


@pytest.mark.chaos
async def test_an_agent_at_rest_is_hardly_there(world: World):
    await world.server()
    starts: list[float] = []
    for number in range(STARTS):
        began = time.monotonic()
        agent = await world.agent(f"start-{number}", lease_seconds=60)
        starts.append(agent.events("ready")[0]["seen_at"] - began)
        agent.terminate()
        await agent.ended()
    agent = await world.agent("rest", lease_seconds=60)
    proxy = await world.proxy()
    watched = await world.agent("watched", url=proxy.url, lease_seconds=60)
    await let_real_time_pass(5)
    process = psutil.Process(agent.pid)
    before, polls = process.cpu_times(), proxy.requests
    await let_real_time_pass(REST_SECONDS)
    after = process.cpu_times()

    share = (after.user + after.system - before.user - before.system) / REST_SECONDS
    requests = proxy.requests - polls
    print(
        f"at rest: {agent.resident_bytes() / 2**20:.1f} MiB, {share:.3%} of a core,"
        f" {requests} requests in {REST_SECONDS} s; ready after {sorted(starts)[STARTS // 2]:.2f} s"
        f" (median of {STARTS}; {min(starts):.2f} to {max(starts):.2f})"
    )
    assert agent.resident_bytes() <= RSS_BYTES
    assert share <= CPU_SHARE
    assert sorted(starts)[STARTS // 2] <= READY_SECONDS
    assert requests <= REST_SECONDS / 25 + 1
    assert watched.events("contact.lost") == []
