"""Base URLs begin the URLs in an answer: the public URL, or the address of the request itself."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from arc_protocol.errors import BadRequest

PREFIX: Final = "v1"
"""The prefix of every route; each route also answers without it."""

MAX_REMEMBERED: Final = 1_000
"""Base URLs that are remembered; one server has a handful, unless clients make them up."""

_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_FORWARDED_HOST: Final = "X-Forwarded-Host"
_FORWARDED_PROTO: Final = "X-Forwarded-Proto"


class BaseUrls:
    """Base URLs of requests. Each ends in /v1."""

    def __init__(self, public_url: str | None) -> None:
        """Take `public_url` for every request, if there is one."""
        self._public = None if public_url is None else with_prefix(public_url)
        self._known: dict[tuple[str, str | None], str] = {}

    def of(self, headers: CIMultiDictProxy[str], scheme: str, *, is_forwarded: bool) -> str:
        """Return the base URL for one request. Raises BadRequest for a bad host or scheme.

        `scheme` is that of the connection. If a trusted proxy forwarded the request, what it says
        goes before.
        """
        if self._public is not None:
            return self._public
        host = headers.get(hdrs.HOST)
        if is_forwarded:
            host = _first(headers.get(_FORWARDED_HOST)) or host
            scheme = _first(headers.get(_FORWARDED_PROTO)) or scheme
            if scheme not in ("http", "https"):
                raise BadRequest(f"{_FORWARDED_PROTO}: not http or https", field=_FORWARDED_PROTO)
        known = self._known.get((scheme, host))
        return known or self._remember(scheme, host)

    def _remember(self, scheme: str, host: str | None) -> str:
        if host is None or _HOST.fullmatch(host) is None:
            raise BadRequest("Host: not a host name with or without a port", field="Host")
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        base_url = self._known[scheme, host] = f"{scheme}://{host}/{PREFIX}"
        return base_url


def with_prefix(url: str) -> str:
    """Return a base URL with /v1 at its end."""
    url = url.rstrip("/")
    return url if url.endswith(f"/{PREFIX}") else f"{url}/{PREFIX}"


def _first(value: str | None) -> str | None:
    """Return the entry of the outermost proxy in a header to which each proxy appends."""
    return None if value is None else value.partition(",")[0].strip()
