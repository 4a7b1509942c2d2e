"""Revoked is gone: requests, polls, signed URLs and leases of what was revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from arc_server.auth.tokens import Scope, new_token
from tests.support.running_server import OWN, Answer, Client, Serve, success
from tests.support.waiting import until


async def known_token(client: Client, scope: Scope) -> tuple[str, str]:
    """A token of deployment `own` and its id."""
    made = new_token(scope, [OWN], datetime.now(UTC))
    await client.server.parts.store.put_token(made.stored, made.secret)
    return made.text, made.stored.token_id


async def lease_as(client: Client, token: str, **fields: Any) -> dict[str, Any]:
    body = {"deploymentId": OWN, "maxLeases": 1} | fields
    answer = await client.call("POST", "/v1/commands/leases", body, token=token)
    return answer.json["leases"][0]


async def revoke(client: Client, token_id: str) -> None:
    """Revoke, and wait until the server has noticed."""
    await client.server.parts.store.revoke_token(token_id, datetime.now(UTC))


async def is_back(client: Client, command_id: str) -> bool:
    return (await client.status(command_id))["state"] == "PENDING"


async def test_the_leases_of_a_revoked_agent_are_handed_back_to_the_next_one(
    client: Client,
) -> None:
    command_id = await client.create()
    token, token_id = await known_token(client, Scope.AGENT)
    next_token, _ = await known_token(client, Scope.AGENT)
    await lease_as(client, token, leaseSeconds=3600)

    waiting = asyncio.create_task(lease_as(client, next_token, waitSeconds=30))
    await revoke(client, token_id)
    lease = await waiting

    assert (lease["commandId"], lease["attempt"]) == (command_id, 2)


UrlUse = Callable[[Client, dict[str, Any]], Awaitable[Answer]]


async def submit(client: Client, lease: dict[str, Any]) -> Answer:
    url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
    return await client.call("PUT", url, success(), token="")


async def upload(client: Client, lease: dict[str, Any]) -> Answer:
    request = lease["envelope"]["responseHandling"]["storageUploadRequest"]
    return await client.call("PUT", request["backend"]["url"], data=b"x", token="")


async def download(client: Client, lease: dict[str, Any]) -> Answer:
    request = lease["envelope"]["params"]["storageGetRequest"]
    return await client.call("GET", request["backend"]["url"], token="")


@pytest.mark.parametrize("use", [submit, upload, download])
async def test_the_signed_urls_of_a_revoked_agents_lease_are_refused(
    client: Client, use: UrlUse
) -> None:
    large = {"mode": "inline", "inlineBase64": "eHh4" * 60_000}
    command_id = await client.create(params=large)
    token, token_id = await known_token(client, Scope.AGENT)
    lease = await lease_as(client, token)
    if use is not submit:
        assert (await use(client, lease)).status == 200, "it is good before"

    await revoke(client, token_id)
    await until(lambda: is_back(client, command_id))

    answer = await use(client, lease)
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert (await client.status(command_id))["state"] == "PENDING"


async def test_without_the_name_of_its_credential_a_signed_url_is_good_for_nothing(
    client: Client,
) -> None:
    await client.create()
    token, _ = await known_token(client, Scope.AGENT)
    lease = await lease_as(client, token)
    handling = lease["envelope"]["responseHandling"]

    for url in (
        handling["submitResponseUrl"],
        handling["storageUploadRequest"]["backend"]["url"],
    ):
        bare, _, by = url.rpartition("&by=")
        assert by.startswith("tok_")
        for forged in (bare, f"{bare}&by=tok_000000000000", f"{bare}&size=1&by={by}"):
            assert (await client.call("PUT", forged, success(), token="")).status == 401


async def test_a_revoked_senders_upload_url_is_refused(client: Client) -> None:
    token, token_id = await known_token(client, Scope.SENDER)
    body = {"deploymentId": OWN, "command": "c", "params": {"mode": "storage", "size": 3}}
    created = (await client.call("POST", "/v1/commands", body, token=token)).json
    url = created["storageUpload"]["putRequest"]["backend"]["url"]

    await revoke(client, token_id)

    async def is_refused() -> bool:
        return (await client.call("PUT", url, data=b"abc", token="")).status == 401

    await until(is_refused)


async def test_a_rotated_tokens_leases_go_on(client: Client) -> None:
    await client.create()
    made = new_token(Scope.AGENT, [OWN], datetime.now(UTC))
    store = client.server.parts.store
    await store.put_token(made.stored, made.secret)
    lease = await lease_as(client, made.text)
    newer = new_token(Scope.AGENT, [OWN], datetime.now(UTC))
    secret = type(newer.secret)(
        token_hash=newer.secret.token_hash,
        token_id=made.stored.token_id,
        created_at=datetime.now(UTC),
    )

    await store.rotate_token(secret, datetime.now(UTC))

    body = {"leaseIds": [lease["leaseId"]]}
    answer = await client.call("POST", "/v1/commands/leases/renew", body, token=newer.text)
    assert [each["leaseId"] for each in answer.json["renewed"]] == [lease["leaseId"]]

    async def is_refused() -> bool:
        return (await client.call("GET", "/v1/agents", token=made.text)).status == 401

    await until(is_refused)


async def test_what_was_revoked_while_the_server_was_down_is_handed_back_at_its_start(
    serve: Serve,
) -> None:
    async with serve() as client:
        command_id = await client.create()
        token, token_id = await known_token(client, Scope.AGENT)
        lease = await lease_as(client, token, leaseSeconds=3600)
        await client.server.parts.store.revoke_token(token_id, datetime.now(UTC))

    async with serve() as client:
        assert await is_back(client, command_id)
        url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
        moved = client.server.url + url[url.index("/v1") :]
        assert (await client.call("PUT", moved, success(), token="")).status == 401


async def test_the_use_of_a_token_is_recorded(client: Client) -> None:
    token, token_id = await known_token(client, Scope.SENDER)
    await client.call("GET", "/v1/commands", token=token)

    async def is_recorded() -> bool:
        tokens = await client.server.parts.store.list_tokens()
        return any(each.token_id == token_id and each.last_used_at for each in tokens)

    await until(is_recorded)
