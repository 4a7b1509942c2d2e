"""The verbs of the control socket: orders of an operator, over a real socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from arc_agent.control.verbs import register
from arc_agent.guard.audit import Audit
from arc_agent.guard.gate import Gate
from arc_agent.guard.pause import Pause
from arc_agent.host.logins import own_login
from arc_runtime.control_socket import Control, ControlRefused, ask

RUNNING = 3


class AuditLines:
    """The lines that the verbs write."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def note(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


class ClosedGate:
    """A gate that no order reaches; its own tests decide about approvals."""

    def decide(self, *_: object) -> None:
        raise AssertionError("a refused order has reached the gate")


@pytest.fixture
def audit() -> AuditLines:
    return AuditLines()


@pytest.fixture
def pause(tmp_path: Path) -> Pause:
    return Pause(tmp_path)


@pytest.fixture
async def control(tmp_path: Path, pause: Pause, audit: AuditLines) -> AsyncIterator[Control]:
    async def status() -> Mapping[str, Any]:
        return {"is_healthy": True}

    opened = Control(tmp_path / "control.sock")
    register(
        opened,
        gate=cast("Gate", ClosedGate()),
        pause=pause,
        audit=cast("Audit", audit),
        halt=lambda: RUNNING,
        status=status,
    )
    await opened.open()
    yield opened
    await opened.close()


async def asked(control: Control, **request: Any) -> dict[str, Any]:
    return await asyncio.to_thread(ask, control.path, request)


async def test_the_status_is_answered_as_it_is(control: Control) -> None:
    assert await asked(control, do="status") == {"is_healthy": True}


async def test_a_pause_and_its_end_are_orders_with_a_line_in_the_audit_log(
    control: Control, pause: Pause, audit: AuditLines
) -> None:
    answer = await asked(control, do="pause", note="new disk", seconds=3600)
    order = pause.status()
    assert answer == {"not_kept": None}
    assert order is not None
    assert (order.state, order.note) == ("paused", "new disk")

    assert await asked(control, do="resume") == {"was_on": True}
    assert await asked(control, do="resume") == {"was_on": False}

    assert pause.status() is None
    assert [event for event, _ in audit.lines] == ["paused", "resumed", "resumed"]
    assert {fields["by_uid"] for _, fields in audit.lines} == {os.getuid()}
    assert {fields["by"] for _, fields in audit.lines} == {own_login()}
    assert audit.lines[0][1]["note"] == "new disk"
    assert audit.lines[0][1]["seconds"] == 3600


async def test_stop_all_stops_what_runs_and_stays_in_force(
    control: Control, pause: Pause, audit: AuditLines
) -> None:
    answer = await asked(control, do="stop-all")

    order = pause.status()
    assert answer == {"stopped": RUNNING, "not_kept": None}
    assert order is not None
    assert order.state == "stopped"
    assert audit.lines[0][1]["commands"] == RUNNING


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"do": "pause", "seconds": 0}, "seconds: more than 0"),
        ({"do": "pause", "seconds": True}, "seconds: more than 0"),
        ({"do": "pause", "seconds": 400 * 86_400}, "at most a year"),
        ({"do": "pause", "note": "two\nlines"}, "note: one line"),
        ({"do": "pause", "note": ""}, "note: a text"),
        ({"do": "approve"}, "id: a text"),
        ({"do": "deny", "id": 7}, "id: a text"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused_with_its_reason(
    control: Control, pause: Pause, audit: AuditLines, request_: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ControlRefused, match=reason):
        await asked(control, **request_)

    assert pause.status() is None
    assert audit.lines == []
