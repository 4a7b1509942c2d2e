"""SIGKILL of the whole server under create, lease, respond and release load."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.boundaries import PASSED_UNDER_LOAD
from tests.chaos.random_kills import kill_at_failpoint, kill_at_random

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

KILLS = int(os.environ.get("CHAOS_KILLS", "50"))


async def test_fifty_kills_at_random_moments_lose_nothing(tmp_path: Path):
    verdict = await kill_at_random(KILLS, tmp_path)

    print(f"{KILLS} kills: {verdict.summary()}")
    assert verdict.is_good, verdict.complaint()
    kinds = {event.kind for event in verdict.history.events if event.outcome == "unknown"}
    assert kinds >= {"create", "respond"}, "no kill has hit a request of each kind"
    attempts = {
        lease["attempt"]
        for event in verdict.history.events
        if event.kind == "lease" and event.answer
        for lease in event.answer["leases"]
    }
    assert attempts >= {1, 2, 3}


@pytest.mark.parametrize("name", PASSED_UNDER_LOAD)
async def test_a_death_at_a_failpoint_under_load_loses_nothing(tmp_path: Path, name: str):
    verdict = await kill_at_failpoint(name, tmp_path)

    print(f"{name}: {verdict.summary()}")
    assert verdict.is_good, verdict.complaint()
