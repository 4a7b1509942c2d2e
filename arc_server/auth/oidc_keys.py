"""The public keys of an OpenID Connect provider (JWKS), fetched when a token needs them.

Callers without a right must not make the server ask the provider as often as they like: however
many tokens name unknown keys, there is one request at a time and a pause after each. A provider
that is away does no harm for a while: the last keys that it gave stay good, but not for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog
from aiohttp import hdrs

from arc_protocol.codec import UNREADABLE
from arc_protocol.errors import Unauthorized, Unavailable
from arc_runtime.startup.late_module import late_module
from arc_server.ports.clock import Clock

if TYPE_CHECKING:
    import jwt
    from cryptography.hazmat.primitives.asymmetric import rsa
else:
    jwt = late_module("jwt")
    rsa = late_module("cryptography.hazmat.primitives.asymmetric.rsa")

log = structlog.get_logger(__name__)
T = TypeVar("T")

DISCOVERY: Final = "/.well-known/openid-configuration"
MAX_KEYS: Final = 100
"""Providers publish fewer than ten; one request parses as many as this in some milliseconds."""
RSA_BITS: Final = (2048, 8192)
"""The sizes of RSA keys that are taken: smaller ones are weak, and larger ones slow to verify."""
_TYPES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""Key types by the beginning of an algorithm's name."""
_AWAY: Final = "the keys of this token's issuer cannot be read; the log of the server says why"
_PRIVATE: Final = frozenset({"d", "p", "q", "k"})
"""Members of a JWK that only a private or a symmetric key has (RFC 7518, 6)."""


class OidcLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of OIDC; the configuration keys of section `oidc` have these names."""

    leeway_seconds: float = 30
    max_life_seconds: float = 86_400
    refresh_seconds: float = 3_600
    keep_seconds: float = 86_400
    refetch_seconds: float = 30
    timeout_seconds: float = 5
    max_answer_bytes: int = 256 << 10


class ProviderUnusable(Exception):
    """The provider gave no keys that can be used. The message says why."""


class _Discovery(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class ProviderKeys:
    """The keys of one provider."""

    def __init__(
        self,
        issuer: str,
        jwks_url: str | None,
        *,
        http: ProviderHttp,
        clock: Clock,
        limits: OidcLimits,
    ) -> None:
        """Find the keys by the discovery of `issuer`, unless there is a `jwks_url`."""
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._http = http
        self._clock = clock
        self._limits = limits
        self._keys: Mapping[str | None, Mapping[str, Any]] = {}
        self._made: dict[tuple[str | None, str], Any] = {}
        self._fetched_at: float | None = None
        self._next_fetch_at = 0.0
        self._problem: str | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str | None, algorithm: str) -> Any:
        """Return the public key of a token. The provider is asked for a key that is not known.

        Raises Unauthorized if the provider has no such key, Unavailable if it does not answer.
        """
        age = self._age()
        if age is None or age >= self._limits.keep_seconds or kid not in self._keys:
            if fetching := self._fetch():
                await asyncio.shield(fetching)
        elif age >= self._limits.refresh_seconds:
            self._fetch()
        age = self._age()
        if age is None or age >= self._limits.keep_seconds:
            raise Unavailable(_AWAY)
        if kid not in self._keys:
            if self._problem is not None:  # it may be a new one
                raise Unavailable(_AWAY)
            raise Unauthorized("this token is signed by a key that its issuer does not have")
        return self._made_for(kid, algorithm)

    async def close(self) -> None:
        """End a request to the provider that goes on."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait((self._fetching,))

    def _age(self) -> float | None:
        """Return the seconds since the keys were fetched; None before the first time."""
        if self._fetched_at is None:
            return None
        return self._clock.monotonic() - self._fetched_at

    def _made_for(self, kid: str | None, algorithm: str) -> Any:
        """Return a key as one algorithm takes it. Raises Unauthorized."""
        made = self._made.get((kid, algorithm))
        if made is None:
            try:
                made = _make(self._keys[kid], algorithm)
            except (jwt.PyJWTError, ValueError, TypeError) as error:
                raise Unauthorized(f"the key of this token cannot be used: {error}") from None
            self._made[kid, algorithm] = made
        return made

    def _fetch(self) -> asyncio.Task[None] | None:
        """Return the request to the provider: the one that goes on, or another if it is time."""
        if self._fetching is None and self._clock.monotonic() >= self._next_fetch_at:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch_once())
            self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, _: asyncio.Task[None]) -> None:
        self._fetching = None
        self._next_fetch_at = self._clock.monotonic() + self._limits.refetch_seconds

    async def _fetch_once(self) -> None:
        """Take the provider's keys in place of the former ones, if it gives any."""
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                keys = await self._read()
        except TimeoutError:
            self._problem = f"no answer within {self._limits.timeout_seconds:g} s"
        except (ProviderUnusable, aiohttp.ClientError, OSError) as error:
            self._problem = str(error) or type(error).__name__
        else:
            self._problem = None
            self._keys, self._made = keys, {}
            self._fetched_at = self._clock.monotonic()
            log.info("oidc.keys_fetched", issuer=self._issuer, count=len(keys))
            return
        log.warning("oidc.keys_not_fetched", issuer=self._issuer, reason=self._problem)

    async def _read(self) -> Mapping[str | None, Mapping[str, Any]]:
        """Return the keys by their ids. Raises ProviderUnusable, ClientError, OSError."""
        url = self._jwks_url
        if url is None:
            found = await self._http.read(self._issuer.rstrip("/") + DISCOVERY, _Discovery)
            if found.issuer != self._issuer:  # OpenID Connect Discovery 1.0, 4.3
                raise ProviderUnusable(f"its discovery is that of {found.issuer[:200]!r}")
            url = found.jwks_uri
        return _by_id((await self._http.read(url, _KeySet)).keys)


class ProviderHttp:
    """Reads JSON from providers: https, no redirects, and no more than fits."""

    def __init__(self, limits: OidcLimits) -> None:
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None

    async def read(self, url: str, kind: type[T]) -> T:
        """Return a document. Raises ProviderUnusable, ClientError, OSError."""
        if not is_safe_url(url):
            raise ProviderUnusable(f"{url[:200]!r} is not an https URL")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={hdrs.ACCEPT: "application/json", hdrs.ACCEPT_ENCODING: "identity"},
            )
        where, most = urlsplit(url).path, self._limits.max_answer_bytes
        async with self._session.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise ProviderUnusable(f"{where}: HTTP {answer.status}")
            data = bytearray()
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > most:
                    raise ProviderUnusable(f"{where}: more than {most} bytes")
        try:
            return msgspec.json.decode(bytes(data), type=kind)
        except UNREADABLE as error:
            raise ProviderUnusable(f"{where}: {error}") from None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def is_safe_url(url: str) -> bool:
    """Return True for an https URL, and for http to this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc or any(not 32 < ord(each) < 127 for each in url):
        return False
    return parts.scheme == "https" or (
        parts.scheme == "http" and host in ("localhost", "127.0.0.1", "::1")
    )


def _by_id(keys: list[dict[str, Any]]) -> Mapping[str | None, Mapping[str, Any]]:
    """Return the keys that verify signatures; None names the only one. Raises ProviderUnusable."""
    if len(keys) > MAX_KEYS:
        raise ProviderUnusable(f"it has {len(keys)} keys; at most {MAX_KEYS} are read")
    found: dict[str | None, Mapping[str, Any]] = {}
    usable = [
        key
        for key in keys
        if key.get("kty") in _TYPES.values()
        and key.get("use") in (None, "sig")
        and not _PRIVATE & set(key)
    ]
    for key in usable:
        kid = key.get("kid")
        if isinstance(kid, str):
            found.setdefault(kid, key)
    if len(usable) == 1:
        found[None] = usable[0]
    if not found:
        raise ProviderUnusable("it has no public key for signatures")
    return found


def _make(key: Mapping[str, Any], algorithm: str) -> Any:
    """Return a key for one algorithm. Raises PyJWTError, ValueError, TypeError."""
    if key.get("kty") != _TYPES[algorithm[:2]]:
        raise ValueError(f"it is not for {algorithm}")
    if key.get("alg") not in (None, algorithm):
        raise ValueError(f"it is for {key['alg']!r} only")
    made: Any = jwt.get_algorithm_by_name(algorithm).from_jwk(dict(key))
    if isinstance(made, rsa.RSAPublicKey) and not RSA_BITS[0] <= made.key_size <= RSA_BITS[1]:
        raise ValueError(f"an RSA key of {made.key_size} bits")
    return made
