"""Handlers that must not run twice, ask to come again, or are at their limit."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from arc_agent import Context, Retry, handler
from tests.support.agent_process import agent
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer, inline

HANDLERS = """
import os, pathlib, signal
from arc_agent import Context, handler

RUNS = pathlib.Path(os.environ["RUNS"])

def note():
    with RUNS.open("a") as file:
        file.write("run\\n")
        file.flush()
        os.fsync(file.fileno())

@handler("pay", idempotent=False)
async def pay() -> str:
    note()
    return "paid"

@handler("crash", idempotent=False)
def crash() -> None:
    note()
    os.kill(os.getpid(), signal.SIGKILL)

@handler("reboot")
def reboot(ctx: Context) -> None:
    note()
    ctx.expect_restart({"rebooted": True})
    os.kill(os.getpid(), signal.SIGKILL)

@handler("stop-me")
def stop_me(ctx: Context) -> None:
    note()
    ctx.expect_restart()
    os.kill(os.getpid(), signal.SIGTERM)
    while not ctx.is_cancelled:
        pass
"""


def place(tmp_path: Path) -> None:
    """The handlers, where the agent's process looks for them."""
    (tmp_path / "once_handlers.py").write_text(HANDLERS)


def again(attempt: int) -> Any:
    """A lease of a later attempt."""

    def change(lease: dict[str, Any]) -> None:
        lease["attempt"] = lease["envelope"]["attempt"] = attempt

    return change


# Not twice


@pytest.mark.parametrize(
    ("point", "runs", "answer"),
    [
        pytest.param("agent.before_journal", 1, "success", marks=pytest.mark.chaos),
        ("agent.after_journal", 0, "MAYBE_EXECUTED"),
        pytest.param("agent.before_handler", 0, "MAYBE_EXECUTED", marks=pytest.mark.chaos),
        ("agent.after_handler", 1, "MAYBE_EXECUTED"),
        pytest.param("agent.after_spool", 1, "success", marks=pytest.mark.chaos),
        pytest.param("agent.after_submit", 1, "success", marks=pytest.mark.chaos),
    ],
)
async def test_a_process_that_dies_at_any_step_runs_nothing_twice(
    server: ScriptedServer, tmp_path: Path, point: str, runs: int, answer: str
) -> None:
    place(tmp_path)
    server.send("pay", command_id="cmd_1")
    async with agent(
        server, tmp_path, "--handlers", "once_handlers", ARC_FAILPOINT=f"{point}=kill"
    ) as first:
        assert await first.ended() == -signal.SIGKILL
    server.send("pay", command_id="cmd_1", change=again(2))
    async with agent(server, tmp_path, "--handlers", "once_handlers"):
        response = (await server.response(), server.responses())[1][-1]

    assert response.get("code", response["status"]) == answer
    counted = (tmp_path / "runs").read_text().count("run") if runs else 0
    assert counted == runs
    assert (tmp_path / "runs").exists() == bool(runs)


async def test_a_handler_that_takes_its_process_with_it_is_answered_after_the_restart(
    server: ScriptedServer, tmp_path: Path
) -> None:
    place(tmp_path)
    server.send("crash", command_id="cmd_1")
    async with agent(server, tmp_path, "--handlers", "once_handlers") as first:
        assert await first.ended() == -signal.SIGKILL
    async with agent(server, tmp_path, "--handlers", "once_handlers"):
        response = await server.response()
        server.send("crash", command_id="cmd_1", change=again(2))  # the answer came too late
        await server.until(lambda: len(server.seen("leases")) >= 3)

    assert response["code"] == "MAYBE_EXECUTED"
    assert "lease=lease_1" in server.seen("response")[0].path
    assert (tmp_path / "runs").read_text() == "run\n"


async def test_a_handler_that_reboots_the_host_ends_well_after_it(
    server: ScriptedServer, tmp_path: Path
) -> None:
    place(tmp_path)
    server.send("reboot")
    async with agent(server, tmp_path, "--handlers", "once_handlers") as first:
        assert await first.ended() == -signal.SIGKILL
    async with agent(server, tmp_path, "--handlers", "once_handlers"):
        response = await server.response()

    assert inline(response) == b'{"rebooted":true}'
    assert (tmp_path / "runs").read_text() == "run\n"


async def test_a_handler_that_stops_the_agents_own_unit_ends_well(
    server: ScriptedServer, tmp_path: Path
) -> None:
    place(tmp_path)
    server.send("stop-me")
    async with agent(server, tmp_path, "--handlers", "once_handlers") as process:
        assert await process.ended() == 0
    async with agent(server, tmp_path, "--handlers", "once_handlers"):
        response = await server.response()

    assert inline(response) == b'{"restarted":true}'
    assert server.seen("release") == []


async def test_a_drain_does_not_give_back_what_has_started(
    server: ScriptedServer, start: Start
) -> None:
    begun = asyncio.Event()

    @handler("pay", idempotent=False)
    async def pay() -> None:
        begun.set()
        await asyncio.Event().wait()

    running = await start(server, pay)
    server.send("pay")
    await begun.wait()
    await running.stop()

    assert server.seen("release") == []
    assert server.responses()[0]["code"] == "MAYBE_EXECUTED"


async def test_another_hosts_attempt_is_not_run_again_unless_the_host_says_so(
    server: ScriptedServer, start: Start
) -> None:
    @handler("pay", idempotent=False)
    async def pay() -> str:
        return "paid"

    running = await start(server, pay)
    server.send("pay", change=again(2))
    refused = await server.response()
    await running.stop()
    await start(server, pay, handlers={"settings": {"arc.ping": {"idempotent": False}}})
    server.send("arc.ping")
    assert (await server.response(2))["status"] == "success"

    assert refused["code"] == "MAYBE_EXECUTED"
    assert "nothing is known here of attempt 1" in refused["message"]


async def test_a_host_may_say_that_a_second_run_does_no_harm(
    server: ScriptedServer, tmp_path: Path
) -> None:
    place(tmp_path)
    (tmp_path / "a.yaml").write_text("handlers: {settings: {pay: {idempotent: true}}}")
    server.send("pay", change=again(2))
    async with agent(server, tmp_path, "-c", "a.yaml", "--handlers", "once_handlers"):
        response = await server.response()

    assert inline(response) == b'"paid"'


# Again


async def test_a_handler_that_asks_to_be_run_again_gives_the_lease_back_after_that_time(
    server: ScriptedServer, start: Start
) -> None:
    @handler("wait", idempotent=False)
    async def wait() -> None:
        raise Retry("not yet", after=0.3)

    await start(server, wait, max_concurrent=1)
    server.send("wait")
    await server.until(lambda: len(server.seen("leases")) >= 2)
    server.send("arc.ping", command_id="ping")  # the only slot is free meanwhile
    await server.until(lambda: bool(server.responses("ping")))
    assert server.seen("release") == []
    await server.until(lambda: bool(server.seen("release")))

    released = server.seen("release")[0]
    assert released.json()["reason"] == "retry"
    assert released.at - server.seen("leases")[0].at >= 0.3
    server.send("wait", command_id="cmd_1", change=again(2))
    await server.until(lambda: len(server.seen("release")) == 2)  # not MAYBE_EXECUTED


@pytest.mark.parametrize(
    ("options", "why"),
    [({"deadline_in": 20}, "the deadline is nearer"), ({}, "no attempts are left")],
)
async def test_what_cannot_come_again_fails_with_what_the_handler_said(
    server: ScriptedServer, start: Start, options: dict[str, Any], why: str
) -> None:
    @handler("wait")
    async def wait() -> None:
        raise Retry("the database is away", after=60)

    def last(lease: dict[str, Any]) -> None:
        lease.update(attempt=5, maxAttempts=5)

    await start(server, wait)
    server.send("wait", change=None if options else last, **options)

    response = await server.response()

    assert response["code"] == "RETRIES_EXHAUSTED"
    assert response["message"] == f"the database is away ({why})"


async def test_a_command_that_waits_for_its_time_can_be_cancelled(
    server: ScriptedServer, start: Start
) -> None:
    @handler("wait")
    async def wait() -> None:
        raise Retry(after=600)

    await start(server, wait, renew={"at_most_seconds": 0.1})
    lease_id = server.send("wait")
    await server.until(lambda: len(server.seen("leases")) >= 2)
    server.cancelled.add(lease_id)

    assert (await server.response())["code"] == "CANCELLED"


async def test_an_agent_that_stops_lets_the_lease_lapse_when_the_command_may_come_again(
    server: ScriptedServer, start: Start
) -> None:
    @handler("wait")
    async def wait() -> None:
        raise Retry(after=600)

    running = await start(server, wait)
    server.send("wait")
    await server.until(lambda: len(server.seen("leases")) >= 2)
    await running.stop()

    assert server.seen("release") == []
    asked = [each.json()["leaseSeconds"] for each in server.seen("renew")]
    assert 590 < asked[-1] <= 600


async def test_a_lease_that_cannot_be_renewed_is_given_back_before_it_ends(
    old_server: ScriptedServer, start: Start
) -> None:
    @handler("wait")
    async def wait() -> None:
        raise Retry(after=600)

    old_server.lease_seconds = 6
    await start(old_server, wait, lease={"seconds": 6}, renew={"at_most_seconds": 0.05})
    old_server.send("wait")
    await old_server.until(lambda: bool(old_server.seen("release")))

    assert old_server.responses() == []


# In line


async def test_a_handler_that_is_full_holds_up_no_other(
    server: ScriptedServer, start: Start
) -> None:
    running = most = 0
    gate = asyncio.Event()

    @handler("narrow", concurrency=1)
    async def narrow(ctx: Context) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    for number in range(4):
        server.send("narrow", command_id=f"narrow_{number}")
    await start(server, narrow, max_concurrent=2)
    for number in range(3):
        server.send("arc.ping", command_id=f"ping_{number}")
        await server.until(lambda number=number: bool(server.responses(f"ping_{number}")))
    assert server.responses("narrow_0") == []
    gate.set()
    await server.response(7)

    assert most == 1


async def test_no_more_is_asked_for_when_too_many_wait(
    server: ScriptedServer, start: Start
) -> None:
    gate = asyncio.Event()

    @handler("narrow")
    async def narrow() -> None:
        await gate.wait()

    for _ in range(10):
        server.send("narrow")
    await start(
        server,
        narrow,
        max_concurrent=1,
        handlers={"max_waiting": 3, "settings": {"arc.ping": {"concurrency": 1}}},
    )
    gate.set()
    await server.response(10)
    assert all(each.json()["maxLeases"] == 1 for each in server.seen("leases"))


async def test_what_waits_in_line_is_given_back_when_the_agent_stops(
    server: ScriptedServer, start: Start
) -> None:
    begun = asyncio.Event()

    @handler("narrow", concurrency=1, idempotent=False)
    async def narrow() -> None:
        begun.set()
        await asyncio.Event().wait()

    running = await start(server, narrow)
    server.send("narrow", command_id="first")
    await begun.wait()
    second = server.send("narrow", command_id="second")
    await server.until(lambda: len(server.seen("leases")) >= 3)
    await running.stop()

    assert [each.json() for each in server.seen("release")] == [
        {"leaseId": second, "reason": "drain"}
    ]
    assert server.responses("first")[0]["code"] == "MAYBE_EXECUTED"
    server.send("narrow", command_id="second", change=again(2))  # another had attempt 1 meanwhile
    await start(server, narrow)
    await server.until(lambda: bool(server.responses("second")))
    assert server.responses("second")[0]["code"] == "MAYBE_EXECUTED"


async def test_a_setting_for_a_handler_that_there_is_not_is_refused(
    server: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("handlers: {settings: {pya: {concurrency: 1}}}")
    async with agent(server, tmp_path, "-c", "a.yaml") as process:
        assert await process.ended() == 2
        said = process.log.read_text()

    assert said == "error: handlers.settings.pya: there is no handler of that name\n"
