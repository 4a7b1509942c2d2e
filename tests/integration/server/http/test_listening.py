"""Where the server listens: a Unix socket, IPv6 with IPv4, and sockets that systemd hands over."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from arc_runtime import systemd
from arc_runtime.config.settings import SettingsError
from arc_server.app import CannotStart, RunningServer, serving
from arc_server.config.sections import AuthSection, ServerConfig, ServerTlsSection
from arc_server.http.limits import HttpLimits
from tests.support.running_server import OWN, Client, admin_client

PUBLIC = "https://arc.example"


@asynccontextmanager
async def serve(directory: Path, **keys: Any) -> AsyncIterator[RunningServer]:
    async with serving(ServerConfig(data_dir=directory / "data", **keys)) as server:
        yield server


@asynccontextmanager
async def through(server: RunningServer, path: Path) -> AsyncIterator[Client]:
    """An admin's client by a Unix socket."""
    connector = aiohttp.UnixConnector(path=str(path))
    async with (
        admin_client(server) as client,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        client.session = session
        yield client


async def test_a_unix_socket_is_for_user_and_group_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "arc.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async with serve(tmp_path, listen=f"unix:{path}", public_url=PUBLIC) as server:
        assert server.url == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        async with through(server, path) as client:
            answer = await client.call("GET", "http://arc.example/v1/commands")
            assert answer.status == 200


async def test_a_unix_socket_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "arc.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        with pytest.raises(CannotStart, match="another server listens there"):
            async with serve(tmp_path, listen=f"unix:{path}", public_url=PUBLIC):
                pass

    assert path.is_socket()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("trusted", "others"), [(["unix"], 401), ([], 429)])
async def test_clients_behind_a_unix_socket_are_told_apart_where_it_is_trusted(
    tmp_path: Path, trusted: list[str], others: int
) -> None:
    path = tmp_path / "arc.sock"
    keys: dict[str, Any] = {
        "listen": f"unix:{path}",
        "public_url": PUBLIC,
        "http": HttpLimits(trusted_proxies=trusted, strangers_per_second=1),
    }
    async with serve(tmp_path, **keys) as server, through(server, path) as client:

        async def junk(address: str) -> int:
            headers = {"X-Forwarded-For": address}
            url = "http://arc.example/v1/agents/enrol"
            return (await client.call("POST", url, token="", headers=headers)).status

        assert [await junk("203.0.113.9") for _ in range(6)][-1] == 429
        assert await junk("203.0.113.10") == others


async def test_no_auth_is_refused_on_a_unix_socket(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"listen": f"unix:{tmp_path}/arc.sock", "public_url": PUBLIC}

    with pytest.raises(SettingsError) as refused:
        async with serve(tmp_path, **keys, auth=AuthSection(disabled=True)):
            pass

    assert refused.value.key == "auth.disabled"
    assert not (tmp_path / "data").exists()


async def test_every_address_of_ipv6_takes_ipv4_as_well(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"listen": "[::]:0", "tls": ServerTlsSection(behind_proxy=True)}
    async with serve(tmp_path, **keys) as server, admin_client(server) as client:
        port = server.url.rpartition(":")[2]

        for host in ("127.0.0.1", "[::1]"):
            answer = await client.call("GET", f"http://{host}:{port}/v1/agents?deploymentId={OWN}")
            assert answer.status == 200


# sockets that systemd hands over


@pytest.fixture
def hand_over(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let this process find sockets as if systemd had handed them over."""

    def prepare(*sockets: socket.socket) -> None:
        first = os.dup(sockets[0].fileno())
        for number, each in enumerate(sockets):
            os.dup2(each.fileno(), first + number)
        monkeypatch.setattr(systemd, "FIRST_HANDLE", first)
        environ = {"LISTEN_FDS": str(len(sockets)), "LISTEN_PID": str(os.getpid())}
        monkeypatch.setattr(systemd.inherited_sockets, "__defaults__", (environ,))

    return prepare


async def test_sockets_of_systemd_go_before_listen(tmp_path: Path, hand_over: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        hand_over(first)

        async with serve(tmp_path, listen="127.0.0.1:1") as server, admin_client(server) as client:
            assert server.url == f"http://127.0.0.1:{first.getsockname()[1]}"
            assert (await client.call("GET", "/healthz")).status == 200
        with socket.create_connection(first.getsockname()):
            pass  # it waits for the next server


@pytest.mark.parametrize(
    ("keys", "key"),
    [({}, "listen"), ({"auth": AuthSection(disabled=True)}, "auth.disabled")],
)
async def test_sockets_of_systemd_are_judged_as_listen_is(
    tmp_path: Path, hand_over: Any, keys: dict[str, Any], key: str
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as exposed:
        hand_over(exposed)

        with pytest.raises(SettingsError) as refused:
            async with serve(tmp_path, **keys):
                pass

    assert refused.value.key == key


async def test_what_is_no_listening_socket_is_refused(tmp_path: Path, hand_over: Any) -> None:
    with socket.socket() as idle:
        hand_over(idle)

        with pytest.raises(CannotStart, match="is no listening stream socket"):
            async with serve(tmp_path):
                pass


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": "1"},
     {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())}],
)  # fmt: skip
def test_sockets_of_another_process_are_not_taken(environ: dict[str, str]) -> None:
    assert systemd.inherited_sockets(environ) == []
