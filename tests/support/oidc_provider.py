"""A small OpenID Connect provider: a real HTTP server, and tokens signed with real keys."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from arc_server.config.oidc_section import OidcProviderEntry, OidcRuleEntry, OidcSection

ISSUER = "https://issuer.test"
AUDIENCE = "https://arc.test"
SUBJECT = "repo:acme/app:ref:refs/heads/main"


@cache
def private_key(algorithm: str, number: int = 0) -> Any:
    """A key for an algorithm, made once; `number` tells several apart."""
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
        return ec.generate_private_key(curves[algorithm])
    return rsa.generate_private_key(65537, 1024 if number < 0 else 2048)


def public_jwk(kid: str | None, algorithm: str, number: int = 0, **more: Any) -> dict[str, Any]:
    """The public half of a key, as a provider publishes it."""
    kind: Any = jwt.get_algorithm_by_name(algorithm)
    jwk = kind.to_jwk(private_key(algorithm, number).public_key(), as_dict=True)
    return {**jwk, "use": "sig", **({} if kid is None else {"kid": kid}), **more}


class OidcIssuer:
    """The provider. What it answers may be changed at any time."""

    def __init__(self, issuer: str = "") -> None:
        self.issuer = issuer
        self.address = ""
        self.asked: list[str] = []
        self.jwks: Any
        self.discovery: dict[str, Any]
        self.status: int
        self.headers: dict[str, str]
        self.mend()
        self.is_open = asyncio.Event()
        """Cleared, the provider answers nothing."""
        self.is_open.set()

    def mend(self) -> None:
        """Answer as a provider should."""
        self.jwks = {"keys": [public_jwk("k1", "ES256")]}
        self.discovery, self.headers, self.status = {}, {}, 200

    @property
    def jwks_url(self) -> str:
        return f"{self.address}/keys"

    def token(
        self,
        algorithm: str = "ES256",
        number: int = 0,
        *,
        kid: str | None = "k1",
        headers: dict[str, Any] | None = None,
        now: float | None = None,
        **claims: Any,
    ) -> str:
        """A token of an hour. A claim of None is left out."""
        now = time.time() if now is None else now
        known = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": SUBJECT,
            "iat": int(now),
            "exp": int(now) + 3600,
        }
        payload = {name: value for name, value in (known | claims).items() if value is not None}
        header = ({} if kid is None else {"kid": kid}) | (headers or {})
        key = private_key(algorithm, number)
        text = json.dumps(payload).encode()
        return jwt.PyJWS().encode(text, key, algorithm, headers={"typ": "JWT", **header})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        await self.is_open.wait()
        if request.path == "/keys":
            data = self.jwks
        else:
            data = {"issuer": self.issuer, "jwks_uri": self.jwks_url} | self.discovery
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        return web.Response(
            status=self.status, body=body, headers=self.headers, content_type="application/json"
        )


def section(provider: OidcIssuer, *rules: OidcRuleEntry) -> OidcSection:
    """A configuration that takes the tokens of a provider."""
    entry = OidcProviderEntry(
        name="ci",
        issuer=provider.issuer,
        audience=[AUDIENCE],
        jwks_url=provider.jwks_url,
        rules=list(rules),
    )
    return OidcSection(providers=[entry])


def bearer(sub: str, **claims: Any) -> str:
    """The header of a bearer whom ISSUER knows."""
    return f"Bearer {OidcIssuer(ISSUER).token(sub=sub, **claims)}"


@asynccontextmanager
async def oidc_issuer(issuer: str = "") -> AsyncIterator[OidcIssuer]:
    """A provider on a free port, whose issuer is its own address if no other one is named."""
    provider = OidcIssuer(issuer)
    app = web.Application()
    app.router.add_route("GET", "/{rest:.*}", provider.answer)
    async with TestServer(app) as server:
        provider.address = str(server.make_url("")).rstrip("/")
        provider.issuer = issuer or provider.address
        try:
            yield provider
        finally:
            provider.is_open.set()
