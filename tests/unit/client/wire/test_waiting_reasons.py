"""Why a command waits, in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from arc_client.wire.waiting_reasons import reason_of
from arc_protocol.messages.base import CommandTarget, ResourceType, State
from arc_protocol.messages.commands import CommandStatus
from arc_protocol.messages.waiting import Waiting

NOW = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
SOON = NOW + timedelta(minutes=5)
LATER = NOW + timedelta(days=2)


def status(target: str = "default", **waiting: Any) -> CommandStatus:
    """A command of the deployment `dep` that waits."""
    return CommandStatus(
        command_id="cmd_1",
        state=State.PENDING,
        attempt=1,
        deployment_id="dep",
        target=CommandTarget(resource_id=target, resource_type=ResourceType.DAEMON),
        waiting=Waiting(tag="t", now=NOW, **waiting) if waiting else None,
    )


def local(moment: datetime, shown: str) -> str:
    """An instant as this machine shows it."""
    return moment.astimezone().strftime(shown)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (status(), None),
        (status(reason="never_seen"), "no agent of dep has ever been seen"),
        (
            status("db", reason="never_seen"),
            "no agent of dep for the target db has ever been seen",
        ),
        (
            status(reason="silent", hostname="edge-7", since=NOW - timedelta(seconds=95.4)),
            "no sign of life from the agent on edge-7 for 1m35s",
        ),
        (
            status(reason="silent", since=NOW - timedelta(minutes=12)),
            "no receiver of dep has polled for 12m",
        ),
        (
            status(reason="gone", hostname="edge-7", since=NOW - timedelta(hours=1)),
            "the agent on edge-7 ended 1h ago",
        ),
        (
            status(reason="paused", hostname="edge-7", until=SOON, note="new disk"),
            f"the agent on edge-7 is paused until {local(SOON, '%H:%M:%S')} (new disk)",
        ),
        (
            status(reason="stopped", hostname="edge-7", until=LATER),
            f"the agent on edge-7 is stopped until {local(LATER, '%Y-%m-%d %H:%M')}",
        ),
        (
            status(reason="degraded", hostname="edge-7", note="disk"),
            "the agent on edge-7 is degraded (disk)",
        ),
        (
            status(reason="approval", hostname="edge-7", until=SOON),
            f"a person on edge-7 has to approve it until {local(SOON, '%H:%M:%S')}",
        ),
        (status(reason="approval"), "a person on its host has to approve it"),
        (status(reason="of_next_year", hostname="edge-7"), "the agent on edge-7 is of_next_year"),
    ],
)
def test_a_reason_is_said_in_words(status: CommandStatus, said: str | None) -> None:
    assert reason_of(status) == said
