"""Every table and every help of `arc-server`, on terminals and in a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arc_server.app import DATABASE, KEYS
from arc_server.ports.records import BearerToken, EnrolToken, NewCredential, TokenSecret
from arc_server.server_keys import FILE_NAME, KeyFile, SigningKey
from arc_server.store.sqlite_store import SqliteStore
from tests.support.screens import check_screens

SERVER = Path(sys.executable).with_name("arc-server")
GOLDEN = Path(__file__).parent / "screens"
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("ARC_")}
TOKENS = ["tok_7f3a1b2c3d4e", "tok_7f3a9988aabb", "tok_0d1e2f3a4b5c"]
ENROL_TOKENS = [f"etok_{number}f1e2d3c4b5a" for number in range(4)]
CREDENTIALS = [f"cred_{number}a5b4c3d2e1f09" for number in range(2)]
KEY_IDS = ["1f2e3d4c", "9a8b7c6d"]
IDS = [*TOKENS, *ENROL_TOKENS, *CREDENTIALS, *KEY_IDS]

GROUPS = ("", "token", "enrol-token", "credential", "deployment", "target", "agent", "keys")
COMMANDS = (
    "serve", "check-config", "install", "uninstall", "upgrade",
    "token create", "token list", "token revoke", "token rotate",
    "enrol-token create", "enrol-token list", "enrol-token revoke",
    "credential list", "credential revoke",
    "deployment list", "deployment show", "deployment set", "deployment unset",
    "deployment remove", "agent remove",
    "target add", "target list", "target remove",
    "keys list", "keys rotate",
    "backup", "restore", "fsck", "begin-epoch", "purge", "delete-command",
)  # fmt: skip


def ago(**since: float) -> datetime:
    return datetime.now(UTC) - timedelta(**since)


async def furnish(data: Path) -> None:
    """A database with records in every state."""
    store = await SqliteStore.open(data / DATABASE)
    for number, (scope, deployment, revoked) in enumerate(
        [
            ("admin", None, None),
            ("sender", "acme-us-west-production-2", ago(hours=5)),
            ("agent", "acme-eu-1", None),
        ]
    ):
        token = BearerToken(
            token_id=TOKENS[number],
            scope=scope,
            deployments=None if deployment is None else (deployment,),
            created_at=ago(days=40 - number),
            created_by="root",
        )
        secret = TokenSecret(
            token_hash=bytes([number]) * 32,
            token_id=token.token_id,
            created_at=token.created_at,
        )
        await store.put_token(token, secret)
        if revoked is not None:
            await store.revoke_token(token.token_id, revoked)
    for number, (uses, hours) in enumerate([(5, 20.5), (2, 20.5), (1, -20.5), (1, 20.5)]):
        await store.put_enrol_token(
            EnrolToken(
                token_hash=bytes([number]) * 32,
                token_id=ENROL_TOKENS[number],
                deployment_id="acme-us-west-production-2",
                uses=uses,
                created_at=ago(days=2 + number),
                expires_at=ago(hours=-hours),
            )
        )
    for number, host in enumerate(["db-7.us-west.acme.example", "a\x1b[2J.acme.example"]):
        new = NewCredential(
            credential_id=CREDENTIALS[number],
            key_id=f"key_{number}",
            public_key=bytes([number]) * 32,
            hostname=host,
        )
        await store.enrol(bytes([1]) * 32, new, ago(days=1, hours=2 * number))
    await store.revoke_enrol_token(ENROL_TOKENS[3], ago(hours=3))
    await store.revoke_credential(CREDENTIALS[1], ago(hours=3))
    await store.close()
    keys = [
        SigningKey(id=KEY_IDS[0], secret=b64encode(bytes(32)).decode(), created_at=ago(days=3)),
        SigningKey(
            id=KEY_IDS[1],
            secret=b64encode(bytes(32)).decode(),
            created_at=ago(days=90),
            retired_at=ago(days=3),
        ),
    ]
    (data / KEYS).mkdir()
    (data / KEYS / FILE_NAME).write_bytes(msgspec.json.encode(KeyFile(keys=keys)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("screens")
    asyncio.run(furnish(place))
    return place


def check(name: str, line: str, data: Path, **more: Any) -> None:
    environ = {**ENVIRON, "ARC_SERVER_DATA_DIR": str(data)}
    command = [SERVER, *line.split()]
    volatile = {str(data): "DATA"}
    check_screens(GOLDEN / f"{name}.txt", command, environ, ids=IDS, volatile=volatile, **more)


def test_every_help_is_as_it_was_and_has_an_example() -> None:
    lines = [*GROUPS, *COMMANDS]
    program = [sys.executable, "-m", "tests.support.all_helps", "arc_server.cli.main", *lines]

    check_screens(GOLDEN / "helps.txt", program, ENVIRON)

    shown = (GOLDEN / "helps.txt").read_text().split("──── ")[1].split("\n$ ")[1:]
    assert len(shown) == len(lines)
    assert [each for each in shown if "\nExamples:\n  arc-server " not in each] == []


@pytest.mark.parametrize(
    "line",
    [
        "token list",
        "enrol-token list",
        "credential list",
        "deployment list",
        "keys list",
        "token revoke tok_7",
        "token revoke tok_none",
        "token lst",
        "token create --scope sendr",
        "token list --outptu wide",
    ],
)
def test_a_screen_is_as_it_was_and_its_ids_are_whole(line: str, data: Path) -> None:
    check(line.replace(" ", "-"), line, data)


@pytest.mark.parametrize("group", ["token", "enrol-token", "credential", "keys"])
def test_what_is_wider_than_the_terminal_is_whole(group: str, data: Path) -> None:
    check(f"{group}-list-wide", f"{group} list -o wide", data, fits=False)


def test_no_command_is_without_a_screen(data: Path) -> None:
    from arc_server.cli.main import cli

    found = [each.name for each in cli.registered_commands]
    for group in cli.registered_groups:
        assert group.typer_instance is not None
        commands = group.typer_instance.registered_commands
        found += [f"{group.name} {each.name}" for each in commands]

    assert sorted(map(str, found)) == sorted(COMMANDS)
