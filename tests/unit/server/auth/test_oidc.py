"""Tokens of OpenID Connect, read with the keys of a real provider on a free port."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from arc_protocol.errors import ArcError, Forbidden, Unauthorized, Unavailable
from arc_server.auth.oidc import OidcCaller, OidcProvider, OidcRule, OidcTokens
from arc_server.auth.oidc_keys import OidcLimits, is_safe_url
from arc_server.auth.tokens import Scope
from tests.support.clocks import START, ServerClock
from tests.support.oidc_provider import (
    AUDIENCE,
    SUBJECT,
    OidcIssuer,
    oidc_issuer,
    private_key,
    public_jwk,
)

NOW = START.timestamp()
RULE = OidcRule(claims={"sub": ["repo:acme/*"]}, scope=Scope.SENDER, deployments=("acme-*",))
LIMITS = OidcLimits(timeout_seconds=5)


class Reader:
    """The server's part and the provider, at one clock."""

    def __init__(self, provider: OidcIssuer, clock: ServerClock) -> None:
        self.provider = provider
        self.clock = clock
        self.made: list[OidcTokens] = []
        self.tokens = self.of()

    def of(self, limits: OidcLimits = LIMITS, **changes: Any) -> OidcTokens:
        fields: dict[str, Any] = {
            "name": "ci",
            "issuer": self.provider.issuer,
            "audience": [AUDIENCE],
            "algorithms": ["ES256", "RS256", "EdDSA"],
            "rules": [RULE],
        }
        self.tokens = OidcTokens([OidcProvider(**(fields | changes))], self.clock, limits)
        self.made.append(self.tokens)
        return self.tokens

    def token(self, *args: Any, **claims: Any) -> str:
        return self.provider.token(*args, now=self.clock.now().timestamp(), **claims)

    async def read(self, text: str) -> OidcCaller:
        assert self.tokens.has_form(text)
        return await self.tokens.read(text)

    async def refusal(self, text: str) -> str:
        """Why a token is refused, for good."""
        with pytest.raises(Unauthorized) as refused:
            await self.read(text)
        return refused.value.message

    async def is_good(self, *args: Any, **claims: Any) -> bool:
        try:
            await self.read(self.token(*args, **claims))
        except (Unauthorized, Unavailable):
            return False
        return True


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    async with oidc_issuer() as provider:
        reader = Reader(provider, ServerClock())
        yield reader
        for tokens in reader.made:
            await tokens.close()


async def test_a_token_gives_the_scope_and_bounds_of_the_rule_that_fits(reader: Reader) -> None:
    caller = await reader.read(reader.token())

    assert caller.scope is Scope.SENDER
    assert caller.reach.deployments == ("acme-*",)
    assert caller.reach.credential == f"oidc:ci:{SUBJECT}"
    assert not caller.reach.every_lease
    assert not caller.reach.may_register
    assert caller.ends_at.timestamp() == NOW + 3600 + LIMITS.leeway_seconds


async def test_the_keys_are_found_by_discovery_and_fetched_once(reader: Reader) -> None:
    await asyncio.gather(*(reader.read(reader.token(jti=str(n))) for n in range(20)))

    assert reader.provider.asked == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize("algorithm", ["RS256", "EdDSA", "ES256"])
async def test_every_listed_algorithm_verifies(reader: Reader, algorithm: str) -> None:
    reader.provider.jwks = {"keys": [public_jwk("k1", algorithm)]}

    assert await reader.is_good(algorithm)
    reader.of(algorithms=[each for each in ("ES256", "RS256") if each != algorithm])
    assert "signed by" in await reader.refusal(reader.token(algorithm))


Claims = dict[str, Any]


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://elsewhere.test"}, "an issuer that this server does not know"),
        ({"iss": None}, "malformed"),
        ({"iss": 7}, "malformed"),
        ({"aud": "https://other.test"}, "another audience"),
        ({"aud": [f"{AUDIENCE}.evil"]}, "another audience"),
        ({"aud": None}, '"aud" claim'),
        ({"exp": None}, '"exp" claim'),
        ({"sub": None}, '"sub" claim'),
        ({"sub": ""}, "no text there"),
        ({"exp": NOW - 31}, "expired"),
        ({"exp": str(NOW + 60)}, "no number"),
        ({"exp": True}, "no number"),
        ({"exp": 1e300}, "no instant"),
        ({"exp": float("nan")}, "malformed"),
        ({"exp": NOW + 86_400 + 31}, "for longer than"),
        ({"nbf": NOW + 31}, "not good yet"),
        ({"iat": NOW + 31}, "not good yet"),
        ({"nbf": "soon"}, "no number"),
    ],
)
async def test_a_token_with_wrong_claims_is_refused(
    reader: Reader, claims: Claims, reason: str
) -> None:
    assert reason in await reader.refusal(reader.token(**claims))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW - 29},
        {"nbf": NOW + 29, "iat": NOW + 29},
        {"aud": ["https://other.test", AUDIENCE]},
    ],
)
async def test_clocks_may_differ_a_little_and_audiences_may_be_several(
    reader: Reader, claims: Claims
) -> None:
    assert await reader.is_good(**claims)


async def test_a_token_ends_by_the_clock_of_the_server(reader: Reader) -> None:
    text = reader.token()
    await reader.read(text)

    reader.clock.advance(3600 + 31)

    assert "expired" in await reader.refusal(text)


def _part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _forged(reader: Reader, header: dict[str, Any], signature: bytes = b"x") -> str:
    payload = reader.token().split(".")[1]
    return f"{_part(header)}.{payload}.{_part(signature)}"


def _hs256_with_public_key(reader: Reader) -> str:
    """The classic: the public key as the secret of an HMAC."""
    public = private_key("RS256").public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{_part({'alg': 'HS256', 'kid': 'k1'})}.{reader.token().split('.')[1]}"
    mac = jwt.get_algorithm_by_name("HS256")
    return f"{signed}.{_part(mac.sign(signed.encode(), secret))}"  # pyright: ignore


NO_UTF_8, NO_JSON, DEEP = b'{"a\xff\xff"', b'{"not json', b'{"a":' + b"[" * 5_000

FORGERIES: dict[str, Callable[[Reader], str]] = {
    "no algorithm": lambda r: _forged(r, {"alg": "none", "kid": "k1"}),
    "NONE": lambda r: _forged(r, {"alg": "NONE", "kid": "k1"}),
    "no alg": lambda r: _forged(r, {"kid": "k1"}),
    "the public key as a secret": _hs256_with_public_key,
    "an algorithm of another kind of key": lambda r: r.token("ES256", kid="rsa"),
    "a key of the token's own": lambda r: r.token(
        "ES256", 1, headers={"jwk": public_jwk("k1", "ES256", 1)}
    ),
    "a URL of the token's own": lambda r: r.token(
        "ES256", 1, kid="other", headers={"jku": "http://127.0.0.1:9/keys"}
    ),
    "a critical header": lambda r: r.token(headers={"crit": ["exp"], "exp": 1}),
    "another key": lambda r: r.token("ES256", 1),
    "a changed payload": lambda r: r.token()[:40] + "A" + r.token()[41:],
    "a kid that is no text": lambda r: _forged(r, {"alg": "ES256", "kid": {"a": 1}}),
    "deep JSON": lambda r: f"{_part(DEEP)}.{_part(b'[' * 3_000)}.AA",
    "no JSON": lambda r: f"{_part(NO_JSON)}.{_part(b'x')}.AA",
    "no UTF-8": lambda r: f"{_part(NO_UTF_8)}.{_part(b'x')}.AA",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_a_forged_token_is_refused(reader: Reader, forge: Callable[[Reader], str]) -> None:
    reader.provider.jwks = {"keys": [public_jwk("k1", "ES256"), public_jwk("rsa", "RS256")]}

    await reader.refusal(forge(reader))


@pytest.mark.parametrize(
    "text", ["", "eyJ", "eyJhbGciOiJub25lIn0.e30.", "arc_admin_x", "eyJ.e30.AA é", "a.b.c"]
)
async def test_other_texts_have_not_the_form_of_a_token(reader: Reader, text: str) -> None:
    assert not reader.tokens.has_form(text)


@pytest.mark.parametrize(
    "jwk",
    [
        lambda: public_jwk("k1", "RS256", -1),  # 1024 bits
        lambda: public_jwk("k1", "RS256", -1, alg="RS512"),
        lambda: {"kty": "RSA", "kid": "k1", "n": "AA", "e": "AQAB"},
        lambda: {"kty": "EC", "kid": "k1"},
    ],
)
async def test_a_key_that_cannot_be_used_is_refused(
    reader: Reader, jwk: Callable[[], Claims]
) -> None:
    reader.provider.jwks = {"keys": [jwk()]}

    assert "cannot be used" in await reader.refusal(reader.token("RS256"))


async def test_without_a_kid_the_only_key_is_taken(reader: Reader) -> None:
    reader.provider.jwks = {"keys": [public_jwk(None, "ES256")]}
    assert await reader.is_good(kid=None)

    reader.provider.jwks = {"keys": [public_jwk("k1", "ES256"), public_jwk("k2", "ES256", 1)]}
    reader.of()
    assert not await reader.is_good(kid=None)


# the provider


async def test_unknown_keys_do_not_make_the_server_ask_again_and_again(reader: Reader) -> None:
    await reader.read(reader.token())
    asked = len(reader.provider.asked)

    for n in range(50):
        await reader.refusal(reader.token("ES256", 1, kid=f"forged-{n}"))
    assert len(reader.provider.asked) == asked

    reader.clock.advance(LIMITS.refetch_seconds)
    forged = [reader.token("ES256", 1, kid=f"forged-{n}") for n in range(50)]
    await asyncio.gather(*map(reader.refusal, forged))
    assert len(reader.provider.asked) == asked + 2, "one look for all of them"


async def test_a_rotated_key_is_taken_at_once_and_a_withdrawn_one_ends(reader: Reader) -> None:
    assert await reader.is_good()
    reader.clock.advance(LIMITS.refetch_seconds)
    reader.provider.jwks = {"keys": [public_jwk("k2", "ES256", 1)]}

    assert await reader.is_good("ES256", 1, kid="k2")
    assert not await reader.is_good()


async def test_a_withdrawn_key_is_good_until_the_keys_are_refreshed(reader: Reader) -> None:
    assert await reader.is_good()
    reader.provider.jwks = {"keys": [public_jwk("k2", "ES256", 1)]}

    reader.clock.advance(LIMITS.refresh_seconds - 1)
    assert await reader.is_good()

    reader.clock.advance(1)
    assert await reader.is_good(), "the refresh goes on behind the request"
    assert await reader.is_good("ES256", 1, kid="k2"), "which this one waits for"
    assert not await reader.is_good()


Broken = Callable[[OidcIssuer], None]


def _status(status: int, **headers: str) -> Broken:
    def change(provider: OidcIssuer) -> None:
        provider.status, provider.headers = status, headers

    return change


def _keys(value: Any) -> Broken:
    def change(provider: OidcIssuer) -> None:
        provider.jwks = value() if callable(value) else value

    return change


def _discovery(**fields: Any) -> Broken:
    return lambda provider: provider.discovery.update(fields)


BROKEN: dict[str, Broken] = {
    "an error": _status(503),
    "a redirect": _status(302, Location="/keys"),
    "no content": _status(204),
    "no JSON": _keys(b"<html>"),
    "deep JSON": _keys(b'{"keys":' + b"[" * 100_000),
    "no keys": _keys({"keys": []}),
    "keys that are no objects": _keys({"keys": ["k1"]}),
    "a secret": _keys({"keys": [{"kty": "oct", "k": "AAAA", "kid": "k1"}]}),
    "a private key": _keys(lambda: {"keys": [public_jwk("k1", "ES256", d="AAAA")]}),
    "a key for encryption": _keys(lambda: {"keys": [public_jwk("k1", "ES256", use="enc")]}),
    "a huge set": _keys(lambda: {"keys": [public_jwk(f"k{n}", "ES256") for n in range(101)]}),
    "a huge answer": _keys(b'{"keys":[' + b" " * (LIMITS.max_answer_bytes + 1)),
    "the discovery of another issuer": _discovery(issuer="https://elsewhere.test"),
    "keys without TLS": _discovery(jwks_uri="http://example.com/keys"),
    "keys in a file": _discovery(jwks_uri="file:///etc/passwd"),
}


@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN)
async def test_a_broken_provider_admits_no_token_and_takes_no_known_key_away(
    reader: Reader, break_it: Broken
) -> None:
    break_it(reader.provider)
    with pytest.raises(Unavailable):
        await reader.read(reader.token())
    assert "/passwd" not in reader.provider.asked

    reader.provider.mend()
    reader.clock.advance(LIMITS.refetch_seconds)
    assert await reader.is_good()

    break_it(reader.provider)
    reader.clock.advance(LIMITS.refresh_seconds)
    assert await reader.is_good()
    with pytest.raises(Unavailable):
        await reader.read(reader.token("ES256", 1, kid="k2"))
    assert await reader.is_good()


async def test_known_keys_end_when_the_provider_stays_away(reader: Reader) -> None:
    await reader.read(reader.token())
    reader.provider.status = 500

    reader.clock.advance(LIMITS.keep_seconds - 1)
    await reader.read(reader.token())
    reader.clock.advance(LIMITS.refetch_seconds)

    with pytest.raises(Unavailable):
        await reader.read(reader.token())

    reader.provider.status = 200
    reader.clock.advance(LIMITS.refetch_seconds)
    await reader.read(reader.token())


async def test_a_slow_provider_holds_tokens_of_unknown_keys_up_and_no_others(
    reader: Reader,
) -> None:
    reader.of(OidcLimits(timeout_seconds=0.05))
    await reader.read(reader.token())
    reader.clock.advance(LIMITS.refetch_seconds)
    reader.provider.is_open.clear()

    waiting = asyncio.create_task(reader.read(reader.token("ES256", 1, kid="k2")))
    assert await reader.is_good()

    with pytest.raises(Unavailable):
        await waiting


async def test_a_provider_that_cannot_be_reached_is_away(reader: Reader) -> None:
    reader.of(jwks_url="http://127.0.0.1:1/keys")

    with pytest.raises(Unavailable) as refused:
        await reader.read(reader.token())

    assert "127.0.0.1" not in refused.value.message, "strangers learn nothing of the network"


async def test_redirects_lead_nowhere(reader: Reader) -> None:
    reached: list[str] = []

    async def note(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.json_response(reader.provider.jwks)

    app = web.Application()
    app.router.add_get("/keys", note)
    async with TestServer(app) as elsewhere:
        _status(307, Location=str(elsewhere.make_url("/keys")))(reader.provider)
        with pytest.raises(Unavailable):
            await reader.read(reader.token())

    assert reached == []


@pytest.mark.parametrize(
    ("url", "is_safe"),
    [
        ("https://login.example.com/realms/x", True),
        ("http://localhost:8080/x", True),
        ("http://[::1]/x", True),
        ("http://login.example.com", False),
        ("https://user@login.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("ftp://login.example.com", False),
        ("https://", False),
        ("https://a b", False),
        ("https://[", False),
        ("https://a:99999", False),
    ],
)
def test_a_provider_is_asked_by_https_alone(url: str, is_safe: bool) -> None:
    assert is_safe_url(url) is is_safe


# rules


@pytest.mark.parametrize(
    ("wanted", "claims", "fits"),
    [
        ({"groups": ["ops"]}, {"groups": ["dev", "ops"]}, True),
        ({"groups": ["ops"]}, {"groups": ["dev", "oops"]}, False),
        ({"groups": ["ops"]}, {"groups": "ops"}, True),
        ({"groups": ["ops"]}, {}, False),
        ({"repository_id": ["12"]}, {"repository_id": 12}, True),
        ({"repository_id": ["12"]}, {"repository_id": "123"}, False),
        ({"email_verified": ["true"]}, {"email_verified": True}, True),
        ({"email_verified": ["true"]}, {"email_verified": False}, False),
        ({"realm_access.roles": ["arc"]}, {"realm_access": {"roles": ["arc"]}}, True),
        ({"realm_access.roles": ["arc"]}, {"realm_access": ["roles"]}, False),
        ({"k.io.namespace": ["ci"]}, {"k.io": {"namespace": "ci"}}, True),
        ({"a.b": ["1"]}, {"a.b": "1"}, True),
        ({"sub": ["repo:acme/*"], "ref": ["refs/heads/main"]}, {"ref": "refs/heads/x"}, False),
        ({"sub": ["x", "repo:acme/app:*"]}, {}, True),
        ({"nested": ["*"]}, {"nested": {"a": 1}}, False),
        ({"nested": ["*"]}, {"nested": None}, False),
        ({"nested": ["*"]}, {"nested": [["a"]]}, False),
    ],
)
async def test_a_rule_fits_when_all_its_claims_do(
    reader: Reader, wanted: dict[str, list[str]], claims: Claims, fits: bool
) -> None:
    reader.of(rules=[OidcRule(claims=wanted, scope=Scope.VIEWER)])
    text = reader.token(**claims)

    if fits:
        assert (await reader.read(text)).scope is Scope.VIEWER
    else:
        with pytest.raises(Forbidden):
            await reader.read(text)


async def test_the_first_rule_that_fits_counts(reader: Reader) -> None:
    everyone = {"sub": ["*"]}
    reader.of(
        rules=[
            OidcRule(claims={"sub": ["nobody"]}, scope=Scope.ADMIN),
            OidcRule(claims=everyone, scope=Scope.VIEWER),
            OidcRule(claims=everyone, scope=Scope.ADMIN),
        ]
    )

    assert (await reader.read(reader.token())).scope is Scope.VIEWER


async def test_two_subjects_never_share_a_name(reader: Reader) -> None:
    reader.of(rules=[OidcRule(claims={"sub": ["*"]}, scope=Scope.VIEWER)])
    hard = ["jörg", "jürg", "j_rg", "a" * 300, "a" * 301, "a&by=tok_1", "a b", "a_b", "a\x1b[1m"]
    names = [(await reader.read(reader.token(sub=sub))).reach.credential or "" for sub in hard]
    names += [
        (await reader.read(reader.token(sub=name.removeprefix("oidc:ci:")))).reach.credential or ""
        for name in names
        if "~" in name
    ]

    assert len(set(names)) == len(names)
    assert all(name.isascii() and len(name) < 200 for name in names)
    assert not any(set(name) & set(" &=%?#\x1b") for name in names)


async def test_an_error_of_the_server_is_one_with_a_code(reader: Reader) -> None:
    """Texts of every kind of damage, at one token: none makes more than a refusal."""
    whole = reader.token()
    texts = [whole[:at] + other + whole[at + 1 :] for at in range(0, 200, 7) for other in "A_."]
    for text in filter(reader.tokens.has_form, texts):
        with pytest.raises(ArcError):
            await reader.read(text)
