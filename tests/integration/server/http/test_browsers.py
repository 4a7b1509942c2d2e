"""A server that asks for no token beside a browser: no page may run or read anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from arc_server.app import serving
from arc_server.auth.authorisation import RULES
from arc_server.config.sections import AuthSection, ServerConfig
from tests.support.running_server import OWN, Client, admin_client, inline

JSON = {"Content-Type": "application/json"}
PAGES: dict[str, dict[str, str]] = {
    "a page of another host": {"Origin": "https://evil.example"},
    "a page in a sandboxed frame": {"Origin": "null"},
    "a page of another port": {"Origin": "http://localhost:3000"},
    "a page that hides behind a second header": {"Origin": "http://127.0.0.1:1"},
    "a rebound name": {"Host": "evil.example"},
    "a rebound name with its own origin": {
        "Host": "evil.example:8484",
        "Origin": "http://evil.example:8484",
        "Sec-Fetch-Site": "same-origin",
    },
    "a name that begins like ours": {"Host": "localhost.evil.example"},
    "a name that ends like ours": {"Host": "evillocalhost"},
    "an address off loopback": {"Host": "10.0.0.1:8484"},
    "an image of another site": {"Sec-Fetch-Site": "cross-site"},
    "a link of another port": {"Sec-Fetch-Site": "same-site"},
}
SIMPLE_TYPES = (
    "text/plain",
    "text/plain;application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=application/json",
)
"""The types that a page may send without asking first (Fetch, CORS-safelisted request header)."""
CREATE = {"deploymentId": OWN, "command": "report", "params": inline(b"{}")}
CHANGES = [key for key in RULES if key[0] != "GET" and key != ("PUT", "/blobs/**")]
"""A body is bytes of any type, and a browser asks for leave before each PUT."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A server that runs with --no-auth."""
    config = ServerConfig(
        listen="127.0.0.1:0",
        data_dir=tmp_path_factory.mktemp("data"),
        auth=AuthSection(disabled=True),
    )
    async with serving(config) as server, admin_client(server) as client:
        client.token = None
        yield client


def concrete(key: tuple[str, str]) -> str:
    return "/v1" + key[1].replace("**", "*").replace("*", "x")


async def ask(client: Client, method: str, path: str, headers: dict[str, str]) -> Any:
    body = None if method == "GET" else CREATE
    return await client.call(method, path, body, headers=headers)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("key", RULES, ids=" ".join)
async def test_no_page_reaches_any_route(local: Client, key: tuple[str, str], page: str) -> None:
    answer = await ask(local, key[0], concrete(key), PAGES[page])

    assert (answer.status, answer.code) == (403, "FORBIDDEN")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("kind", SIMPLE_TYPES)
@pytest.mark.parametrize("key", CHANGES, ids=" ".join)
async def test_no_change_is_made_by_a_body_that_is_not_declared_as_json(
    local: Client, key: tuple[str, str], kind: str
) -> None:
    answer = await ask(local, key[0], concrete(key), {"Content-Type": kind})

    assert (answer.status, answer.code) == (400, "BAD_REQUEST")
    assert answer.json["message"].startswith("Content-Type: ")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_page_may_not_ask_for_leave_either(local: Client) -> None:
    asks = {"Origin": "http://127.0.0.1", "Access-Control-Request-Method": "PUT"}

    answer = await local.call("OPTIONS", "/v1/agents/x", headers=asks)

    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert answer.status >= 400


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_was_made_by_a_page(local: Client) -> None:
    for headers in (
        {"Content-Type": "text/plain", "Origin": "https://evil.example"},
        *PAGES.values(),
    ):
        await local.call("POST", "/v1/commands", CREATE, headers=dict(headers))

    listed = await local.call("GET", "/v1/commands")

    assert listed.json["commands"] == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "host", ["127.0.0.1:8484", "localhost:8484", "localhost", "arc.localhost", "[::1]:8484"]
)
async def test_programs_and_pages_of_its_own_are_answered(local: Client, host: str) -> None:
    for headers in ({}, {"Origin": f"http://{host}"}, {"Sec-Fetch-Site": "none"}):
        answer = await local.call("GET", "/v1/commands", headers={"Host": host, **headers})

        assert answer.status == 200


async def test_the_host_of_the_public_url_is_its_own(tmp_path: Path) -> None:
    config = ServerConfig(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        public_url="https://arc.example",
        auth=AuthSection(disabled=True),
    )
    async with serving(config) as server, admin_client(server) as client:
        own = await client.call("GET", "/v1/commands", headers={"Host": "arc.example"})
        foreign = await client.call("GET", "/v1/commands", headers={"Host": "evil.example"})

        assert (own.status, foreign.status) == (200, 403)


async def test_pages_are_no_matter_where_tokens_are_asked_for(client: Client) -> None:
    headers = {"Origin": "https://portal.example", "Content-Type": "text/plain"}

    answer = await client.call("POST", "/v1/commands", CREATE, headers=headers)

    assert answer.status == 200
