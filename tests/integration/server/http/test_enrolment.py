"""Enrolment over HTTP: each token once, each signature for what it signs, revoked at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from arc_protocol import enrolment as wire
from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_server.auth.access import AccessTokens
from arc_server.auth.enrolment import new_enrol_token
from arc_server.auth.tokens import Scope
from arc_server.config.sections import EnrolmentSection
from arc_server.control.store_calls import SOCKET, remote_store
from arc_server.ports.records import NewCredential
from tests.support.enrolling_host import Host, enrol_token
from tests.support.running_server import OTHER, OWN, Client, Serve, make_token
from tests.support.waiting import until

AGENT = "db-7-0123456789abcdef"
"""The id of one start of the agent that enrols."""


@pytest.fixture
async def host(client: Client) -> Host:
    """A host that is enrolled for `own`."""
    host = Host()
    await host.enrol(client, await enrol_token(client.server, OWN))
    return host


async def test_an_agent_that_enrolled_works_for_its_deployment_alone(client: Client) -> None:
    host = Host(OWN)
    await host.enrol(client, await enrol_token(client.server, OWN))
    command_id = await client.create(OWN)
    await client.create(OTHER)

    token = await host.access(client)

    lease = {"deploymentId": OWN, "agentId": AGENT}
    answer = await client.call("POST", "/v1/commands/leases", lease, token=token)
    assert [each["commandId"] for each in answer.json["leases"]] == [command_id]
    lease = {"deploymentId": OTHER, "agentId": AGENT}
    assert (await client.call("POST", "/v1/commands/leases", lease, token=token)).status == 403
    assert (await client.call("GET", "/v1/commands", token=token)).status == 403


async def test_an_enrol_token_is_used_up_and_the_loser_is_told(client: Client) -> None:
    token = await enrol_token(client.server, OWN)
    await Host().enrol(client, token)

    second = await Host().try_to_enrol(client, token)

    assert (second.status, second.code) == (401, "UNAUTHORIZED")
    assert "used up" in second.json["message"]
    assert token not in second.body.decode()


async def test_of_many_that_enrol_at_once_exactly_as_many_win_as_there_are_uses(
    client: Client,
) -> None:
    token = await enrol_token(client.server, OWN, uses=5)
    hosts = [Host() for _ in range(12)]

    answers = await asyncio.gather(*(host.try_to_enrol(client, token) for host in hosts))

    assert sorted(answer.status for answer in answers) == [200] * 5 + [401] * 7
    [stored] = await client.server.parts.store.list_enrol_tokens()
    assert stored.used == 5


async def test_an_expired_and_a_revoked_enrol_token_enrol_nobody(client: Client) -> None:
    expired = await enrol_token(client.server, OWN, seconds=0)
    revoked = await enrol_token(client.server, OWN)
    store = client.server.parts.store
    ids = {token.expires_at: token.token_id for token in await store.list_enrol_tokens()}
    await store.revoke_enrol_token(ids[max(ids)], datetime.now(UTC))

    first = await Host().try_to_enrol(client, expired)
    second = await Host().try_to_enrol(client, revoked)

    assert (first.status, second.status) == (401, 401)
    assert "expired" in first.json["message"]
    assert await store.list_credentials() == []


async def test_a_repeat_with_the_same_key_gets_the_same_answer_and_costs_no_use(
    client: Client,
) -> None:
    token = await enrol_token(client.server, OWN)
    host = Host()
    first = await host.try_to_enrol(client, token)

    again = await host.try_to_enrol(client, token)

    assert (again.status, again.json) == (200, first.json)
    assert len(await client.server.parts.store.list_credentials()) == 1


async def test_a_key_that_is_enrolled_is_not_enrolled_by_another_token(client: Client) -> None:
    host = Host()
    await host.enrol(client, await enrol_token(client.server, OWN))

    answer = await host.try_to_enrol(client, await enrol_token(client.server, OTHER))

    assert (answer.status, answer.code) == (409, "CONFLICT")


async def test_an_agent_configured_for_another_deployment_does_not_use_the_token_up(
    client: Client,
) -> None:
    token = await enrol_token(client.server, OWN)

    answer = await Host(OTHER).try_to_enrol(client, token)

    assert (answer.status, answer.code) == (403, "FORBIDDEN")
    await Host(OWN).enrol(client, token)


async def test_nobody_enrols_a_key_that_he_does_not_have(client: Client) -> None:
    token = await enrol_token(client.server, OWN)
    owner, thief = Host(), Host()
    request = thief.enrol_request(token) | {"publicKey": owner.public_key}

    answer = await client.call("POST", "/v1/agents/enrol", request, token=token)

    assert answer.status == 401
    await owner.enrol(client, token)


async def test_forged_requests_for_an_access_token_get_a_401(client: Client, host: Host) -> None:
    challenge = await host.challenge(client)
    good = host.token_request(challenge)
    other = Host()
    stale = AccessTokens(client.server.parts.signer, client.server.parts.clock)
    expired = stale._seal("challenge", "nonce", -60)
    of_tomorrow = stale._seal("challenge", "nonce", 86_400)
    forgeries: dict[str, dict[str, Any]] = {
        "another key's signature": good
        | {"signature": other.token_request(challenge)["signature"]},
        "a key that is not known": other.token_request(challenge),
        "another's name": good | {"keyId": other.key_id},
        "another challenge": good | {"challenge": await host.challenge(client)},
        "a challenge without an owner": host.token_request("nonce.99999999999.0000." + "0" * 64),
        "a challenge that has expired": host.token_request(expired),
        "a challenge of a clock that was ahead": host.token_request(of_tomorrow),
        "a signature for something else": good
        | {"signature": host.sign("key", host.key_id, challenge)},
        "an access token as a challenge": host.token_request(
            (await host.access(client)).removeprefix("arc_access_")
        ),
    }

    seen: dict[str, int] = {}
    for name, request in forgeries.items():
        answer = await client.call("POST", "/v1/agents/tokens", request, token="")
        seen[name] = answer.status
        assert answer.code == "UNAUTHORIZED"
        assert answer.headers["WWW-Authenticate"] == "Bearer"

    assert seen == dict.fromkeys(forgeries, 401)
    assert (await client.call("POST", "/v1/agents/tokens", good, token="")).status == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("enrol", {"signature": "AA=="}, "publicKey"),
        ("enrol", {"publicKey": "AA==", "signature": "AA=="}, "publicKey"),
        ("enrol", {"publicKey": "!" * 44, "signature": "AA=="}, "publicKey"),
        ("enrol", {"publicKey": "A" * 129, "signature": "AA=="}, "publicKey"),
        ("tokens", {"keyId": "key_1", "challenge": "", "signature": ""}, "keyId"),
        ("tokens", {"keyId": "key_" + "0" * 32, "challenge": "é", "signature": ""}, "challenge"),
        ("keys", {"keyId": 7}, "keyId"),
    ],
)
async def test_a_body_of_the_wrong_shape_names_the_field(
    client: Client, path: str, body: dict[str, Any], field: str
) -> None:
    token = await enrol_token(client.server, OWN)

    answer = await client.call("POST", f"/v1/agents/{path}", body, token=token)

    assert (answer.status, answer.code) == (400, "INVALID_COMMAND")
    assert field in answer.json["message"]


async def test_a_large_body_is_refused_unread_and_too_many_requests_get_a_429(
    serve: Serve,
) -> None:
    async with serve(http={"strangers_per_second": 2}) as client:
        large = await client.call("POST", "/v1/agents/tokens", data=b"x" * 20_000, token="")
        answers = [await client.call("POST", "/v1/agents/enrol", token="") for _ in range(6)]

    assert (large.status, large.code) == (413, "PAYLOAD_TOO_LARGE")
    limited = answers[-1]
    assert (limited.status, limited.code, limited.json["retryable"]) == (429, "RATE_LIMITED", True)
    assert limited.headers["Retry-After"] == "1"


async def test_strangers_who_send_too_much_keep_no_agent_from_its_access_token(
    serve: Serve,
) -> None:
    async with serve(enrolment=EnrolmentSection(max_per_second=2)) as client:
        host = Host(OWN)
        await host.enrol(client, await enrol_token(client.server, OWN))
        token = await enrol_token(client.server, OWN)
        flood = [await Host().try_access(client) for _ in range(8)]
        flood += [await client.call("POST", "/v1/agents/challenges", token="") for _ in range(8)]
        flood += [await client.call("POST", "/v1/agents/enrol", token=token) for _ in range(8)]
        answer = await host.try_access(client)

    assert answer.status == 200
    assert 429 in [each.status for each in flood], "enrolments are still counted"


@pytest.mark.parametrize("junk", ["no token", "not a token", "another server's token"])
async def test_junk_keeps_no_genuine_agent_from_enrolling(serve: Serve, junk: str) -> None:
    limits = EnrolmentSection(max_per_second=5)
    made = new_enrol_token(OWN, 1, timedelta(hours=1), datetime.now(UTC)).text
    token = {"no token": "", "not a token": "arc_enrol_x", "another server's token": made}[junk]
    async with serve(http={"strangers_per_second": 5}, enrolment=limits) as client:
        flood = [await client.call("POST", "/v1/agents/enrol", token=token) for _ in range(30)]
        genuine = await Host().try_to_enrol(client, await enrol_token(client.server, OWN))

    assert {answer.status for answer in flood} == {401, 429}
    assert genuine.status == 200


@pytest.mark.parametrize(
    ("trusted", "same", "others"), [(["127.0.0.1"], 429, 401), (["10.0.0.0/8"], 429, 429)]
)
async def test_strangers_behind_a_trusted_proxy_are_told_apart(
    serve: Serve, trusted: list[str], same: int, others: int
) -> None:
    limits = {"strangers_per_second": 1, "trusted_proxies": trusted}
    async with serve(http=limits) as client:

        async def junk(forwarded_for: str) -> int:
            headers = {"X-Forwarded-For": forwarded_for, "Forwarded": "for=198.51.100.77"}
            answer = await client.call("POST", "/v1/agents/enrol", token="", headers=headers)
            return answer.status

        flood = [await junk(f"198.51.100.{claim}, 203.0.113.9") for claim in range(6)]

        assert flood[-1] == same, "what a client claims itself does not count"
        assert await junk("203.0.113.10") == others


# access tokens and keys


async def test_an_access_token_ends_by_the_servers_clock(client: Client, host: Host) -> None:
    access = AccessTokens(client.server.parts.signer, client.server.parts.clock)
    body = {"deploymentId": OWN, "agentId": AGENT}
    good = access.mint(host.credential_id, 60)
    over = access.mint(host.credential_id, -2)
    changed = good.replace(host.credential_id, "cred_" + "0" * 16)

    async def status(token: str) -> int:
        return (await client.call("POST", "/v1/commands/leases", body, token=token)).status

    assert await status(good) == 200
    assert [await status(each) for each in (over, changed, good + "0", good[:-1])] == [401] * 4


async def test_a_signed_challenge_is_used_once(client: Client, host: Host) -> None:
    challenge, new = await host.challenge(client), Host()
    for_token = host.token_request(challenge)
    for_key = host.key_request(challenge, new)

    first = await client.call("POST", "/v1/agents/tokens", for_token, token="")
    again = await client.call("POST", "/v1/agents/tokens", for_token, token="")
    otherwise = await client.call("POST", "/v1/agents/keys", for_key, token="")

    assert first.status == 200
    assert [(each.status, each.code) for each in (again, otherwise)] == [(401, "UNAUTHORIZED")] * 2
    assert (await host.try_access(client)).status == 200


async def test_a_forged_use_of_a_challenge_does_not_use_it_up(client: Client, host: Host) -> None:
    challenge = await host.challenge(client)
    good = host.token_request(challenge)
    forged = good | {"signature": Host().token_request(challenge)["signature"]}

    assert (await client.call("POST", "/v1/agents/tokens", forged, token="")).status == 401
    assert (await client.call("POST", "/v1/agents/tokens", good, token="")).status == 200


async def test_a_challenge_of_before_a_restart_is_not_taken_and_may_be_asked_for_again(
    serve: Serve,
) -> None:
    host = Host()
    async with serve() as client:
        await host.enrol(client, await enrol_token(client.server, OWN))
        challenge = await host.challenge(client)
        request = host.token_request(challenge)
        assert (await client.call("POST", "/v1/agents/tokens", request, token="")).status == 200

    async with serve() as client:
        answer = await client.call("POST", "/v1/agents/tokens", request, token="")
        assert (answer.status, answer.json["retryable"]) == (503, True)
        assert (await host.try_access(client)).status == 200


async def test_a_new_key_takes_over_and_the_old_one_ends_after_the_overlap(serve: Serve) -> None:
    section = EnrolmentSection(key_overlap_seconds=0)
    async with serve(enrolment=section) as client:
        host, new = Host(), Host()
        await host.enrol(client, await enrol_token(client.server, OWN))
        await host.access(client)

        added = await host.rotate(client, new)
        assert (added.status, added.json["keyId"]) == (200, new.key_id)
        assert (await host.try_access(client)).status == 200  # the new one was not used yet
        await new.access(client)

        refused = await host.try_access(client)
        assert refused.status == 401
        assert (await new.try_access(client)).json["credentialId"] == host.credential_id


async def test_old_and_new_key_overlap_while_the_new_one_is_used(
    client: Client, host: Host
) -> None:
    new = Host()

    await host.rotate(client, new)
    await new.access(client)

    assert (await host.try_access(client)).status == 200
    known = await client.server.parts.store.find_key(host.key_id)
    assert known is not None
    assert known.key.ends_at is not None


async def test_a_repeated_new_key_gets_the_same_answer_and_an_abandoned_one_goes(
    client: Client, host: Host
) -> None:
    lost, new = Host(), Host()
    await host.rotate(client, lost)

    first = await host.rotate(client, new)
    again = await host.rotate(client, new)

    assert (first.status, again.status, again.json) == (200, 200, first.json)
    assert (await lost.try_access(client)).status == 401


async def test_a_key_of_somebody_else_is_not_taken_over(client: Client, host: Host) -> None:
    other, thief = Host(), Host()
    await other.enrol(client, await enrol_token(client.server, OTHER))
    challenge = await host.challenge(client)
    unproven = host.key_request(challenge, other) | {
        "newSignature": thief.sign("key", host.key_id, challenge, other.public_key)
    }

    taken = await host.rotate(client, other)
    unsigned = await client.call("POST", "/v1/agents/keys", unproven, token="")

    assert (taken.status, taken.code) == (409, "CONFLICT")
    assert unsigned.status == 401


@pytest.mark.parametrize(("age", "is_old"), [(0.5, False), (0.7, True)])
async def test_the_server_says_when_a_key_is_old(client: Client, age: float, is_old: bool) -> None:
    host, then = Host(), datetime.now(UTC) - timedelta(days=90) * age
    made = new_enrol_token(OWN, 1, timedelta(hours=1), then)
    store = client.server.parts.store
    await store.put_enrol_token(made.stored)
    new = NewCredential(
        credential_id="cred_1",
        key_id=host.key_id,
        public_key=bytes(host.key.verify_key),
        hostname="",
    )
    await store.enrol(made.stored.token_hash, new, then)

    answer = await host.try_access(client)

    assert answer.json.get("rotateKey", False) is is_old


# revocation


async def test_a_revoked_credential_ends_its_long_poll_with_a_401(
    client: Client, host: Host
) -> None:
    token, other = await host.access(client), await make_token(client.server, Scope.AGENT, OWN)
    announcements = client.server.parts.services.announcements
    body = {"deploymentId": OWN, "agentId": AGENT, "waitSeconds": 50}
    polls = [
        asyncio.create_task(client.call("POST", "/v1/commands/leases", body, token=each))
        for each in (token, other)
    ]
    await until(lambda: announcements.work.count == 2)

    await client.server.parts.store.revoke_credential(host.credential_id, datetime.now(UTC))
    ended = await asyncio.wait_for(polls[0], 5)

    assert (ended.status, ended.code) == (401, "UNAUTHORIZED")
    assert announcements.work.count == 1
    refused = await host.try_access(client)
    assert (refused.status, refused.json["context"]) == (401, {"reason": "revoked"})
    assert "revoked" in refused.json["message"]
    command_id = await client.create(OWN)
    served = await polls[1]
    assert [each["commandId"] for each in served.json["leases"]] == [command_id]


@pytest.mark.parametrize("scope", [Scope.AGENT, Scope.SENDER])
async def test_a_plain_token_that_another_process_revokes_ends_its_wait_too(
    client: Client, scope: Scope
) -> None:
    token = await make_token(client.server, scope, OWN)
    command_id = await client.create(OWN)
    if scope is Scope.SENDER:
        call = client.call("GET", f"/v1/commands/{command_id}?waitSeconds=50", token=token)
    else:
        await client.lease()
        body = {"deploymentId": OWN, "agentId": AGENT, "waitSeconds": 50}
        call = client.call("POST", "/v1/commands/leases", body, token=token)
    waiting = asyncio.create_task(call)
    announcements = client.server.parts.services.announcements
    await until(lambda: announcements.work.count + announcements.results.count == 1)
    store = client.server.parts.store
    [token_id] = [each.token_id for each in await store.list_tokens() if each.scope == scope.value]
    through = remote_store(store_path(client).with_name(SOCKET))  # as the command line does
    await asyncio.to_thread(asyncio.run, through.revoke_token(token_id, datetime.now(UTC)))

    ended = await asyncio.wait_for(waiting, 5)

    assert (ended.status, ended.code) == (401, "UNAUTHORIZED")
    assert (await client.call("GET", "/v1/agents", token=token)).status == 401


async def test_a_revoked_wait_that_got_work_in_the_same_moment_gives_it_back(
    client: Client, host: Host
) -> None:
    token = await host.access(client)
    body = {"deploymentId": OWN, "agentId": AGENT, "waitSeconds": 50}
    poll = asyncio.create_task(client.call("POST", "/v1/commands/leases", body, token=token))
    await until(lambda: client.server.parts.services.announcements.work.count == 1)

    store = client.server.parts.store
    await store.revoke_credential(host.credential_id, datetime.now(UTC))
    command_id = await client.create(OWN)
    answer = await poll

    if answer.status == 401:
        [lease] = await client.lease(waitSeconds=5)
        assert (lease["commandId"], lease["attempt"]) == (command_id, 1)
    else:
        assert [each["commandId"] for each in answer.json["leases"]] == [command_id]


def store_path(client: Client) -> Path:
    """The database's file."""
    return client.server.parts.signer.directory.parent / "arc.db"


def test_what_is_signed_cannot_be_shifted_between_its_parts() -> None:
    assert wire.to_sign("key", "ab", "c") != wire.to_sign("key", "a", "bc")
    assert wire.to_sign("key", "a") != wire.to_sign("token", "a")


# what an enrolment binds to

VAULT = {"resourceId": "vault", "resourceType": "daemon"}
OTHER_TARGET = {"resourceId": "other", "resourceType": "daemon"}


async def enrolled_for(client: Client, target: dict[str, str] | None) -> str:
    """The access token of an agent that enrolled for a target."""
    host, token = Host(), await enrol_token(client.server, OWN)
    body = host.enrol_request(token) | ({} if target is None else {"target": target})
    answer = await client.call("POST", "/v1/agents/enrol", body, token=token)
    assert answer.status == 200
    return await host.access(client)


async def lease_status(client: Client, token: str, target: dict[str, str] | None) -> int:
    body = {"deploymentId": OWN, "agentId": AGENT} | ({} if target is None else {"target": target})
    return (await client.call("POST", "/v1/commands/leases", body, token=token)).status


async def test_a_credential_is_bound_to_the_target_that_its_agent_enrolled_for(
    client: Client,
) -> None:
    token = await enrolled_for(client, VAULT)

    assert await lease_status(client, token, VAULT) == 200
    assert await lease_status(client, token, None) == 200  # which means its own
    assert await lease_status(client, token, OTHER_TARGET) == 403


async def test_an_agent_that_enrolled_without_a_target_may_name_none(client: Client) -> None:
    token = await enrolled_for(client, None)

    assert await lease_status(client, token, None) == 200
    assert await lease_status(client, token, VAULT) == 403


async def test_an_enrolment_registers_its_target(client: Client) -> None:
    await enrolled_for(client, VAULT)

    known = await client.server.parts.store.get_deployment(OWN)

    assert known is not None
    assert [target.resource_id for target in known.targets] == ["vault"]


async def test_an_enrol_token_for_a_target_enrols_for_no_other(client: Client) -> None:
    vault = CommandTarget(resource_id="vault", resource_type=ResourceType.DAEMON)
    made = new_enrol_token(OWN, 2, timedelta(hours=1), datetime.now(UTC), vault)
    store, host = client.server.parts.store, Host()
    await store.put_enrol_token(made.stored)

    other = Host().enrol_request(made.text) | {"target": OTHER_TARGET}
    refused = await client.call("POST", "/v1/agents/enrol", other, token=made.text)
    await host.enrol(client, made.text)  # names none

    assert (refused.status, refused.code) == (403, "FORBIDDEN")
    [token] = await store.list_enrol_tokens()
    assert token.used == 1
    assert await lease_status(client, await host.access(client), OTHER_TARGET) == 403


@pytest.mark.parametrize(
    ("agent_id", "status"),
    [
        (AGENT, 200),
        ("db-7-fedcba9876543210", 200),  # its next start
        ("db-7", 200),
        ("db-8-0123456789abcdef", 403),
        ("db-70-0123456789abcdef", 403),
        ("db-7-0123456789abcdef-0123456789abcdef", 403),
        ("db-7-replica", 403),
        (None, 403),
    ],
)
async def test_a_credential_is_bound_to_the_agent_that_enrolled(
    client: Client, agent_id: str | None, status: int
) -> None:
    token = await enrolled_for(client, None)
    lease = {"deploymentId": OWN, "agentId": agent_id}
    registration = {"deploymentId": OWN, "version": "1", "hostname": "any", "handlers": []}

    leased = await client.call("POST", "/v1/commands/leases", lease, token=token)
    answers = [leased]
    if agent_id is not None:
        path = f"/v1/agents/{agent_id}"
        answers.append(await client.call("PUT", path, registration, token=token))

    assert [each.status for each in answers] == [status] * len(answers)
    if status == 403:
        assert "is bound to the agent db-7" in leased.json["message"]


async def test_a_receiver_that_an_enrolled_agent_bootstraps_needs_no_agent_id(
    client: Client,
) -> None:
    token = await enrolled_for(client, VAULT)
    request = {"deploymentId": OWN, "role": "receiver", "target": "vault"}
    lease = {"deploymentId": OWN, "target": VAULT}

    grant = await client.call("POST", "/v1/commands/bootstrap", request, token=token)
    answer = await client.call("POST", "/v1/commands/leases", lease, token=grant.json["token"])

    assert answer.status == 200
