"""HostSeals: params that only this host opens, results that only the sender does."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from nacl.bindings import crypto_scalarmult_base

from arc_agent.guard.sealed_params import HostSeals, read_host_keys
from arc_agent.guard.signatures import Signed
from arc_agent.host.data_dir import DataDir
from arc_agent.jobs.job import Job
from arc_agent.jobs.outcome import Dropped, Ended, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.result_files import StoredBody, store_bytes
from arc_protocol.messages.bodies import ErrorResponse
from arc_protocol.sealing import params_sealer, result_opener
from arc_protocol.signatures import SEALED_ERROR, Claims, Sealing, encode_base64url
from arc_runtime.key_files import SEALING, KeyFileError, PrivateKey, write_private
from tests.support.leases import InForce, job, source, source_file

HOST, SENDER = bytes(range(32)), bytes(range(1, 33))
NONCE = "n" * 22
TO_HOST = Sealing(to="host", reply_to=encode_base64url(crypto_scalarmult_base(SENDER)))
SIGNED = Signed(
    "ops",
    Claims(
        deployment="dep-1",
        command="pay",
        params_sha256="0" * 64,
        params_bytes=0,
        issued_at=datetime(2026, 11, 29, tzinfo=UTC),
        nonce=NONCE,
        sealed=TO_HOST,
    ),
    until=0.0,
)
OPENLY = msgspec.structs.replace(SIGNED, claims=msgspec.structs.replace(SIGNED.claims, sealed=None))
LARGE = b"x" * 20_000_000


class Host:
    """A host with one key, and as much room as the test leaves it."""

    def __init__(self, tmp_path: Path, data_dir: DataDir) -> None:
        self.live = InForce()
        self.live.host_keys = {"host": HOST}
        self.has_room = True
        self.data_dir = data_dir
        self.seals = HostSeals(live=self.live, data_dir=data_dir, has_room=lambda: self.has_room)
        self.directory = tmp_path / "run"
        self.directory.mkdir()

    @property
    def job(self) -> Job:
        return job(directory=self.directory)

    def stored(self, data: bytes) -> StoredBody:
        """A large result, as it lies in the spool's directory."""
        body = store_bytes(self.data_dir, data, 0, lambda: True)
        assert isinstance(body, StoredBody)
        return body

    def opened(self, data: bytes) -> bytes:
        """A result as its sender reads it."""
        opener = result_opener(SENDER, crypto_scalarmult_base(HOST), NONCE)
        return opener.feed(data) + opener.finish()

    async def refusal(self, data: bytes, to: Sealing = TO_HOST) -> Outcome:
        """The end of a command whose params cannot be opened."""
        with pytest.raises(Ended) as caught:
            await self.seals.open(self.job, to, source(data))
        return caught.value.outcome


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with DataDir(tmp_path / "data") as data_dir:
        yield Host(tmp_path, data_dir)


def sealed(data: bytes) -> bytes:
    """Params as the sender seals them."""
    sealer = params_sealer(crypto_scalarmult_base(HOST))
    return sealer.feed(data) + sealer.finish()


async def test_params_are_opened_with_the_host_s_key(host: Host) -> None:
    opened = await host.seals.open(host.job, TO_HOST, source(sealed(b"secret")))

    assert (opened.read(), opened.size) == (b"secret", 6)


async def test_large_params_are_opened_into_a_file_and_the_sealed_one_goes(host: Host) -> None:
    came = source_file(host.directory / "params", sealed(LARGE))

    opened = await host.seals.open(host.job, TO_HOST, came)

    assert (opened.read() == LARGE, opened.size) == (True, len(LARGE))
    assert [path.name for path in host.directory.iterdir()] == ["opened"]


async def test_params_that_have_no_room_give_the_command_back(host: Host) -> None:
    host.has_room = False
    came = source_file(host.directory / "params", sealed(LARGE))

    with pytest.raises(Ended) as caught:
        await host.seals.open(host.job, TO_HOST, came)

    assert caught.value.outcome == GivenBack("no_room")


@pytest.mark.parametrize(("before", "end"), [(b"", -1), (b"no seal at all", None)])
async def test_params_that_were_changed_are_refused(
    host: Host, before: bytes, end: int | None
) -> None:
    outcome = await host.refusal(before + sealed(b"secret")[:end])

    assert isinstance(outcome, Failed)
    assert outcome.code == "UNSEAL_FAILED"


async def test_params_for_another_key_are_refused(host: Host) -> None:
    other = msgspec.structs.replace(TO_HOST, to="other")

    outcome = await host.refusal(sealed(b"secret"), other)

    assert isinstance(outcome, Failed)
    assert "for the key other" in outcome.message


async def test_a_small_result_is_sealed_for_its_sender(host: Host) -> None:
    outcome = await host.seals.seal(host.job, SIGNED, Succeeded(b"result"))

    assert isinstance(outcome, Succeeded)
    assert isinstance(outcome.body, bytes)
    assert host.opened(outcome.body) == b"result"
    seal = host.seals.for_small(SIGNED)
    assert seal is not None
    assert host.opened(seal(b"left")) == b"left"


async def test_a_large_result_is_sealed_and_the_plain_one_goes(host: Host) -> None:
    plain = host.stored(b"y" * 5000)

    outcome = await host.seals.seal(host.job, SIGNED, Succeeded(plain))

    assert isinstance(outcome, Succeeded)
    assert isinstance(outcome.body, StoredBody)
    (file,) = host.data_dir.bodies.iterdir()
    assert file.name == outcome.body.name
    assert host.opened(file.read_bytes()) == b"y" * 5000


async def test_a_result_without_room_is_a_storage_failure_and_leaves_nothing(host: Host) -> None:
    plain = host.stored(LARGE)
    host.has_room = False

    outcome = await host.seals.seal(host.job, SIGNED, Succeeded(plain))

    assert isinstance(outcome, Failed)
    assert outcome.code == "STORAGE_OPERATION_FAILED"
    assert list(host.data_dir.bodies.iterdir()) == []
    assert list(host.data_dir.temporary.iterdir()) == []


async def test_a_result_whose_file_is_gone_is_a_storage_failure(host: Host) -> None:
    outcome = await host.seals.seal(host.job, SIGNED, Succeeded(StoredBody("gone", 1, "0")))

    assert isinstance(outcome, Failed)
    assert outcome.code == "STORAGE_OPERATION_FAILED"


@pytest.mark.parametrize(
    ("message", "details"), [("no", None), ("no", "d" * 20_000), ("m" * 20_000, None)]
)
async def test_an_error_is_sealed_too_and_shortened_from_its_beginning(
    host: Host, message: str, details: str | None
) -> None:
    given = Failed("OWN", message, None if details is None else details + "the end")

    outcome = await host.seals.seal(host.job, SIGNED, given)

    assert isinstance(outcome, Failed)
    assert outcome.code == SEALED_ERROR
    assert outcome.details is not None
    assert len(outcome.details) < 16_000
    error = msgspec.json.decode(host.opened(b64decode(outcome.details)), type=ErrorResponse)
    assert error.code == "OWN"
    assert error.message.startswith(message[:2])
    assert details is None or (error.details or "").endswith("the end")


async def test_a_key_that_was_taken_away_meanwhile_fails_the_command(host: Host) -> None:
    host.live.host_keys = {}

    outcome = await host.seals.seal(host.job, SIGNED, Succeeded(b"result"))

    assert isinstance(outcome, Failed)
    assert outcome.code == "UNSEAL_FAILED"
    assert host.seals.for_small(SIGNED) is None


async def test_what_is_not_to_be_sealed_stays_as_it_is(host: Host) -> None:
    assert await host.seals.seal(host.job, OPENLY, Succeeded(b"r")) == Succeeded(b"r")
    assert await host.seals.seal(host.job, SIGNED, Dropped("lost")) == Dropped("lost")
    assert host.seals.for_small(OPENLY) is None


def test_two_host_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        write_private(file, PrivateKey("host", SEALING, HOST))

    assert read_host_keys(files[:1]) == {"host": HOST}
    with pytest.raises(KeyFileError, match="another key of the name host"):
        read_host_keys(files)
