"""Networks as they are: proxies, private authorities, cuts, portals (docs/network.md)."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from arc_agent.config.sections import ProxySection, ServerSection, TlsSection
from arc_agent.net.connection import NoContact, ServerConnection
from arc_agent.net.routes import Routes
from arc_agent.net.token import ConfiguredToken
from tests.support.certificates import Authority
from tests.support.large_bodies import RESULT_SEED, ask_for
from tests.support.listening import stop_accepting
from tests.support.network_front import ForwardProxy, TlsFront
from tests.support.octets import digest_of
from tests.support.processes import Process
from tests.support.waiting import until
from tests.support.world import World

HOST = "arc.test"
"""A name that only the proxies of these tests know."""
PASSWORD = "pa:ss wörd%40"
LARGE = 1_000_000
QUICK = {"max_back_off_seconds": 0.3, "connect_timeout_seconds": 5}
PLAIN = QUICK | {"allow_http": True}
"""The proxy of these tests stands for a network in which plain HTTP is allowed."""


async def runs_a_command(world: World, name: str) -> None:
    command_id = await world.sender.create("count", {"n": 1})
    status = await world.sender.result(command_id)
    assert status["state"] == "SUCCEEDED", status
    assert world.runs(command_id)[0]["agent"] == name


def logged(process: Process) -> str:
    """All that a process has said."""
    return "\n".join([*process.printed, *map(str, process.log)])


async def test_everything_goes_by_a_proxy_with_a_password_that_is_never_logged(
    world: World, tmp_path: Path
):
    await world.server()
    auth = tmp_path / "proxy-auth"
    auth.write_text(f"agent:{PASSWORD}\n")
    async with ForwardProxy({HOST: world.port}, user="agent", password=PASSWORD) as proxy:
        agent = await world.agent(
            "far",
            url=f"http://{HOST}",
            config={
                "server": PLAIN,
                "proxy": {"url": f"http://127.0.0.1:{proxy.port}", "auth_file": str(auth)},
            },
        )
        command_id = await world.sender.create("blob", ask_for(LARGE, LARGE))
        status = await world.sender.result(command_id)
        size_of = f"http://{HOST}"
        backend = status["response"]["response"]["storageGetRequest"]["backend"]
        assert backend["url"].startswith(world.url)
        digest = await world.sender.digest(status["response"]["response"])
        await runs_a_command(world, "far")

        proxy.credentials = "agent:0therw0rd"
        await proxy.cut()
        lost = await agent.logged("contact.lost")
        auth.write_text("agent:0therw0rd")
        await agent.logged("contact.back")
        await runs_a_command(world, "far")

    assert digest == (LARGE, digest_of(LARGE, RESULT_SEED))
    ways = {line.split("?")[0].removeprefix(size_of) for line in proxy.asked}
    assert any(line.startswith(f"GET {size_of}") for line in ways), ways  # the params
    assert any(line.startswith(f"PUT {size_of}") for line in ways), ways  # the result
    assert "407" in lost["reason"]
    assert "proxy.auth_file" in lost["reason"]
    for secret in (PASSWORD, "agent:", "0therw0rd", "Basic "):
        assert secret not in logged(agent)


async def test_https_is_tunnelled_and_a_new_client_certificate_is_shown_without_a_restart(
    world: World, tmp_path: Path
):
    authority = Authority(tmp_path / "ca")
    shown, key = tmp_path / "agent.crt", tmp_path / "agent.key"
    first, second = authority.issue("first"), authority.issue("second")
    shown.write_bytes(first.cert_file.read_bytes())
    key.write_bytes(first.key_file.read_bytes())
    serving = authority.serving(authority.issue("server", [HOST]), wants_client=True)
    await world.server({"public_url": f"https://{HOST}"})
    async with (
        TlsFront(world.port, serving) as front,
        ForwardProxy({HOST: front.port}, user="u", password="p") as proxy,
    ):
        agent = await world.agent(
            "far",
            url=f"https://{HOST}",
            env={"HTTPS_PROXY": f"http://u:p@127.0.0.1:{proxy.port}", "NO_PROXY": "*.other"},
            config={
                "server": QUICK,
                "tls": {
                    "ca_file": str(authority.ca_file),
                    "client_cert": str(shown),
                    "client_key": str(key),
                },
            },
        )
        held = await world.sender.create("hold", {"gate": "renewed"})
        await world.noted(held)
        shown.write_bytes(second.cert_file.read_bytes())  # for a moment they do not match
        large = await world.sender.create("blob", ask_for(LARGE, LARGE))
        assert (await world.sender.result(large))["state"] == "SUCCEEDED"
        key.write_bytes(second.key_file.read_bytes())
        await front.cut()
        await until(lambda: "second" in front.names)
        world.open_gate("renewed")
        status = await world.sender.result(held)
        await runs_a_command(world, "far")
        await until(lambda: len(agent.events("contact.lost")) == len(agent.events("contact.back")))

    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
    assert set(front.names) == {"first", "second"}
    assert set(proxy.asked) == {f"CONNECT {HOST}:443"}
    assert agent.events("tls.files_read_again")
    assert len(agent.events("tls.files_unusable")) <= 1


CHAINS: list[Any] = [
    pytest.param({"ends": timedelta(hours=-1)}, ["has expired", "clock"], id="expired"),
    pytest.param({"begins": timedelta(hours=1)}, ["is not valid yet", "clock"], id="not-yet-valid"),
    pytest.param({"hosts": ["else.test"]}, ["it is for else.test, not for"], id="wrong-host"),
    pytest.param(
        {"is_ours": False}, ["its issuer is not trusted here", "tls.ca_file"], id="unknown-issuer"
    ),
    pytest.param({"is_revoked": True}, ["was revoked"], id="revoked"),
    pytest.param({"list_ends": timedelta(hours=-1)}, ["tls.crl_file is not valid"], id="old-list"),
    pytest.param({"has_list": False}, ["no list of its issuer"], id="no-list"),
    pytest.param({}, None, id="good"),
]


@pytest.mark.parametrize("by_proxy", [False, True])
@pytest.mark.parametrize(("chain", "said"), CHAINS)
async def test_a_certificate_that_is_refused_is_named_with_the_reason(
    tmp_path: Path, chain: dict[str, Any], said: list[str] | None, by_proxy: bool
):
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs", "Other CA")
    issuer = ours if chain.get("is_ours", True) else theirs
    hosts = chain.get("hosts", [HOST, "127.0.0.1"])
    times = {key: chain[key] for key in ("begins", "ends") if key in chain}
    issued = issuer.issue("the-server", hosts, **times)
    revoked = [issued] if chain.get("is_revoked") else []
    lists = ours if chain.get("has_list", True) else theirs
    crl = lists.revoke(*revoked, ends=chain.get("list_ends", timedelta(days=1)))
    async with (
        _listening() as port,
        TlsFront(port, issuer.serving(issued)) as front,
        ForwardProxy({HOST: front.port}) as proxy,
    ):
        url = f"https://{HOST}" if by_proxy else f"https://127.0.0.1:{front.port}"
        connection = _connection(
            url,
            proxy=ProxySection(url=f"http://127.0.0.1:{proxy.port}"),
            tls=TlsSection(ca_file=ours.ca_file, crl_file=crl),
        )
        await connection.open()
        try:
            if said is None:
                answer = await connection.call("GET", connection.url("x"))
                assert answer.status == 204
                return
            with pytest.raises(NoContact) as caught:
                await connection.call("GET", connection.url("x"))
        finally:
            await connection.close()

    reason = caught.value.reason
    for words in said:
        assert words in reason, reason
    assert "subject O=Tests, CN=the-server" in reason
    assert f"issuer O=Tests, CN={'Test CA' if issuer is ours else 'Other CA'}" in reason
    assert f"for {', '.join(hosts)}" in reason
    assert front.names == []  # no request has crossed


async def test_an_expired_certificate_of_the_server_is_told_once_and_its_new_one_is_taken(
    world: World, tmp_path: Path
):
    authority = Authority(tmp_path / "ca")
    old = authority.issue("old", ["127.0.0.1"], ends=timedelta(hours=-1))
    new = authority.issue("new", ["127.0.0.1"])
    serving = authority.serving(old)
    async with TlsFront(world.port, serving) as front:
        await world.server({"public_url": f"https://127.0.0.1:{front.port}"})
        agent = await world.agent(
            "strict",
            url=f"https://127.0.0.1:{front.port}",
            config={"server": QUICK, "tls": {"ca_file": str(authority.ca_file), "ca_only": True}},
            is_awaited=False,  # it is ready once the server has answered
        )
        lost = await agent.logged("contact.lost")
        serving.load_cert_chain(new.cert_file, new.key_file)
        await agent.logged("contact.back")
        await runs_a_command(world, "strict")

    assert "has expired" in lost["reason"]
    assert "CN=old" in lost["reason"]
    assert len(agent.events("contact.lost")) == 1


async def test_a_server_that_wants_a_certificate_says_so_in_the_log(tmp_path: Path):
    authority = Authority(tmp_path / "ca")
    serving = authority.serving(authority.issue("server", ["127.0.0.1"]), wants_client=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"

        def refuse() -> None:  # asyncio's own servers hang up without the alert
            accepted, _ = listening.accept()
            accepted.settimeout(10)
            with accepted.dup() as raw:
                with suppress(OSError):
                    serving.wrap_socket(accepted, server_side=True).close()
                while raw.recv(65536):  # or the alert is lost in a reset
                    pass

        refusing = threading.Thread(target=refuse)
        refusing.start()
        connection = _connection(url, tls=TlsSection(ca_file=authority.ca_file))
        await connection.open()
        with pytest.raises(NoContact) as caught:
            await connection.call("POST", connection.url("x"))
        await connection.close()
        refusing.join()

    assert "wants a client certificate: tls.client_cert" in caught.value.reason


async def test_the_client_certificate_is_shown_to_the_server_only(tmp_path: Path):
    authority = Authority(tmp_path / "ca")
    client = authority.issue("client")
    serving = authority.serving(authority.issue("server", ["127.0.0.1"]), wants_client=True)
    async with _listening() as port, TlsFront(port, serving) as own, TlsFront(port, serving) as far:
        network = Routes(
            ServerSection(url=f"https://127.0.0.1:{own.port}"),
            tls=TlsSection(
                ca_file=authority.ca_file,
                client_cert=client.cert_file,
                client_key=client.key_file,
            ),
            environ={},
        )
        for front in (own, far):
            url = f"https://127.0.0.1:{front.port}"
            connection = ServerConnection(
                ServerSection(url=url), ConfiguredToken(None, None), network
            )
            await connection.open()
            with suppress(NoContact):
                await connection.call("GET", connection.url("x"))
            await connection.close()

    assert own.names == ["client"]
    assert far.names == []


PORTALS = [
    pytest.param(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n"
        b"Connection: close\r\n\r\n<html></html>",
        "a web page (200) instead of the server",
        id="page",
    ),
    pytest.param(
        b"HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/?next=x\r\n"
        b"Content-Length: 0\r\nConnection: close\r\n\r\n",
        "a redirect (302) to login.hotel.example: a portal's log-in page?",
        id="redirect",
    ),
]


@pytest.mark.parametrize(("portal", "said"), PORTALS)
async def test_a_captive_portal_is_neither_an_empty_answer_nor_the_end(
    world: World, portal: bytes, said: str
):
    await world.server()
    async with ForwardProxy({HOST: world.port}) as proxy:
        config = {"server": PLAIN, "proxy": {"url": f"http://127.0.0.1:{proxy.port}"}}
        # The lease is long, so that no renewal is cut halfway: the page is to be the first news.
        agent = await world.agent("guest", url=f"http://{HOST}", config=config, lease_seconds=60)
        command_id = await world.sender.create("hold", {"gate": "portal"})
        await world.noted(command_id)
        # A poll that waits may be cut without a word; one that is being sent may not.
        await until(lambda: sum("leases" in line for line in proxy.asked) >= 2)
        proxy.portal = portal
        await proxy.cut()
        lost = await agent.logged("contact.lost")
        world.open_gate("portal")
        await world.noted(command_id, what="finished")
        seen = len(proxy.headers)
        await until(lambda: len(proxy.headers) >= seen + 5)
        proxy.portal = None
        status = await world.sender.result(command_id)

    assert said in lost["reason"]
    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
    assert len(agent.events("contact.lost")) == 1


async def test_polls_that_a_proxy_cuts_become_shorter_than_what_it_cuts(world: World):
    await world.server()
    async with ForwardProxy({HOST: world.port}) as proxy:
        proxy.idle_seconds = 3.5
        config = {"server": PLAIN, "proxy": {"url": f"http://127.0.0.1:{proxy.port}"}}
        agent = await world.agent("cut", url=f"http://{HOST}", config=config)
        shortened = await agent.logged("poll.shortened")
        polls = sum("leases" in line for line in proxy.asked)
        await until(lambda: sum("leases" in line for line in proxy.asked) >= polls + 2)
        await runs_a_command(world, "cut")

    assert 2.0 <= shortened["wait_seconds"] <= 3.0
    assert agent.events("contact.lost") == []
    assert agent.events("poll.in_intervals") == []


async def test_an_agent_reaches_its_server_by_ipv6(world: World):
    await world.server()
    async with _Front6(world.port) as front:
        await world.agent("six", url=f"http://[::1]:{front.port}")
        command_id = await world.sender.create("blob", ask_for(LARGE, LARGE))
        status = await world.sender.result(command_id)

    assert status["state"] == "SUCCEEDED", status


# Parts


class _Front6(TlsFront):
    """Serve without TLS, at ::1."""

    def __init__(self, port: int) -> None:
        super().__init__(port, None, host="::1")  # pyright: ignore[reportArgumentType]


class _Listening:
    """Answers 204 to every request."""

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        await stop_accepting(self._server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()


def _listening() -> _Listening:
    return _Listening()


def _connection(
    url: str, *, proxy: ProxySection | None = None, tls: TlsSection | None = None
) -> ServerConnection:
    """A connection of an agent that is configured like this."""
    server = ServerSection(url=url, request_timeout_seconds=10)
    return ServerConnection(
        server, ConfiguredToken(None, None), Routes(server, proxy, tls, environ={})
    )
