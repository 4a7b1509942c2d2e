"""URLs of an envelope are resolved, and URLs are shown without their secrets."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from arc_protocol.errors import InvalidEnvelope

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_REDACTED: Final = "***"
_SITE: Final = re.compile(r"https?://[^/?#]*", re.ASCII | re.IGNORECASE)
"""The part of a URL that says where it leads: the few of them are parsed once."""
_AMBIGUOUS: Final = re.compile(r"[\x00-\x20\x7f\\]")
"""Characters that no URL has: parsers trim or drop them, and then read another host."""
_QUERY_NAME: Final = re.compile(r"[\w.~%\[\]+-]{0,64}", re.ASCII)


def resolve(lease_url: str, reference: str) -> str:
    """Return the absolute form of a URL in an envelope that came from `lease_url`.

    An absolute URL is returned byte for byte, but for one: `http` at the host and port that the
    lease came from by `https` becomes `https`. A relative URL is joined by RFC 3986. Raises
    InvalidEnvelope for anything but http(s) with a host, and for `//host/path`: a reference must
    never silently leave its origin.
    """
    if not reference or _AMBIGUOUS.search(reference):
        raise InvalidEnvelope("url: empty, or with characters that no URL has")
    site = site_of(reference)
    if site is not None and _is_site(site):
        # A server behind a proxy that ends TLS names itself so when it has no public URL: plain
        # HTTP at that port would never be answered, and no result would ever arrive.
        is_downgrade = site_of(lease_url) == f"https{site.removeprefix('http')}"
        return f"https{reference.removeprefix('http')}" if is_downgrade else reference
    if reference.startswith("//"):
        raise InvalidEnvelope("url: has no scheme", url=redact(reference))
    try:
        has_scheme = bool(urlsplit(reference).scheme)
        url = reference if has_scheme else urljoin(lease_url, reference)
        parts = urlsplit(url)
        is_http = parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise InvalidEnvelope("url: cannot be parsed") from None
    if not is_http:
        raise InvalidEnvelope("url: not an http(s) URL", url=redact(url))
    return url


def site_of(url: str) -> str | None:
    """Return the start of an http(s) URL that says where it leads: `https://host:port`.

    None for any other URL. What a parser makes of scheme, user, host and port depends on it alone.
    """
    found = _SITE.match(url)
    return found[0] if found is not None else None


@lru_cache(maxsize=256)
def _is_site(site: str) -> bool:
    """Return True if a URL may start so."""
    try:
        parts = urlsplit(site)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port, the port filled in. Raises ValueError when there is no host."""
    return _origin(site_of(url) or url)


@lru_cache(maxsize=256)
def _origin(url: str) -> tuple[str, str, int]:
    """Return what `origin` does, remembered."""
    parts = urlsplit(url)
    if parts.hostname is None or parts.scheme not in _DEFAULT_PORTS:
        raise ValueError("not an http(s) URL")
    port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    return parts.scheme, parts.hostname, port


def same_origin(one: str, other: str) -> bool:
    """Return True if two URLs have one origin, so that a token for one may go to the other."""
    try:
        return origin(one) == origin(other)
    except ValueError:
        return False


def redact(url: str) -> str:
    """Return a URL fit for a log: user, password, query values and fragment are replaced."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc.rpartition("@")[2]
        if "@" in parts.netloc:
            netloc = f"{_REDACTED}@{netloc}"
        query = "&".join(map(_redact_pair, parts.query.split("&"))) if parts.query else ""
        return urlunsplit(
            (parts.scheme, netloc, parts.path, query, _REDACTED if parts.fragment else "")
        )
    except ValueError:
        return "(a URL that cannot be parsed)"


def _redact_pair(pair: str) -> str:
    """Return `name=value` without its value, and without a name that may be the secret."""
    name, has_value, _ = pair.partition("=")
    return f"{name}={_REDACTED}" if has_value and _QUERY_NAME.fullmatch(name) else _REDACTED
