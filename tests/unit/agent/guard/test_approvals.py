"""Approvals: an operator's answer reaches the command that waits, once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from arc_agent.guard.approvals import ApprovalRequest, Approvals, Decision, Operator
from arc_agent.host.logins import Login
from arc_runtime.control_socket import ControlRefused
from tests.support.waiting import settle

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
BY = Operator(1000, Login("alice", "loginuid"))
YES = Decision(is_yes=True, by=BY, note="fine")


def request(command_id: str = "cmd_1", **fields: Any) -> ApprovalRequest:
    """A command that waits."""
    values: dict[str, Any] = {
        "command": "pay",
        "attempt": 1,
        "rule": "careful",
        "signed_by": None,
        "senders": (),
        "since": NOW,
        "until": NOW,
        "params": b"{}",
        "params_bytes": 2,
        "params_sha256": "ab",
        "shows_params": True,
        "decision": asyncio.get_running_loop().create_future(),
        **fields,
    }
    return ApprovalRequest(command_id=command_id, **values)


async def test_an_answer_reaches_the_command_that_waits() -> None:
    approvals = Approvals()
    waiting = asyncio.create_task(approvals.decision(request(), 60))
    await settle()
    assert len(approvals) == 1

    assert approvals.decide("cmd_1", YES).command == "pay"

    assert await waiting == YES
    assert len(approvals) == 0


async def test_only_the_first_answer_counts() -> None:
    approvals = Approvals()
    waiting = asyncio.create_task(approvals.decision(request(), 60))
    await settle()
    approvals.decide("cmd_1", YES)

    with pytest.raises(ControlRefused, match="cmd_1"):
        approvals.decide("cmd_1", Decision(is_yes=False, by=BY))
    assert await waiting == YES


async def test_a_command_that_does_not_wait_cannot_be_answered() -> None:
    with pytest.raises(ControlRefused, match="cmd_9"):
        Approvals().decide("cmd_9", YES)


async def test_no_answer_in_time_is_none() -> None:
    approvals = Approvals()

    assert await approvals.decision(request(), 0) is None
    assert approvals.shown() == []


async def test_a_command_that_waits_again_is_not_forgotten_with_its_first_lease() -> None:
    approvals = Approvals()
    first = asyncio.create_task(approvals.decision(request(attempt=1), 60))
    await settle()
    second = asyncio.create_task(approvals.decision(request(attempt=2), 60))
    await settle()
    first.cancel()
    await asyncio.wait({first})

    assert [each["attempt"] for each in approvals.shown()] == [2]
    approvals.decide("cmd_1", YES)
    assert await second == YES


async def test_an_operator_sees_the_beginning_of_the_params() -> None:
    shown = request(params=b"\xff" + b"x" * 5000, params_bytes=5001).shown()

    assert shown["params"].startswith("�xxx")
    assert len(shown["params"]) == 4096
    assert (shown["params_bytes"], shown["since"]) == (5001, "2026-11-29T12:00:00+00:00")
