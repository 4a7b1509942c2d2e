"""Signed URLs, bound tokens, and when tokens begin and end to be good."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from arc_server.auth.tokens import Scope, new_token
from arc_server.server_keys import BLOB, Signer, rotate
from tests.support.enrolling_host import Host, enrol_token
from tests.support.running_server import (
    OTHER,
    OWN,
    Client,
    Serve,
    make_token,
    success,
)
from tests.support.waiting import until

HOUR = timedelta(hours=1)
AGENT = {"deploymentId": OWN, "version": "1", "hostname": "h", "handlers": []}


@dataclass
class Subject:
    """Something of deployment `own` that a request can be about, fresh for each request."""

    client: Client
    pending: str = ""
    leased: str = ""
    lease_id: str = ""
    uploading: str = ""
    upload_url: str = ""
    blob: str = ""
    host: Host = field(default_factory=Host)
    """An agent that is enrolled for `own`."""
    challenge: str = ""
    enrol_token: str = ""

    async def prepare(self) -> Subject:
        """Make it: a command that waits, one that is leased, one whose params are uploaded."""
        client = self.client
        self.leased = await client.create()
        leases = await client.lease(maxLeases=100)
        self.lease_id = next(x["leaseId"] for x in leases if x["commandId"] == self.leased)
        self.pending = await client.create()
        body = {"deploymentId": OWN, "command": "big", "params": {"mode": "storage", "size": 3}}
        answer = await client.call("POST", "/v1/commands", body)
        self.enrol_token = await enrol_token(client.server, OWN, uses=2)
        await self.host.enrol(client, self.enrol_token)
        self.challenge = await self.host.challenge(client)
        self.uploading = answer.json["commandId"]
        request = answer.json["storageUpload"]["putRequest"]
        self.upload_url, self.blob = request["backend"]["url"], request["path"]
        assert (await client.call("PUT", self.upload_url, data=b"abc", token="")).status == 200
        return self


# signatures

Sign = Callable[[Subject, Signer, datetime], str]


def response_url(subject: Subject, signer: Signer, until: datetime) -> str:
    base = f"{subject.client.server.url}/v1"
    return signer.response_url(base, subject.leased, subject.lease_id, until)


def blob_url(operation: str) -> Sign:
    def sign(subject: Subject, signer: Signer, until: datetime) -> str:
        expires = int(until.timestamp())
        signed = signer.sign(BLOB, operation, subject.blob, expires=expires)
        return (
            f"{subject.client.server.url}/v1/blobs/{subject.blob}?op={operation}"
            f"&expires={expires}&kid={signed.key_id}&sig={signed.token}"
        )

    return sign


SIGNED: dict[tuple[str, str], tuple[Sign, Any]] = {
    ("PUT", "/commands/*/response"): (response_url, success()),
    ("GET", "/blobs/**"): (blob_url("get"), None),
    ("PUT", "/blobs/**"): (blob_url("put"), {"new": "body"}),
}


def change(url: str, name: str, value: str | None) -> str:
    """The URL with another value of one field of its query, or without the field."""
    path, _, query = url.partition("?")
    fields = [pair.split("=", 1) for pair in query.split("&")]
    kept = [(n, value if n == name else v) for n, v in fields]
    return path + "?" + "&".join(f"{n}={v}" for n, v in kept if v is not None)


@pytest.mark.parametrize("key", SIGNED, ids=" ".join)
async def test_a_signature_is_enough_and_nothing_but_the_right_one_is(
    client: Client, key: tuple[str, str]
) -> None:
    sign, body = SIGNED[key]
    signer = client.server.parts.signer
    token = "response_token" if "response" in key[1] else "sig"
    later, past = datetime.now(UTC) + HOUR, datetime.now(UTC) - HOUR

    async def status(make: Callable[[Subject], str]) -> int:
        subject = await Subject(client).prepare()
        answer = await client.call(key[0], make(subject), body, token="")
        assert answer.status != 401 or answer.headers["WWW-Authenticate"] == "Bearer"
        return answer.status

    def good(subject: Subject) -> str:
        return sign(subject, signer, later)

    assert await status(good) == 200
    assert await status(lambda s: sign(s, signer, past)) == 401
    assert await status(lambda s: change(good(s), token, "0" * 64)) == 401
    assert await status(lambda s: change(good(s), token, "")) == 401
    assert await status(lambda s: change(good(s), token, None)) == 401
    assert await status(lambda s: change(good(s), "expires", "99999999999")) == 401
    assert await status(lambda s: change(good(s), "expires", "soon")) == 401
    assert await status(lambda s: change(good(s), "expires", None)) == 401
    assert await status(lambda s: change(good(s), "kid", "ffffffff")) == 401
    assert await status(lambda s: change(good(s), "kid", None)) == 401
    assert await status(lambda s: good(s) + "&expires=99999999999") == 400


async def test_a_response_url_is_good_for_its_command_and_its_lease_only(client: Client) -> None:
    subject = await Subject(client).prepare()
    url = response_url(subject, client.server.parts.signer, datetime.now(UTC) + HOUR)

    other_command = url.replace(subject.leased, subject.pending)
    other_lease = change(url, "lease", "lease_" + "0" * 32)

    for changed in (other_command, other_lease, change(url, "lease", None)):
        assert (await client.call("PUT", changed, success(), token="")).status == 401
    assert (await client.status(subject.leased))["state"] == "DISPATCHED"


async def test_a_url_for_reading_does_not_write_and_the_other_way_round(client: Client) -> None:
    subject = await Subject(client).prepare()
    signer, later = client.server.parts.signer, datetime.now(UTC) + HOUR
    read, write = (blob_url(op)(subject, signer, later) for op in ("get", "put"))

    assert (await client.call("PUT", read, data=b"x", token="")).status == 401
    assert (await client.call("GET", write, token="")).status == 401
    assert (await client.call("PUT", change(read, "op", "put"), data=b"x", token="")).status == 401
    head = await client.call("HEAD", read, token="")
    assert (head.status, head.headers["Content-Length"]) == (200, "3")


async def test_a_token_that_is_there_decides_alone_about_a_response(client: Client) -> None:
    subject = await Subject(client).prepare()
    url = response_url(subject, client.server.parts.signer, datetime.now(UTC) + HOUR)
    sender = await make_token(client.server, Scope.SENDER)
    other = await make_token(client.server, Scope.AGENT, OTHER)
    agent = await make_token(client.server, Scope.AGENT, OWN)

    assert (await client.call("PUT", url, success(), token="arc_admin_nonsense")).status == 401
    assert (await client.call("PUT", url, success(), token=sender)).status == 403
    assert (await client.call("PUT", url, success(), token=other)).status == 404
    assert (await client.call("PUT", url, success(), token=agent)).code == "LEASE_LOST"
    assert (await client.call("PUT", url, success())).status == 200  # an admin may


async def test_a_signature_that_is_there_decides_alone_about_a_blob(client: Client) -> None:
    subject = await Subject(client).prepare()
    url = blob_url("get")(subject, client.server.parts.signer, datetime.now(UTC) + HOUR)
    agent = await make_token(client.server, Scope.AGENT, OTHER)

    assert (await client.call("GET", url, token=agent)).status == 200
    assert (await client.call("GET", change(url, "sig", "0" * 64))).status == 401


async def test_urls_that_are_out_survive_a_rotation_of_the_keys(client: Client) -> None:
    subject = await Subject(client).prepare()
    later = datetime.now(UTC) + HOUR
    before = response_url(subject, client.server.parts.signer, later)
    directory = client.server.parts.signer.directory

    new_key = rotate(directory, datetime.now(UTC), HOUR)[0].id
    client.server.reload()
    after = blob_url("get")(subject, client.server.parts.signer, later)

    assert f"kid={new_key}" in after
    assert (await client.call("GET", after, token="")).status == 200
    assert (await client.call("PUT", before, success(), token="")).status == 200


# bound tokens


async def test_a_bound_sender_sees_its_own_deployment_alone(client: Client) -> None:
    own, other = await client.create(OWN), await client.create(OTHER)
    token = await make_token(client.server, Scope.SENDER, OWN)

    listed = await client.call("GET", "/v1/commands", token=token)
    agents = await client.call("GET", "/v1/agents", token=token)

    assert [command["commandId"] for command in listed.json["commands"]] == [own]
    assert agents.status == 200
    assert (await client.call("GET", f"/v1/commands/{other}", token=token)).status == 404


async def test_a_token_of_another_deployment_takes_no_record_of_an_agent_over(
    client: Client,
) -> None:
    path, holder = "/v1/agents/agent-1", await make_token(client.server, Scope.AGENT, OWN)
    stranger = await make_token(client.server, Scope.AGENT, OTHER)
    theirs = AGENT | {"deploymentId": OTHER, "hostname": "stranger", "status": {"state": "gone"}}
    await client.call("PUT", path, AGENT, token=holder)
    (before,) = (await client.call("GET", f"/v1/agents?deploymentId={OWN}")).json["agents"]

    answers = [
        await client.call("PUT", path, theirs, token=stranger),
        await client.call("PUT", path, AGENT | {"hostname": "stranger"}, token=stranger),
        await client.call("PUT", "/v1/agents/2", theirs | {"replaces": "agent-1"}, token=stranger),
    ]

    (after,) = (await client.call("GET", f"/v1/agents?deploymentId={OWN}")).json["agents"]
    assert [each.status for each in answers] == [200, 403, 200]
    assert after == before
    assert after["hostname"] == AGENT["hostname"]
    assert "isGone" not in after


async def test_another_token_of_the_deployment_takes_no_record_of_an_agent_over(
    client: Client,
) -> None:
    path, holder = "/v1/agents/agent-1", await make_token(client.server, Scope.AGENT, OWN)
    stranger = await make_token(client.server, Scope.AGENT, OWN)
    theirs = AGENT | {"hostname": "stranger"}
    await client.call("PUT", path, AGENT, token=holder)
    (before,) = (await client.call("GET", "/v1/agents")).json["agents"]

    answers = [
        await client.call("PUT", path, theirs | {"status": {"state": "gone"}}, token=stranger),
        await client.call("PUT", "/v1/agents/2", theirs | {"replaces": "agent-1"}, token=stranger),
    ]

    agents = (await client.call("GET", "/v1/agents")).json["agents"]
    assert [each.status for each in answers] == [200, 200]
    assert [each for each in agents if each["hostname"] == "h"] == [before]
    assert before["credential"] not in {
        each["credential"] for each in agents if each["hostname"] == "stranger"
    }


async def test_an_agent_of_another_deployment_cannot_renew_a_lease(client: Client) -> None:
    subject = await Subject(client).prepare()
    other = await make_token(client.server, Scope.AGENT, OTHER)
    body = {"leaseIds": [subject.lease_id]}

    stranger = await client.call("POST", "/v1/commands/leases/renew", body, token=other)
    holder = await client.call("POST", "/v1/commands/leases/renew", body)

    assert (stranger.json["renewed"], stranger.json["lost"]) == ([], [subject.lease_id])
    assert [lease["leaseId"] for lease in holder.json["renewed"]] == [subject.lease_id]


async def test_an_agent_of_another_deployment_cannot_hand_in_a_response(client: Client) -> None:
    subject = await Subject(client).prepare()
    other = await make_token(client.server, Scope.AGENT, OTHER)
    response = {"leaseId": subject.lease_id, "commandId": subject.leased, "response": success()}
    body = {"responses": [response]}

    stranger = await client.call("POST", "/v1/commands/leases/respond", body, token=other)
    assert [each["error"]["code"] for each in stranger.json["refused"]] == ["COMMAND_NOT_FOUND"]
    holder = await client.call("POST", "/v1/commands/leases/respond", body)
    assert holder.json == {"refused": []}


# time


async def test_a_revoked_token_stops_working_when_its_look_up_is_over(serve: Serve) -> None:
    async with serve(auth={"token_cache_seconds": 0.05}) as client:
        made = new_token(Scope.SENDER, None, datetime.now(UTC))
        store = client.server.parts.store
        await store.put_token(made.stored, made.secret)
        assert (await client.call("GET", "/v1/commands", token=made.text)).status == 200

        await store.revoke_token(made.stored.token_id, datetime.now(UTC))

        await until(lambda: is_refused(client, made.text))


async def is_refused(client: Client, token: str) -> bool:
    return (await client.call("GET", "/v1/commands", token=token)).status == 401


async def test_a_token_works_from_the_moment_it_is_made(client: Client) -> None:
    made = new_token(Scope.SENDER, None, datetime.now(UTC))
    assert await is_refused(client, made.text)

    await client.server.parts.store.put_token(made.stored, made.secret)

    assert not await is_refused(client, made.text)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_name_of_the_scheme_has_no_case(client: Client, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {client.token}"}

    answer = await client.call("GET", "/v1/commands", token="", headers=headers)

    assert answer.status == 200


async def test_the_credential_is_judged_before_the_body_is_read(client: Client) -> None:
    body = io.BytesIO(b"x" * (8 << 20))

    answer = await client.call("POST", "/v1/commands", data=body, token="")

    assert answer.status == 401
