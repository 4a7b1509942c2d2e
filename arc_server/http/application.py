"""The application answers requests: it finds the route, judges the caller and runs the handler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog
from aiohttp import hdrs, web

from arc_protocol.errors import (
    ArcError,
    BadRequest,
    CommandsError,
    Forbidden,
    Unauthorized,
    Unavailable,
)
from arc_server.auth.authorisation import RULES, RouteAccess, RouteRule
from arc_server.auth.callers import Authenticator
from arc_server.auth.revocations import Revoked, Waits
from arc_server.disk_room import DiskRoom
from arc_server.http.answers import error_answer
from arc_server.http.base_urls import BaseUrls
from arc_server.http.body_reading import BodyMemory
from arc_server.http.browser_guard import BrowserGuard
from arc_server.http.calls import Call
from arc_server.http.disk_rules import REFUSED_AT
from arc_server.http.limits import HttpLimits
from arc_server.http.rates import Rates
from arc_server.http.routing import Route, Router
from arc_server.http.shares import Shares
from arc_server.ports.meter import NO_METER, ServerMeter
from arc_server.ports.reach import Reach

log = structlog.get_logger(__name__)

PATIENCE_SECONDS: Final = 30.0
"""The time that a request waits for a busy database, where it waits its turn: that of a poll."""
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 2.0
"""The pauses between its tries. They double, so that those who wait do not keep it busy."""

_REFUSALS: Final = frozenset({401, 403, 408, 413, 429, 431, 503, 507})
"""Statuses of requests that were right in form, and that the server did not take."""


class Application:
    """All routes of the server. A credential is judged before a byte of the body is read."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        authenticator: Authenticator,
        revoked: Revoked,
        limits: HttpLimits,
        base_urls: BaseUrls,
        guard: BrowserGuard | None = None,
        rules: Mapping[tuple[str, str], RouteRule] = RULES,
        room: DiskRoom | None = None,
        meter: ServerMeter = NO_METER,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take all parts. With a `guard`, requests that a web page may have sent are refused."""
        self.router = Router(routes, is_strict=limits.strict_paths)
        self._guard = guard
        self._rules = rules
        self._room = room
        self._meter = meter
        self._monotonic = monotonic
        self._revoked = revoked
        self._authenticator = authenticator
        self._limits = limits
        self._body_memory = BodyMemory(limits.body_memory_bytes)
        self._shares = Shares(limits, monotonic)
        self._strangers = Rates(limits.strangers_per_second, monotonic, of="address")
        self._base_urls = base_urls
        self.waits = Waits()
        """Requests that wait; the wait ends when the token of the caller is revoked."""
        self.is_draining = False
        """True once the server stops: each connection is closed after its next answer."""
        self._is_last = lambda: self.is_draining

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Raises ConnectionError alone, for a client that has gone."""
        began = self._monotonic()
        call: Call | None = None
        route: Route | None = None
        try:
            route, call = self._open(http)
            answer = await self._answer(route, call)
        except ConnectionError:
            raise
        except Exception as error:
            answer = self._failed(http, error)
        if self.is_draining and not answer.prepared:
            answer.force_close()
        if self._meter.is_on:
            self._count(http, answer, route, call, began)
        return answer

    def _count(
        self,
        http: web.BaseRequest,
        answer: web.StreamResponse,
        route: Route | None,
        call: Call | None,
        began: float,
    ) -> None:
        """Let the meter count an answer to a request that began then, by the monotonic clock."""
        now = self._monotonic()
        seconds, woken_at = now - began, None
        if call is not None and call.slept_seconds:
            seconds -= call.slept_seconds
            woken_at = call.woken_at
        body = answer.body if isinstance(answer, web.Response) else None
        self._meter.answered(
            None if route is None else route.path,
            "" if route is None else route.method,
            answer.status,
            seconds,
            None if woken_at is None else now - woken_at,
            http.content.total_bytes,
            len(body) if isinstance(body, bytes) else answer.body_length,
        )

    def _failed(self, http: web.BaseRequest, error: Exception) -> web.StreamResponse:
        """Return the answer for an error. Raises ConnectionError when an answer has begun."""
        if not isinstance(error, ArcError):
            log.error("http.failed", method=http.method, path=http.path, exc_info=error)
            error = CommandsError("internal error; see the log of the server")
        if error.http_status in _REFUSALS:
            self._meter.refused(error.code.lower())
        if http.writer.output_size > 0:
            raise ConnectionResetError("the answer failed halfway")
        return error_answer(error)

    def _open(self, http: web.BaseRequest) -> tuple[Route, Call]:
        """Return the route of a request, and its call. Raises as the router does, BadRequest."""
        if http.version.major != 1:
            raise BadRequest("only HTTP/1.0 and HTTP/1.1 are supported")
        target = http.raw_path
        if not target.startswith("/") and not self._limits.strict_paths:
            target = http.rel_url.raw_path_qs  # the absolute form (RFC 9112, 3.2.2)
        match = self.router.match(http.method, target)
        call = Call(
            http,
            match.arguments,
            match.query,
            self._limits,
            self._base_urls,
            is_last=self._is_last,
            waits=self.waits,
            body_memory=self._body_memory,
        )
        return match.route, call

    async def _answer(self, route: Route, call: Call) -> web.StreamResponse:
        if self._guard is not None:
            self._guard.check(call.http, takes_json=route.takes_json)
        try:
            await self._authorise(route, call)
            if call.caller is None:
                return await self._signed_or_open(route, call)
        except Unauthorized:
            self._strangers.take(call.client_address)
            raise
        token_id = call.caller.reach.credential
        call.connection.trust(token_id)
        if token_id is None:
            return await self._handled(route, call)
        wait_seconds = self._shares.begin(token_id, may_wait=route.waits_its_turn)
        try:
            if wait_seconds:
                await call.pause(wait_seconds)
            return await self._handled(route, call)
        finally:
            self._shares.end(token_id)

    async def _signed_or_open(self, route: Route, call: Call) -> web.StreamResponse:
        """Answer a request that was let through without a token."""
        if call.is_signed:
            call.connection.trust(call.reach.credential)
        return await self._handled(route, call)

    async def _handled(self, route: Route, call: Call) -> web.StreamResponse:
        """Run the handler; again and again if the route waits its turn while the store is busy.

        Raises InsufficientStorage for what the disk has no room for.
        """
        if self._room is not None and self._room.level:
            refused_at = REFUSED_AT.get((route.method, route.path))
            if refused_at is not None:
                self._room.check(refused_at)
        try:
            if not route.waits_its_turn:
                return await route.handler(call)
            return await self._patiently(route, call)
        finally:
            call.release_body()

    async def _patiently(self, route: Route, call: Call) -> web.StreamResponse:
        patience, pause = PATIENCE_SECONDS, FIRST_PAUSE_SECONDS
        while True:
            try:
                return await route.handler(call)
            except Unavailable:
                if self.is_draining or call.is_cut_off or patience <= 0:
                    raise
            await call.pause(pause)
            patience -= pause
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _authorise(self, route: Route, call: Call) -> None:
        """Let a request through by the table, with its caller. Raises Unauthorized, Forbidden."""
        rule = self._rules.get((route.method, route.path))
        if rule is None:
            raise Forbidden("no rule lets anyone do this")
        given = call.http.headers.getall(hdrs.AUTHORIZATION, ())
        if len(given) > 1:  # a proxy may have judged another one than the server
            raise BadRequest("Authorization: more than one header", field="Authorization")
        access = rule.access
        if access is RouteAccess.OPEN or access is RouteAccess.PROOF:
            return
        authorization = given[0] if given else None
        if route.signature is not None and (
            access is RouteAccess.SIGNATURE_OR_TOKEN or authorization is None
        ):
            is_signed = route.signature(call)
            if is_signed:
                by = call.query("by")
                self._revoked.check(by)
                call.sign_in(Reach(credential=by, every_lease=True))
                return
            if is_signed is False and not self._may_be_unsigned(access):
                raise Unauthorized("the signature is wrong or has expired")
        caller = await self._authenticator.caller(authorization)
        if caller.scope not in rule.scopes:
            raise Forbidden(f"a token of scope {caller.scope} may not do this")
        call.caller = caller
        call.reach = caller.reach

    def _may_be_unsigned(self, access: RouteAccess) -> bool:
        """Return True if the server takes requests without a token, so that a signature is moot."""
        is_open = self._authenticator.anonymous() is not None
        return is_open and access is RouteAccess.TOKEN_OR_SIGNATURE
