"""Routes as data, and the router that finds the route of a request.

A route answers with and without the prefix /v1, and empty path segments are ignored: one public
client turns a trailing slash of its base URL into `/v1//commands/leases` (docs/protocol.md,
Requests and answers). A strict router takes one spelling of each path only, so that a rule of a
proxy for a path cannot be passed by another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final
from urllib.parse import quote, unquote

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
    takes_json: bool = True
    """False if the body is not a message."""
    is_versioned: bool = True
    """False if its strict path has no /v1: monitors know it without."""
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

    def __init__(self, routes: Iterable[Route], *, is_strict: bool = False) -> None:
        self.routes: Final = tuple(routes)
        self._is_strict = is_strict
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
        context), InvalidCommand for a path that is not UTF-8. A strict router raises NotFound for
        each path but `strict_path`.
        """
        path, _, query = target.partition("?")
        node, arguments = self._find(path)
        route = node.routes.get(method) or (node.routes.get("GET") if method == "HEAD" else None)
        if route is None:
            allowed = sorted(node.routes | ({"HEAD": None} if "GET" in node.routes else {}))
            raise MethodNotAllowed(f"{method} is not offered here", allow=", ".join(allowed))
        values = [_unquoted(argument) for argument in arguments]
        if self._is_strict and path != strict_path(route, values):
            raise NotFound("no such route: http.strict_paths is on, and a path has one spelling")
        return Match(route, values, query)

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


def strict_path(route: Route, arguments: Iterable[str]) -> str:
    """Return the one spelling of a path that a strict router takes.

    All but letters, digits and `-._~` is percent-encoded, in upper case, in each segment.
    """
    left = iter(arguments)
    segments = [PREFIX] if route.is_versioned else []
    for segment in route.path.strip("/").split("/"):
        if segment == REST:
            segments += [quote(part, safe="") for part in next(left).split("/")]
        else:
            segments.append(quote(next(left), safe="") if segment == ANY else segment)
    if {".", ".."} & set(segments):  # a proxy may resolve them
        raise NotFound("no such route")
    return "/" + "/".join(segments)


def _unquoted(segment: str) -> str:
    """Decode one segment, after the split: an encoded slash does not make another segment."""
    if "%" not in segment:
        return segment
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidCommand("path: not valid UTF-8", field="path") from None
