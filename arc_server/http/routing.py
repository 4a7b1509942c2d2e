"""Routes as data, and the router that finds the route of a request.

A route answers with and without the prefix /v1, and empty path segments are ignored: one public
client turns a trailing slash of its base URL into `/v1//commands/leases` (docs/protocol.md,
Requests and answers).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final
from urllib.parse import unquote

import msgspec
from aiohttp import web

from arc_protocol.errors import InvalidCommand, MethodNotAllowed, NotFound
from arc_server.http.base_urls import PREFIX
from arc_server.http.calls import Call

ANY: Final = "*"
"""Stands in a path for one segment, which is an argument of the handler."""
REST: Final = "**"
"""Stands at the end of a path for all segments that are left, as one argument."""

Handler = Callable[[Call], Awaitable[web.StreamResponse]]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path. Who may call it stands in auth/authorisation.py."""

    method: str
    path: str
    """Without the prefix, for example `/commands/*/response`."""
    handler: Handler
    waits_its_turn: bool = False
    """True: public clients give up on an answer of 429 or 503, so a request waits instead."""
    signature: Callable[[Call], bool | None] | None = None
    """Returns True if the query is signed for its request; None if it carries no signature."""


class Match(msgspec.Struct, frozen=True):
    """The route of a request, its arguments, and its query as text."""

    route: Route
    arguments: Sequence[str]
    query: str


class _Node:
    """One node in the tree of paths."""

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.routes: dict[str, Route] = {}


class Router:
    """All routes of the server."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: Final = tuple(routes)
        self._root = _Node()
        for route in self.routes:
            node = self._root
            for segment in route.path.strip("/").split("/"):
                node = node.below.setdefault(segment, _Node())
            if route.method in node.routes:
                raise ValueError(f"two routes for {route.method} {route.path}")
            node.routes[route.method] = route

    def match(self, method: str, target: str) -> Match:
        """Return the route for a request target in origin form.

        HEAD is answered by the route for GET. Raises NotFound, MethodNotAllowed (`allow` in its
        context), InvalidCommand for a path that is not UTF-8.
        """
        path, _, query = target.partition("?")
        node, arguments = self._find(path)
        route = node.routes.get(method) or (node.routes.get("GET") if method == "HEAD" else None)
        if route is None:
            allowed = sorted(node.routes | ({"HEAD": None} if "GET" in node.routes else {}))
            raise MethodNotAllowed(f"{method} is not offered here", allow=", ".join(allowed))
        return Match(route, [_unquoted(argument) for argument in arguments], query)

    def _find(self, path: str) -> tuple[_Node, list[str]]:
        segments = [segment for segment in path.split("/") if segment]
        if segments and segments[0] == PREFIX:
            del segments[0]
        node = self._root
        arguments: list[str] = []
        for position, segment in enumerate(segments):
            below = node.below
            following = below.get(segment)
            if following is None:
                following = below.get(ANY)
                if following is None:
                    following = below.get(REST)
                    if following is None:
                        raise NotFound("no such route")
                    return following, ["/".join(segments[position:])]
                arguments.append(segment)
            node = following
        if not node.routes:
            raise NotFound("no such route")
        return node, arguments


def _unquoted(segment: str) -> str:
    """Decode one segment, after the split: an encoded slash does not make another segment."""
    if "%" not in segment:
        return segment
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidCommand("path: not valid UTF-8", field="path") from None
