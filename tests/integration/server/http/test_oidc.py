"""People and CI with tokens of OpenID Connect, at a real server and a real provider."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from arc_server.auth.tokens import Scope
from arc_server.config.oidc_section import OidcRuleEntry
from tests.support.oidc_provider import SUBJECT, OidcIssuer, oidc_issuer, section
from tests.support.running_server import OTHER, OWN, Client, Serve, inline, make_token
from tests.support.waiting import until

SENDER = OidcRuleEntry(
    claims={"sub": SUBJECT}, scope="sender", deployments=[OWN], commands=["report*"]
)
OPERATOR = OidcRuleEntry(claims={"groups": "ops"}, scope="operator", deployments=["*"])
NAME = f"oidc:ci:{SUBJECT}"


@pytest.fixture
async def provider() -> AsyncIterator[OidcIssuer]:
    async with oidc_issuer() as provider:
        yield provider


@pytest.fixture
async def client(serve: Serve, provider: OidcIssuer) -> AsyncIterator[Client]:
    oidc = section(provider, SENDER, OPERATOR)
    async with serve(oidc=oidc, auth={"revocation_seconds": 0.05}) as client:
        yield client


async def test_a_job_of_ci_creates_what_its_rule_allows_and_stands_in_the_row(
    client: Client, provider: OidcIssuer
) -> None:
    body = {"deploymentId": OWN, "command": "report", "params": inline(b"{}")}
    await client.create(OWN)
    await client.create(OTHER)

    created = await client.call("POST", "/v1/commands", body, token=provider.token())
    elsewhere = body | {"deploymentId": OTHER}
    others = [
        await client.call("POST", "/v1/commands", each, token=provider.token())
        for each in (elsewhere, body | {"command": "restart"})
    ]

    assert created.status == 200, created
    assert (await client.status(created.json["commandId"]))["createdBy"] == NAME
    assert [answer.code for answer in others] == ["FORBIDDEN", "FORBIDDEN"]


async def test_the_person_who_cancels_stands_in_the_row(
    client: Client, provider: OidcIssuer
) -> None:
    command_id = await client.create(OWN)
    person = provider.token(sub="ada", groups=["dev", "ops"])

    answer = await client.call("POST", f"/v1/commands/{command_id}/cancel", token=person)

    assert answer.json["completedBy"] == "oidc:ci:ada"


async def test_a_token_that_no_rule_fits_is_known_and_may_do_nothing(
    client: Client, provider: OidcIssuer
) -> None:
    answer = await client.call("GET", "/v1/agents", token=provider.token(sub="stranger"))

    assert (answer.status, answer.code) == (403, "FORBIDDEN")


async def test_upload_urls_of_a_caller_of_oidc_are_good(
    client: Client, provider: OidcIssuer
) -> None:
    await client.create(OWN)
    body = {"deploymentId": OWN, "command": "report", "params": {"mode": "storage", "size": 3}}
    created = (await client.call("POST", "/v1/commands", body, token=provider.token())).json
    url = created["storageUpload"]["putRequest"]["backend"]["url"]

    assert url.endswith(f"&by={NAME}")
    assert (await client.call("PUT", url, data=b"abc", token="")).status == 200
    forged = url.replace(SUBJECT, "repo:acme/other")
    assert (await client.call("PUT", forged, data=b"abc", token="")).status == 401


async def test_without_providers_no_token_of_one_is_taken(
    serve: Serve, provider: OidcIssuer
) -> None:
    async with serve() as client:
        answer = await client.call("GET", "/v1/agents", token=provider.token())

    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert provider.asked == []


async def test_a_wait_ends_when_the_token_expires(client: Client, provider: OidcIssuer) -> None:
    command_id = await client.create(OWN)
    leeway = 30
    text = provider.token(now=time.time() - leeway, exp=time.time() - leeway + 0.3)

    path = f"/v1/commands/{command_id}?waitSeconds=60"
    answer = await client.call("GET", path, token=text)

    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert "expired while" in answer.json["message"]


async def test_a_poll_of_a_bearer_token_ends_when_it_expires_too(client: Client) -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=0.5)
    token = await make_token(client.server, Scope.AGENT, OWN, expires_at=expires_at)
    body = {"deploymentId": OWN, "maxLeases": 1, "waitSeconds": 60}

    answer = await client.call("POST", "/v1/commands/leases", body, token=token)

    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")


async def test_a_provider_that_is_away_keeps_no_revocation_from_taking_effect(
    client: Client, provider: OidcIssuer
) -> None:
    command_id = await client.create(OWN)
    path = f"/v1/commands/{command_id}?waitSeconds=60"
    server = client.server
    ours = await make_token(server, Scope.SENDER, OWN)
    (known,) = [each for each in await server.parts.store.list_tokens() if each.scope == "sender"]
    waiting = [
        asyncio.create_task(client.call("GET", path, token=token))
        for token in (provider.token(), ours)
    ]
    await until(lambda: len(server.http._application.waits) == 2)
    provider.status = 500

    await server.parts.store.revoke_token(known.token_id, server.parts.clock.now())

    answer = await waiting[1]
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert not waiting[0].done()
    await client.call("POST", f"/v1/commands/{command_id}/cancel")
    assert (await waiting[0]).status == 200
