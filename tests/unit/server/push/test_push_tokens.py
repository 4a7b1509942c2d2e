"""Push tokens at rest."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from arc_server.push.push_tokens import FILE_NAME, PushTokens, PushTokenUnreadable, is_sealed
from arc_server.server_keys import KeysUnusable


def test_a_sealed_token_shows_nothing_and_opens_with_its_key(tmp_path: Path) -> None:
    tokens = PushTokens(tmp_path / "keys")

    one, other = tokens.seal("d1", "s3cret"), tokens.seal("d1", "s3cret")

    assert is_sealed(one)
    assert "s3cret" not in one
    assert one != other
    assert PushTokens(tmp_path / "keys").open("d1", one) == "s3cret"


def test_it_opens_for_its_deployment_alone_and_only_as_it_was_sealed(tmp_path: Path) -> None:
    tokens = PushTokens(tmp_path)
    sealed = tokens.seal("d1", "s3cret")
    other_key = PushTokens(tmp_path / "other")

    for opened in (
        lambda: tokens.open("d2", sealed),
        lambda: tokens.open("d1", sealed[:-4] + "AAA="),
        lambda: tokens.open("d1", "sealed:1:!"),
        lambda: tokens.open("d1", "sealed:1:"),
        lambda: other_key.open("d1", sealed),
    ):
        with pytest.raises(PushTokenUnreadable, match="set it again"):
            opened()


def test_a_token_of_an_earlier_release_is_used_as_it_is(tmp_path: Path) -> None:
    assert PushTokens(tmp_path).open("d1", "plain") == "plain"
    assert not is_sealed("plain")


def test_the_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    PushTokens(tmp_path)
    file = tmp_path / FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]

    file.chmod(0o644)
    PushTokens(tmp_path)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "{}", '{"key":"AAAA"}', '{"key":"é"}'])
def test_a_damaged_key_is_said_to_be_so(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)

    with pytest.raises(KeysUnusable, match=FILE_NAME):
        PushTokens(tmp_path)
