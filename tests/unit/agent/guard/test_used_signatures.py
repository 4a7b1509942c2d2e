"""The record of used signatures: over restarts, and over clocks that are set back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from arc_agent.guard.used_signatures import Claim, UsedSignatures, UsedSignaturesError


@pytest.fixture
def nonces(tmp_path: Path) -> Iterator[UsedSignatures]:
    opened = UsedSignatures(tmp_path)
    yield opened
    opened.close()


def claim(
    nonces: UsedSignatures, nonce: str, command: str, *, until: float = 100, now: float = 1
) -> Claim:
    return nonces.claim("ops", nonce, command, made=1, until=until, now=now, max_age=1000)


def test_a_signature_is_the_command_s_that_came_with_it_first(nonces: UsedSignatures) -> None:
    assert claim(nonces, "n", "cmd_a") is Claim.GRANTED
    assert claim(nonces, "n", "cmd_b") is Claim.TAKEN
    assert claim(nonces, "n", "cmd_a") is Claim.GRANTED
    assert (
        nonces.claim("other", "n", "cmd_b", made=1, until=100, now=1, max_age=1000) is Claim.GRANTED
    )


def test_a_command_that_has_ended_does_not_come_again(nonces: UsedSignatures) -> None:
    claim(nonces, "n", "cmd_a")
    nonces.end("ops", "n")

    assert claim(nonces, "n", "cmd_a") is Claim.ENDED


def test_what_was_used_is_known_after_a_restart(tmp_path: Path, nonces: UsedSignatures) -> None:
    claim(nonces, "n", "cmd_a")
    again = UsedSignatures(tmp_path)  # beside the first: as after a kill, nothing was closed

    assert claim(again, "n", "cmd_b") is Claim.TAKEN
    again.close()


def test_what_is_out_of_date_is_forgotten_and_stays_refused_when_the_clock_goes_back(
    nonces: UsedSignatures,
) -> None:
    claim(nonces, "old", "cmd_a", until=100)
    for number in range(64):
        claim(nonces, f"n{number}", f"cmd_{number}", until=300, now=200)

    assert len(nonces) == 64
    assert claim(nonces, "old", "cmd_b", until=100, now=50) is Claim.FORGOTTEN
    assert claim(nonces, "fresh", "cmd_c", until=150, now=50) is Claim.GRANTED


def test_a_signature_that_was_forgotten_stays_so_when_signatures_may_be_older_now(
    tmp_path: Path, nonces: UsedSignatures
) -> None:
    def of(
        made: float, nonce: str, now: float, age: float, opened: UsedSignatures = nonces
    ) -> Claim:
        until = made + age
        return opened.claim("ops", nonce, nonce, made=made, until=until, now=now, max_age=age)

    of(1000, "ran", 1000, 60)
    for number in range(64):
        of(1200, f"n{number}", 1200, 60)
    again = UsedSignatures(tmp_path)  # the host is set to take signatures of a day

    assert of(1000, "ran", 1300, 86_400, again) is Claim.FORGOTTEN
    assert of(1250, "late", 1310, 86_400, again) is Claim.GRANTED
    assert of(1250, "later", 5000, 86_400, again) is Claim.GRANTED
    again.close()


def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "nonces.db").write_bytes(b"no database at all" * 100)

    with pytest.raises(
        UsedSignaturesError, match=r"the record of used signatures .* cannot be used"
    ):
        UsedSignatures(tmp_path)


def test_a_file_of_a_newer_release_is_refused(tmp_path: Path, nonces: UsedSignatures) -> None:
    nonces.close()
    with sqlite3.connect(tmp_path / "nonces.db") as db:
        db.execute("PRAGMA user_version = 9")
    db.close()

    with pytest.raises(UsedSignaturesError, match="newer release"):
        UsedSignatures(tmp_path)
