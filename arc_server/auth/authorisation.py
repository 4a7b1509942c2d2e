"""The table of authorisation: who may call which route, and what a caller gets that is bound
elsewhere.

The application lets a request through by this table alone: a route that stands in no row is refused
to everyone, and a scope that a row does not name is refused. What a caller is bound to
(ports/reach.py) is checked where the request is acted on, and answered as the row says. The tests
generate a request for every row, scope, deployment, target and holder
(tests/integration/server/http/test_authorisation.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

import msgspec

from arc_server.auth.tokens import Scope


class RouteAccess(Enum):
    """The credential that a route asks for."""

    TOKEN = "token"  # noqa: S105  # not a password
    """A bearer token of one of the row's scopes."""
    TOKEN_OR_SIGNATURE = "token or signature"  # noqa: S105
    """A token, if there is one, decides alone; otherwise the signature in the query does."""
    SIGNATURE_OR_TOKEN = "signature or token"  # noqa: S105
    """A signature, if there is one, decides alone; otherwise the token does."""
    PROOF = "proof"
    """The route checks an enrolment token or a signature in the body by itself."""
    OPEN = "open"
    """Every caller."""


class Elsewhere(Enum):
    """The answer to a caller that is bound to something else than its request is about."""

    FORBIDDEN = 403
    """The request names it."""
    HIDDEN = 404
    """The subject of the request does not exist for the caller."""
    LOST = 409
    """The lease is another credential's."""
    OMITTED = 200
    """The answer leaves it out, or says so of each."""


class RouteRule(msgspec.Struct, frozen=True, kw_only=True):
    """One row. A field of `Elsewhere` is None where the route does not tell such callers apart."""

    scopes: frozenset[Scope] = frozenset()
    access: RouteAccess = RouteAccess.TOKEN
    deployment: Elsewhere | None = None
    """To a caller that is bound to another deployment."""
    command: Elsewhere | None = None
    """To a caller that is bound to commands of other names."""
    target: Elsewhere | None = None
    """To an agent that is bound to another target."""
    agent_id: Elsewhere | None = None
    """To an agent that is bound to another agent id."""
    holder: Elsewhere | None = None
    """To an agent whose credential does not hold the lease that the request names."""
    unnamed_holder: Elsewhere | None = None
    """To an agent whose credential does not hold the command, where the request names no lease."""


_ADMIN: Final = frozenset({Scope.ADMIN})
_SENDERS: Final = frozenset({Scope.ADMIN, Scope.SENDER})
_CANCELLERS: Final = frozenset({Scope.ADMIN, Scope.OPERATOR, Scope.SENDER})
_READERS: Final = frozenset({Scope.ADMIN, Scope.OPERATOR, Scope.SENDER, Scope.VIEWER})
_HOLDERS: Final = frozenset({Scope.ADMIN, Scope.AGENT})
_FORBIDDEN, _HIDDEN, _LOST, _OMITTED = Elsewhere

RULES: Final[Mapping[tuple[str, str], RouteRule]] = MappingProxyType(
    {
        # senders
        ("POST", "/commands"): RouteRule(
            scopes=_SENDERS, deployment=_FORBIDDEN, command=_FORBIDDEN
        ),
        ("GET", "/commands"): RouteRule(scopes=_READERS, deployment=_FORBIDDEN, command=_OMITTED),
        ("GET", "/commands/counts"): RouteRule(scopes=_READERS, deployment=_FORBIDDEN),
        ("GET", "/commands/*"): RouteRule(scopes=_READERS, deployment=_HIDDEN, command=_HIDDEN),
        ("POST", "/commands/*/upload-complete"): RouteRule(
            scopes=_SENDERS, deployment=_HIDDEN, command=_HIDDEN
        ),
        ("POST", "/commands/*/cancel"): RouteRule(
            scopes=_CANCELLERS, deployment=_HIDDEN, command=_HIDDEN
        ),
        ("POST", "/commands/*/retry"): RouteRule(
            scopes=_CANCELLERS, deployment=_HIDDEN, command=_HIDDEN
        ),
        ("GET", "/commands/*/payload"): RouteRule(
            scopes=_CANCELLERS, deployment=_HIDDEN, command=_HIDDEN
        ),
        ("PUT", "/commands/*/payload"): RouteRule(scopes=_ADMIN),
        ("GET", "/commands/*/events"): RouteRule(
            scopes=_READERS, deployment=_HIDDEN, command=_HIDDEN
        ),
        ("GET", "/commands/*/attempts"): RouteRule(
            scopes=_READERS, deployment=_HIDDEN, command=_HIDDEN
        ),
        ("GET", "/agents"): RouteRule(scopes=_READERS, deployment=_FORBIDDEN),
        # holders
        ("POST", "/commands/leases"): RouteRule(
            scopes=_HOLDERS, deployment=_FORBIDDEN, target=_FORBIDDEN, agent_id=_FORBIDDEN
        ),
        ("POST", "/commands/leases/renew"): RouteRule(
            scopes=_HOLDERS, deployment=_OMITTED, target=_OMITTED, holder=_OMITTED
        ),
        ("POST", "/commands/leases/respond"): RouteRule(
            scopes=_HOLDERS, deployment=_OMITTED, target=_OMITTED, holder=_OMITTED
        ),
        ("POST", "/commands/leases/*/release"): RouteRule(
            scopes=_HOLDERS, deployment=_HIDDEN, target=_HIDDEN, holder=_HIDDEN
        ),
        ("PUT", "/commands/*/response"): RouteRule(
            scopes=_HOLDERS,
            access=RouteAccess.TOKEN_OR_SIGNATURE,
            deployment=_HIDDEN,
            target=_HIDDEN,
            holder=_LOST,
            unnamed_holder=_FORBIDDEN,
        ),
        ("POST", "/commands/*/events"): RouteRule(
            scopes=_HOLDERS, deployment=_HIDDEN, target=_HIDDEN, holder=_LOST
        ),
        ("PUT", "/agents/*"): RouteRule(
            scopes=_HOLDERS, deployment=_FORBIDDEN, target=_FORBIDDEN, agent_id=_FORBIDDEN
        ),
        # senders and holders
        ("POST", "/commands/bootstrap"): RouteRule(
            scopes=_SENDERS | _HOLDERS, deployment=_FORBIDDEN, target=_FORBIDDEN
        ),
        # bodies
        ("GET", "/blobs/**"): RouteRule(scopes=_ADMIN, access=RouteAccess.SIGNATURE_OR_TOKEN),
        ("PUT", "/blobs/**"): RouteRule(scopes=_ADMIN, access=RouteAccess.SIGNATURE_OR_TOKEN),
        # enrolment
        ("POST", "/agents/enrol"): RouteRule(access=RouteAccess.PROOF),
        ("POST", "/agents/tokens"): RouteRule(access=RouteAccess.PROOF),
        ("POST", "/agents/keys"): RouteRule(access=RouteAccess.PROOF),
        ("POST", "/agents/challenges"): RouteRule(access=RouteAccess.OPEN),
        # health
        ("GET", "/healthz"): RouteRule(access=RouteAccess.OPEN),
        ("GET", "/readyz"): RouteRule(access=RouteAccess.OPEN),
    }
)
"""The rows, by method and path as the routes have them."""
