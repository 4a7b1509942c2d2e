"""Every row of the table of authorisation against every kind of caller, at a real server.

The cases are generated from the table (arc_server/auth/authorisation.py) and from the lists of
callers and requests (tests/support/authorisation.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import pytest_asyncio

from arc_server import app
from arc_server.app import ServerParts, all_routes, serving
from arc_server.auth.authorisation import RULES, RouteAccess
from arc_server.auth.tokens import Scope
from arc_server.config.sections import AuthSection, DiskSection, EnrolmentSection, ServerConfig
from arc_server.http.answers import empty_answer
from arc_server.http.calls import Call
from arc_server.http.limits import HttpLimits
from arc_server.http.routing import Route
from arc_server.ports.records import Deployment
from tests.support.authorisation import (
    CALLERS,
    CASES,
    ELSEWHERE,
    OIDC_RULES,
    VAULT,
    CallerKind,
    Subject,
    expected,
    is_left_out,
)
from tests.support.oidc_provider import ISSUER, oidc_issuer, section
from tests.support.running_server import OWN, Client, admin_client, make_token

GENERATED = [
    pytest.param(key, special, id=f"{' '.join(key)} {special}")
    for key, cases in CASES.items()
    for special in cases
]
NO_AUTH_CALLERS = ("no token", "a revoked token", "no token of ours", "sender of another")


def _routes() -> dict[tuple[str, str], Route]:
    nothing: Any = MagicMock()  # enough to name the routes; none of it is called
    parts = ServerParts(
        store=nothing,
        blobs=nothing,
        signer=nothing,
        clock=nothing,
        services=nothing,
        room=nothing,
    )
    return {(route.method, route.path): route for route in all_routes(parts, ServerConfig())}


async def _serve(directory: Path, **auth: Any) -> AsyncIterator[Client]:
    async with oidc_issuer(ISSUER) as provider:
        config = ServerConfig(
            listen="127.0.0.1:0",
            data_dir=directory,
            auth=AuthSection(**auth),
            disk=DiskSection(ballast_bytes=0),
            oidc=section(provider, *OIDC_RULES),
            enrolment=EnrolmentSection(max_per_second=10_000),
            http=HttpLimits(strangers_per_second=10_000),
        )
        async with serving(config) as server, admin_client(server) as client:
            await server.parts.store.put_deployment(
                Deployment(deployment_id=OWN, targets=[VAULT, ELSEWHERE]), datetime.now(UTC)
            )
            yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """One server for all cases, and its admin."""
    async for client in _serve(tmp_path_factory.mktemp("server")):
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A server that needs no tokens."""
    async for client in _serve(tmp_path_factory.mktemp("open"), disabled=True):
        yield client


async def _ask(client: Client, key: tuple[str, str], special: str, kind: CallerKind) -> Any:
    subject = Subject(client, kind, await kind.make(client.server))
    path, body = await CASES[key][special].request(subject)
    return subject, await subject.send(key[0], path, body, subject.authorization)


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    assert set(RULES) == set(_routes())


def test_every_row_has_a_request() -> None:
    assert set(CASES) == set(RULES)
    assert len(GENERATED) * len(CALLERS) >= 600


def test_every_signed_route_says_so_in_its_row() -> None:
    signed = {key for key, route in _routes().items() if route.signature is not None}

    assert signed == {
        key
        for key, rule in RULES.items()
        if rule.access in (RouteAccess.TOKEN_OR_SIGNATURE, RouteAccess.SIGNATURE_OR_TOKEN)
    }


def test_only_health_and_challenges_are_open() -> None:
    assert {key for key, rule in RULES.items() if rule.access is RouteAccess.OPEN} == {
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("POST", "/agents/challenges"),
    }


def test_a_row_names_scopes_unless_it_asks_for_something_else_than_a_token() -> None:
    for key, rule in RULES.items():
        assert bool(rule.scopes) is (rule.access not in (RouteAccess.OPEN, RouteAccess.PROOF)), key


async def test_a_route_without_a_row_is_refused_to_everyone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def handler(_: Call) -> Any:
        return empty_answer()

    def with_one_more(*args: Any) -> tuple[Route, ...]:
        return (*all_routes(*args), Route(method="GET", path="/unlisted", handler=handler))

    monkeypatch.setattr(app, "all_routes", with_one_more)
    async for client in _serve(tmp_path):
        answers = [await client.call("GET", "/v1/unlisted", token=token) for token in (None, "")]

        assert [answer.code for answer in answers] == ["FORBIDDEN", "FORBIDDEN"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("key", "special"), GENERATED)
async def test_every_caller_gets_what_the_table_says(
    shared: Client, key: tuple[str, str], special: str
) -> None:
    wrong: dict[str, str] = {}
    for kind in CALLERS.values():
        try:
            await _check(shared, key, special, kind)
        except AssertionError as error:
            wrong[kind.name] = str(error)

    assert wrong == {}


async def _check(client: Client, key: tuple[str, str], special: str, kind: CallerKind) -> None:
    """Assert that one kind of caller gets what the table says."""
    rule, case = RULES[key], CASES[key][special]
    wanted = expected(kind, rule, names_lease=case.names_lease)
    if rule.access is RouteAccess.PROOF:  # any token may come along
        wanted = 401 if key[1] == "/agents/enrol" else 200
    elif (kind.is_bootstrapped or kind.is_of_oidc) and key[1] == "/commands/bootstrap":
        wanted = 403

    subject, answer = await _ask(client, key, special, kind)

    assert answer.status == wanted, answer
    if wanted == 401:
        assert answer.code == "UNAUTHORIZED"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    elif wanted == 403:
        assert answer.code == "FORBIDDEN"
    elif wanted == 404:
        assert answer.code in ("COMMAND_NOT_FOUND", "LEASE_NOT_FOUND")
    elif wanted == 409:
        assert answer.code == "LEASE_LOST"
    elif case.shows is not None:
        assert case.shows(subject, answer) is not is_left_out(kind, rule)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("key", CASES, ids=" ".join)
async def test_a_server_without_auth_lets_every_caller_do_everything(
    open_to_all: Client, key: tuple[str, str]
) -> None:
    answers = [await _ask(open_to_all, key, "", CALLERS[name]) for name in NO_AUTH_CALLERS]

    # who enrols is bound to a deployment, and only an enrol token says to which
    wanted = 401 if key[1] == "/agents/enrol" else 200
    assert [answer.status for _, answer in answers] == [wanted] * len(NO_AUTH_CALLERS)


async def test_a_list_of_a_caller_bound_by_patterns_shows_what_fits_and_nothing_else(
    client: Client,
) -> None:
    made = {
        (deployment, command): await client.create(deployment, command=command)
        for deployment in ("acme-1", "acme-2", "other")
        for command in ("reports.daily", "reports.monthly", "restart")
    }
    sender = await make_token(client.server, Scope.SENDER, "acme-*", commands=["reports.*"])

    seen: list[str] = []
    cursor = ""
    while True:
        path = f"/v1/commands?limit=2{cursor}"
        page = (await client.call("GET", path, token=sender)).json
        seen += [each["commandId"] for each in page["commands"]]
        if "cursor" not in page:
            break
        cursor = f"&cursor={page['cursor']}"

    fits = {
        command_id
        for (deployment, command), command_id in made.items()
        if deployment.startswith("acme-") and command.startswith("reports.")
    }
    assert (set(seen), len(seen)) == (fits, len(fits))


async def test_a_waiting_read_of_a_command_of_another_name_finds_nothing(client: Client) -> None:
    command_id = await client.create(command="restart")
    sender = await make_token(client.server, Scope.SENDER, OWN, commands=["reports.*"])

    path = f"/v1/commands/{command_id}?waitSeconds=30"
    answer = await client.call("GET", path, token=sender)

    assert answer.code == "COMMAND_NOT_FOUND"
