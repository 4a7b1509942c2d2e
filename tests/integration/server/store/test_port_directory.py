"""Deployments, agents, tokens, and the end."""

from __future__ import annotations

import pytest

from arc_protocol.errors import StoreUnavailable
from arc_protocol.messages.agents import HandlerInfo
from arc_server.ports.records import AgentPresence, KnownSecret
from arc_server.ports.store import Store
from tests.support.store_samples import (
    DEPLOYMENT,
    NOW,
    RESULT,
    after,
    create,
    daemon,
    deployment,
    lease,
    leased,
    registration,
    secret,
    token,
)


async def test_a_deployment_reads_back_as_configured(store: Store) -> None:
    configured = deployment(
        daemon("one"),
        daemon("two"),
        default_target_id="two",
        push_url="https://worker.example/push",
        push_token="secret",
    )

    await store.put_deployment(configured, NOW)

    assert await store.get_deployment(DEPLOYMENT) == configured
    assert await store.get_deployment("dep-2") is None
    await store.put_deployment(deployment(daemon("one"), daemon("two")), after(1))
    assert await store.get_deployment(DEPLOYMENT) == deployment(daemon("one"), daemon("two"))


async def test_an_agent_is_known_from_its_registration_on(store: Store) -> None:
    presence = await store.put_agent("agent-1", registration(), NOW)

    assert presence.registration == registration()
    assert presence.first_seen_at == presence.last_seen_at == NOW
    assert presence.holding == []

    again = await store.put_agent("agent-1", registration(version="2.0"), after(9))
    assert again.registration.version == "2.0"
    assert (again.first_seen_at, again.last_seen_at) == (NOW, after(9))


async def test_schemas_are_kept_and_shown_to_who_asks_for_them(store: Store) -> None:
    said = registration(
        handlers=[
            HandlerInfo(
                name="report",
                description="Monthly",
                params_schema={"type": "object", "properties": {"month": {"type": "string"}}},
                result_schema={"type": "integer"},
                idempotent=False,
                timeout_seconds=60.0,
            ),
            HandlerInfo(name="arc.ping"),
        ]
    )
    await store.put_agent("agent-1", said, NOW)

    [brief] = (await store.list_agents(None, NOW, 10)).agents
    [whole] = (await store.list_agents(None, NOW, 10, with_schemas=True)).agents

    assert whole.registration == said
    assert brief.registration.handlers == [
        HandlerInfo(name="report", description="Monthly", idempotent=False, timeout_seconds=60.0),
        HandlerInfo(name="arc.ping"),
    ]
    await store.put_agent("agent-1", registration(handlers=[HandlerInfo(name="report")]), NOW)
    [again] = (await store.list_agents(None, NOW, 10, with_schemas=True)).agents
    assert again.registration.handlers == [HandlerInfo(name="report")]


async def test_agents_are_listed_in_an_order_that_stays_with_what_they_hold(store: Store) -> None:
    await store.put_agent("agent-1", registration(), NOW)
    await store.put_agent("agent-2", registration(), after(2))
    await store.put_agent("agent-3", registration(deployment_id="dep-2"), after(1))
    held, done = await leased(store), await leased(store)
    await store.complete(done.command_id, done.lease_id, RESULT, NOW)

    everyone = (await store.list_agents(None, NOW, 10)).agents

    assert [agent.agent_id for agent in everyone] == ["agent-1", "agent-2", "agent-3"]
    assert [list(agent.holding) for agent in everyone] == [[held], [], []]
    here = (await store.list_agents(DEPLOYMENT, NOW, 10)).agents
    assert [agent.agent_id for agent in here] == ["agent-1", "agent-2"]
    latest = await store.latest_agents(DEPLOYMENT, 10)
    assert [agent.agent_id for agent in latest] == ["agent-2", "agent-1"]
    assert await store.latest_agents(DEPLOYMENT, 1) == latest[:1]
    late = (await store.list_agents(None, after(1), 10)).agents
    assert [agent.agent_id for agent in late] == ["agent-2", "agent-3"]
    assert [agent.agent_id for agent in (await store.list_agents(None, NOW, 1)).agents] == [
        "agent-1"
    ]


async def test_when_agents_were_heard_of_never_moves_back(store: Store) -> None:
    await store.put_agent("agent-1", registration(), after(5))
    await store.put_agent("agent-2", registration(), after(5))

    await store.touch_agents(
        {
            (DEPLOYMENT, "agent-1", None): after(9),
            (DEPLOYMENT, "agent-2", None): after(3),
            (DEPLOYMENT, "agent-9", None): after(9),
            ("dep-2", "agent-2", None): after(9),
        }
    )
    await store.put_agent("agent-1", registration(), after(7))

    agents = (await store.list_agents(None, NOW, 10)).agents
    assert [(agent.agent_id, agent.last_seen_at) for agent in agents] == [
        ("agent-1", after(9)),
        ("agent-2", after(5)),
    ]


async def test_tokens_are_found_by_their_hash_until_they_are_revoked(store: Store) -> None:
    one = token(
        name="the nightly report",
        deployments=("acme-*", DEPLOYMENT),
        commands=("reports.*",),
        created_at=after(1),
        created_by="root",
        expires_at=after(9_000),
    )
    other = token(scope="agent", target=daemon("vault"), agent_id="agent-1")
    secrets = {one.token_id: secret(one), other.token_id: secret(other)}
    await store.put_token(one, secrets[one.token_id])
    await store.put_token(other, secrets[other.token_id])

    found = await store.find_token(secrets[one.token_id].token_hash)
    assert found == KnownSecret(secret=secrets[one.token_id], token=one)
    assert await store.find_token(b"no such hash") is None
    assert await store.list_tokens() == [other, one]

    assert await store.revoke_token(one.token_id, after(5))
    assert await store.revoke_token(one.token_id, after(6))
    assert not await store.revoke_token("tok_none", after(5))
    revoked = await store.find_token(secrets[one.token_id].token_hash)
    assert revoked is not None
    assert revoked.token.revoked_at == after(5)
    assert await store.revoked_ids() == {one.token_id}
    found = await store.find_token(secrets[other.token_id].token_hash)
    assert found is not None
    assert found.token == other


async def test_a_token_registers_what_it_is_bound_to_by_name(store: Store) -> None:
    agents = token(scope="agent", deployments=("dep-9",), target=daemon("vault"))
    await store.put_token(agents, secret(agents))
    patterns = token(deployments=("dep-*",))
    await store.put_token(patterns, secret(patterns))

    [known] = await store.list_deployments()
    assert (known.deployment_id, list(known.targets)) == ("dep-9", [daemon("vault")])


async def test_a_rotated_token_has_two_secrets_until_the_former_one_ends(store: Store) -> None:
    one = token()
    first, second = secret(one), secret(one, created_at=after(10))
    await store.put_token(one, first)
    before = await store.revocations()

    assert await store.rotate_token(second, after(60)) == one
    assert await store.rotate_token(secret(token()), after(60)) is None

    assert await store.revocations() == before + 1
    former, latter = [await store.find_token(each.token_hash) for each in (first, second)]
    assert former is not None
    assert latter is not None
    assert (former.ends_at, latter.ends_at) == (after(60), None)
    await store.rotate_token(secret(one, created_at=after(61)), after(99))
    assert await store.find_token(first.token_hash) is None
    latter = await store.find_token(second.token_hash)
    assert latter is not None
    assert latter.ends_at == after(99)


async def test_a_revoked_token_gets_no_other_secret(store: Store) -> None:
    one = token()
    await store.put_token(one, secret(one))
    await store.revoke_token(one.token_id, after(1))
    other = secret(one)

    revoked = await store.rotate_token(other, after(60))

    assert revoked is not None
    assert revoked.revoked_at == after(1)
    assert await store.find_token(other.token_hash) is None


async def test_the_last_use_of_a_token_never_moves_back(store: Store) -> None:
    one = token()
    await store.put_token(one, secret(one))

    await store.use_tokens({one.token_id: after(9), "tok_none": after(9)})
    await store.use_tokens({one.token_id: after(3)})

    assert [each.last_used_at for each in await store.list_tokens()] == [after(9)]


async def test_a_token_that_is_there_is_not_replaced(store: Store) -> None:
    one = token()
    its = secret(one)
    await store.put_token(one, its)

    with pytest.raises(StoreUnavailable):
        await store.put_token(token(token_id=one.token_id), secret(one))
    other = token()
    with pytest.raises(StoreUnavailable):
        await store.put_token(other, secret(other, token_hash=its.token_hash))

    assert await store.list_tokens() == [one]


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    await store.check()

    await store.close()

    for call in (store.check(), store.get("cmd_a"), create(store), store.has_live_leases()):
        with pytest.raises(StoreUnavailable):
            await call
    await store.close()


async def test_the_same_id_in_another_deployment_is_another_agent(store: Store) -> None:
    await store.put_agent("agent-1", registration(), NOW)
    await store.put_agent("agent-1", registration(deployment_id="dep-2", hostname="x"), after(1))

    [here] = (await store.list_agents(DEPLOYMENT, NOW, 10)).agents
    [there] = (await store.list_agents("dep-2", NOW, 10)).agents

    assert here.registration.hostname == registration().hostname
    assert (here.last_seen_at, there.last_seen_at) == (NOW, after(1))
    assert there.registration.hostname == "x"
    assert len((await store.list_agents(None, NOW, 10)).agents) == 2


async def test_the_same_id_by_another_credential_is_another_agent(store: Store) -> None:
    await store.put_agent("agent-1", registration(), NOW)
    await store.put_agent("agent-1", registration(hostname="mine"), after(1), "cred_1")
    await store.put_agent("agent-1", registration(hostname="thief"), after(2), "cred_2")
    await store.touch_agents({(DEPLOYMENT, "agent-1", "cred_2"): after(9)})
    await create(store)
    [held] = (await lease(store, holder="agent-1", credential="cred_1")).grants

    found = {
        each.credential: each for each in (await store.list_agents(DEPLOYMENT, NOW, 10)).agents
    }

    assert {name: each.registration.hostname for name, each in found.items()} == {
        "cred_1": "mine",
        "cred_2": "thief",
    }
    assert found["cred_1"].last_seen_at == after(1)
    assert list(found["cred_1"].holding) == [held.command]
    assert found["cred_2"].holding == []


@pytest.mark.parametrize("deployment_id", [DEPLOYMENT, None])
async def test_pages_of_agents_join_up(store: Store, deployment_id: str | None) -> None:
    for number in range(7):
        await store.put_agent(f"agent-{number}", registration(), after(number // 3))
    await store.put_agent("agent-1", registration(), after(0), "tok_1")
    if deployment_id is None:
        await store.put_agent("agent-1", registration(deployment_id="dep-2"), after(1))

    whole = (await store.list_agents(deployment_id, NOW, 100)).agents
    joined: list[AgentPresence] = []
    behind, pages = None, 0
    while pages == 0 or behind is not None:
        page = await store.list_agents(deployment_id, NOW, 2, behind=behind)
        joined += page.agents
        behind, pages = page.next, pages + 1

    assert joined == list(whole)
    assert (len(whole), pages) == ((8, 4) if deployment_id is None else (7, 4))


@pytest.mark.parametrize("deployment_id", [DEPLOYMENT, None])
async def test_an_agent_that_is_seen_between_two_pages_is_on_one_of_them(
    store: Store, deployment_id: str | None
) -> None:
    names = [f"agent-{number}" for number in range(6)]
    for number, name in enumerate(names):
        await store.put_agent(name, registration(), after(number))

    listed: list[str] = []
    behind = None
    for instant in range(10, 40):
        page = await store.list_agents(deployment_id, NOW, 2, behind=behind)
        listed += [each.agent_id for each in page.agents]
        if (behind := page.next) is None:
            break
        await store.touch_agents(
            {(DEPLOYMENT, name, None): after(instant) for name in reversed(names)}
        )

    assert sorted(listed) == names
