"""Bootstrap: tokens of an hour, for one deployment and, a receiver's, for one target of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_server.auth.bootstrap import BootstrapGrant, BootstrapTokens
from arc_server.auth.tokens import Scope, new_token
from arc_server.config.sections import TargetsSection
from arc_server.ports.records import Deployment
from tests.support.running_server import (
    OTHER,
    OWN,
    Answer,
    Client,
    Serve,
    inline,
    make_token,
    success,
)

TARGET = {"resourceId": "vault-agent", "resourceType": "daemon"}
SENDER = {"deploymentId": OWN, "role": "sender"}
RECEIVER = {"deploymentId": OWN, "role": "receiver", "target": "vault-agent"}
COMMAND = {"deploymentId": OWN, "command": "c", "params": inline(b"{}")}


async def bootstrap(client: Client, request: dict[str, Any], token: str | None = None) -> Answer:
    return await client.call("POST", "/v1/commands/bootstrap", request, token=token)


async def token_of(client: Client, request: dict[str, Any], token: str | None = None) -> str:
    answer = await bootstrap(client, request, token)
    assert answer.status == 200, answer
    return answer.json["token"]


async def status_of(client: Client, method: str, path: str, body: Any, token: str) -> int:
    return (await client.call(method, f"/v1{path}", body, token=token)).status


async def test_the_answer_is_what_public_clients_read(client: Client) -> None:
    sender = await bootstrap(client, SENDER)
    receiver = await bootstrap(client, RECEIVER)

    assert set(sender.json) == {"managerUrl", "token", "expiresAt"}
    assert receiver.json["target"] == TARGET
    for answer in (sender.json, receiver.json):
        assert answer["managerUrl"] == client.server.url
        assert answer["expiresAt"].endswith("Z")
        left = datetime.fromisoformat(answer["expiresAt"]) - datetime.now(UTC)
        assert timedelta(minutes=59) < left <= timedelta(hours=1)


async def test_sender_and_receiver_do_their_job(client: Client) -> None:
    sender, receiver = await token_of(client, SENDER), await token_of(client, RECEIVER)
    lease_request = {"deploymentId": OWN, "target": TARGET}
    await client.call("POST", "/v1/commands/leases", lease_request, token=receiver)

    created = await client.call("POST", "/v1/commands", COMMAND, token=sender)
    leased = await client.call("POST", "/v1/commands/leases", lease_request, token=receiver)
    [lease] = leased.json["leases"]
    path = f"/commands/{lease['commandId']}/response?lease={lease['leaseId']}"
    assert await status_of(client, "PUT", path, success(b"7"), receiver) == 200

    status = await client.call("GET", f"/v1/commands/{created.json['commandId']}", token=sender)
    assert status.json["state"] == "SUCCEEDED"


async def test_a_token_is_for_its_role_and_deployment_only(client: Client) -> None:
    sender, receiver = await token_of(client, SENDER), await token_of(client, RECEIVER)
    lease = {"deploymentId": OWN, "target": TARGET}
    command_id = await client.create(OTHER)

    for method, path, body, token in (
        ("POST", "/commands", COMMAND, receiver),
        ("POST", "/commands", COMMAND | {"deploymentId": OTHER}, sender),
        ("POST", "/commands/leases", lease, sender),
        ("POST", "/commands/leases", lease | {"deploymentId": OTHER}, receiver),
        ("GET", f"/commands?deploymentId={OTHER}", None, sender),
    ):
        assert await status_of(client, method, path, body, token) == 403, path
    assert await status_of(client, "GET", f"/commands/{command_id}", None, sender) == 404
    for token in (sender, receiver):
        assert (await bootstrap(client, SENDER, token)).status == 403
        assert (await bootstrap(client, RECEIVER, token)).status == 403


async def test_a_receivers_token_is_for_its_target_only(client: Client) -> None:
    other = {"resourceId": "other", "resourceType": "daemon"}
    await client.lease(target=TARGET)
    await client.lease(target=other)
    await client.create(targetResourceId="other")
    await client.create(targetResourceId="vault-agent", command="ours")
    receiver = await token_of(client, RECEIVER)
    agent = {"deploymentId": OWN, "version": "1", "hostname": "h", "handlers": []}

    asked = {"deploymentId": OWN, "target": other}
    assert await status_of(client, "POST", "/commands/leases", asked, receiver) == 403
    registration = agent | {"target": other}
    assert await status_of(client, "PUT", "/agents/a1", registration, receiver) == 403
    for registration in (agent, agent | {"target": TARGET}):
        assert await status_of(client, "PUT", "/agents/a1", registration, receiver) == 200
    [registered] = (await client.call("GET", "/v1/agents")).json["agents"]
    assert registered["target"] == TARGET
    unnamed = {"deploymentId": OWN, "maxLeases": 9}
    answer = await client.call("POST", "/v1/commands/leases", unnamed, token=receiver)
    assert [lease["envelope"]["command"] for lease in answer.json["leases"]] == ["ours"]
    [theirs] = await client.lease(target=other)
    path = f"/commands/{theirs['commandId']}/response"
    assert await status_of(client, "PUT", path, success(), receiver) == 404


async def test_who_may_ask_for_which_role(client: Client) -> None:
    server = client.server
    sender = await make_token(server, Scope.SENDER)
    agent = await make_token(server, Scope.AGENT, OWN)
    elsewhere = await make_token(server, Scope.AGENT, OTHER)

    unknown = await bootstrap(client, RECEIVER, agent)
    assert unknown.code == "COMMAND_TARGET_NOT_FOUND"  # only an operator may make one up
    assert (await bootstrap(client, RECEIVER)).status == 200
    assert (await bootstrap(client, SENDER, sender)).status == 200
    assert (await bootstrap(client, RECEIVER, sender)).status == 403
    assert (await bootstrap(client, RECEIVER, agent)).status == 200
    assert (await bootstrap(client, SENDER, agent)).status == 403
    assert (await bootstrap(client, RECEIVER, elsewhere)).status == 403
    assert (await client.call("POST", "/v1/commands/bootstrap", SENDER, token="")).status == 401


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"role": "operator"}, 400, "INVALID_COMMAND"),
        ({"role": None}, 400, "INVALID_COMMAND"),
        ({"target": None}, 400, "INVALID_COMMAND"),
        ({"role": "sender"}, 400, "INVALID_COMMAND"),
        ({"deploymentId": ""}, 400, "INVALID_COMMAND"),
        ({"target": ""}, 400, "COMMAND_TARGET_ID_INVALID"),
        ({"target": "a:b"}, 400, "COMMAND_TARGET_ID_INVALID"),
        ({"target": "operator"}, 403, "FORBIDDEN"),
        ({"target": "operations-worker"}, 403, "FORBIDDEN"),
    ],
)
async def test_what_is_asked_for_must_make_sense(
    client: Client, changes: dict[str, Any], status: int, code: str
) -> None:
    answer = await bootstrap(client, RECEIVER | changes)

    assert (answer.status, answer.code) == (status, code)


async def test_the_type_of_a_registered_target_is_answered(serve: Serve) -> None:
    async with serve(targets=TargetsSection(auto_register=False)) as client:
        worker = CommandTarget(resource_id="web", resource_type=ResourceType.CONTAINER)
        assert (await bootstrap(client, RECEIVER)).code == "DEPLOYMENT_NOT_FOUND"
        await client.server.parts.store.put_deployment(
            Deployment(deployment_id=OWN, targets=[worker]), datetime.now(UTC)
        )

        assert (await bootstrap(client, RECEIVER)).code == "COMMAND_TARGET_NOT_FOUND"
        answer = await bootstrap(client, RECEIVER | {"target": "web"})
        assert answer.json["target"] == {"resourceId": "web", "resourceType": "container"}


async def test_a_token_ends_with_its_hour_and_with_its_authority(client: Client) -> None:
    parts = client.server.parts
    made = new_token(Scope.SENDER, None, datetime.now(UTC))
    await parts.store.put_token(made.stored, made.secret)
    token = await token_of(client, SENDER, made.text)
    authority = f"token:{made.secret.token_hash.hex()}"
    grant = BootstrapGrant(scope=Scope.SENDER, deployment_id=OWN, authority=authority)
    tokens = BootstrapTokens(parts.signer, parts.clock)
    now = int(datetime.now(UTC).timestamp())
    good, late = tokens.mint(grant, now + 60), tokens.mint(grant, now - 1)
    unheard = BootstrapGrant(scope=Scope.ADMIN, deployment_id=OWN, authority=None)

    path = f"/commands?deploymentId={OWN}"
    assert await status_of(client, "GET", path, None, good) == 200
    for bad in (late, good[:-1] + ("0" if good[-1] != "0" else "1"), f"{good}0", "arc_bootstrap_"):
        assert await status_of(client, "GET", path, None, bad) == 401
    assert await status_of(client, "GET", path, None, tokens.mint(unheard, now + 60)) == 401
    assert await status_of(client, "GET", path, None, token) == 200

    await parts.store.revoke_token(made.stored.token_id, datetime.now(UTC))
    seen = [await status_of(client, "GET", path, None, token)]
    while seen[-1] == 200:  # a revocation is noticed within a second
        seen.append(await status_of(client, "GET", path, None, token))
    assert seen[-1] == 401
