"""Names that mean one thing when they are judged and another when they are used.

A real DNS server changes its answers between two look-ups. Each connection that is tried is
recorded where its socket is made: only addresses that were allowed may show up there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from arc_agent.config.sections import ServerSection, TransferSection
from arc_agent.net import routes
from arc_agent.net.connection import NoContact, ServerConnection
from arc_agent.net.token import ConfiguredToken
from arc_agent.net.transfer import Transfer
from arc_runtime.network.allowed_hosts import HostRefused
from tests.integration.agent.test_transfer import fetch, presigned
from tests.support.hostile_server import Bystander
from tests.support.name_server import NameServer, look_up

GOOD = "127.0.0.2"
"""Where the store is: the configuration allows it."""
BAD = "127.0.0.1"
"""The address of another service, on the same port."""
MANY_BAD = [f"10.0.0.{n}" for n in range(1, 20)]


class Scene:
    """A store, its neighbour, a name server, and an agent's transfers."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.fetched = 0
        self.cuts = 0

    async def serve(self) -> asyncio.Server:
        """The store."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if self.cuts:
                self.cuts -= 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nthe")
            else:
                self.fetched += 1
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 8\r\n\r\nthe body"
                )
            await writer.drain()
            writer.close()

        return await asyncio.start_server(answer, GOOD, self.bystander.port)

    async def get(self, into: Path) -> None:
        """Fetch a body from the store, by its name."""
        url = f"http://blobs.example.com:{self.bystander.port}/b"
        async with asyncio.timeout(0.7):
            await fetch(self.transfer, presigned(url), into)

    bystander: Bystander
    transfer: Transfer
    names: NameServer


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    made = Scene()
    made.bystander = await Bystander().start()
    server = await made.serve()
    made.names = await NameServer([[]]).start()
    make_socket = routes.watched_socket

    def getaddrinfo(host: str, port: int, *_args: Any, **_more: Any) -> list[Any]:
        return look_up(made.names.port, host, port)

    def recorded(address: Any) -> socket.socket:
        made.tried.append(address[4][0])
        return make_socket(address)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(routes, "watched_socket", recorded)
    made.transfer = Transfer(
        TransferSection(allow_hosts=[GOOD]),
        ServerSection(url="http://arc.example.org", max_back_off_seconds=0.02),
    )
    await made.transfer.open()
    yield made
    await made.transfer.close()
    made.names.stop()
    server.close()
    await made.bystander.stop()


@pytest.mark.parametrize(
    "answer",
    [
        [GOOD],
        [GOOD, BAD],
        [BAD, GOOD],
        [GOOD, "::1"],
        ["::1", "fe80::1", GOOD],
        ["169.254.169.254", GOOD],
        [GOOD, "169.254.169.254", "fd00:ec2::254"],
        ["::ffff:127.0.0.1", GOOD],
        [*MANY_BAD, GOOD],
        ["store.example.net", GOOD],
        ["store.example.net", BAD, GOOD],
        ["0.0.0.0", GOOD],
        [GOOD, GOOD, GOOD],
    ],
    ids=", ".join,
)
async def test_of_several_addresses_only_an_allowed_one_is_connected_to(
    scene: Scene, tmp_path: Path, answer: Sequence[str]
) -> None:
    scene.names.answers = [answer]

    await scene.get(tmp_path / "f")

    assert (tmp_path / "f").read_bytes() == b"the body"
    assert set(scene.tried) == {GOOD}
    assert scene.bystander.visits == []


@pytest.mark.parametrize(
    "answer",
    [
        [BAD],
        [BAD, "::1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["::ffff:169.254.169.254"],
        ["64:ff9b::a9fe:a9fe"],
        ["64:ff9b:1::a9fe:a9fe"],
        ["2002:7f00:1::"],
        ["169.254.169.254"],
        ["169.254.169.254", "10.0.0.1", "fe80::1", "fd00:ec2::254"],
        ["100.64.0.1"],
        ["0.0.0.0"],
        ["224.0.0.1"],
        ["store.example.net", BAD],
        MANY_BAD,
    ],
    ids=", ".join,
)
async def test_a_name_of_no_allowed_address_is_refused(
    scene: Scene, tmp_path: Path, answer: Sequence[str]
) -> None:
    scene.names.answers = [answer]

    with pytest.raises(HostRefused):
        await scene.get(tmp_path / "f")

    assert scene.tried == []
    assert scene.bystander.visits == []


async def test_a_name_that_means_another_host_the_next_time_is_judged_again(
    scene: Scene, tmp_path: Path
) -> None:
    scene.names.answers = [[GOOD], [BAD]]

    await scene.get(tmp_path / "first")
    with pytest.raises(HostRefused):
        await scene.get(tmp_path / "second")

    assert scene.tried == [GOOD]
    assert scene.bystander.visits == []


async def test_a_name_that_changes_while_a_body_is_fetched_again_is_refused(
    scene: Scene, tmp_path: Path
) -> None:
    scene.names.answers = [[GOOD], [BAD]]
    scene.cuts = 1

    with pytest.raises(HostRefused):
        await scene.get(tmp_path / "f")

    assert scene.tried == [GOOD]
    assert scene.bystander.visits == []


async def test_a_name_that_flips_each_time_never_leads_astray(scene: Scene, tmp_path: Path) -> None:
    scene.names.answers = [[GOOD], [BAD], [BAD, GOOD], ["::1"], [GOOD, BAD]] * 4
    refused = 0
    for number in range(20):
        try:
            await scene.get(tmp_path / str(number))
        except HostRefused:
            refused += 1

    assert (scene.fetched, refused) == (12, 8)
    assert set(scene.tried) == {GOOD}
    assert scene.names.asked == 20  # each is looked up once, and what was judged is used
    assert scene.bystander.visits == []


async def test_a_response_follows_the_same_rules_as_a_body(scene: Scene) -> None:
    url = f"http://blobs.example.com:{scene.bystander.port}/response?response_token=x"
    scene.names.answers = [[BAD], [GOOD, BAD], ["169.254.169.254"]]

    with pytest.raises(HostRefused):
        await scene.transfer.put_message(url, b"{}")
    assert (await scene.transfer.put_message(url, b"{}")).status == 200
    with pytest.raises(HostRefused):
        await scene.transfer.put_message(url, b"{}")

    assert scene.tried == [GOOD]
    assert scene.bystander.visits == []


async def test_a_name_that_is_gone_may_come_back(scene: Scene, tmp_path: Path) -> None:
    scene.names.answers = [[], [GOOD]]

    with pytest.raises(NoContact):
        await scene.transfer.put_message(f"http://blobs.example.com:{scene.bystander.port}/", b"")
    await scene.get(tmp_path / "f")

    assert scene.tried == [GOOD]


# The server's own name


@pytest.fixture
async def own(scene: Scene) -> AsyncIterator[tuple[Transfer, ServerConnection, str]]:
    """Transfers and calls of an agent whose server is the store, by a name, without a list."""
    url = f"http://arc.example.org:{scene.bystander.port}"
    section = ServerSection(url=url, max_back_off_seconds=0.02)
    network = routes.Routes(section)
    transfer = Transfer(TransferSection(), section, network)
    connection = ServerConnection(section, ConfiguredToken(None, None), network)
    await transfer.open()
    await connection.open()
    yield transfer, connection, url
    await connection.close()
    await transfer.close()


Own = tuple[Transfer, ServerConnection, str]


async def test_the_servers_name_leads_only_to_where_the_server_has_answered(
    scene: Scene, own: Own
) -> None:
    transfer, connection, url = own
    scene.names.answers = [[GOOD], [GOOD], [BAD], [GOOD], [BAD, GOOD]]

    with pytest.raises(NoContact, match="has not answered"):
        await transfer.put_message(f"{url}/response", b"{}")
    await connection.call("GET", connection.url("x"))
    with pytest.raises(NoContact, match="has not answered"):
        await transfer.put_message(f"{url}/response", b"{}")
    for _ in range(2):
        assert (await transfer.put_message(f"{url}/response", b"{}")).status == 200

    assert set(scene.tried) == {GOOD}
    assert scene.bystander.visits == []


async def test_an_answer_that_is_not_the_servers_proves_no_address(scene: Scene, own: Own) -> None:
    transfer, connection, url = own
    scene.names.answers = [[BAD]]  # the bystander answers 200, and no JSON

    await connection.call("GET", connection.url("x"))
    with pytest.raises(NoContact, match="has not answered"):
        await transfer.put_message(f"{url}/response", b"{}")

    assert len(scene.bystander.visits) == 1


@pytest.mark.parametrize("server", ["https://arc.example.org", "http://arc.example.org:8700"])
async def test_the_servers_name_opens_no_other_service_of_this_host(
    scene: Scene, tmp_path: Path, server: str
) -> None:
    scene.names.answers = [[BAD]]
    transfer = Transfer(TransferSection(), ServerSection(url=server))
    await transfer.open()

    url = f"http://arc.example.org:{scene.bystander.port}/v1/secrets"
    with pytest.raises(HostRefused):
        await fetch(transfer, presigned(url), tmp_path / "f")
    with pytest.raises(HostRefused):
        await transfer.put_message(url, b"{}")

    await transfer.close()
    assert scene.tried == []
    assert scene.bystander.visits == []
