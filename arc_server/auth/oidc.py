"""Bearer tokens of OpenID Connect providers, for people and for CI.

A provider signs a token (JWT) that says who its bearer is. The server checks the signature by the
provider's published keys, issuer, audience and time; the first rule of the configuration that fits
the claims gives the caller its scope and bounds. The server stores nothing of a token: what a
caller does stands in the rows under `oidc:PROVIDER:SUBJECT`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from arc_protocol.errors import Forbidden, Unauthorized
from arc_protocol.signatures import decode_base64url
from arc_runtime.startup.late_module import late_module
from arc_server.auth.oidc_keys import OidcLimits, ProviderHttp, ProviderKeys
from arc_server.auth.tokens import Scope
from arc_server.ports.clock import Clock
from arc_server.ports.reach import ANY, Reach, fits

if TYPE_CHECKING:
    import jwt
else:
    jwt = late_module("jwt")

ID_PREFIX: Final = "oidc:"
MAX_SUBJECT_CHARS: Final = 160
"""The longest subject that stands in rows as it is; most have fewer than 80 characters."""
_TEXT: Final = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
"""The compact form of a signed JWT (RFC 7515, 7.1). Without a signature it is none."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._:/@-]")
"""Characters that a signed URL would have to escape, and the one that a digest stands behind."""


class OidcRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule gives bearers of certain claims a scope and bounds."""

    claims: Mapping[str, Sequence[str]]
    """By the name of a claim the patterns of which one has to fit. All claims have to fit."""
    scope: Scope
    deployments: tuple[str, ...] = ANY
    commands: tuple[str, ...] = ANY


class OidcProvider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider whose tokens are taken."""

    name: str
    issuer: str
    audience: Sequence[str]
    algorithms: Sequence[str]
    rules: Sequence[OidcRule]
    jwks_url: str | None = None
    subject_claim: str = "sub"


class OidcCaller(msgspec.Struct, frozen=True, kw_only=True):
    """The rights that a token gives, and until when."""

    scope: Scope
    reach: Reach
    ends_at: datetime


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str | None = None


class _Issued(msgspec.Struct, frozen=True):
    iss: str


class OidcTokens:
    """Reads the tokens of all providers of the configuration."""

    def __init__(self, providers: Sequence[OidcProvider], clock: Clock, limits: OidcLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._http = ProviderHttp(limits)
        self._providers = {provider.issuer: provider for provider in providers}
        self._keys = {
            provider.issuer: ProviderKeys(
                provider.issuer, provider.jwks_url, http=self._http, clock=clock, limits=limits
            )
            for provider in providers
        }

    def has_form(self, text: str) -> bool:
        """Return True if a bearer token has the form of a provider's."""
        return bool(self._providers) and _TEXT.fullmatch(text) is not None

    async def read(self, text: str) -> OidcCaller:
        """Return the caller of a token.

        Raises Unauthorized, Forbidden when no rule fits, Unavailable while the provider's keys
        cannot be read.
        """
        header, issuer = _unverified(text)
        provider = self._providers.get(issuer)
        if provider is None:
            raise Unauthorized("this token is of an issuer that this server does not know")
        if header.alg not in provider.algorithms:
            raise Unauthorized(f"tokens that are signed by {header.alg[:20]!r} are not taken")
        key = await self._keys[issuer].key(header.kid, header.alg)
        claims = _verified(text, key, header.alg, provider)
        ends_at, name = self._check_times(claims), _name(provider, claims)
        rule = next((rule for rule in provider.rules if _fits(rule, claims)), None)
        if rule is None:
            raise Forbidden("no rule of this server fits the claims of this token")
        return OidcCaller(
            scope=rule.scope,
            reach=Reach(
                deployments=rule.deployments,
                commands=rule.commands,
                credential=name,
                every_lease=rule.scope is Scope.ADMIN,
                may_register=rule.scope is Scope.ADMIN,
            ),
            ends_at=ends_at,
        )

    async def close(self) -> None:
        """Close the connections to providers."""
        for keys in self._keys.values():
            await keys.close()
        await self._http.close()

    def _check_times(self, claims: Mapping[str, Any]) -> datetime:
        """Return when a token ends by the server's clock. Raises Unauthorized."""
        now, leeway = self._clock.now().timestamp(), self._limits.leeway_seconds
        expires = _instant(claims, "exp")
        if expires is None or expires + leeway <= now:
            raise Unauthorized("this token has expired")
        if expires - now > self._limits.max_life_seconds + leeway:
            raise Unauthorized(
                f"this token is good for longer than {self._limits.max_life_seconds:g} seconds"
            )
        for name in ("nbf", "iat"):
            begins = _instant(claims, name)
            if begins is not None and begins - leeway > now:
                raise Unauthorized(f"this token is not good yet ({name})")
        return datetime.fromtimestamp(expires + leeway, UTC)


def _unverified(text: str) -> tuple[_Header, str]:
    """Return header and issuer of a token, for choosing the key alone. Raises Unauthorized."""
    header, payload, _ = text.split(".")
    try:
        return (
            msgspec.json.decode(decode_base64url(header), type=_Header),
            msgspec.json.decode(decode_base64url(payload), type=_Issued).iss,
        )
    except (ValueError, RecursionError):  # of base64, UTF-8, JSON
        raise Unauthorized("this token is malformed") from None


def _verified(text: str, key: Any, algorithm: str, provider: OidcProvider) -> dict[str, Any]:
    """Return the claims of a token of the provider for this server. Raises Unauthorized.

    Times are left to the server's own clock.
    """
    try:
        return jwt.decode(
            text,
            key,
            algorithms=[algorithm],
            audience=list(provider.audience),
            issuer=provider.issuer,
            options={
                "require": ["exp", "iss", "aud", provider.subject_claim],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except jwt.InvalidAudienceError:
        raise Unauthorized("this token is for another audience") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise Unauthorized(f"this token is not good: {error}") from None


def _instant(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a time of a token, None if it has none. Raises Unauthorized."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unauthorized(f"{name}: this token has no number there")
    if not 0 <= value < 1 << 40:
        raise Unauthorized(f"{name}: this token has no instant there")
    return float(value)


def _fits(rule: OidcRule, claims: Mapping[str, Any]) -> bool:
    """Return True if all claims of a rule fit."""
    return all(
        any(fits(text, patterns) for text in _texts(_claim(claims, name)))
        for name, patterns in rule.claims.items()
    )


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim; in `realm_access.roles` the second name stands inside the first."""
    if name in claims:
        return claims[name]
    at = name.find(".")
    while at > 0:
        inner = claims.get(name[:at])
        if isinstance(inner, dict):
            return _claim(cast("dict[str, Any]", inner), name[at + 1 :])
        at = name.find(".", at + 1)
    return None


def _texts(value: Any) -> Sequence[str]:
    """Return a claim as texts to compare: each of a list, numbers in decimals."""
    if isinstance(value, list):
        return [text for each in cast("list[Any]", value) for text in _texts_of_one(each)]
    return _texts_of_one(value)


def _texts_of_one(value: Any) -> Sequence[str]:
    if isinstance(value, bool):
        return ["true" if value else "false"]
    return [str(value)] if isinstance(value, str | int) else []


def _name(provider: OidcProvider, claims: Mapping[str, Any]) -> str:
    """Return the name under which a caller stands in rows. Raises Unauthorized."""
    subject = claims[provider.subject_claim]
    if not isinstance(subject, str) or not subject:
        raise Unauthorized(f"{provider.subject_claim}: this token has no text there")
    shown = _UNSAFE.sub("_", subject[:MAX_SUBJECT_CHARS])
    if shown != subject:  # two subjects must not share a name
        digest = hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()
        shown = f"{shown}~{digest[:16]}"
    return f"{ID_PREFIX}{provider.name}:{shown}"
