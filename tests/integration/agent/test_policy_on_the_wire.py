"""Policies, operators and a full audit log, as a server and its senders see them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from arc_agent import handler
from arc_agent.guard.audit_reader import entries, verify
from arc_agent.host.logins import own_login
from arc_runtime.control_socket import ControlRefused, NotListening, ask
from tests.support.running_agent import RunningAgent, Start, running
from tests.support.scripted_server import ScriptedServer, inline
from tests.support.waiting import Changes, until

ran: list[str] = []


@handler("quick")
async def quick() -> str:
    ran.append("quick")
    return "done"


class Slow:
    """A handler that ends when it is told to."""

    def __init__(self) -> None:
        self.running = 0
        self.changes = Changes()
        self.may_end = asyncio.Event()

    def handlers(self) -> tuple[Any, ...]:
        @handler("slow.one")
        @handler("slow.two")
        async def slow() -> str:
            self.running += 1
            self.changes.notify()
            try:
                await self.may_end.wait()
            finally:
                self.running -= 1
                self.changes.notify()
            return "slow"

        return (slow,)


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def policy(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of an agent with these rules."""

    def settings(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
        named = [{"action": "allow", **rule} for rule in rules]
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"rules": named}))
        return {"policy": {"file": str(tmp_path / "policy.yaml"), **more}}

    return settings


async def told(agent: RunningAgent, do: str, **request: Any) -> dict[str, Any]:
    """Return what the agent answers its operator."""
    path = agent.directory / "control.sock"
    return await asyncio.to_thread(ask, path, {"do": do, **request})


async def until_waiting(agent: RunningAgent, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many commands wait for approval; return them."""

    async def enough() -> list[dict[str, Any]]:
        with suppress(NotListening):  # it is only starting
            waiting = (await told(agent, "approvals"))["approvals"]
            return waiting if len(waiting) >= count else []
        return []

    return await until(enough)


def events(agent: RunningAgent, command_id: str) -> list[str]:
    """Return what the audit log says of a command."""
    found = entries(agent.directory / "audit")
    return [each["event"] for each in found if each.get("command_id") == command_id]


async def test_without_a_policy_everything_that_has_a_handler_runs(
    server: ScriptedServer, start: Start
) -> None:
    server.send("quick")
    await start(server, quick)

    assert inline(await server.response()) == b'"done"'


async def test_a_denied_command_is_told_the_rule_and_does_not_run(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    server.send("quick", {"secret": "hunter2"}, command_id="cmd_a")
    agent = await start(
        server, quick, **policy({"name": "no quick ones", "commands": ["q*"], "action": "deny"})
    )

    response = await server.response()
    await agent.stop()

    assert response["code"] == "DENIED_BY_POLICY"
    assert "'no quick ones'" in response["message"]
    assert ran == []
    assert events(agent, "cmd_a") == ["denied", "ended"]


async def test_what_no_rule_names_is_denied_and_its_params_are_not_even_fetched(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    server.send("unheard.of", {"a": 1}, stored=True)
    await start(server, quick, **policy({"name": "quick", "commands": ["quick"]}))

    response = await server.response()

    assert response["code"] == "DENIED_BY_POLICY"
    assert server.seen("get_blob") == []


@pytest.mark.parametrize("stored", [False, True])
async def test_params_decide(
    server: ScriptedServer, start: Start, policy: Any, stored: bool
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 3}}}
    agent_settings = policy({"name": "small", "params": schema})
    server.send("quick", {"n": 3}, stored=stored, command_id="cmd_1")
    server.send("quick", {"n": 4}, stored=stored, command_id="cmd_2")
    await start(server, quick, max_concurrent=1, **agent_settings)

    await server.response(2)

    assert [each["status"] for each in server.responses()] == ["success", "error"]
    assert ran == ["quick"]


async def test_the_audit_log_has_digests_and_sizes_and_no_params(
    server: ScriptedServer, start: Start
) -> None:
    server.send("quick", raw=b'{"secret": "hunter2"}', command_id="cmd_a")
    agent = await start(server, quick)
    await server.response()
    await agent.stop()

    log = agent.directory / "audit"
    lines = {each["event"]: each for each in entries(log) if each.get("command_id") == "cmd_a"}
    assert verify(log).lines >= 5
    assert lines["started"]["params_sha256"] == sha256(b'{"secret": "hunter2"}').hexdigest()
    assert lines["ended"]["outcome"] == "succeeded"
    assert "ran" not in lines["ended"]
    assert lines["ended"]["bytes"] == 6
    assert lines["ended"]["result_sha256"] == sha256(b'"done"').hexdigest()
    assert b"hunter2" not in b"".join(file.read_bytes() for file in log.iterdir())


async def test_a_command_waits_for_approval_with_its_lease_renewed_and_others_run_meanwhile(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    rules = policy({"name": "ask", "commands": ["arc.echo"], "action": "approve"}, {"name": "rest"})
    server.lease_seconds = 2.0
    server.send("arc.echo", {"x": 1}, command_id="cmd_a")
    agent = await start(
        server,
        quick,
        max_concurrent=1,
        lease={"seconds": 2},
        renew={"at_most_seconds": 0.2},
        **rules,
    )
    (waiting,) = await until_waiting(agent)
    server.send("quick", command_id="cmd_b")
    await server.response()  # though only one may run at the same time
    renewals = len(server.seen("renew"))
    await server.until(lambda: len(server.seen("renew")) >= renewals + 3)
    assert len(server.responses("cmd_a")) == 0

    answer = await told(agent, "approve", id="cmd_a", note="looks fine")
    await server.response(2)
    await agent.stop()

    assert (waiting["command"], waiting["rule"]) == ("arc.echo", "ask")
    assert json.loads(waiting["params"]) == {"x": 1}
    assert answer == {"id": "cmd_a", "command": "arc.echo"}
    assert json.loads(inline(server.responses("cmd_a")[0])) == {"x": 1}
    assert events(agent, "cmd_a") == ["approval", "approved", "started", "ended"]
    approved = [each for each in entries(agent.directory / "audit") if each["event"] == "approved"]
    assert (approved[0]["by"], approved[0]["by_uid"]) == (own_login(), os.getuid())
    assert (waiting["signed_by"], waiting["senders"]) == (None, [])
    assert waiting["params_sha256"] == sha256(waiting["params"].encode()).hexdigest()
    assert server.seen("release") == []


async def test_an_operator_sees_size_and_digest_alone_where_the_host_says_so(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    server.send("arc.echo", {"password": "hunter2"}, command_id="cmd_a")
    agent = await start(server, **policy({"name": "ask", "action": "approve"}, show_params=False))

    (waiting,) = await until_waiting(agent)

    assert (waiting["params"], waiting["params_bytes"]) == (None, 23)
    assert waiting["params_sha256"] == sha256(b'{"password": "hunter2"}').hexdigest()


def reported(server: ScriptedServer) -> list[dict[str, str]]:
    """The command that waits for approval, as each renewal reports it; {} for none."""
    told = [each.json().get("waiting", [{}]) for each in server.seen("renew")]
    return [each for (each,) in told]


async def test_the_server_learns_at_once_that_a_command_waits_for_approval_and_that_it_ceases(
    server: ScriptedServer, start: Start, policy: Any, slow: Slow
) -> None:
    rules = policy({"name": "ask", "commands": ["arc.echo"], "action": "approve"}, {"name": "rest"})
    server.send("arc.echo", command_id="cmd_a")
    agent = await start(server, *slow.handlers(), **rules)  # it would renew after 20 s
    (waiting,) = await until_waiting(agent)
    await server.until(lambda: len(server.seen("renew")) == 1)
    server.send("slow.one", command_id="cmd_b")
    await slow.changes.until(lambda: slow.running == 1)
    await told(agent, "approve", id="cmd_a")
    await server.until(lambda: len(server.seen("renew")) == 2)

    before, after = reported(server)
    assert (before["leaseId"], before["reason"]) == ("lease_1", "approval")
    assert datetime.fromisoformat(before["until"]).replace(microsecond=0) == (
        datetime.fromisoformat(waiting["until"])
    )
    assert after == {}


async def test_a_report_that_does_not_arrive_is_made_again(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    server.faults["renew"].append(503)
    server.send("quick", command_id="cmd_a")
    await start(server, quick, **policy({"name": "ask", "action": "approve"}))

    await server.until(lambda: len(server.seen("renew")) == 2)

    assert [each.get("reason") for each in reported(server)] == ["approval", "approval"]


async def test_a_person_may_refuse(server: ScriptedServer, start: Start, policy: Any) -> None:
    server.send("quick", command_id="cmd_a")
    agent = await start(server, quick, **policy({"name": "ask", "action": "approve"}))
    await until_waiting(agent)

    await told(agent, "deny", id="cmd_a", note="not today")
    response = await server.response()

    assert response["code"] == "DENIED_BY_POLICY"
    assert "'ask'" in response["message"]
    assert "not today" in response["message"]
    assert ran == []
    with pytest.raises(ControlRefused, match="no command cmd_a waits"):
        await told(agent, "approve", id="cmd_a")


async def test_nobody_says_anything_in_time(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    server.send("quick")
    await start(server, quick, **policy({"name": "ask", "action": "approve"}, approval_seconds=0.2))

    response = await server.response()

    assert response["code"] == "DENIED_BY_POLICY"
    assert "no operator approved it within 0.2 s" in response["message"]
    assert ran == []


async def test_only_so_many_wait(server: ScriptedServer, start: Start, policy: Any) -> None:
    for number in range(3):
        server.send("quick", command_id=f"cmd_{number}")
    agent = await start(
        server, quick, **policy({"name": "ask", "action": "approve"}, max_waiting=2)
    )

    response = await server.response()

    assert len(await until_waiting(agent, 2)) == 2
    assert "too many commands wait" in response["message"]


async def test_what_a_reload_forbids_meanwhile_an_approval_does_not_start(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    server.send("quick", command_id="cmd_a")
    agent = await start(server, quick, **policy({"name": "ask", "action": "approve"}))
    await until_waiting(agent)
    policy({"name": "closed", "action": "deny"})
    agent.agent.reload()

    await told(agent, "approve", id="cmd_a")
    response = await server.response()

    assert "'closed'" in response["message"]
    assert ran == []


async def test_a_cancelled_command_waits_no_longer(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    lease = server.send("quick", command_id="cmd_a")
    agent = await start(
        server,
        quick,
        renew={"at_most_seconds": 0.1},
        **policy({"name": "ask", "action": "approve"}),
    )
    await until_waiting(agent)
    server.cancelled.add(lease)

    response = await server.response()

    assert response["code"] == "CANCELLED"
    assert (await told(agent, "approvals"))["approvals"] == []


async def test_what_waits_is_given_back_without_cost_when_the_agent_stops(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    server.send("quick", command_id="cmd_a")
    agent = await start(
        server, quick, drain={"seconds": 60}, **policy({"name": "ask", "action": "approve"})
    )
    await until_waiting(agent)

    assert await agent.stop(seconds=10) == 0

    assert server.seen("release")[0].json()["reason"] == "drain"
    assert server.responses() == []


async def test_at_once_makes_the_others_of_the_rule_wait_in_order(
    server: ScriptedServer, start: Start, policy: Any, slow: Slow
) -> None:
    rules = policy({"name": "one by one", "commands": ["slow.*"], "at_once": 1}, {"name": "rest"})
    server.send("slow.one", command_id="cmd_a")
    server.send("slow.two", command_id="cmd_b")
    agent = await start(server, quick, *slow.handlers(), max_concurrent=2, **rules)
    await slow.changes.until(lambda: slow.running == 1)
    server.send("quick", command_id="cmd_c")
    await server.response()
    assert slow.running == 1

    slow.may_end.set()
    await server.response(3)
    await agent.stop()

    order = [(each["event"], each["command_id"]) for each in entries(agent.directory / "audit")
             if each["event"] in ("started", "ended", "queued")]  # fmt: skip
    assert order.index(("queued", "cmd_b")) < order.index(("ended", "cmd_a"))
    assert order.index(("ended", "cmd_a")) < order.index(("started", "cmd_b"))


async def test_a_handler_that_ignores_its_end_still_counts_against_its_rule(
    server: ScriptedServer, start: Start, policy: Any
) -> None:
    may_end = asyncio.Event()

    @handler("stubborn")
    async def stubborn() -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                ran.append("told to end")

    rules = policy({"name": "one", "at_once": 1, "commands": ["stubborn", "quick"]})
    lease = server.send("stubborn", command_id="cmd_a")
    agent = await start(
        server, stubborn, quick, max_concurrent=3, renew={"at_most_seconds": 0.1}, **rules
    )
    server.cancelled.add(lease)
    await server.response()
    server.send("quick", command_id="cmd_b")
    server.send("arc.ping", command_id="cmd_c")
    await server.response(2)  # arc.ping: denied, and it has come after cmd_b

    assert ran == ["told to end"]
    may_end.set()
    await server.response(3)
    await agent.stop()

    assert ran == ["told to end", "quick"]
    log = [(each["event"], each.get("rules")) for each in entries(agent.directory / "audit")]
    assert ("policy", 1) in log


async def test_a_queue_that_does_not_move_denies_at_last(
    server: ScriptedServer, start: Start, policy: Any, slow: Slow
) -> None:
    server.send("slow.one", command_id="cmd_a")
    server.send("slow.one", command_id="cmd_b")
    await start(
        server, *slow.handlers(), **policy({"name": "one", "at_once": 1}, queue_seconds=0.2)
    )

    response = await server.response()
    slow.may_end.set()
    await server.response(2)

    assert response["code"] == "DENIED_BY_POLICY"
    assert "others ran for 0.2 s" in response["message"]


async def test_per_hour_denies_the_rest_also_after_a_restart(
    server: ScriptedServer, tmp_path: Path, policy: Any
) -> None:
    settings = policy({"name": "few", "per_hour": 2})
    for number in range(3):
        server.send("quick", command_id=f"cmd_{number}")
    async with running(server.url, tmp_path, (quick,), {"max_concurrent": 1, **settings}):
        await server.response(3)
    server.send("quick", command_id="cmd_3")
    async with running(server.url, tmp_path, (quick,), settings):
        await server.response(4)

    statuses = [each["status"] for each in server.responses()]
    assert statuses == ["success", "success", "error", "error"]
    assert "2 an hour are used up" in server.responses()[3]["message"]
    assert ran == ["quick", "quick"]


async def test_a_bad_policy_at_a_reload_is_refused_and_the_old_stays(
    server: ScriptedServer, start: Start, policy: Any, tmp_path: Path, logged: Any
) -> None:
    agent = await start(server, quick, **policy({"name": "rest", "action": "deny"}))
    (tmp_path / "policy.yaml").write_text("rules: [{name: x, action: allow, comands: [a]}]")
    agent.agent.reload()
    server.send("quick")

    response = await server.response()

    assert "'rest'" in response["message"]
    (refusal,) = [each for each in logged if each["event"] == "reload.refused"]
    assert "rules[0].comands: unknown key" in refusal["reason"]
    assert refusal["log_level"] == "error"


async def test_a_server_without_renewal_gets_the_command_back_before_its_lease_ends(
    old_server: ScriptedServer, start: Start, policy: Any
) -> None:
    old_server.lease_seconds = 6.0
    old_server.send("quick", command_id="cmd_a")
    await start(
        old_server,
        quick,
        lease={"seconds": 6},
        renew={"at_most_seconds": 0.1},
        **policy({"name": "ask", "action": "approve"}),
    )

    await old_server.until(lambda: bool(old_server.seen("release")), seconds=20)

    assert ran == []
    assert old_server.responses() == []


# Pause, resume, stop-all


def statuses(server: ScriptedServer) -> list[Any]:
    """Return what the agent said of itself."""
    return [request.json().get("status") for request in server.seen("agents")]


async def until_told_and_asking_no_more(server: ScriptedServer) -> None:
    """Wait for a status; it comes while the poll before it is still held."""
    await server.until(lambda: bool(statuses(server)[-1]) and not server.held_polls)


async def test_a_paused_agent_takes_nothing_and_says_so_until_it_is_resumed(
    server: ScriptedServer, start: Start, slow: Slow
) -> None:
    server.send("slow.one", command_id="cmd_a")
    agent = await start(server, quick, *slow.handlers(), poll={"wait_seconds": 0.5})
    await slow.changes.until(lambda: slow.running == 1)

    await told(agent, "pause", note="new disk", seconds=3600)
    await until_told_and_asking_no_more(server)
    polls = len(server.seen("leases"))
    server.send("quick", command_id="cmd_b")
    slow.may_end.set()
    await server.response()  # what ran goes on
    assert statuses(server)[-1]["state"] == "paused"
    assert statuses(server)[-1]["note"] == "new disk"
    assert statuses(server)[-1]["until"].endswith("Z")
    assert len(server.seen("leases")) == polls

    await told(agent, "resume")
    await server.response(2)

    assert statuses(server)[-1] is None
    assert ran == ["quick"]


async def test_a_lease_that_arrives_while_it_is_paused_is_given_back_without_cost(
    server: ScriptedServer, start: Start
) -> None:
    agent = await start(server, quick)
    await server.until(lambda: bool(server.seen("leases")))
    await told(agent, "pause")

    server.send("quick")
    await server.until(lambda: bool(server.seen("release")))

    assert server.seen("release")[0].json()["reason"] == "drain"
    assert ran == []


async def test_a_pause_ends_by_itself(server: ScriptedServer, start: Start) -> None:
    agent = await start(server, quick, poll={"wait_seconds": 0.2})
    await server.until(lambda: bool(server.seen("leases")))
    await told(agent, "pause", seconds=0.5)
    await until_told_and_asking_no_more(server)

    server.send("quick")
    await server.response()

    assert statuses(server)[-1] is None


async def test_stop_all_ends_what_runs_gives_back_what_waits_and_holds_over_a_restart(
    server: ScriptedServer, tmp_path: Path, policy: Any, slow: Slow
) -> None:
    rules = policy({"name": "ask", "commands": ["arc.echo"], "action": "approve"}, {"name": "rest"})
    server.send("slow.one", command_id="cmd_a")
    server.send("arc.echo", command_id="cmd_b")
    async with running(server.url, tmp_path, slow.handlers(), rules) as agent:
        await slow.changes.until(lambda: slow.running == 1)
        await until_waiting(agent)

        answer = await told(agent, "stop-all", note="incident 7")
        response = await server.response()
        await server.until(lambda: bool(server.seen("release")))

        assert answer == {"stopped": 1, "not_kept": None}
        assert response["code"] == "STOPPED_BY_HOST"
        assert slow.running == 0
        assert server.seen("release")[0].json()["reason"] == "drain"

    polls = len(server.seen("leases"))
    server.send("quick", command_id="cmd_c")
    told_before = len(statuses(server))
    async with running(server.url, tmp_path, (quick,), {}) as agent:
        await server.until(lambda: len(statuses(server)) > told_before)
        assert statuses(server)[-1]["state"] == "stopped"
        assert len(server.seen("leases")) == polls

        await told(agent, "resume")
        await server.until(lambda: len(server.responses("cmd_c")) == 1)

    log = [each["event"] for each in entries(tmp_path / "agent" / "audit")]
    assert "stopped_all" in log
    assert "resumed" in log


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"do": "pause", "seconds": -1}, "seconds"),
        ({"do": "pause", "seconds": True}, "seconds"),
        ({"do": "pause", "seconds": "1h"}, "seconds"),
        ({"do": "pause", "note": "x" * 300}, "note"),
        ({"do": "pause", "note": "a\nb"}, "note"),
        ({"do": "approve"}, "id"),
        ({"do": "approve", "id": ["cmd_1"]}, "id"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused(
    server: ScriptedServer, start: Start, request_: dict[str, Any], error: str
) -> None:
    agent = await start(server)
    await server.until(lambda: bool(server.seen("leases")))

    with pytest.raises(ControlRefused, match=error):
        await told(agent, **request_)


# No line, no command


async def test_a_command_whose_line_cannot_be_written_is_not_started_and_costs_nothing(
    server: ScriptedServer, start: Start, monkeypatch: pytest.MonkeyPatch, logged: Any
) -> None:
    monkeypatch.setattr("arc_agent.guard.audit._RETRY_SECONDS", 0.1)
    server.send("arc.ping")
    agent = await start(server, quick, poll={"wait_seconds": 0.5})
    await server.response()
    real = os.write
    is_full = True

    def write(descriptor: int, data: bytes) -> int:
        if is_full and "/audit/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    server.send("quick", command_id="cmd_a")
    await server.until(lambda: bool(server.seen("release")))
    await until_told_and_asking_no_more(server)
    polls = len(server.seen("leases"))
    assert server.seen("release")[0].json()["reason"] == "drain"
    assert ran == []
    assert statuses(server)[-1] == {"state": "degraded", "note": "audit"}
    assert any(each["event"] == "audit.unavailable" for each in logged)

    is_full = False
    server.send("quick", command_id="cmd_b")
    await server.response(2)
    await agent.stop()

    assert len(server.seen("leases")) > polls
    assert ran == ["quick"]
    verify(agent.directory / "audit")
    assert events(agent, "cmd_a") == ["ended"]


async def test_the_log_can_be_switched_off(server: ScriptedServer, start: Start) -> None:
    server.send("quick")
    agent = await start(server, quick, audit={"enabled": False})

    await server.response()

    assert not (agent.directory / "audit").exists()
