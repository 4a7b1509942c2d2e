"""Commands that remove things, with a server that runs and without one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from arc_server.app import DATABASE, serving
from arc_server.cli.main import main
from arc_server.config.sections import DiskSection, ServerConfig
from arc_server.store.sqlite_store import SqliteStore
from tests.support.running_server import Client, admin_client, inline, success
from tests.support.store_samples import registration

LARGE = b"x" * 200_000

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of `arc-server`; return its exit code, its stdout and its stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        argv = ["arc-server", *arguments, "--data-dir", str(tmp_path / "data")]
        monkeypatch.setattr(sys, "argv", argv)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    async def in_thread(*arguments: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(call, *arguments)

    return in_thread


@asynccontextmanager
async def served(data: Path) -> AsyncIterator[Client]:
    config = ServerConfig(listen="127.0.0.1:0", data_dir=data, disk=DiskSection(ballast_bytes=0))
    async with serving(config) as server, admin_client(server) as client:
        yield client


async def ended(client: Client, result: bytes = b"{}") -> str:
    """Return a command that has ended."""
    command_id = await client.create(params=inline(LARGE))
    await client.lease()
    url = f"/v1/commands/{command_id}/response"
    assert (await client.call("PUT", url, success(result))).status == 200
    return command_id


def blobs(data: Path) -> list[Path]:
    return [path for path in (data / "blobs").rglob("*") if path.suffix in (".blob", ".sealed")]


async def test_what_has_ended_is_purged_through_the_server_with_its_blobs(
    tmp_path: Path, run: Run
) -> None:
    data = tmp_path / "data"
    async with served(data) as client:
        old = await ended(client, LARGE)
        live = await client.create()
        assert len(blobs(data)) == 2

        code, _, kept = await run("purge")
        assert (code, kept) == (0, "(nothing was to be removed)\n")
        code, out, _ = await run("purge", "--older-than", "0", "--json")

        assert code == 0
        assert json.loads(out)["commands"] == 1
        assert not blobs(data)
        assert (await client.call("GET", f"/v1/commands/{old}")).status == 404
        assert (await client.status(live))["state"] == "PENDING"


async def test_a_command_is_deleted_by_its_id_with_and_without_a_server(
    tmp_path: Path, run: Run
) -> None:
    data = tmp_path / "data"
    async with served(data) as client:
        first, second = await ended(client), await ended(client)
        live = await client.create()

        assert await run("delete-command", first) == (0, "", f"({first} is deleted)\n")
        code, _, told = await run("delete-command", live)
        assert (code, told) == (1, "error: the command is PENDING: cancel it first\n")
        code, _, told = await run("delete-command", first)
        assert (code, told) == (1, f"error: no such command: {first}\n")

    code, _, told = await run("delete-command", second)
    assert (code, told) == (0, f"({second} is deleted)\n")
    assert not blobs(data)
    code, _, told = await run("purge", "--older-than", "0")
    assert (code, told) == (0, "(nothing was to be removed)\n")


async def test_agents_and_deployments_are_removed(tmp_path: Path, run: Run) -> None:
    async with served(tmp_path / "data") as client:
        command_id = await client.create("acme")
        store = client.server.parts.store
        await store.put_agent("agent-1", registration(deployment_id="acme"), datetime.now(UTC))

        code, _, told = await run("deployment", "remove", "acme")
        assert code == 1
        assert "cancel it first" in told
        await client.call("POST", f"/v1/commands/{command_id}/cancel")

        removed = "(agent-1 is removed from acme)\n"
        assert await run("agent", "remove", "acme", "agent-1") == (0, "", removed)
        code, _, told = await run("agent", "remove", "acme", "agent-1")
        assert (code, told) == (1, "error: the deployment acme has no agent agent-1\n")
        listed = json.loads((await run("deployment", "list", "--json"))[1])
        assert [each["deployment"] for each in listed] == ["acme"]
        assert await run("deployment", "remove", "acme") == (0, "", "(acme is removed)\n")
        assert json.loads((await run("deployment", "list", "--json"))[1]) == []
        assert (await client.create("acme")) != command_id


async def test_a_deployment_of_the_configuration_is_removed_there_first(
    tmp_path: Path, run: Run
) -> None:
    (tmp_path / "data").mkdir()
    await (await SqliteStore.open(tmp_path / "data" / DATABASE)).close()
    file = tmp_path / "server.yaml"
    file.write_text("deployments:\n  - id: acme\n")

    code, _, told = await run("deployment", "remove", "acme", "--config", str(file))

    assert (code, told) == (1, "error: acme is in the configuration: remove it there first\n")


async def test_a_bad_duration_is_refused(run: Run) -> None:
    code, _, told = await run("purge", "--older-than", "soon")

    assert code == 2
    assert "--older-than: expected a duration" in told
