"""The browser guard keeps web pages away from a server that asks for no token.

A browser sends what any page asks it to, also to loopback. Without a token only the headers that
the browser adds tell such a request from one of a program: `Origin`, `Sec-Fetch-Site`, and a `Host`
of the page's own where its name was made to resolve to this machine (DNS rebinding).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from arc_protocol.errors import BadRequest, Forbidden
from arc_server.http.proxies import parse_address

_JSON: Final = "application/json"
_READS: Final = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})
_SEC_FETCH_SITE: Final = "Sec-Fetch-Site"
_OWN_SITES: Final = frozenset({"same-origin", "none"})
"""`none`: the user typed the address."""


class BrowserGuard:
    """The browser guard refuses each request that a page of another origin could have sent."""

    def __init__(self, public_url: str | None) -> None:
        """Take the host of `public_url` for this server's own, beside the names of loopback."""
        self._public_host = None if public_url is None else urlsplit(public_url).hostname

    def check(self, http: web.BaseRequest, *, takes_json: bool) -> None:
        """Let a request through. Raises Forbidden for a foreign host or origin.

        Raises BadRequest for a body that is not declared as JSON, where the route `takes_json`.
        """
        host = http.headers.get(hdrs.HOST, "")
        if not self._is_own(host):
            raise Forbidden("Host: without tokens the server answers to names of loopback only")
        for origin in http.headers.getall(hdrs.ORIGIN, ()):
            if origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
                raise Forbidden("Origin: without tokens the server answers no web pages")
        if http.headers.get(_SEC_FETCH_SITE, "none").lower() not in _OWN_SITES:
            raise Forbidden(f"{_SEC_FETCH_SITE}: without tokens the server answers no web pages")
        if (
            takes_json
            and http.method not in _READS
            and http.body_exists
            and http.content_type != _JSON
        ):
            raise BadRequest(
                f"Content-Type: without tokens it must be {_JSON}", field="Content-Type"
            )

    def _is_own(self, host: str) -> bool:
        """Return True if a `Host` header names this machine as only this machine calls it."""
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if name is None:
            return False
        if name in ("localhost", self._public_host) or name.endswith(".localhost"):
            return True
        address = parse_address(name)
        return address is not None and address.is_loopback
