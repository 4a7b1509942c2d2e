"""Signatures: which commands a host runs that looks at them."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from arc_agent.guard.signatures import Signatures, Signed
from arc_agent.guard.used_signatures import UsedSignatures
from arc_agent.jobs.job import Job
from arc_agent.jobs.outcome import Dropped, Ended, Failed, GivenBack, Succeeded
from arc_protocol.signatures import Claims, compact, signing_input
from tests.support.leases import DEPLOYMENT, InForce, job, source

SEED = bytes(range(32))
PUBLIC, SECRET = crypto_sign_seed_keypair(SEED)
NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
PARAMS = b'{"amount": 1}'


class Host:
    """A host that verifies signatures; its clock and its keys are the test's to change."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.now = NOW.timestamp()
        self.refused: list[tuple[str, str | None]] = []
        self.live = InForce(signing={"required": True, "skew_seconds": 10, **settings})
        self.live.signing_keys = {"ops": PUBLIC}
        self.signatures = Signatures(
            live=self.live, directory=directory, on_refused=self._refused, now=lambda: self.now
        )

    def _refused(self, _job: Job, failed: Failed, key_id: str | None) -> None:
        self.refused.append((failed.code, key_id))

    def code(self, job_: Job) -> str | None:
        """The code of a refusal; None for a signature that holds."""
        try:
            self.signatures.verify(job_)
        except Ended as end:
            return code_of(end)
        return None

    def signed(self, job_: Job) -> Signed:
        """The verified signature of a command."""
        signed = self.signatures.verify(job_)
        assert signed is not None
        return signed

    async def admits(self, job_: Job, data: bytes = PARAMS) -> str | None:
        """The code or the reason with which a command ends; None when it may go on."""
        try:
            await self.signatures.admit(job_, self.signed(job_), source(data))
        except Ended as end:
            return code_of(end)
        return None


def code_of(end: Ended) -> str:
    """The code of an error, or the reason for which the command is given back."""
    outcome = end.outcome
    if isinstance(outcome, Failed):
        return outcome.code
    assert isinstance(outcome, GivenBack)
    return outcome.reason


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    await made.signatures.open()
    yield made
    made.signatures.close()


def signed_job(command_id: str = "cmd_1", nonce: str = "n" * 22, **changes: Any) -> Job:
    """A signed command; `changes` are of its claims."""
    values: dict[str, Any] = {
        "deployment": DEPLOYMENT,
        "command": "pay",
        "params_sha256": sha256(PARAMS).hexdigest(),
        "params_bytes": len(PARAMS),
        "issued_at": NOW,
        "nonce": nonce,
        **changes,
    }
    text = signing_input("ops", Claims(**values))
    signature = compact(text, crypto_sign(text, SECRET)[:64])
    return job(command_id=command_id, params=PARAMS, signature=signature)


def test_a_host_without_keys_verifies_nothing(host: Host) -> None:
    host.live.signing_keys = None

    assert host.signatures.verify(job(signature="nonsense")) is None


def test_an_unsigned_command_passes_where_signatures_are_not_required(tmp_path: Path) -> None:
    assert Host(tmp_path, required=False).signatures.verify(job()) is None


def test_an_unsigned_command_is_refused_where_they_are(host: Host) -> None:
    assert host.code(job()) == "SIGNATURE_REQUIRED"
    assert host.refused == [("SIGNATURE_REQUIRED", None)]


def test_a_good_signature_names_its_key(host: Host) -> None:
    signed = host.signed(signed_job())

    assert signed.key_id == "ops"
    assert signed.claims.command == "pay"
    assert host.refused == []


@pytest.mark.parametrize(
    "changes",
    [
        {"deployment": "other"},
        {"command": "refund"},
        {"deadline": NOW},
        {"target": "edge-9"},
        {"issued_at": NOW + timedelta(seconds=11)},
    ],
)
def test_a_signature_of_something_else_is_refused(host: Host, changes: dict[str, Any]) -> None:
    assert host.code(signed_job(**changes)) == "SIGNATURE_INVALID"
    assert host.refused == [("SIGNATURE_INVALID", "ops")]


def test_a_signature_by_an_unknown_or_another_key_is_refused(host: Host) -> None:
    host.live.signing_keys = {}
    assert host.code(signed_job()) == "SIGNATURE_INVALID"
    host.live.signing_keys = {"ops": bytes(32)}
    assert host.code(signed_job()) == "SIGNATURE_INVALID"

    assert host.code(job(signature="a.b")) == "SIGNATURE_INVALID"
    assert host.refused[-1] == ("SIGNATURE_INVALID", None)


@pytest.mark.parametrize(
    ("any_target", "claimed", "code"),
    [
        (False, None, "SIGNATURE_INVALID"),
        (True, None, None),
        (False, "edge-1", None),
        (True, "edge-2", "SIGNATURE_INVALID"),
    ],
)
def test_a_host_with_a_target_asks_for_it(
    tmp_path: Path, any_target: bool, claimed: str | None, code: str | None
) -> None:
    host = Host(tmp_path, any_target=any_target)
    host.live.config = InForce(
        signing={"any_target": any_target}, target={"resource_id": "edge-1"}
    ).config

    assert host.code(signed_job(target=claimed)) == code


def test_an_old_signature_is_refused_by_the_host_s_own_clock(host: Host) -> None:
    host.now += host.live.config.signing.max_age_seconds + 10
    assert host.code(signed_job()) is None
    host.now += 1

    assert host.code(signed_job()) == "SIGNATURE_EXPIRED"


def test_a_signature_ends_with_its_command_s_deadline(host: Host) -> None:
    deadline = NOW + timedelta(seconds=30)
    claims = signed_job(deadline=deadline).lease.envelope.signature
    late = job(params=PARAMS, signature=claims, deadline="2026-11-29T12:00:30Z")
    host.now += 40
    assert host.code(late) is None
    host.now += 1

    with pytest.raises(Ended) as caught:
        host.signatures.recheck(late)
    assert isinstance(caught.value.outcome, Failed)
    assert "its deadline has passed" in caught.value.outcome.message


async def test_a_signature_is_used_up_by_one_command(host: Host) -> None:
    assert await host.admits(signed_job()) is None
    assert await host.admits(signed_job()) is None, "its own command may come again"
    assert await host.admits(signed_job("cmd_2")) == "REPLAYED"


async def test_a_command_that_was_answered_is_not_run_again(host: Host) -> None:
    first = signed_job()
    assert await host.admits(first) is None
    await host.signatures.end(first, host.signed(first), GivenBack("drain"))
    await host.signatures.end(first, host.signed(first), Dropped("lost"))
    assert await host.admits(first) is None

    await host.signatures.end(first, host.signed(first), Succeeded(b""))

    assert await host.admits(first) == "REPLAYED"


async def test_params_are_those_that_were_signed(host: Host) -> None:
    assert await host.admits(signed_job(), b'{"amount": 2}') == "SIGNATURE_INVALID"
    assert await host.admits(signed_job(), b"short") == "SIGNATURE_INVALID"


async def test_commands_of_an_earlier_process_use_their_signatures_up(host: Host) -> None:
    assert await host.admits(signed_job()) is None

    await host.signatures.end_commands([])
    await host.signatures.end_commands(["cmd_1"])

    assert await host.admits(signed_job()) == "REPLAYED"


async def test_a_host_that_never_verified_has_no_record(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.live.signing_keys = None
    await host.signatures.open()
    await host.signatures.end_commands(["cmd_1"])
    host.signatures.close()

    assert not UsedSignatures.is_in(tmp_path)


async def test_a_signature_ends_nothing_where_there_is_no_record(tmp_path: Path) -> None:
    host = Host(tmp_path)

    await host.signatures.end(signed_job(), host.signed(signed_job()), Succeeded(b""))

    assert not UsedSignatures.is_in(tmp_path)


async def test_a_record_that_takes_nothing_costs_no_attempt(host: Host, tmp_path: Path) -> None:
    first = signed_job()
    assert await host.admits(first) is None
    with sqlite3.connect(tmp_path / "nonces.db") as spoiled:
        for (name,) in spoiled.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall():
            spoiled.execute(f"DROP TABLE {name}")
    spoiled.close()

    assert await host.admits(signed_job("cmd_2", "m" * 22)) == "no_record_of_signatures"
    await host.signatures.end(first, host.signed(first), Succeeded(b""))  # logged, not raised
