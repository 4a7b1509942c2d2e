"""Every route against every kind of caller. The rows are compared with the router's own list."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import MagicMock

import pytest

from arc_server.app import RunningServer, ServerParts, all_routes
from arc_server.auth.access import AccessTokens
from arc_server.auth.enrolment import new_enrol_token
from arc_server.auth.tokens import Scope, new_token
from arc_server.config.sections import ServerConfig
from arc_server.http.routing import RouteAccess
from arc_server.ports.records import NewCredential
from arc_server.server_keys import BLOB, Signer, rotate
from tests.support.enrolling_host import Host, enrol_token
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
from tests.support.waiting import until

HOUR = timedelta(hours=1)


def parts_of_nothing() -> ServerParts:
    """Enough to name the routes; none of it is called."""
    nothing: Any = MagicMock()
    return ServerParts(
        store=nothing,
        blobs=nothing,
        signer=nothing,
        clock=nothing,
        services=nothing,
    )


ROUTES = {
    (route.method, route.path): route for route in all_routes(parts_of_nothing(), ServerConfig())
}


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


Request = tuple[str, Any]
"""Path and body."""


@dataclass
class Row:
    """What a route answers to whom."""

    request: Callable[[Subject], Request]
    allowed: frozenset[str]
    """The callers that get 200."""
    elsewhere: int | None = None
    """What a caller of the right scope, bound to another deployment, gets."""
    otherwise: int | None = None
    """What everybody else gets, when tokens of the usual scopes mean nothing here."""


SENDERS = frozenset({"admin", "sender of own", "sender of none"})
HOLDERS = frozenset({"admin", "agent of own", "agent of none", "agent enrolled for own"})
STRANGERS = frozenset(
    {"nobody", "unknown", "revoked", "malformed", "basic", "revoked agent", "forged agent"}
)
EVERYBODY = frozenset(
    {
        *SENDERS,
        *HOLDERS,
        "sender of other",
        "agent of other",
        "agent enrolled for other",
        *STRANGERS,
    }
)
LEASE = {"deploymentId": OWN, "maxLeases": 1}
AGENT = {"deploymentId": OWN, "version": "1", "hostname": "h", "handlers": []}

ROWS: dict[tuple[str, str], Row] = {
    ("POST", "/commands"): Row(
        lambda _: ("/commands", {"deploymentId": OWN, "command": "c", "params": inline(b"")}),
        SENDERS,
        elsewhere=403,
    ),
    ("POST", "/commands/bootstrap"): Row(
        lambda _: ("/commands/bootstrap", {"deploymentId": OWN, "role": "sender"}),
        SENDERS,
        elsewhere=403,
    ),
    ("GET", "/commands"): Row(
        lambda _: (f"/commands?deploymentId={OWN}", None), SENDERS, elsewhere=403
    ),
    ("GET", "/commands/*"): Row(lambda s: (f"/commands/{s.pending}", None), SENDERS, elsewhere=404),
    ("POST", "/commands/*/upload-complete"): Row(
        lambda s: (f"/commands/{s.uploading}/upload-complete", {"size": 3}), SENDERS, elsewhere=404
    ),
    ("POST", "/commands/*/cancel"): Row(
        lambda s: (f"/commands/{s.pending}/cancel", None), SENDERS, elsewhere=404
    ),
    ("GET", "/commands/*/payload"): Row(
        lambda s: (f"/commands/{s.pending}/payload", None), SENDERS, elsewhere=404
    ),
    ("PUT", "/commands/*/payload"): Row(
        lambda s: (f"/commands/{s.pending}/payload", {"params": inline(b"x")}), frozenset({"admin"})
    ),
    ("POST", "/commands/leases"): Row(
        lambda _: ("/commands/leases", LEASE), HOLDERS, elsewhere=403
    ),
    # not an error: leases of another deployment are lost to the caller, as if they did not exist
    ("POST", "/commands/leases/renew"): Row(
        lambda s: ("/commands/leases/renew", {"leaseIds": [s.lease_id]}), HOLDERS, elsewhere=200
    ),
    # nor here: each response that is refused is so in the answer
    ("POST", "/commands/leases/respond"): Row(
        lambda s: ("/commands/leases/respond", {"responses": []}), HOLDERS, elsewhere=200
    ),
    ("POST", "/commands/leases/*/release"): Row(
        lambda s: (f"/commands/leases/{s.lease_id}/release", None), HOLDERS, elsewhere=404
    ),
    ("PUT", "/commands/*/response"): Row(
        lambda s: (f"/commands/{s.leased}/response", success()), HOLDERS, elsewhere=404
    ),
    ("POST", "/commands/*/events"): Row(
        lambda s: (f"/commands/{s.leased}/events", {"leaseId": s.lease_id, "lines": []}),
        HOLDERS,
        elsewhere=404,
    ),
    ("GET", "/commands/*/events"): Row(
        lambda s: (f"/commands/{s.leased}/events", None), SENDERS, elsewhere=404
    ),
    ("POST", "/agents/enrol"): Row(
        lambda s: ("/agents/enrol", Host().enrol_request(s.enrol_token)), frozenset(), otherwise=401
    ),
    ("POST", "/agents/challenges"): Row(lambda _: ("/agents/challenges", None), EVERYBODY),
    # the signature decides, whatever token comes along
    ("POST", "/agents/tokens"): Row(
        lambda s: ("/agents/tokens", s.host.token_request(s.challenge)), EVERYBODY
    ),
    ("POST", "/agents/keys"): Row(
        lambda s: ("/agents/keys", s.host.key_request(s.challenge, Host())), EVERYBODY
    ),
    ("PUT", "/agents/*"): Row(lambda _: ("/agents/agent-1", AGENT), HOLDERS, elsewhere=403),
    ("GET", "/agents"): Row(
        lambda _: (f"/agents?deploymentId={OWN}", None), SENDERS, elsewhere=403
    ),
    ("GET", "/blobs/**"): Row(lambda s: (f"/blobs/{s.blob}", None), frozenset({"admin"})),
    ("PUT", "/blobs/**"): Row(lambda s: (f"/blobs/{s.blob}", {"x": 1}), frozenset({"admin"})),
    ("GET", "/healthz"): Row(lambda _: ("/healthz", None), EVERYBODY),
    ("GET", "/readyz"): Row(lambda _: ("/readyz", None), EVERYBODY),
}


async def credentials(server: RunningServer) -> dict[str, str]:
    """The `Authorization` header of each kind of caller; empty for none."""
    now = datetime.now(UTC)
    unknown = new_token(Scope.ADMIN, None, now).text
    tokens = {
        "admin": await make_token(server, Scope.ADMIN),
        "sender of own": await make_token(server, Scope.SENDER, OWN),
        "sender of other": await make_token(server, Scope.SENDER, OTHER),
        "sender of none": await make_token(server, Scope.SENDER),
        "agent of own": await make_token(server, Scope.AGENT, OWN),
        "agent of other": await make_token(server, Scope.AGENT, OTHER),
        "agent of none": await make_token(server, Scope.AGENT),
        "unknown": unknown,
        "revoked": await make_token(server, Scope.ADMIN, revoked=True),
        "malformed": "not-a-token",
        "agent enrolled for own": await enrolled(server, OWN),
        "agent enrolled for other": await enrolled(server, OTHER),
        "revoked agent": await enrolled(server, OWN, revoked=True),
        "forged agent": "arc_access_cred_0.99999999999.0000.{}".format("0" * 64),
    }
    headers = {name: f"Bearer {token}" for name, token in tokens.items()}
    return headers | {"nobody": "", "basic": "Basic YWRtaW46YWRtaW4="}


async def enrolled(server: RunningServer, deployment: str, *, revoked: bool = False) -> str:
    """An access token of an agent that enrolled."""
    made = new_enrol_token(deployment, 1, HOUR, datetime.now(UTC))
    store, key = server.parts.store, Host()
    await store.put_enrol_token(made.stored)
    new = NewCredential(
        credential_id=f"cred_{key.key_id}", key_id=key.key_id, public_key=b"", hostname=""
    )
    await store.enrol(made.stored.token_hash, new, datetime.now(UTC))
    if revoked:
        await store.revoke_credential(new.credential_id, datetime.now(UTC))
    return AccessTokens(server.parts.signer, server.parts.clock).mint(new.credential_id, 60)


def expected(row: Row, caller: str) -> int:
    """The status that a caller must get."""
    if caller in row.allowed:
        return 200
    if row.otherwise is not None:
        return row.otherwise
    if caller in STRANGERS:
        return 401
    scope = caller.split()[0]
    is_right_scope = any(allowed.split()[0] == scope for allowed in row.allowed)
    if is_right_scope and row.elsewhere is not None:
        return row.elsewhere
    return 403


async def send(client: Client, method: str, request: Request, authorization: str) -> Answer:
    path, body = request
    headers = {"Authorization": authorization} if authorization else {}
    return await client.call(method, path, body, token="", headers=headers)


def test_every_route_has_a_row() -> None:
    assert set(ROWS) == set(ROUTES)


@pytest.mark.parametrize("key", ROWS, ids=" ".join)
async def test_every_caller_gets_what_its_token_covers(
    client: Client, key: tuple[str, str]
) -> None:
    row = ROWS[key]
    callers = await credentials(client.server)
    seen: dict[str, int] = {}

    subject = await Subject(client).prepare()
    for caller, authorization in callers.items():
        if 200 in list(seen.values())[-1:]:
            subject = await Subject(client).prepare()
        answer = await send(client, key[0], row.request(subject), authorization)
        seen[caller] = answer.status
        if answer.status == 401:
            assert answer.code == "UNAUTHORIZED"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        elif answer.status == 403:
            assert answer.code == "FORBIDDEN"
        elif answer.status == 404:
            assert answer.code in ("COMMAND_NOT_FOUND", "LEASE_NOT_FOUND")

    assert set(seen) == EVERYBODY
    assert seen == {caller: expected(row, caller) for caller in callers}


@pytest.mark.parametrize("key", ROWS, ids=" ".join)
async def test_a_server_without_auth_lets_everybody_do_everything(
    serve: Serve, key: tuple[str, str]
) -> None:
    async with serve(auth={"disabled": True}) as client:
        callers = await credentials(client.server)
        for caller in ("nobody", "revoked", "malformed", "agent of other", "sender of other"):
            subject = await Subject(client).prepare()
            answer = await send(client, key[0], ROWS[key].request(subject), callers[caller])
            # who enrols is bound to a deployment, and only an enrolment token says to which
            assert answer.status == (ROWS[key].otherwise or 200), caller


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


def test_every_signed_route_has_a_row() -> None:
    assert set(SIGNED) == {key for key, route in ROUTES.items() if route.signature is not None}


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
    assert (await client.call("PUT", url, success(), token=agent)).status == 200


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


async def test_an_agent_of_another_deployment_cannot_renew_a_lease(client: Client) -> None:
    subject = await Subject(client).prepare()
    other = await make_token(client.server, Scope.AGENT, OTHER)
    body = {"leaseIds": [subject.lease_id]}

    stranger = await client.call("POST", "/v1/commands/leases/renew", body, token=other)
    holder = await client.call("POST", "/v1/commands/leases/renew", body)

    assert stranger.json == {"renewed": [], "lost": [subject.lease_id], "cancelled": []}
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
        await store.put_token(made.stored)
        assert (await client.call("GET", "/v1/commands", token=made.text)).status == 200

        await store.revoke_token(made.stored.token_id, datetime.now(UTC))

        await until(lambda: is_refused(client, made.text))


async def is_refused(client: Client, token: str) -> bool:
    return (await client.call("GET", "/v1/commands", token=token)).status == 401


async def test_a_token_works_from_the_moment_it_is_made(client: Client) -> None:
    made = new_token(Scope.SENDER, None, datetime.now(UTC))
    assert await is_refused(client, made.text)

    await client.server.parts.store.put_token(made.stored)

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


def test_only_health_is_public_and_enrolment_which_asks_for_more_than_a_token() -> None:
    public = {key for key, route in ROUTES.items() if route.access is RouteAccess.PUBLIC}

    assert public == {
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("POST", "/agents/enrol"),
        ("POST", "/agents/challenges"),
        ("POST", "/agents/tokens"),
        ("POST", "/agents/keys"),
    }
