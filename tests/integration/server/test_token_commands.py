"""The commands of tokens and targets, as an operator runs them."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from arc_server.auth.tokens import hash_token
from arc_server.cli.main import cli
from arc_server.ports.records import KnownSecret
from arc_server.store.sqlite_store import SqliteStore


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a database."""
    run("token", "create", "--scope", "admin", "--init", data=tmp_path)
    return tmp_path


def run(*words: str, data: Path, code: int = 0) -> Result:
    """Run a command on a data directory."""
    result = CliRunner().invoke(cli, [*words, "--data-dir", str(data)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def listed(data: Path, what: str = "token") -> list[dict[str, Any]]:
    return msgspec.json.decode(run(what, "list", "--json", data=data).stdout)


def known(data: Path, text: str) -> KnownSecret | None:
    """Return what the server finds by a token."""

    async def find() -> KnownSecret | None:
        store = await SqliteStore.open(data / "arc.db")
        try:
            return await store.find_token(hash_token(text.strip()))
        finally:
            await store.close()

    return asyncio.run(find())


def test_a_token_has_the_bounds_that_its_maker_gave_it(data: Path) -> None:
    run(
        *("token", "create", "--scope", "sender", "--deployment", "acme-*", "--deployment", "lab"),
        *("--command", "reports.*", "--name", "nightly", "--expires", "30d"),
        data=data,
    )
    run(
        *("token", "create", "--scope", "agent", "--deployment", "plant"),
        *("--target", "press:worker", "--agent-id", "press-1"),
        data=data,
    )

    _, sender, agent = listed(data)

    assert (sender["deployments"], sender["commands"]) == (["acme-*", "lab"], ["reports.*"])
    assert (sender["name"], sender["used"], bool(sender["by"])) == ("nightly", None, True)
    assert sender["expires"] is not None
    assert (agent["deployments"], agent["target"], agent["agent"]) == (
        ["plant"],
        "press",
        "press-1",
    )
    assert listed(data, "target") == [
        {"deployment": "plant", "target": "press", "type": "worker", "is_default": False}
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("--scope", "admin", "--deployment", "acme"),
        ("--scope", "agent", "--deployment", "acme-*"),
        ("--scope", "agent", "--deployment", "a", "--deployment", "b"),
        ("--scope", "agent", "--deployment", "acme", "--command", "c"),
        ("--scope", "agent", "--target", "vault"),
        ("--scope", "agent", "--deployment", "acme", "--target", "vault:machine"),
        ("--scope", "sender", "--target", "vault"),
        ("--scope", "viewer", "--agent-id", "a"),
        ("--scope", "sender", "--expires", "soon"),
    ],
    ids=" ".join,
)
def test_bounds_that_a_scope_does_not_have_are_refused(data: Path, words: tuple[str, ...]) -> None:
    run("token", "create", *words, data=data, code=2)

    assert len(listed(data)) == 1


def test_a_rotated_token_keeps_its_id_and_its_former_secret_for_a_while(
    data: Path, tmp_path: Path
) -> None:
    first = run("token", "create", "--scope", "sender", data=data).stdout
    token_id = listed(data)[1]["id"]
    file = tmp_path / "new.token"

    run("token", "rotate", token_id, "--overlap", "1h", "--out", str(file), data=data)

    second = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    former, latter = known(data, first), known(data, second)
    assert former is not None
    assert latter is not None
    assert former.token.token_id == latter.token.token_id == token_id
    assert (former.ends_at is not None, latter.ends_at) == (True, None)
    assert len(listed(data)) == 2

    run("token", "rotate", token_id, "--overlap", "0s", data=data)
    run("token", "revoke", token_id, data=data)
    run("token", "rotate", token_id, data=data, code=1)


def test_targets_are_added_and_removed(data: Path) -> None:
    run("target", "add", "plant", "press:container", data=data)
    run("target", "add", "plant", "oven", data=data)
    run("target", "remove", "plant", "press", data=data)
    run("target", "remove", "plant", "press", data=data, code=1)

    assert [(each["target"], each["type"]) for each in listed(data, "target")] == [
        ("oven", "daemon")
    ]
