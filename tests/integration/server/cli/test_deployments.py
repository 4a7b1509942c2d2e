"""`arc-server deployment`: through a server that runs, and without one."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from arc_runtime.terminal.prefixes import PrefixError
from arc_server.app import DATABASE, KEYS, serving
from arc_server.cli.main import cli
from arc_server.config.sections import DeploymentEntry, PushSection, ServerConfig
from arc_server.ports.records import PushCircuit
from arc_server.push.push_tokens import FILE_NAME, PushTokens
from tests.support.push_target import LOOPBACK, PushWorker, push_worker
from tests.support.running_server import Client, admin_client
from tests.support.waiting import until

SECRET = "w0rker-secret"


@pytest.fixture
async def worker() -> AsyncIterator[PushWorker]:
    async with push_worker() as worker:
        yield worker


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "w.token"
    file.write_text(f"{SECRET}\n")
    return file


@asynccontextmanager
async def served(data: Path, **keys: Any) -> AsyncIterator[Client]:
    config = ServerConfig(
        listen="127.0.0.1:0",
        data_dir=data,
        push=PushSection(
            allow_hosts=[LOOPBACK], circuit_base_seconds=3600, circuit_cap_seconds=3600
        ),
        **keys,
    )
    async with serving(config) as server, admin_client(server) as client:
        yield client


async def run(data: Path, *arguments: str | Path) -> Result:
    """Run `arc-server deployment …` on a data directory."""
    given = ["deployment", *map(str, arguments), "--data-dir", str(data)]
    environ = {"ARC_SERVER_PUSH_ALLOW_HOSTS": f'["{LOOPBACK}"]'}
    return await asyncio.to_thread(lambda: CliRunner().invoke(cli, given, env=environ))


async def show(data: Path, deployment: str = "own") -> dict[str, Any]:
    shown = await run(data, "show", deployment, "--json")
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)


def stored_token(data: Path) -> str | None:
    with closing(sqlite3.connect(f"file:{data / DATABASE}?mode=ro", uri=True)) as database:
        return database.execute("SELECT push_token FROM deployments").fetchone()[0]


async def test_a_running_server_pushes_what_waits_as_soon_as_a_url_is_set(
    tmp_path: Path, worker: PushWorker, token_file: Path
) -> None:
    data = tmp_path / "data"
    async with served(data) as client:
        waiting = await client.create()

        done = await run(data, "set", "own", "--push-url", worker.url, "--push-token-file",
                         token_file)  # fmt: skip
        await until(lambda: worker.received)
        shown = await show(data)
        stored = await client.server.parts.store.get_deployment("own")
        undone = await run(data, "unset", "own")
        after = await show(data)
        later = await client.create()
        state = (await client.status(later))["state"]

    assert done.exit_code == undone.exit_code == 0, done.output
    assert [envelope.command_id for envelope in worker.received] == [waiting]
    assert worker.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert (shown["push_url"], shown["push_state"]) == (worker.url, "ok")
    assert shown["has_push_token"]
    assert shown["set_by"] not in (None, "the configuration")
    assert stored is not None
    assert SECRET not in (stored.push_token or "")
    assert (after["push_url"], after["set_by"], state) == (None, None, "PENDING")


async def test_without_a_server_the_token_is_sealed_too_and_opens_at_the_next_start(
    tmp_path: Path, worker: PushWorker, token_file: Path
) -> None:
    data = tmp_path / "data"
    async with served(data):
        pass

    await run(data, "set", "own", "--push-url", worker.url, "--push-token-file", token_file)
    sealed = stored_token(data)
    async with served(data) as client:
        await client.create()
        await until(lambda: worker.headers)

    assert sealed is not None
    assert SECRET not in sealed
    assert worker.headers[0]["Authorization"] == f"Bearer {SECRET}"


async def test_a_start_seals_tokens_of_the_configuration_and_of_earlier_releases(
    tmp_path: Path, worker: PushWorker
) -> None:
    data = tmp_path / "data"
    entry = DeploymentEntry(id="own", push_url=worker.url, push_token=SECRET)
    async with served(data, deployments=[entry]) as client:
        assert (await show(data))["set_by"] == "the configuration"
        await client.create()
        await until(lambda: worker.headers)
        first = await client.server.parts.store.get_deployment("own")
        await client.server.parts.store.set_push("own", worker.url, SECRET, datetime.now(UTC))

    async with served(data) as client:
        second = await client.server.parts.store.get_deployment("own")

    for deployment in (first, second):
        assert deployment is not None
        opened = PushTokens(data / KEYS).open("own", deployment.push_token or "")
        assert SECRET not in (deployment.push_token or "")
        assert opened == SECRET
    assert worker.headers[0]["Authorization"] == f"Bearer {SECRET}"


async def test_what_an_operator_set_outlasts_restarts_unless_the_configuration_says_another(
    tmp_path: Path, worker: PushWorker
) -> None:
    data = tmp_path / "data"
    async with served(data, deployments=[DeploymentEntry(id="own")]):
        await run(data, "set", "own", "--push-url", worker.url)
    async with served(data, deployments=[DeploymentEntry(id="own")]):
        kept = await show(data)
    other = DeploymentEntry(id="own", push_url=f"{worker.url}/other")
    async with served(data, deployments=[other]):
        replaced = await show(data)
    async with served(data, deployments=[DeploymentEntry(id="own")]):
        removed = await show(data)

    assert kept["push_url"] == worker.url
    assert replaced["push_url"] == other.push_url
    assert removed["push_url"] is None


async def test_an_open_circuit_is_shown_to_operators_and_senders(
    tmp_path: Path, worker: PushWorker
) -> None:
    data, now = tmp_path / "data", datetime.now(UTC)
    async with served(data) as client:
        await run(data, "set", "own", "--push-url", worker.url)
        circuit = PushCircuit(
            deployment_id="own", opened_at=now, retry_at=now.replace(year=now.year + 1), times=1,
            reason="HTTP 503",
        )  # fmt: skip
        await client.server.parts.store.put_circuit(circuit)
        shown = await show(data)
        listed = (await client.call("GET", "/v1/agents?deploymentId=own")).json

    assert (shown["push_state"], shown["reason"]) == ("paused", "HTTP 503")
    presence = listed["presence"]
    assert presence["isPushed"]
    assert presence["pushCircuit"]["reason"] == "HTTP 503"


REFUSED = [
    ("nonsense", None, "http"),
    ("ftp://w.example/x", None, "http"),
    ("http://10.1.2.3/x", None, "push.allow_hosts"),
    ("http://169.254.169.254/latest", None, "link-local"),
    ("http://user:pw@w.example/", None, "user"),
    ("https://w.example/", "two words", "token"),
    ("https://w.example/", "", "token"),
]


async def test_what_cannot_be_pushed_to_is_refused_when_it_is_set(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "token"
    async with served(data):
        pass

    for url, token, reason in REFUSED:
        file.write_text(token or "")
        more = [] if token is None else ["--push-token-file", file]
        refused = await run(data, "set", "own", "--push-url", url, *more)
        assert refused.exit_code == 2, url
        assert reason in refused.stderr
    missing = await run(data, "show", "own")

    assert isinstance(missing.exception, PrefixError)


async def test_the_key_of_push_tokens_is_in_a_backup(tmp_path: Path) -> None:
    async with served(tmp_path / "data"):
        result = await asyncio.to_thread(
            lambda: CliRunner().invoke(
                cli, ["backup", str(tmp_path / "b"), "--data-dir", str(tmp_path / "data")]
            )
        )

    assert result.exit_code == 0, result.output
    assert (tmp_path / "b" / KEYS / FILE_NAME).is_file()
