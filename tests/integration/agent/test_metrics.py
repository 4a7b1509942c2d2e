"""The health and Prometheus endpoint: right after a real run, on loopback, off unless asked for."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from arc_agent import CommandFailed, handler
from arc_agent.config.reading import read
from arc_agent.control.metrics import PrometheusMeter
from arc_agent.jobs.outcome import Succeeded
from arc_runtime.config.settings import SettingsError
from tests.support.running_agent import RunningAgent, Start
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import until

Figures = dict[tuple[str, tuple[str, ...]], float]


async def get(logged: Any, path: str) -> tuple[int, str]:
    """Ask the endpoint where it says that it is."""
    (url,) = [each["url"] for each in logged if each["event"] == "metrics.listening"]
    async with (
        aiohttp.ClientSession() as session,
        session.get(url.replace("/metrics", path)) as answer,
    ):
        return answer.status, await answer.text()


async def figures(logged: Any) -> Figures:
    """All samples by name and label values."""
    status, text = await get(logged, "/metrics")
    assert status == 200
    return {
        (sample.name.removeprefix("arc_agent_"), tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def is_ready(logged: Any) -> bool:
    return (await get(logged, "/readyz"))[0] == 200


async def is_not_ready(logged: Any) -> bool:
    return not await is_ready(logged)


async def figure(logged: Any, name: str) -> float:
    return (await figures(logged))[(name, ())]


async def ready(logged: Any, agent: RunningAgent) -> None:
    """Wait until the agent says that it is ready."""
    await until(lambda: any(each["event"] == "metrics.listening" for each in logged))
    await until(lambda: is_ready(logged))
    assert not agent.task.done()


async def test_the_figures_are_right_after_a_real_run(
    server: ScriptedServer, start: Start, logged: Any
) -> None:
    @handler("fine")
    async def fine() -> None: ...

    @handler("fails")
    async def fails() -> None:
        raise CommandFailed("CODE_OF_ITS_OWN", "no")

    agent = await start(
        server,
        fine,
        fails,
        metrics={"listen": "127.0.0.1:0"},
        renew={"at_most_seconds": 0.1},
    )

    async def spool_is_empty() -> bool:
        return await figure(logged, "spool_results") == 0

    await server.until(lambda: len(server.seen("leases")) >= 2)  # the second is held
    for command in ("fine", "fine", "fails", "nobody.knows"):
        server.send(command)
    await server.response(4)
    await ready(logged, agent)

    await until(spool_is_empty)
    found = await figures(logged)

    assert found[("commands_total", ("fine", "succeeded"))] == 2
    assert found[("commands_total", ("fails", "failed"))] == 1
    assert found[("commands_total", ("(other)", "failed"))] == 1
    assert found[("handler_seconds_count", ("fine",))] == 2
    assert found[("handler_seconds_count", ("fails",))] == 1
    assert ("handler_seconds_count", ("(other)",)) not in found
    assert found[("commands_running", ())] == 0
    assert found[("spool_bytes", ())] == 0
    assert found[("contact_lost", ())] == 0
    assert found[("takes_work", ())] == 1
    assert found[("poll_seconds_count", ("yes",))] >= 1
    assert "CODE_OF_ITS_OWN" not in (await get(logged, "/metrics"))[1]


async def test_renewals_and_what_runs_are_counted(
    server: ScriptedServer, start: Start, logged: Any
) -> None:
    gate = asyncio.Event()

    @handler("long")
    async def long() -> None:
        await gate.wait()

    async def has_counted_all() -> bool:
        return await figure(logged, "leases_renewed_total") == len(server.seen("renew"))

    await start(server, long, metrics={"listen": "127.0.0.1:0"}, renew={"at_most_seconds": 0.1})
    server.send("long")
    await server.until(lambda: len(server.seen("renew")) >= 3)

    assert (await figures(logged))[("commands_running", ())] == 1
    # each request renews the one lease; the last is under way
    await until(has_counted_all)
    gate.set()
    await server.response()


async def test_a_lost_server_makes_it_unready_and_not_dead(
    server: ScriptedServer, start: Start, logged: Any
) -> None:
    agent = await start(server, metrics={"listen": "127.0.0.1:0"})
    await ready(logged, agent)
    await server.stop()

    await until(lambda: is_not_ready(logged))

    assert await get(logged, "/readyz") == (
        503,
        '{"status": "not ready", "reason": "contact is lost"}',
    )
    assert (await get(logged, "/healthz"))[0] == 200
    assert (await figures(logged))[("contact_lost", ())] == 1


async def test_a_port_that_is_taken_ends_the_start_in_one_line(
    server: ScriptedServer, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "arc_agent", "run"),
            *("--server", server.url, "--deployment", "d", "--data-dir", str(tmp_path / "data")),
            env={**os.environ, "ARC_AGENT_METRICS_LISTEN": listen},
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            _, said = await agent.communicate()

    assert agent.returncode == 1
    last = said.decode().splitlines()[-1]
    assert last == f"error: metrics.listen: {listen}: Address already in use"
    assert b"Traceback" not in said


@pytest.mark.parametrize(
    ("listen", "public", "reason"),
    [
        ("0.0.0.0:9180", False, "not a loopback address"),
        ("[::]:9180", False, "not a loopback address"),
        ("10.0.0.1:9180", False, "not a loopback address"),
        ("metrics.corp:9180", False, "Expected an address"),
        ("127.0.0.1", False, "Expected an address"),
        ("127.0.0.1:99999", False, "Expected an address"),
        ("127.0.0.1:9180", False, None),
        ("[::1]:9180", False, None),
        ("localhost:9180", False, None),
        ("0.0.0.0:9180", True, None),
    ],
)
def test_others_may_read_it_only_when_the_configuration_says_so(
    listen: str, public: bool, reason: str | None
) -> None:
    given = {"server.url": "https://a", "deployment": "d", "metrics.listen": listen,
             "metrics.public": public}  # fmt: skip
    if reason is None:
        assert read(None, {}, given).metrics.listen == listen
        return
    with pytest.raises(SettingsError, match=reason):
        read(None, {}, given)


def test_names_of_commands_are_bounded() -> None:
    counting = PrometheusMeter("127.0.0.1:0")
    for number in range(150):
        counting.ended(f"c{number}", Succeeded(b""), is_known=True)
        counting.handled(f"c{number}", 0.1)

    names = {
        sample.labels["command"]
        for family in counting.registry.collect()
        for sample in family.samples
        if "command" in sample.labels
    }
    assert len(names) == 101
    assert "(other)" in names
