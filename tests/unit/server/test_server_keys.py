import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from arc_server.server_keys import (
    FILE_NAME,
    RECHECK_SECONDS,
    KeysUnusable,
    Signature,
    Signer,
    read_keys,
    rotate,
)

NOW = datetime(2026, 11, 24, tzinfo=UTC)
LATER = int((NOW + timedelta(hours=1)).timestamp())
WEEK = timedelta(days=7)


class Ticks:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def verify(signer: Signer, signed: Signature, *parts: str, now: datetime = NOW) -> bool:
    return signer.verify(
        "response",
        *parts,
        expires=signed.expires,
        key_id=signed.key_id,
        token=signed.token,
        now=now,
    )


def test_the_first_start_makes_a_key_that_only_its_owner_can_read(tmp_path: Path) -> None:
    Signer(tmp_path / "keys")

    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "keys" / FILE_NAME).stat().st_mode) == 0o600
    assert len(read_keys(tmp_path / "keys" / FILE_NAME)) == 1


def test_the_next_start_uses_the_same_key(tmp_path: Path) -> None:
    first, second = Signer(tmp_path), Signer(tmp_path)

    signed = first.sign("response", "cmd_1", "lease_1", expires=LATER)

    assert second.key_ids == first.key_ids
    assert verify(second, signed, "cmd_1", "lease_1")


def test_a_signature_is_good_until_the_second_it_expires(tmp_path: Path) -> None:
    signer = Signer(tmp_path)
    signed = signer.sign("response", "cmd_1", expires=LATER)
    end = datetime.fromtimestamp(LATER, UTC)

    assert verify(signer, signed, "cmd_1", now=end - timedelta(microseconds=1))
    assert not verify(signer, signed, "cmd_1", now=end)


@pytest.mark.parametrize(
    "parts",
    [
        ("cmd_2", "lease_1"),
        ("cmd_1", "lease_2"),
        ("cmd_1",),
        ("cmd_1l", "ease_1"),
        ("cmd_1lease_1",),
    ],
)
def test_a_signature_is_good_for_nothing_but_its_own_parts(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    signer = Signer(tmp_path)

    signed = signer.sign("response", "cmd_1", "lease_1", expires=LATER)

    assert verify(signer, signed, "cmd_1", "lease_1")
    assert not verify(signer, signed, *parts)


def test_a_signature_is_good_for_nothing_but_its_own_purpose_and_time(tmp_path: Path) -> None:
    signer = Signer(tmp_path)
    signed = signer.sign("blob", "cmd_1", expires=LATER)

    assert not verify(signer, signed, "cmd_1")
    later = msgspec.structs.replace(
        signer.sign("response", "cmd_1", expires=LATER), expires=LATER + 1
    )
    assert not verify(signer, later, "cmd_1")


@pytest.mark.parametrize("token", ["", "0" * 64, "é" * 32, "\ud800", "A" * 100_000])
def test_a_token_that_is_none_is_refused(tmp_path: Path, token: str) -> None:
    signer = Signer(tmp_path)
    signed = signer.sign("response", "cmd_1", expires=LATER)

    assert not verify(signer, msgspec.structs.replace(signed, token=token), "cmd_1")


def test_a_token_in_upper_case_is_another_token(tmp_path: Path) -> None:
    signer = Signer(tmp_path)
    signed = signer.sign("response", "cmd_1", expires=LATER)

    assert not verify(signer, msgspec.structs.replace(signed, token=signed.token.upper()), "cmd_1")


def test_urls_that_are_out_survive_a_rotation(tmp_path: Path) -> None:
    signer = Signer(tmp_path)
    before = signer.sign("response", "cmd_1", expires=LATER)

    rotate(tmp_path, NOW, WEEK)
    signer.reload()
    after = signer.sign("response", "cmd_1", expires=LATER)

    assert after.key_id != before.key_id
    assert verify(signer, before, "cmd_1")
    assert verify(signer, after, "cmd_1")


def test_a_running_server_learns_a_new_key_from_the_first_url_that_names_it(tmp_path: Path) -> None:
    ticks = Ticks()
    running = Signer(tmp_path, ticks)
    rotate(tmp_path, NOW, WEEK)
    signed = Signer(tmp_path).sign("response", "cmd_1", expires=LATER)

    assert verify(running, signed, "cmd_1")
    assert running.key_ids[0] == signed.key_id


def test_a_running_server_signs_with_the_new_key_within_seconds(tmp_path: Path) -> None:
    ticks = Ticks()
    running = Signer(tmp_path, ticks)
    new_key = rotate(tmp_path, NOW, WEEK)[0].id

    ticks.now += RECHECK_SECONDS

    assert running.sign("response", "cmd_1", expires=LATER).key_id == new_key


def test_a_rotation_drops_keys_whose_urls_are_all_over(tmp_path: Path) -> None:
    first = Signer(tmp_path).key_ids[0]

    second = rotate(tmp_path, NOW, WEEK)[0].id
    kept = [key.id for key in rotate(tmp_path, NOW + WEEK - timedelta(seconds=1), WEEK)]
    later = [key.id for key in rotate(tmp_path, NOW + WEEK, WEEK)]

    assert kept[1:] == [second, first]
    assert first not in later
    assert second in later


def test_forgetting_older_keys_makes_every_url_that_is_out_useless(tmp_path: Path) -> None:
    ticks = Ticks()
    signer = Signer(tmp_path, ticks)
    signed = signer.sign("response", "cmd_1", expires=LATER)

    rotate(tmp_path, NOW, WEEK, forget_older=True)
    ticks.now += RECHECK_SECONDS

    assert not verify(signer, signed, "cmd_1")


def test_a_key_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    Signer(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o644)

    Signer(tmp_path)

    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b'{"keys": []}',
        b'{"keys": [{"id": "00000000", "secret": "", "createdAt": "2026-01-01T00:00:00Z"}]}',
        b'{"keys": [{"id": "00000000", "secret": "AAAA", "createdAt": "2026-01-01T00:00:00Z"}]}',
        b'{"keys": [{"id": "00000000", "secret": "*", "createdAt": "2026-01-01T00:00:00Z"}]}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_key_file_is_refused_at_the_start_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)

    with pytest.raises(KeysUnusable):
        Signer(tmp_path)

    assert (tmp_path / FILE_NAME).read_bytes() == content


def test_a_running_server_keeps_its_keys_when_the_file_is_damaged_or_gone(tmp_path: Path) -> None:
    signer = Signer(tmp_path)
    signed = signer.sign("response", "cmd_1", expires=LATER)

    (tmp_path / FILE_NAME).write_text("damaged")
    signer.reload()
    assert verify(signer, signed, "cmd_1")

    (tmp_path / FILE_NAME).unlink()
    signer.reload()
    assert verify(signer, signed, "cmd_1")


def test_a_response_url_carries_what_its_verification_needs(tmp_path: Path) -> None:
    signer = Signer(tmp_path)

    url = signer.response_url("https://arc.example/v1", "cmd_1", "lease_1", NOW)

    assert url.startswith("https://arc.example/v1/commands/cmd_1/response?response_token=")
    query = dict(pair.split("=") for pair in url.partition("?")[2].split("&"))
    assert query["lease"] == "lease_1"
    assert query["kid"] == signer.key_ids[0]
    assert int(query["expires"]) == int(NOW.timestamp())
