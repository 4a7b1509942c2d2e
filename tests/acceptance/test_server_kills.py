"""SIGKILL of the server: a part of `make chaos`, small enough for every run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.boundaries import walk_failpoints, walk_statements
from tests.chaos.random_kills import kill_at_failpoint, kill_at_random
from tests.chaos.scratch import in_memory

KILLS = 4
"""`make chaos` kills 50 times."""


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory if there is such a place."""
    with in_memory(tmp_path) as directory:
        yield directory


async def test_kills_at_random_moments_lose_nothing(tmp_path: Path):
    verdict = await kill_at_random(KILLS, tmp_path)

    print(f"{KILLS} kills: {verdict.summary()}")
    assert verdict.is_good, verdict.complaint()
    assert any(event.outcome == "unknown" for event in verdict.history.events)


async def test_a_death_after_the_commit_and_before_the_answer_loses_nothing(tmp_path: Path):
    verdict = await kill_at_failpoint("store.after_commit", tmp_path)

    assert verdict.is_good, verdict.complaint()


@pytest.mark.parametrize("operation", ["create.replay", "respond.success"])
def test_a_death_at_any_statement_leaves_all_or_nothing(scratch: Path, operation: str):
    died = walk_statements(operation, scratch)

    print(f"{operation}: died at {len(died)} boundaries")
    assert len(died) >= 12


def test_a_death_at_any_failpoint_of_a_promoted_create_leaves_all_or_nothing(scratch: Path):
    died = walk_failpoints("create.promoted", scratch)

    assert len(died) >= 8
