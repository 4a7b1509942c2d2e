"""Key files: what is written can be read again, and what must not be is refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from arc_runtime.key_files import (
    SEALING,
    SIGNING,
    KeyFileError,
    PublicKey,
    exposed,
    new_key,
    read_private,
    read_public,
    write_private,
)

A = PublicKey("ops-a", SIGNING, bytes(range(32)))
B = PublicKey("ops-b", SIGNING, bytes(range(1, 33)))
HOST = PublicKey("edge-7", SEALING, bytes(range(2, 34)))


@pytest.mark.parametrize("kind", [SIGNING, SEALING])
def test_a_private_key_comes_back_and_is_open_to_nobody_else(tmp_path: Path, kind: str) -> None:
    key = new_key("ops-a", kind)  # type: ignore[arg-type]
    write_private(tmp_path / "k", key)

    assert read_private(tmp_path / "k", kind) == key  # type: ignore[arg-type]
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert str(list(key.secret)) not in repr(key)
    assert "PrivateKey('ops-a'" in repr(key)


def test_a_key_is_never_written_over_another(tmp_path: Path) -> None:
    write_private(tmp_path / "k", new_key("a", SIGNING))
    before = (tmp_path / "k").read_bytes()

    with pytest.raises(KeyFileError, match="exists"):
        write_private(tmp_path / "k", new_key("b", SIGNING))

    assert (tmp_path / "k").read_bytes() == before


def test_a_private_key_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "k", new_key("a", SIGNING))
    (tmp_path / "k").chmod(0o644)

    with pytest.raises(KeyFileError, match="chmod 600"):
        read_private(tmp_path / "k", SIGNING)


def test_a_key_is_used_for_what_it_was_made_for_only(tmp_path: Path) -> None:
    write_private(tmp_path / "k", new_key("a", SEALING))

    with pytest.raises(KeyFileError, match="holds a key for sealing, not for signing"):
        read_private(tmp_path / "k", SIGNING)


@pytest.mark.parametrize("field", ["x", "d"])
def test_a_private_key_whose_halves_do_not_fit_is_refused(tmp_path: Path, field: str) -> None:
    write_private(tmp_path / "k", new_key("a", SIGNING))
    write_private(tmp_path / "other", new_key("a", SIGNING))
    mixed = json.loads((tmp_path / "k").read_bytes())
    mixed[field] = json.loads((tmp_path / "other").read_bytes())[field]
    (tmp_path / "k").write_text(json.dumps(mixed))

    with pytest.raises(KeyFileError, match="damaged") as caught:
        read_private(tmp_path / "k", SIGNING)

    assert mixed["d"] not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "../a", "-a", "a" * 65, "a\n", "ä"])
def test_a_name_that_would_not_do_in_files_and_policies_is_refused(name: str) -> None:
    with pytest.raises(KeyFileError, match="a key's name"):
        new_key(name, SIGNING)


def test_several_keys_of_a_file_and_of_a_directory_are_read(tmp_path: Path) -> None:
    (tmp_path / "two.pub").write_text(f"# who is on call\n\n{A.line}\n{HOST.line}\n")
    (tmp_path / "one.pub").write_text(B.line)
    (tmp_path / "notes.txt").write_text("not a key")

    assert read_public(tmp_path, SIGNING) == {"ops-a": A, "ops-b": B}
    assert read_public(tmp_path / "two.pub", SIGNING) == {"ops-a": A}
    assert read_public(tmp_path, SEALING) == {"edge-7": HOST}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ops-a ed25519", "k.pub:1: Expected NAME"),
        (f"# x\n{A.line} more", "k.pub:2: Expected NAME"),
        (A.line.replace("ed25519", "rsa"), "type of a key"),
        (A.line[:-1], "not 32 bytes of base64url"),
        (A.line[:-1] + "9", "not 32 bytes of base64url"),  # loose bits
        (A.line + "=", "not 32 bytes of base64url"),
        (f"{A.line}\nops-a ed25519 {B.line.split()[2]}", "another key of the name ops-a"),
    ],
)
def test_a_file_that_is_no_list_of_keys_is_refused(
    tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "k.pub").write_text(text)

    with pytest.raises(KeyFileError, match=complaint):
        read_public(tmp_path / "k.pub", SIGNING)


def test_keys_that_everybody_may_change_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "k.pub").write_text(A.line)
    (tmp_path / "k.pub").chmod(0o666)

    with pytest.raises(KeyFileError, match="chmod o-w"):
        read_public(tmp_path, SIGNING)

    (tmp_path / "k.pub").chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(KeyFileError, match="chmod o-w"):
        read_public(tmp_path, SIGNING)


@pytest.mark.parametrize(("mode", "is_exposed"), [(0o600, 0), (0o640, 0), (0o644, 1), (0o602, 1)])
def test_a_secrets_file_that_every_user_may_read_is_named(
    tmp_path: Path, mode: int, is_exposed: int
) -> None:
    file, config = tmp_path / "token", tmp_path / "agent.yaml"
    file.write_text("arc_agent_x")
    config.write_text("server:\n  token: arc_agent_y\n")
    for each in (file, config):
        each.chmod(mode)
    given = {"server.token_file": file, "proxy.auth_file": None, "x": tmp_path / "none"}

    assert len(exposed(given, None)) == is_exposed
    assert len(exposed({}, config, "arc_agent_y", None)) == is_exposed
    assert exposed({}, config, "from the environment", None) == []
    for line in exposed(given, None):
        assert (
            line == f"server.token_file: {file} is open to every user of this machine (chmod 600)"
        )
