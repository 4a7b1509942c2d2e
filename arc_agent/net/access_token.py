"""The access token of an agent that enrolled: fetched, kept fresh, and the key behind it renewed.

`keep` runs in the heartbeat's thread: no handler can stop it. An access token lives in memory only;
it is fetched with the key at the start, at two thirds of its life, and whenever the server refuses
it. Durations are the server's, counted here from before the request: no wall clock matters.
"""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any, Final, Literal, TypeVar

import msgspec
import structlog

from arc_agent.config.sections import ServerSection
from arc_agent.host.clock import MonotonicClock
from arc_agent.host.threads import call_in
from arc_agent.net.connection import Answer, BackOff, NoContact, Refused, ServerConnection
from arc_agent.net.identity_files import Identity, IdentityError, IdentityFiles, KeyPair
from arc_agent.net.routes import Routes
from arc_agent.net.token import ConfiguredToken
from arc_protocol.codec import decode
from arc_protocol.enrolment import (
    AccessTokenRequest,
    AccessTokenResponse,
    Challenge,
    CredentialInfo,
    NewKeyRequest,
)
from arc_protocol.errors import InvalidCommand
from arc_runtime.failpoints import hit
from arc_runtime.logs.redaction import keep_secret

T = TypeVar("T")

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_RENEW_AT: Final = (0.6, 0.7)
"""Of a token's life, so that a fleet does not come at once. The rest is for a server that is away.
"""
_LEAST_SECONDS: Final = 0.5
"""Between two renewals, however short a life the server gives its tokens."""
_FIRST_SECONDS: Final = 10.0
"""How long a request waits for a token that is being fetched."""
_FRESH_SECONDS: Final = 10.0
"""After a refusal a token is fetched once in this time: if the next one is refused too, it is not
the token that is wrong."""
_REFUSED_SECONDS: Final = (30.0, 60.0)
"""How often an agent that is turned away asks again: somebody may have enrolled it anew."""
_LOOK_SECONDS: Final = 60.0
"""The longest sleep: timers stand still in a sleeping machine, tokens do not."""

CredentialState = Literal["starting", "good", "refused", "unreachable"]


class CredentialStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands, for the operator on the host."""

    state: CredentialState
    credential_id: str
    deployment_id: str
    key_id: str
    reason: str | None = None
    """Why it is refused or cannot be renewed."""
    token_age_seconds: float | None = None
    token_ends_in_seconds: float | None = None


class AccessToken:
    """The bearer token of an agent that enrolled. Safe from any thread but for `keep`."""

    def __init__(
        self,
        files: IdentityFiles,
        identity: Identity,
        settings: ServerSection,
        clock: MonotonicClock,
        network: Routes | None = None,
    ) -> None:
        self.value: str | None = None
        self.identity = identity
        self._files = files
        self._settings = settings
        self._clock = clock
        self._network = network
        self._random = random.SystemRandom()
        self._lock = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._failure: NoContact | None = None
        self._state: CredentialState = "starting"
        self._is_told = False
        """Whether it was said that we are turned away."""
        self._fetched_at: float | None = None
        self._fetch_again_at = 0.0
        self._ends_at = 0.0
        self._due_at = 0.0

    # for those who send requests

    async def ready(self) -> None:
        """Return when there is a token. Raises Refused or NoContact when there is none."""
        if self.value is not None:
            return
        if self._failure is None:
            await self._next_round()
        if self.value is None:
            raise self._failure or NoContact("no access token yet")

    async def refused(self, used: str | None) -> bool:
        """The server did not accept the token; whether there is another now."""
        if self.value == used and self._clock() >= self._fetch_again_at:
            self._fetch_again_at = self._clock() + _FRESH_SECONDS
            self.reload()
            await self._next_round()
        return self.value is not None and self.value != used

    def reload(self) -> None:
        """Fetch one now, with what stands on the disk now."""
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            call_in(loop, wake.set)

    def status(self) -> CredentialStatus:
        """How it stands."""
        now, fetched_at = self._clock(), self._fetched_at
        return CredentialStatus(
            state=self._state,
            credential_id=self.identity.credential_id,
            deployment_id=self.identity.deployment_id,
            key_id=self.identity.key.key_id,
            reason=None if self._failure is None else self._failure.reason,
            token_age_seconds=None if fetched_at is None else now - fetched_at,
            token_ends_in_seconds=None if self.value is None else self._ends_at - now,
        )

    async def look(self, connection: ServerConnection) -> AccessTokenResponse:
        """A token of its own for whoever looks whether one is to be had: changes nothing here.

        Raises Refused, NoContact.
        """
        return await self._fetch(connection, self.identity.key)

    async def _next_round(self) -> None:
        """Until a try has ended, for so long at most."""
        ended = asyncio.Event()
        with self._lock:
            self._waiters.append((asyncio.get_running_loop(), ended))
        try:
            async with asyncio.timeout(_FIRST_SECONDS):
                await ended.wait()
        except TimeoutError:
            pass

    def _tell(self) -> None:
        """A try has ended."""
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for loop, ended in waiters:
            call_in(loop, ended.set)

    # the loop

    async def keep(self) -> None:
        """Keep a token for ever; ends when cancelled."""
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        connection = ServerConnection(self._settings, ConfiguredToken(None, None), self._network)
        await connection.open()
        back_off = BackOff(self._random, self._settings.max_back_off_seconds)
        failures = 0
        try:
            while True:
                self._wake.clear()
                try:
                    await self.renew(connection)
                    failures = 0
                    pause = None
                except (Refused, IdentityError) as error:
                    self._turned_away(error)
                    pause = self._random.uniform(*_REFUSED_SECONDS)
                except NoContact as error:
                    failures += 1
                    self._missed(error)
                    pause = back_off.seconds(failures, error)
                except Exception as error:  # whatever it is, the agent needs a token
                    log.exception("credential.failed")
                    failures += 1
                    self._missed(NoContact(type(error).__name__))
                    pause = back_off.seconds(failures, error)
                self._tell()
                await self._sleep(pause)
        finally:
            await connection.close()

    async def _sleep(self, pause: float | None) -> None:
        """Until the next try is due, or somebody asks for one."""
        assert self._wake is not None
        until = self._due_at if pause is None else self._clock() + pause
        while (left := until - self._clock()) > 0:
            try:
                async with asyncio.timeout(min(left, _LOOK_SECONDS)):
                    await self._wake.wait()
            except TimeoutError:
                continue
            return

    def _turned_away(self, error: Refused | IdentityError) -> None:
        """The server does not know us any more, or we do not: said once."""
        is_revoked = isinstance(error, Refused) and error.detail == "revoked"
        reason = "this agent's credential was revoked" if is_revoked else str(error)
        if not self._is_told:
            self._is_told = True
            log.error(
                "credential.revoked" if is_revoked else "credential.refused",
                credential_id=self.identity.credential_id,
                reason=reason,
                hint="nothing is leased; finished results are kept; `arc-agent enrol --replace`"
                " mends it without a restart",
            )
        status = error.status if isinstance(error, Refused) else None
        self._failure = Refused(reason, status=status)
        self._state = "refused"
        self.value = None

    def _missed(self, error: NoContact) -> None:
        """The server could not be asked. What token there is may still be good."""
        log.debug("credential.not_renewed", reason=error.reason)
        self._failure = error
        self._state = "unreachable"

    # one try

    async def renew(self, connection: ServerConnection) -> None:
        """Fetch a token; go on with a new key when one is due or was begun.

        Raises Refused, NoContact, IdentityError.
        """
        identity = await asyncio.to_thread(self._files.read)
        if identity is None:
            raise IdentityError(f"there is no identity in {self._files.directory} any more")
        if identity.deployment_id != self.identity.deployment_id:
            raise IdentityError(
                f"it was enrolled anew for {identity.deployment_id!r}: that needs a restart"
            )
        self.identity = identity
        following = await asyncio.to_thread(self._files.next_key)
        asked_at = self._clock()
        hit("agent.before_access_token")
        try:
            answer = await self._fetch(connection, identity.key)
        except Refused:
            if following is None or following == identity.key:
                raise
            # It took over at the server, and we died before we knew.
            asked_at = self._clock()
            answer = await self._fetch(connection, following)
            await asyncio.to_thread(self._files.take_over, identity, following)
            following = None
        hit("agent.after_access_token")
        self._take(answer, asked_at)
        if answer.rotate_key or following is not None:
            await self._rotate(connection, identity)

    def _take(self, answer: AccessTokenResponse, asked_at: float) -> None:
        """A token is there."""
        keep_secret(answer.token)
        if self._state != "good":
            log.info(
                "credential.good",
                credential_id=answer.credential_id,
                expires_in_seconds=answer.expires_in_seconds,
            )
        self._ends_at = asked_at + answer.expires_in_seconds
        life = answer.expires_in_seconds * self._random.uniform(*_RENEW_AT)
        self._due_at = asked_at + max(_LEAST_SECONDS, life)
        self._fetched_at = self._clock()
        self._failure = None
        self._is_told = False
        self._state = "good"
        self.value = answer.token

    async def _fetch(self, connection: ServerConnection, key: KeyPair) -> AccessTokenResponse:
        """An access token for a key. Raises Refused, NoContact."""
        challenge = await self._challenge(connection)
        request = AccessTokenRequest(
            key_id=key.key_id,
            challenge=challenge,
            signature=await asyncio.to_thread(key.sign, "token", key.key_id, challenge),
        )
        return await _post(connection, "tokens", request, AccessTokenResponse)

    async def _challenge(self, connection: ServerConnection) -> str:
        """Something to sign. Raises NoContact."""
        return (await _post(connection, "challenges", None, Challenge)).challenge

    async def _rotate(self, connection: ServerConnection, identity: Identity) -> None:
        """Put a new key in the place of the old one. What fails is tried at the next renewal.

        The new key is on the disk before the server hears of it, and the server knows it before it
        takes over here. The old key stays good until the new one was used, and for a while after.
        """
        try:
            following = await asyncio.to_thread(self._files.begin_next)
            if following != identity.key:
                await self._announce(connection, identity.key, following)
            if not await asyncio.to_thread(self._files.take_over, identity, following):
                return
        except (NoContact, IdentityError) as error:
            log.warning("credential.key_not_renewed", reason=str(error))
            return
        self.identity = msgspec.structs.replace(identity, key=following)
        log.info(
            "credential.new_key", credential_id=identity.credential_id, key_id=following.key_id
        )

    async def _announce(self, connection: ServerConnection, old: KeyPair, new: KeyPair) -> None:
        """Tell the server of a new key. Raises NoContact."""
        challenge = await self._challenge(connection)
        parts = (old.key_id, challenge, new.public_key)
        request = NewKeyRequest(
            key_id=old.key_id,
            challenge=challenge,
            public_key=new.public_key,
            signature=await asyncio.to_thread(old.sign, "key", *parts),
            new_signature=await asyncio.to_thread(new.sign, "key", *parts),
        )
        hit("agent.before_new_key_request")
        await _post(connection, "keys", request, CredentialInfo)
        hit("agent.after_new_key_request")


async def _post(connection: ServerConnection, name: str, message: Any, kind: type[T]) -> T:
    """One request and its answer. Raises Refused, NoContact."""
    answer = await connection.call("POST", connection.url("agents", name), message)
    return read_answer(answer, kind)


def read_answer(answer: Answer, kind: type[T]) -> T:
    """What the server said. Raises NoContact."""
    if answer.status != 200:
        raise NoContact(f"the server answered {answer.status}", status=answer.status)
    try:
        return decode(answer.body, kind)
    except InvalidCommand as error:
        raise NoContact(f"an answer that cannot be read: {error.message}") from None
