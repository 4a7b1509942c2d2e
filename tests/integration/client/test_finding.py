"""Finding commands and running them again, by library and command line, on a real server."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from arc_client import Client, InvalidParams, SyncClient
from arc_protocol.errors import OperationNotSupported
from arc_protocol.lifecycle import ShownState
from arc_server.app import RunningServer, serving
from arc_server.auth.tokens import Scope
from arc_server.config.sections import AuthSection, DiskSection, ServerConfig
from arc_server.store.operations import bodies
from tests.support.fake_server import FakeServer, one_kind
from tests.support.running_server import make_token
from tests.support.shell import arc as run_arc
from tests.support.shell import start

MANY = 500
HOUR = timedelta(hours=1)


@pytest.fixture
async def open_server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server of the test's own that asks for no token."""
    config = ServerConfig(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        auth=AuthSection(disabled=True),
        disk=DiskSection(ballast_bytes=0),
    )
    async with serving(config) as server:
        yield server


@pytest.fixture
async def client(open_server: RunningServer) -> AsyncIterator[Client]:
    """A client of the server."""
    async with Client(open_server.url, environ={}) as client:
        yield client


async def cancelled(client: Client, count: int, deployment: str = "acme") -> list[str]:
    """Return the ids of commands that ended by a cancel, oldest first."""
    ids = [(await client.send(deployment, "report", key)).id for key in range(count)]
    for command_id in ids:
        await client.cancel(command_id)
    return ids


async def test_lists_take_every_filter(client: Client, open_server: RunningServer) -> None:
    begun = datetime.now(UTC)
    [old] = await cancelled(client, 1)
    tagged = await client.send("acme", "vacuum", tags={"team": "web"}, idempotency_key="k")
    later = await client.send("beta", "report", target="vault", not_before=HOUR)
    middle = (await client.status(tagged.id)).created_at

    async def ids(**which: object) -> list[str]:
        return [each.command_id async for each in client.list(**which)]  # type: ignore[arg-type]

    assert await ids(tags={"team": "web"}) == [tagged.id]
    assert await ids(idempotency_key="k") == [tagged.id]
    assert await ids(target="vault") == [later.id]
    assert await ids(states=["CANCELLED"]) == [old]
    assert await ids(states=[ShownState.PENDING, ShownState.CANCELLED], limit=2) == [
        later.id,
        tagged.id,
    ]
    assert await ids(created_after=begun, created_before=middle) == [old]
    assert await ids(ended_after=begun) == [old]
    assert await ids(ended_before=begun) == await ids(created_by="tok_1") == []
    assert await client.counts(deployment="acme") == dict.fromkeys(ShownState, 0) | {
        "CANCELLED": 1,
        "PENDING": 1,
    }
    status = await client.status(later.id)
    assert status.not_before is not None
    assert status.not_before - begun >= HOUR
    with pytest.raises(InvalidParams, match="time zone"):
        await ids(created_after=datetime.now())
    with pytest.raises(InvalidParams, match="tags"):
        await ids(tags={"a&b": "c"})


@one_kind
async def test_a_server_that_ignores_a_filter_is_found_out(server: FakeServer) -> None:
    async with Client(server.url, token="right", environ={}) as client:
        with pytest.raises(OperationNotSupported, match=r"tag\.team"):
            _ = [each async for each in client.list(tags={"team": "web"})]
        with pytest.raises(OperationNotSupported, match="states"):
            _ = [each async for each in client.retry_all(deployment="acme")]


async def test_the_command_line_finds_and_counts(
    client: Client, open_server: RunningServer
) -> None:
    [old] = await cancelled(client, 1)
    sent = await run_arc(
        *("invoke", "acme", "vacuum", "--no-wait", "--tag", "team=web", "--tag", "env=prod"),
        *("--not-before", "1h", "--key", "k"),
        url=open_server.url,
    )
    new = sent.out.decode().strip()

    async def listed(*options: str) -> list[str]:
        ended = await run_arc("list", "--json", *options, url=open_server.url)
        assert ended.code == 0, ended.err
        return [each["commandId"] for each in ended.json()]

    assert await listed("--state", "cancelled", "--state", "PENDING") == [new, old]
    assert await listed("--since", "1h", "--tag", "team=web", "--tag", "env=prod") == [new]
    assert await listed("--until", "1h") == await listed("--target", "vault") == []
    assert await listed("--key", "k") == [new]
    assert await listed("--since", "2026-01-01T00:00:00Z", "--sender", "tok_1") == []
    for options in (["--deployment", "acme"], ["--since", "1h"]):
        counts = await run_arc("list", "--count", "--json", *options, url=open_server.url)
        assert counts.json() == dict.fromkeys(ShownState, 0) | {"PENDING": 1, "CANCELLED": 1}
    some = await run_arc("list", "--count", "--state", "pending", url=open_server.url)
    assert some.out.decode().split() == ["STATE", "COUNT", "PENDING", "1"]
    status = (await run_arc("status", new, url=open_server.url)).out.decode()
    assert "tags        env=prod team=web" in status
    assert "not before" in status


async def test_the_life_of_a_command_is_shown(client: Client, open_server: RunningServer) -> None:
    sent = await client.send("acme", "report")
    for agent in ("one", "two"):
        ask = {"deploymentId": "acme", "agentId": agent}
        async with aiohttp.ClientSession() as session:
            url = f"{open_server.url}/v1/commands/leases"
            async with session.post(url, json=ask) as answer:
                [lease] = (await answer.json())["leases"]
            if agent == "one":
                async with session.post(f"{url}/{lease['leaseId']}/release", json={}):
                    pass

    shown = await run_arc("show", sent.id, url=open_server.url)
    data = (await run_arc("show", sent.id, "--json", url=open_server.url)).json()

    table = shown.out.decode().split("\n\n")[1].splitlines()
    assert [line.split()[:2] for line in table[1:]] == [["1", "RELEASED"], ["2", "DISPATCHED"]]
    assert [each["holder"] for each in data["attempts"]] == ["one", "two"]
    assert data["status"]["commandId"] == sent.id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["list", "--since", "1h", "--until", "2h"], "--until"),
        (["list", "--since", "yesterday"], "a duration such as"),
        (["list", "--tag", "web"], "KEY=VALUE"),
        (["list", "--tag", "a=b", "--tag", "a=c"], "twice"),
        (["list", "--tag", "A=b"], "tags"),
        (["list", "--target", "a\u202eb"], "target"),
        (["retry"], "give ids, or filters"),
        (["retry", "cmd_1", "--state", "failed"], "not both"),
        (["retry", "--state", "pending"], "what has ended"),
        (["retry", "--state", "failed", "--key", "k"], "one command only"),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode(),
)
async def test_what_cannot_be_meant_is_refused(
    open_server: RunningServer, options: list[str], message: str
) -> None:
    ended = await run_arc(*options, url=open_server.url)

    assert ended.code == 2
    assert message in ended.err
    assert ended.out == b""


async def test_a_retry_of_a_filter_asks_first(client: Client, open_server: RunningServer) -> None:
    old = await cancelled(client, 2)
    await cancelled(client, 1, "beta")
    line = ("retry", "--deployment", "acme", "--state", "cancelled")

    unasked = await run_arc(*line, url=open_server.url)
    none = await run_arc("retry", "--state", "failed", "--yes", url=open_server.url)
    again = await run_arc(*line, "--yes", url=open_server.url)
    repeated = await run_arc(*line, "--yes", "--json", url=open_server.url)

    assert (unasked.code, unasked.out) == (2, b"")
    assert "run 2 commands again? Say so with --yes" in unasked.err
    assert (none.code, none.out) == (0, b"")
    new = again.out.decode().split()
    assert [(await client.status(each)).retry_of for each in new] == old[::-1]
    assert [line["commandId"] for line in json_lines(repeated.out)] == new
    assert "2 ran again before" in repeated.err
    assert len([each async for each in client.list(deployment="acme")]) == 4


def json_lines(out: bytes) -> list[dict[str, str]]:
    """Return the JSON of each line."""
    return [json.loads(line) for line in out.splitlines()]


async def test_what_cannot_run_again_is_named_and_the_rest_goes_on(
    client: Client, open_server: RunningServer
) -> None:
    upload = await client.send("acme", "report", b"x" * 2_000_000)
    await client.cancel(upload.id)
    [good] = await cancelled(client, 1)
    await open_server.parts.store.database.writes.submit(  # type: ignore[attr-defined]
        lambda db: db.connection.execute(
            "UPDATE params SET form = 5, data = x'', size = 0, checksum = ?"
            " WHERE command = (SELECT seq FROM commands WHERE command_id = ?)",
            (removed_checksum(), upload.id),
        )
    )

    ended = await run_arc("retry", "--state", "cancelled", "--yes", url=open_server.url)

    assert ended.code == 1
    assert upload.id in ended.err
    assert (await client.status(ended.out.decode().strip())).retry_of == good


def removed_checksum() -> int:
    """Return the checksum of a body that was removed."""
    return bodies.removed()[3]


async def test_a_retry_of_500_that_is_killed_and_begun_anew_repeats_none(
    client: Client, open_server: RunningServer
) -> None:
    old = await cancelled(client, MANY)
    line = ("retry", "--state", "cancelled", "--since", "1h", "--yes")
    killed = await start(*line, url=open_server.url)
    assert killed.stdout is not None
    for _ in range(MANY // 3):
        await killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    await killed.communicate()
    before = [each async for each in client.list(states=["PENDING"])]
    assert MANY // 3 <= len(before) < MANY

    ended = await run_arc(*line, url=open_server.url)

    assert ended.code == 0, ended.err
    retries = Counter([each.retry_of async for each in client.list(states=["PENDING"])])
    assert retries == Counter(old)


async def test_the_library_retries_what_failed_and_a_bound_token_its_own(tmp_path: Path) -> None:
    config = ServerConfig(
        listen="127.0.0.1:0", data_dir=tmp_path / "data", disk=DiskSection(ballast_bytes=0)
    )
    async with serving(config) as server:
        admin = await make_token(server, Scope.ADMIN)
        viewer = await make_token(server, Scope.VIEWER)
        bound = await make_token(server, Scope.SENDER, "acme", commands=["report"])
        async with Client(server.url, token=admin, environ={}) as client:
            mine = await cancelled(client, 2)
            await cancelled(client, 1, "beta")
            other = await client.send("acme", "vacuum")
            await client.cancel(other.id)

        def retry_all() -> list[str]:
            with SyncClient(server.url, token=bound, environ={}) as sync:
                assert sync.counts() is None
                return [each.command_id for each in sync.retry_all(states=["CANCELLED"])]

        assert await asyncio.to_thread(retry_all) == mine[::-1]
        line = ("retry", "--state", "cancelled", "--yes")
        refused = await run_arc(*line, url=server.url, ARC_TOKEN=viewer)
        assert (refused.code, refused.out) == (4, b"")
