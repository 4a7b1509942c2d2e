"""`arc`, `Client` and `SyncClient` read the same environment, by the same rules."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from arc_client import Client, ConfigurationError, SyncClient
from tests.support.fake_server import FakeServer, one_kind
from tests.support.shell import arc

Way = Callable[[dict[str, str]], Awaitable[None]]


SETTINGS = ["nothing", "the token", "a file", "both", "an empty file name"]


def settings(place: Path) -> dict[str, tuple[dict[str, str], str | None]]:
    """Environments, and the token that each stands for."""
    file = place / "token"
    file.write_text("of-the-file\n")
    return {
        "nothing": ({}, None),
        "the token": ({"ARC_TOKEN": "bare"}, "bare"),
        "a file": ({"ARC_TOKEN_FILE": str(file)}, "of-the-file"),
        "both": ({"ARC_TOKEN_FILE": str(file), "ARC_TOKEN": "bare"}, "of-the-file"),
        "an empty file name": ({"ARC_TOKEN_FILE": "", "ARC_TOKEN": "bare"}, "bare"),
    }


async def by_arc(environ: dict[str, str]) -> None:
    assert (await arc("list", url=environ["ARC_SERVER_URL"], **environ)).code == 0


async def by_client(environ: dict[str, str]) -> None:
    async with Client(environ=environ) as client:
        assert [each async for each in client.list()] == []


async def by_sync_client(environ: dict[str, str]) -> None:
    def run() -> None:
        with SyncClient(environ=environ) as client:
            assert list(client.list()) == []

    await asyncio.to_thread(run)


@one_kind
@pytest.mark.parametrize("way", [by_arc, by_client, by_sync_client])
@pytest.mark.parametrize("setting", SETTINGS)
async def test_the_environment_names_server_and_token(
    server: FakeServer, tmp_path: Path, way: Way, setting: str
) -> None:
    environ, token = settings(tmp_path)[setting]

    await way({**environ, "ARC_SERVER_URL": server.url})

    [(_, _, headers)] = server.requests
    assert headers.get("Authorization") == (f"Bearer {token}" if token else None)


@one_kind
async def test_arguments_go_before_the_environment(server: FakeServer, tmp_path: Path) -> None:
    environ = settings(tmp_path)["both"][0] | {"ARC_SERVER_URL": "http://elsewhere.invalid"}

    async with Client(server.url, token="given", environ=environ) as client:
        assert [each async for each in client.list()] == []

    assert server.requests[0][2]["Authorization"] == "Bearer given"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARC_SERVER_URL", raising=False)
    for kind in (Client, SyncClient):
        with pytest.raises(ConfigurationError, match="ARC_SERVER_URL"):
            kind()

    monkeypatch.setenv("ARC_SERVER_URL", "https://h")
    for kind in (Client, SyncClient):
        kind()


@pytest.mark.parametrize("name", ["ARC_CA_FILE", "ARC_SIGNING_KEY_FILE", "ARC_TOKEN_FILE"])
def test_a_file_of_the_environment_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str
) -> None:
    environ = {"ARC_SERVER_URL": "https://h", name: str(tmp_path / "missing")}

    with pytest.raises(ConfigurationError):
        Client(environ=environ)


EXPOSED = "http://arc.example:8484/v1"


def test_plain_http_off_loopback_is_refused_unless_it_is_allowed() -> None:
    for kind in (Client, SyncClient):
        with pytest.raises(ConfigurationError, match=r"http://arc\.example:8484 is plain HTTP"):
            kind(EXPOSED, environ={"ARC_TOKEN": "t"})
        for url in ("http://localhost:1", "http://127.0.0.9", "http://[::1]:1", "https://h"):
            kind(url, environ={})
        kind(EXPOSED, environ={"ARC_ALLOW_HTTP": "1"})
        kind(EXPOSED, environ={}, allow_http=True)
        with pytest.raises(ConfigurationError, match="plain HTTP"):
            kind(EXPOSED, environ={"ARC_ALLOW_HTTP": "true"}, allow_http=False)


@pytest.mark.parametrize("value", ["yes please", "2"])
def test_a_strange_permission_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="ARC_ALLOW_HTTP must be 1 or 0"):
        Client(EXPOSED, environ={"ARC_ALLOW_HTTP": value})
