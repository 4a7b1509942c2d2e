"""Targets: the callers that may register them, their number, and their removal."""

from __future__ import annotations

from typing import Any

import pytest

from arc_server.auth.tokens import Scope
from arc_server.config.sections import TargetsSection
from tests.support.running_server import OWN, Client, Serve, make_token


def daemon(name: str) -> dict[str, str]:
    return {"resourceId": name, "resourceType": "daemon"}


async def names_two_targets(client: Client, token: str) -> None:
    """Return requests of a token holder that name two unknown targets."""
    for name in ("one", "two"):
        for method, path, body in (
            ("POST", "/v1/commands/leases", {"deploymentId": OWN, "target": daemon(name)}),
            (
                "POST",
                "/v1/commands",
                {
                    "deploymentId": OWN,
                    "command": "c",
                    "params": {"mode": "inline", "inlineBase64": ""},
                    "targetResourceId": name,
                },
            ),
        ):
            await client.call(method, path, body, token=token)


async def targets_of(client: Client, deployment: str = OWN) -> list[str]:
    known = await client.server.parts.store.get_deployment(deployment)
    return [] if known is None else [target.resource_id for target in known.targets]


@pytest.mark.parametrize("scope", [Scope.AGENT, Scope.SENDER])
async def test_a_token_makes_no_deployment_ambiguous(client: Client, scope: Scope) -> None:
    await names_two_targets(client, await make_token(client.server, scope, OWN))

    assert await targets_of(client) == []
    assert await client.create()


async def test_a_token_registers_no_deployment(client: Client) -> None:
    sender = await make_token(client.server, Scope.SENDER)
    body: dict[str, Any] = {"deploymentId": "new", "command": "c"}
    body["params"] = {"mode": "inline", "inlineBase64": ""}

    answer = await client.call("POST", "/v1/commands", body, token=sender)

    assert answer.code == "DEPLOYMENT_NOT_FOUND"
    assert await client.server.parts.store.get_deployment("new") is None


async def test_an_admin_and_the_operators_tokens_register_what_they_name(client: Client) -> None:
    await client.lease("by-an-admin", target=daemon("vault"))
    await make_token(client.server, Scope.SENDER, "by-a-token")

    assert await targets_of(client, "by-an-admin") == ["vault"]
    assert await client.server.parts.store.get_deployment("by-a-token") is not None


async def test_with_registration_on_every_token_registers(serve: Serve) -> None:
    async with serve(targets=TargetsSection(auto_register=True)) as client:
        await names_two_targets(client, await make_token(client.server, Scope.AGENT, OWN))

        assert await targets_of(client) == ["one", "two"]


async def test_with_registration_off_not_even_an_admin_registers(serve: Serve) -> None:
    async with serve(targets=TargetsSection(auto_register=False)) as client:
        await client.lease(target=daemon("vault"))

        assert await client.server.parts.store.get_deployment(OWN) is None


async def test_a_deployment_has_no_more_targets_than_it_may(serve: Serve) -> None:
    section = TargetsSection(auto_register=True, max_per_deployment=3)
    async with serve(targets=section) as client:
        agent = await make_token(client.server, Scope.AGENT, OWN)
        for number in range(5):
            body = {"deploymentId": OWN, "target": daemon(f"t{number}")}
            answer = await client.call("POST", "/v1/commands/leases", body, token=agent)
            assert (answer.status, answer.json["leases"]) == (200, [])

        assert await targets_of(client) == ["t0", "t1", "t2"]
        assert await client.server.parts.store.remove_target(OWN, "t1")
        await client.lease(target=daemon("t9"))
        assert await targets_of(client) == ["t0", "t2", "t9"]
