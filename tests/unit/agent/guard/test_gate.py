"""The gate: who may start, who waits, and what the audit log says of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from arc_agent.config.sections import AuditSection
from arc_agent.guard.approvals import Operator
from arc_agent.guard.audit import Audit
from arc_agent.guard.audit_reader import entries
from arc_agent.guard.gate import Gate
from arc_agent.guard.policy import Policy
from arc_agent.guard.policy_file import read_policy
from arc_agent.guard.turns import Turns
from arc_agent.host.disk_thread import DiskThread
from arc_agent.host.logins import Login
from arc_agent.jobs.outcome import NO_COST, Dropped, Ended, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.result_files import StoredBody
from arc_runtime.control_socket import ControlRefused
from tests.support.clocks import AgentClock
from tests.support.leases import InForce, job, source, source_file
from tests.support.waiting import settle, until

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
OPERATOR = Operator(1000, Login("alice", "sudo"))


class Gated:
    """A gate with a policy, a clock and slots that a test changes."""

    def __init__(self, tmp_path: Path, *rules: dict[str, Any], audit: Audit | None = None) -> None:
        self._tmp_path = tmp_path
        self.clock = AgentClock()
        self.slots = Turns(lambda: 2)
        self.live = InForce(policy={"max_waiting": 2, "queue_seconds": 60})
        self.live.policy = self.policy(*rules)
        self.now = NOW
        self.gate = Gate(
            live=self.live,
            audit=audit,
            slots=self.slots,
            clock=self.clock,
            now=lambda: self.now,
        )

    def policy(self, *rules: dict[str, Any]) -> Policy | None:
        """A policy of these rules; None without any."""
        if not rules:
            return None
        named = [{"name": f"rule-{number}", **rule} for number, rule in enumerate(rules)]
        file = self._tmp_path / "policy.yaml"
        file.write_text(yaml.safe_dump({"rules": named}))
        return read_policy(file)

    async def admit(self, number: int = 1, data: bytes = b"{}", **more: Any) -> Outcome | None:
        """The outcome of a command that may not start; None when it may."""
        job_ = job(lease_id=f"lease_{number}", command_id=f"cmd_{number}")
        return await end_of(self.gate.admit(job_, source(data), **more))

    def begin(self, number: int = 1) -> asyncio.Task[Outcome | None]:
        """The admission of a command, in a task."""
        return asyncio.create_task(self.admit(number))

    def decide(self, number: int, is_yes: bool, note: str | None = None) -> None:
        self.gate.decide(f"cmd_{number}", is_yes, note, OPERATOR)


async def end_of(step: Awaitable[None]) -> Outcome | None:
    """The outcome that a step raises; None when it is not the last."""
    try:
        await step
    except Ended as end:
        return end.outcome
    return None


def denied(outcome: Outcome | None) -> str:
    """The message of a command that was denied."""
    assert isinstance(outcome, Failed)
    assert outcome.code == "DENIED_BY_POLICY"
    return outcome.message


async def test_without_a_policy_a_command_needs_a_slot_only(tmp_path: Path) -> None:
    gated = Gated(tmp_path)
    gated.gate.check_name(job(), None)
    assert not gated.gate.is_open("lease_1")
    gated.slots.try_take("lease_1")
    assert gated.gate.is_open("lease_1")

    assert await gated.admit() is None

    assert gated.gate.has_started("lease_1")
    gated.gate.release("lease_1")
    assert not gated.gate.has_started("lease_1")
    assert gated.slots.free == 2


async def test_a_command_is_denied_by_its_name_before_its_params_come(tmp_path: Path) -> None:
    gated = Gated(
        tmp_path,
        {"action": "deny", "commands": ["pay"]},
        {"action": "allow", "commands": ["see"], "params": {"type": "object"}},
    )

    with pytest.raises(Ended) as caught:
        gated.gate.check_name(job("pay"), None)
    gated.gate.check_name(job("see"), None)

    assert "rule-0" in denied(caught.value.outcome)


async def test_params_decide_where_a_rule_asks_about_them(tmp_path: Path) -> None:
    rule = {
        "action": "allow",
        "params": {"type": "object", "properties": {"amount": {"type": "integer", "maximum": 10}}},
    }
    gated = Gated(tmp_path, rule)

    assert await gated.admit(1, b'{"amount": 1}') is None
    assert "no rule" in denied(await gated.admit(2, b'{"amount": 11}'))
    assert "rule-0" in denied(await gated.admit(3, b"no json"))
    assert "rule-0" in denied(await gated.admit(4, b'"' + b"x" * 2_000_000 + b'"'))


async def test_params_in_a_file_are_read_too(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "approve", "params": {"type": "object"}})
    admitting = asyncio.create_task(
        end_of(gated.gate.admit(job(), source_file(tmp_path / "params", b'{"a": 1}')))
    )
    await until(gated.gate.approvals.shown)

    assert gated.gate.approvals.shown()[0]["params"] == '{"a": 1}'
    gated.decide(1, True)
    assert await admitting is None


async def test_an_hour_s_limit_is_over_after_an_hour(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "allow", "per_hour": 2})

    assert await gated.admit(1) is None
    assert await gated.admit(2) is None
    for number in (1, 2):
        gated.gate.release(f"lease_{number}")
    assert "2 an hour are used up" in denied(await gated.admit(3))
    gated.clock.now += 3600

    assert await gated.admit(4) is None


async def test_an_hour_s_limit_holds_over_a_restart(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "allow", "per_hour": 1})
    gated.gate.remember([("rule-0", NOW - timedelta(minutes=59))])

    assert "used up" in denied(await gated.admit(1))
    gated.clock.now += 60
    assert await gated.admit(2) is None


async def test_a_rule_lets_so_many_run_at_a_time(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "allow", "at_once": 1})
    assert await gated.admit(1) is None
    second, third = gated.begin(2), gated.begin(3)
    await settle()
    assert gated.gate.is_waiting("lease_2")

    assert "too many commands wait" in denied(await gated.admit(4))
    gated.gate.release("lease_1")
    assert await second is None
    assert not third.done()
    gated.gate.release("lease_2")
    assert await third is None


async def test_an_abandoned_handler_counts_against_its_rule_until_it_ends(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "allow", "at_once": 1})
    assert await gated.admit(1) is None
    gated.gate.release("lease_1", is_abandoned=True)
    second = gated.begin(2)
    await settle()
    assert not second.done()

    gated.gate.release("lease_1")

    assert await second is None


async def test_a_turn_that_does_not_come_in_time_is_denied(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "allow", "at_once": 1})
    gated.live.config = InForce(policy={"queue_seconds": 0.001}).config
    assert await gated.admit(1) is None

    assert "others ran for 0.001 s" in denied(await gated.admit(2))
    assert not gated.gate.is_waiting("lease_2")


async def test_a_new_policy_lets_waiting_commands_in(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "allow", "at_once": 1})
    assert await gated.admit(1) is None
    second = gated.begin(2)
    await settle()

    gated.live.policy = None
    gated.gate.wake()

    assert await second is None


async def test_an_operator_allows_a_command_without_a_slot(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "approve"})
    gated.slots.try_take("lease_1")
    admitting = gated.begin(1)
    await settle()
    assert gated.gate.is_waiting("lease_1")
    assert gated.slots.free == 2, "it gave its slot away"

    gated.decide(1, True)

    assert await admitting is None
    assert gated.slots.has("lease_1")


async def test_an_operator_refuses_with_a_note(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "approve"})
    first, second = gated.begin(1), gated.begin(2)
    await settle()
    assert "too many commands wait" in denied(await gated.admit(3))

    gated.decide(1, False, "not today")
    gated.decide(2, False)

    assert denied(await first).endswith("refused it: not today")
    assert denied(await second).endswith("refused it")
    with pytest.raises(ControlRefused):
        gated.decide(1, True)


async def test_an_approval_that_nobody_gives_is_a_denial(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "approve"})
    gated.live.config = InForce(policy={"approval_seconds": 0.001}).config

    assert "no operator approved it" in denied(await gated.admit(1))


async def test_what_was_approved_may_be_forbidden_by_then(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "approve"})
    admitting = gated.begin(1)
    await settle()
    gated.live.policy = gated.policy({"action": "deny"})
    gated.decide(1, True)

    assert "rule-0" in denied(await admitting)


async def test_a_policy_that_is_taken_away_meanwhile_denies_nothing(tmp_path: Path) -> None:
    gated = Gated(tmp_path, {"action": "approve"})
    admitting = gated.begin(1)
    await settle()
    gated.live.policy = None
    gated.decide(1, True)

    assert await admitting is None


async def test_other_queues_come_before_the_slot_and_the_recheck_after_it(tmp_path: Path) -> None:
    gated = Gated(tmp_path)
    order: list[object] = []

    async def queue() -> None:
        order.append(gated.slots.has("lease_1"))

    def recheck() -> None:
        order.append(gated.slots.has("lease_1"))
        raise Ended(Failed("SIGNATURE_EXPIRED", "too old"))

    outcome = await gated.admit(1, queue=queue, recheck=recheck)

    assert order == [False, True]
    assert outcome == Failed("SIGNATURE_EXPIRED", "too old")
    assert not gated.gate.has_started("lease_1")


@pytest.fixture
async def audit(tmp_path: Path) -> AsyncIterator[Audit]:
    """An audit log that is open."""
    async with DiskThread() as disk:
        audit = Audit(tmp_path / "audit", AuditSection(), disk)
        await audit.open(on_trouble=lambda _: None, on_failure=lambda: None, version="1")
        yield audit
        await audit.close()


async def test_the_audit_log_has_the_whole_story(tmp_path: Path, audit: Audit) -> None:
    gated = Gated(tmp_path, {"action": "allow"}, audit=audit)
    file = source_file(tmp_path / "params", b"[1]")

    gated.gate.log_bad_signature(job(), Failed("SIGNATURE_INVALID", "forged"), "ops")
    await gated.gate.admit(job(), file, "ops")
    gated.gate.log_ended(job(), Succeeded(b"done"))
    gated.gate.log_ended(job(), Succeeded(StoredBody("name", 3, "abc")))
    gated.gate.log_ended(job(), Failed("OWN", "no"))
    gated.gate.log_ended(job(), Dropped("lost"))
    await audit.record("read")  # what was put before is written with it

    lines = [line for line in entries(tmp_path / "audit") if line["event"] != "file"]
    by_event = [(line["event"], line) for line in lines if "command_id" in line]
    assert [event for event, _ in by_event] == [
        "signature_refused",
        "started",
        *["ended"] * 4,
    ]
    started = by_event[1][1]
    assert started["params_sha256"] == sha256(b"[1]").hexdigest()
    assert (started["rule"], started["signed_by"], started["bytes"]) == ("rule-0", "ops", 3)
    ends = [line for event, line in by_event if event == "ended"]
    assert ends[0]["result_sha256"] == sha256(b"done").hexdigest()
    assert (ends[1]["bytes"], ends[1]["result_sha256"]) == (3, "abc")
    assert (ends[2]["outcome"], ends[3]["reason"]) == ("OWN", "lost")
    assert [("command" in line, "ran" in line) for line in ends] == [(False, False)] * 4


async def test_a_start_that_cannot_be_recorded_does_not_happen(
    tmp_path: Path, audit: Audit
) -> None:
    gated = Gated(tmp_path, audit=audit)
    missing = source_file(tmp_path / "params", b"[1]")
    (tmp_path / "params").unlink()

    outcome = await end_of(gated.gate.admit(job(), missing))

    assert outcome == GivenBack(NO_COST)
    assert not gated.gate.has_started("lease_1")
