"""Live commands in memory: held as their rows stand, within bounds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from arc_protocol.messages.base import IMPLICIT_TARGET, State
from arc_server.ports.records import CommandRecord, StoredBlob, StoredInline, StoredParams
from arc_server.store.engine import live_commands
from arc_server.store.engine.live_commands import LiveCommands
from arc_server.store.engine.rows import StoredCommand

PARAMS = StoredInline(data=b"{}")


def stored(seq: int, params: StoredParams | None = PARAMS) -> StoredCommand:
    command = CommandRecord(
        command_id=f"cmd_{seq}",
        deployment_id="dep",
        target=IMPLICIT_TARGET,
        command="run",
        state=State.PENDING,
        attempt=1,
        max_attempts=3,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return StoredCommand(seq, command, params, "signature")


def test_a_command_is_found_by_its_number_and_by_its_id() -> None:
    live = LiveCommands()

    live.put(stored(1))

    assert live.get(1) == live.find("cmd_1") == stored(1)
    assert live.get(2) is None
    assert live.find("cmd_2") is None


def test_a_command_that_was_dropped_is_not_found() -> None:
    live = LiveCommands()
    live.put(stored(1))

    live.drop(1)
    live.drop(2)

    assert live.get(1) is None
    assert live.find("cmd_1") is None


def test_long_params_are_left_out_with_their_signature() -> None:
    live = LiveCommands()

    live.put(stored(1, StoredInline(data=b"x" * 5_000)))
    live.put(stored(2, StoredBlob(path="p", size=5_000_000)))

    assert live.get(1) == StoredCommand(1, stored(1).command)
    assert live.get(2) == stored(2, StoredBlob(path="p", size=5_000_000))


def test_a_full_table_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_commands, "_MAX_COMMANDS", 2)
    live = LiveCommands()
    live.put(stored(1))
    live.put(stored(2))

    live.put(stored(2))
    assert live.get(1) is not None

    live.put(stored(3))
    assert live.find("cmd_1") is None
    assert live.find("cmd_3") == stored(3)
