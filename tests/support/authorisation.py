"""Callers of every kind, and what the table of authorisation says that each gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_server.app import RunningServer
from arc_server.auth.access import AccessTokens
from arc_server.auth.authorisation import Elsewhere, RouteAccess, RouteRule
from arc_server.auth.bootstrap import BootstrapGrant, BootstrapTokens
from arc_server.auth.enrolment import new_enrol_token
from arc_server.auth.tokens import Scope, new_token
from arc_server.config.oidc_section import OidcRuleEntry
from arc_server.ports.records import NewCredential
from tests.support.enrolling_host import Host, enrol_token
from tests.support.oidc_provider import bearer
from tests.support.running_server import OTHER, OWN, Answer, Client, inline, make_token, success

VAULT: Final = CommandTarget(resource_id="vault", resource_type=ResourceType.DAEMON)
ELSEWHERE: Final = CommandTarget(resource_id="elsewhere", resource_type=ResourceType.DAEMON)
TARGET: Final = {"resourceId": "vault", "resourceType": "daemon"}
AGENT_ID: Final = "agent-1"
COMMAND: Final = "report"


@dataclass(frozen=True)
class CallerKind:
    """A caller, by what it differs in from one that may do what its scope may."""

    name: str
    scope: Scope | None
    """None: its token is good for nothing."""
    make: Callable[[RunningServer], Awaitable[str]]
    """Makes its `Authorization` header."""
    is_elsewhere: bool = False
    """Bound to another deployment."""
    is_for_other_commands: bool = False
    is_for_other_target: bool = False
    is_for_other_agent: bool = False
    is_holder: bool = False
    """The lease that a request is about is its own."""
    is_bootstrapped: bool = False
    is_of_oidc: bool = False
    """Its token is a provider's (tests/support/oidc_provider.py)."""


def expected(kind: CallerKind, rule: RouteRule, *, names_lease: bool = True) -> int:
    """The status that the table gives to a caller."""
    if rule.access is RouteAccess.OPEN:
        return 200
    if kind.scope is None:
        return 401
    if kind.scope not in rule.scopes:
        return 403
    is_other_holder = kind.scope is Scope.AGENT and not kind.is_holder
    for differs, answer in (
        (kind.is_elsewhere, rule.deployment),
        (kind.is_for_other_commands, rule.command),
        (kind.is_for_other_target, rule.target),
        (kind.is_for_other_agent, rule.agent_id),
        (is_other_holder, rule.holder if names_lease else rule.unnamed_holder),
    ):
        if differs and answer is not None:
            return answer.value
    return 200


def is_left_out(kind: CallerKind, rule: RouteRule) -> bool:
    """Return True if an answer of 200 must not show, or do, what the request is about."""
    is_other_holder = kind.scope is Scope.AGENT and not kind.is_holder
    return (
        (kind.is_elsewhere and rule.deployment is Elsewhere.OMITTED)
        or (kind.is_for_other_commands and rule.command is Elsewhere.OMITTED)
        or (kind.is_for_other_target and rule.target is Elsewhere.OMITTED)
        or (is_other_holder and rule.holder is Elsewhere.OMITTED)
    )


# callers


def _token(scope: Scope, deployment: str | None = None, **bounds: Any) -> Any:
    async def make(server: RunningServer) -> str:
        return f"Bearer {await make_token(server, scope, deployment, **bounds)}"

    return make


def _enrolled(deployment: str, target: CommandTarget, *, revoked: bool = False) -> Any:
    async def make(server: RunningServer) -> str:
        return f"Bearer {await enrolled(server, deployment, target, revoked=revoked)}"

    return make


async def enrolled(
    server: RunningServer,
    deployment: str,
    target: CommandTarget | None = None,
    *,
    revoked: bool = False,
) -> str:
    """An access token of an agent that enrolled."""
    now = datetime.now(UTC)
    made = new_enrol_token(deployment, 1, timedelta(hours=1), now)
    store, key = server.parts.store, Host()
    await store.put_enrol_token(made.stored)
    new = NewCredential(
        credential_id=f"cred_{key.key_id}",
        key_id=key.key_id,
        public_key=b"",
        hostname="",
        target=target,
    )
    await store.enrol(made.stored.token_hash, new, now)
    if revoked:
        await store.revoke_credential(new.credential_id, now)
    return AccessTokens(server.parts.signer, server.parts.clock).mint(new.credential_id, 60)


def _bootstrapped(scope: Scope, deployment: str, target: CommandTarget | None = None) -> Any:
    async def make(server: RunningServer) -> str:
        made = new_token(scope, [deployment], datetime.now(UTC))
        await server.parts.store.put_token(made.stored, made.secret)
        grant = BootstrapGrant(
            scope=scope,
            deployment_id=deployment,
            target=target,
            authority=f"token:{made.secret.token_hash.hex()}",
        )
        expires = int(datetime.now(UTC).timestamp()) + 600
        tokens = BootstrapTokens(server.parts.signer, server.parts.clock)
        return f"Bearer {tokens.mint(grant, expires)}"

    return make


def _fixed(text: str) -> Any:
    async def make(_: RunningServer) -> str:
        return text

    return make


async def _unknown(_: RunningServer) -> str:
    return f"Bearer {new_token(Scope.ADMIN, None, datetime.now(UTC)).text}"


async def _wrong_checksum(server: RunningServer) -> str:
    text = await make_token(server, Scope.ADMIN)
    return f"Bearer {text[:-1]}{'1' if text[-1] == '0' else '0'}"


async def _rotated(server: RunningServer) -> str:
    now = datetime.now(UTC)
    made, store = new_token(Scope.ADMIN, None, now), server.parts.store
    await store.put_token(made.stored, made.secret)
    other = new_token(Scope.ADMIN, None, now).secret
    newer = type(other)(token_hash=other.token_hash, token_id=made.stored.token_id, created_at=now)
    await store.rotate_token(newer, now)
    return f"Bearer {made.text}"


def _callers() -> list[CallerKind]:
    past = datetime.now(UTC) - timedelta(seconds=1)
    kinds = [CallerKind("admin", Scope.ADMIN, _token(Scope.ADMIN))]
    for scope in (Scope.OPERATOR, Scope.SENDER, Scope.VIEWER):
        kinds += [
            CallerKind(f"{scope} of every deployment", scope, _token(scope)),
            CallerKind(f"{scope} of its own", scope, _token(scope, OWN)),
            CallerKind(f"{scope} of a pattern", scope, _token(scope, "o*n")),
            CallerKind(f"{scope} of another", scope, _token(scope, OTHER), is_elsewhere=True),
            CallerKind(
                f"{scope} of another pattern", scope, _token(scope, "own-*"), is_elsewhere=True
            ),
            CallerKind(
                f"{scope} of its own commands", scope, _token(scope, OWN, commands=["rep*"])
            ),
            CallerKind(
                f"{scope} of other commands",
                scope,
                _token(scope, OWN, commands=["other", "*-report"]),
                is_for_other_commands=True,
            ),
        ]
    agent = Scope.AGENT
    kinds += [
        CallerKind("agent that holds the lease", agent, _token(agent, OWN), is_holder=True),
        CallerKind("agent that holds another", agent, _token(agent, OWN)),
        CallerKind("agent of every deployment", agent, _token(agent)),
        CallerKind("agent of another", agent, _token(agent, OTHER), is_elsewhere=True),
        CallerKind(
            "agent of its own target", agent, _token(agent, OWN, target=VAULT), is_holder=True
        ),
        CallerKind(
            "agent of another target",
            agent,
            _token(agent, OWN, target=ELSEWHERE),
            is_for_other_target=True,
        ),
        CallerKind(
            "agent of its own id",
            agent,
            _token(agent, OWN, target=VAULT, agent_id=AGENT_ID),
            is_holder=True,
        ),
        CallerKind(
            "agent of another id",
            agent,
            _token(agent, OWN, target=VAULT, agent_id="agent-9"),
            is_for_other_agent=True,
        ),
        CallerKind("enrolled agent", agent, _enrolled(OWN, VAULT), is_holder=True),
        CallerKind("enrolled agent without the lease", agent, _enrolled(OWN, VAULT)),
        CallerKind(
            "enrolled agent of another target",
            agent,
            _enrolled(OWN, ELSEWHERE),
            is_for_other_target=True,
        ),
        CallerKind("enrolled agent of another", agent, _enrolled(OTHER, VAULT), is_elsewhere=True),
        CallerKind(
            "bootstrapped sender",
            Scope.SENDER,
            _bootstrapped(Scope.SENDER, OWN),
            is_bootstrapped=True,
        ),
        CallerKind(
            "bootstrapped sender of another",
            Scope.SENDER,
            _bootstrapped(Scope.SENDER, OTHER),
            is_bootstrapped=True,
            is_elsewhere=True,
        ),
        CallerKind(
            "bootstrapped receiver",
            agent,
            _bootstrapped(agent, OWN, VAULT),
            is_bootstrapped=True,
            is_holder=True,
        ),
        CallerKind(
            "bootstrapped receiver of another target",
            agent,
            _bootstrapped(agent, OWN, ELSEWHERE),
            is_bootstrapped=True,
            is_for_other_target=True,
        ),
    ]
    for scope in (Scope.ADMIN, Scope.OPERATOR, Scope.SENDER, Scope.VIEWER):
        kinds.append(
            CallerKind(f"oidc {scope}", scope, _fixed(bearer(f"own {scope}")), is_of_oidc=True)
        )
    kinds += [
        CallerKind(
            "oidc operator of another",
            Scope.OPERATOR,
            _fixed(bearer("other operator")),
            is_of_oidc=True,
            is_elsewhere=True,
        ),
        CallerKind(
            "oidc sender of other commands",
            Scope.SENDER,
            _fixed(bearer("restarts")),
            is_of_oidc=True,
            is_for_other_commands=True,
        ),
    ]
    strangers: dict[str, Any] = {
        "an expired token of oidc": _fixed(bearer("own admin", exp=1)),
        "a token of oidc for others": _fixed(bearer("own admin", aud="https://other.test")),
        "no token": _fixed(""),
        "a basic header": _fixed("Basic YWRtaW46YWRtaW4="),
        "no token of ours": _fixed("Bearer not-a-token"),
        "an unknown token": _unknown,
        "a wrong checksum": _wrong_checksum,
        "a revoked token": _token(Scope.ADMIN, revoked=True),
        "an expired token": _token(Scope.ADMIN, expires_at=past),
        "a secret that was replaced": _rotated,
        "a revoked agent": _enrolled(OWN, VAULT, revoked=True),
        "a forged access token": _fixed(
            "Bearer arc_access_cred_0.99999999999.0000.{}".format("0" * 64)
        ),
        "a forged bootstrap token": _fixed(
            "Bearer arc_bootstrap_e30.99999999999.0000.{}".format("0" * 64)
        ),
    }
    return kinds + [CallerKind(name, None, make) for name, make in strangers.items()]


OIDC_RULES: Final = (
    OidcRuleEntry(claims={"sub": "own admin"}, scope="admin"),
    OidcRuleEntry(claims={"sub": "own operator"}, scope="operator", deployments=[OWN]),
    OidcRuleEntry(claims={"sub": "own sender"}, scope="sender", deployments=[OWN]),
    OidcRuleEntry(claims={"sub": "own viewer"}, scope="viewer", deployments=["o*n"]),
    OidcRuleEntry(claims={"sub": "other operator"}, scope="operator", deployments=[OTHER]),
    OidcRuleEntry(
        claims={"sub": "restarts"}, scope="sender", deployments=["*"], commands=["restart"]
    ),
)
"""The rules of the server for the callers of OpenID Connect."""
CALLERS: Final = {kind.name: kind for kind in _callers()}


# requests


@dataclass
class Subject:
    """What requests are about, in deployment `own`; each part is made when it is first needed."""

    admin: Client
    kind: CallerKind
    authorization: str
    command_id: str = ""
    lease_id: str = ""
    blob: str = ""
    host: Host = field(default_factory=Host)

    async def create(self) -> str:
        """Make a command that waits."""
        if not self.command_id:
            self.command_id = await self.admin.create(command=COMMAND, targetResourceId="vault")
        return self.command_id

    async def lease(self) -> str:
        """Lease it: as the caller where that is its holder, else as another agent."""
        await self.create()
        authorization = self.authorization
        if not self.kind.is_holder:
            authorization = f"Bearer {await make_token(self.admin.server, Scope.AGENT, OWN)}"
        body = {"deploymentId": OWN, "target": TARGET, "maxLeases": 100, "agentId": AGENT_ID}
        while True:  # commands of callers before may be first
            answer = await self.send("POST", "/commands/leases", body, authorization)
            found = {lease["commandId"]: lease["leaseId"] for lease in answer.json["leases"]}
            assert found, f"{self.command_id} is not leased"
            if self.command_id in found:
                self.lease_id = found[self.command_id]
                return self.lease_id

    async def upload(self) -> str:
        """Make a command whose params are uploaded."""
        body = {
            "deploymentId": OWN,
            "command": COMMAND,
            "params": {"mode": "storage", "size": 3},
            "targetResourceId": "vault",
        }
        answer = await self.admin.call("POST", "/v1/commands", body)
        self.command_id = answer.json["commandId"]
        request = answer.json["storageUpload"]["putRequest"]
        self.blob = request["path"]
        sent = await self.admin.call("PUT", request["backend"]["url"], data=b"abc", token="")
        assert sent.status == 200
        return self.command_id

    async def send(self, method: str, path: str, body: Any, authorization: str) -> Answer:
        headers = {"Authorization": authorization} if authorization else {}
        return await self.admin.call(method, path, body, token="", headers=headers)


@dataclass(frozen=True)
class Case:
    """One request to a route; how it is told that the request did, or showed, its subject."""

    request: Callable[[Subject], Awaitable[tuple[str, Any]]]
    """Makes path and body."""
    shows: Callable[[Subject, Answer], bool] | None = None
    names_lease: bool = True


def _about(path: str, body: Any = None) -> Case:
    """A request about a command that waits."""

    async def request(subject: Subject) -> tuple[str, Any]:
        return path.format(await subject.create()), body

    return Case(request)


def _plain(path: str, body: Any = None) -> Case:
    async def request(_: Subject) -> tuple[str, Any]:
        return path, body

    return Case(request)


async def _listed(subject: Subject) -> tuple[str, Any]:
    await subject.create()
    return f"/commands?deploymentId={OWN}&limit=1000", None


async def _retry(subject: Subject) -> tuple[str, Any]:
    path = f"/commands/{await subject.create()}"
    assert (await subject.admin.call("POST", f"{path}/cancel")).status == 200
    return f"{path}/retry", {}


async def _upload_complete(subject: Subject) -> tuple[str, Any]:
    return f"/commands/{await subject.upload()}/upload-complete", {"size": 3}


async def _renew(subject: Subject) -> tuple[str, Any]:
    return "/commands/leases/renew", {"leaseIds": [await subject.lease()]}


async def _respond_to_all(subject: Subject) -> tuple[str, Any]:
    lease_id = await subject.lease()
    given = {"leaseId": lease_id, "commandId": subject.command_id, "response": success()}
    return "/commands/leases/respond", {"responses": [given]}


async def _release(subject: Subject) -> tuple[str, Any]:
    return f"/commands/leases/{await subject.lease()}/release", None


async def _respond(subject: Subject) -> tuple[str, Any]:
    lease_id = await subject.lease()
    return f"/commands/{subject.command_id}/response?lease={lease_id}", success()


async def _respond_bare(subject: Subject) -> tuple[str, Any]:
    await subject.lease()
    return f"/commands/{subject.command_id}/response", success()


async def _add_events(subject: Subject) -> tuple[str, Any]:
    lease_id = await subject.lease()
    return f"/commands/{subject.command_id}/events", {"leaseId": lease_id, "lines": []}


async def _bootstrap(subject: Subject) -> tuple[str, Any]:
    body: dict[str, Any] = {"deploymentId": OWN, "role": "sender"}
    if subject.kind.scope is Scope.AGENT:
        body |= {"role": "receiver", "target": "vault"}
    return "/commands/bootstrap", body


async def _blob(subject: Subject) -> tuple[str, Any]:
    await subject.upload()
    return f"/blobs/{subject.blob}", None


async def _put_blob(subject: Subject) -> tuple[str, Any]:
    await subject.upload()
    return f"/blobs/{subject.blob}", {"x": 1}


async def _enrol(subject: Subject) -> tuple[str, Any]:
    token = await enrol_token(subject.admin.server, OWN)
    return "/agents/enrol", Host().enrol_request(token)


async def _access_token(subject: Subject) -> tuple[str, Any]:
    await subject.host.enrol(subject.admin, await enrol_token(subject.admin.server, OWN))
    challenge = await subject.host.challenge(subject.admin)
    return "/agents/tokens", subject.host.token_request(challenge)


async def _new_key(subject: Subject) -> tuple[str, Any]:
    await subject.host.enrol(subject.admin, await enrol_token(subject.admin.server, OWN))
    challenge = await subject.host.challenge(subject.admin)
    return "/agents/keys", subject.host.key_request(challenge, Host())


CASES: Final[dict[tuple[str, str], dict[str, Case]]] = {
    ("POST", "/commands"): {
        "": _plain(
            "/commands",
            {
                "deploymentId": OWN,
                "command": COMMAND,
                "params": inline(b""),
                "targetResourceId": "vault",
            },
        )
    },
    ("GET", "/commands"): {
        "": Case(
            _listed,
            lambda s, a: s.command_id in [each["commandId"] for each in a.json["commands"]],
        )
    },
    ("GET", "/commands/counts"): {"": _plain(f"/commands/counts?deploymentId={OWN}")},
    ("GET", "/commands/*"): {"": _about("/commands/{}")},
    ("POST", "/commands/*/upload-complete"): {"": Case(_upload_complete)},
    ("POST", "/commands/*/cancel"): {"": _about("/commands/{}/cancel")},
    ("POST", "/commands/*/retry"): {"": Case(_retry)},
    ("GET", "/commands/*/payload"): {"": _about("/commands/{}/payload")},
    ("PUT", "/commands/*/payload"): {"": _about("/commands/{}/payload", {"params": inline(b"x")})},
    ("GET", "/commands/*/events"): {"": _about("/commands/{}/events")},
    ("GET", "/commands/*/attempts"): {"": _about("/commands/{}/attempts")},
    ("GET", "/agents"): {"": _plain(f"/agents?deploymentId={OWN}")},
    ("POST", "/commands/leases"): {
        "": _plain(
            "/commands/leases",
            {"deploymentId": OWN, "target": TARGET, "agentId": AGENT_ID, "maxLeases": 1},
        )
    },
    ("POST", "/commands/leases/renew"): {
        "": Case(_renew, lambda s, a: s.lease_id in [each["leaseId"] for each in a.json["renewed"]])
    },
    ("POST", "/commands/leases/respond"): {
        "": Case(_respond_to_all, lambda _, a: not a.json["refused"])
    },
    ("POST", "/commands/leases/*/release"): {"": Case(_release)},
    ("PUT", "/commands/*/response"): {
        "": Case(_respond),
        "no lease": Case(_respond_bare, names_lease=False),
    },
    ("POST", "/commands/*/events"): {"": Case(_add_events)},
    ("PUT", "/agents/*"): {
        "": _plain(
            f"/agents/{AGENT_ID}",
            {
                "deploymentId": OWN,
                "target": TARGET,
                "version": "1",
                "hostname": "h",
                "handlers": [],
            },
        )
    },
    ("POST", "/commands/bootstrap"): {"": Case(_bootstrap)},
    ("GET", "/blobs/**"): {"": Case(_blob)},
    ("PUT", "/blobs/**"): {"": Case(_put_blob)},
    ("POST", "/agents/enrol"): {"": Case(_enrol)},
    ("POST", "/agents/tokens"): {"": Case(_access_token)},
    ("POST", "/agents/keys"): {"": Case(_new_key)},
    ("POST", "/agents/challenges"): {"": _plain("/agents/challenges")},
    ("GET", "/healthz"): {"": _plain("/healthz")},
    ("GET", "/readyz"): {"": _plain("/readyz")},
}
"""For each route the requests that are sent to it, by what is special about them."""
