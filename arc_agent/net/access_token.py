"""The access token of an enrolled agent: fetch it, keep it fresh, and renew the key behind it.

An access token lives in memory only. The agent fetches it with its key at the start, at two thirds
of the token's life, and when the server refuses it. `keep` runs in the heartbeat's thread, where no
handler can stop it. Durations are the server's, counted from before the request, so that no wall
clock matters.
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
"""The part of a token's life after which it is renewed. It is random, so that a fleet does not
renew at once; the rest of the life is for a server that is unreachable."""
_LEAST_SECONDS: Final = 0.5
"""The time between two renewals at least, however short the life of the server's tokens."""
_FIRST_SECONDS: Final = 10.0
"""The longest wait of a request for a token that is being fetched."""
_FRESH_SECONDS: Final = 10.0
"""After a refusal, a token is fetched once in this time: if the server refuses the next one too,
the token is not the reason."""
_REFUSED_SECONDS: Final = (30.0, 60.0)
"""The pause of a refused agent before it asks again: an operator may have enrolled it anew."""
_LONGEST_SLEEP_SECONDS: Final = 60.0
"""Timers stand still while the machine is suspended; the life of a token does not."""

CredentialState = Literal["starting", "good", "refused", "unreachable"]


class CredentialStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the agent's credential, for the operator on the host."""

    kind: Literal["enrolled"] = "enrolled"
    state: CredentialState
    credential_id: str
    deployment_id: str
    key_id: str
    reason: str | None = None
    """The reason of a refusal or of a failed renewal."""
    token_age_seconds: float | None = None
    token_ends_in_seconds: float | None = None


class AccessToken:
    """The bearer token of an enrolled agent. Safe from any thread, except for `keep`."""

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
        self._is_refusal_logged = False
        self._fetched_at: float | None = None
        self._fetch_again_at = 0.0
        self._ends_at = 0.0
        self._due_at = 0.0

    # for requests

    async def ready(self) -> None:
        """Wait for a token. Raises Refused or NoContact when there is none."""
        if self.value is not None:
            return
        if self._failure is None:
            await self._next_round()
        if self.value is None:
            raise self._failure or NoContact("no access token yet")

    async def refused(self, used: str | None) -> bool:
        """Return True if there is another token than `used`, which the server refused."""
        if self.value == used and self._clock() >= self._fetch_again_at:
            self._fetch_again_at = self._clock() + _FRESH_SECONDS
            self.reload()
            await self._next_round()
        return self.value is not None and self.value != used

    def reload(self) -> None:
        """Fetch a token now, with the identity that is on the disk now."""
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            call_in(loop, wake.set)

    def status(self) -> CredentialStatus:
        """Return the state of the credential."""
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

    async def fetch_another(self, connection: ServerConnection) -> AccessTokenResponse:
        """Return a new token without a change here: a check of the credential.

        Raises Refused, NoContact.
        """
        return await self._fetch(connection, self.identity.key)

    async def _next_round(self) -> None:
        """Wait until a try to fetch a token has ended, `_FIRST_SECONDS` at most."""
        ended = asyncio.Event()
        with self._lock:
            self._waiters.append((asyncio.get_running_loop(), ended))
        try:
            async with asyncio.timeout(_FIRST_SECONDS):
                await ended.wait()
        except TimeoutError:
            pass

    def _wake_waiters(self) -> None:
        """Wake the callers that wait for the end of a try."""
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for loop, ended in waiters:
            call_in(loop, ended.set)

    # the loop

    async def keep(self) -> None:
        """Keep a token fresh until cancelled."""
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
                    self._set_refused(error)
                    pause = self._random.uniform(*_REFUSED_SECONDS)
                except NoContact as error:
                    failures += 1
                    self._set_unreachable(error)
                    pause = back_off.seconds(failures, error)
                except Exception as error:  # without this loop the agent has no token
                    log.exception("credential.failed")
                    failures += 1
                    self._set_unreachable(NoContact(type(error).__name__))
                    pause = back_off.seconds(failures, error)
                self._wake_waiters()
                await self._sleep(pause)
        finally:
            await connection.close()

    async def _sleep(self, pause: float | None) -> None:
        """Sleep until the next try is due, or a request wants one."""
        assert self._wake is not None
        until = self._due_at if pause is None else self._clock() + pause
        while (left := until - self._clock()) > 0:
            try:
                async with asyncio.timeout(min(left, _LONGEST_SLEEP_SECONDS)):
                    await self._wake.wait()
            except TimeoutError:
                continue
            return

    def _set_refused(self, error: Refused | IdentityError) -> None:
        """Drop the token: the server refuses the credential, or the identity is gone. Log it
        once.
        """
        is_revoked = isinstance(error, Refused) and error.detail == "revoked"
        reason = "this agent's credential was revoked" if is_revoked else str(error)
        if not self._is_refusal_logged:
            self._is_refusal_logged = True
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

    def _set_unreachable(self, error: NoContact) -> None:
        """Record a failed try. The current token, if any, may still be good."""
        log.debug("credential.not_renewed", reason=error.reason)
        self._failure = error
        self._state = "unreachable"

    # one try

    async def renew(self, connection: ServerConnection) -> None:
        """Fetch a token; renew the key if that is due or was begun.

        Raises Refused, NoContact, IdentityError.
        """
        identity = await asyncio.to_thread(self._files.read)
        if identity is None:
            raise IdentityError(f"{self._files.directory} has no identity any more")
        if identity.deployment_id != self.identity.deployment_id:
            raise IdentityError(
                f"the agent was enrolled for {identity.deployment_id!r}: restart it"
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
            # The server knows the next key already: this agent died before it read the answer.
            asked_at = self._clock()
            answer = await self._fetch(connection, following)
            await asyncio.to_thread(self._files.take_over, identity, following)
            following = None
        hit("agent.after_access_token")
        self._take(answer, asked_at)
        if answer.rotate_key or following is not None:
            await self._rotate(connection, identity)

    def _take(self, answer: AccessTokenResponse, asked_at: float) -> None:
        """Use a token that the server answered to a request at `asked_at`."""
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
        self._is_refusal_logged = False
        self._state = "good"
        self.value = answer.token

    async def _fetch(self, connection: ServerConnection, key: KeyPair) -> AccessTokenResponse:
        """Return an access token for a key. Raises Refused, NoContact."""
        challenge = await self._challenge(connection)
        request = AccessTokenRequest(
            key_id=key.key_id,
            challenge=challenge,
            signature=await asyncio.to_thread(key.sign, "token", key.key_id, challenge),
        )
        return await _post(connection, "tokens", request, AccessTokenResponse)

    async def _challenge(self, connection: ServerConnection) -> str:
        """Return a challenge to sign. Raises NoContact."""
        return (await _post(connection, "challenges", None, Challenge)).challenge

    async def _rotate(self, connection: ServerConnection, identity: Identity) -> None:
        """Replace the key. A step that fails is tried again at the next renewal.

        The new key is on the disk before it is sent to the server, and the server knows it before
        it takes over here. The old key stays good until the new one was used, and for a while
        after.
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
        """Send the server a new key. Raises NoContact."""
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
    """Send a request and return its answer. Raises Refused, NoContact."""
    answer = await connection.call("POST", connection.url("agents", name), message)
    return read_answer(answer, kind)


def read_answer(answer: Answer, kind: type[T]) -> T:
    """Return the message in an answer. Raises NoContact when the answer holds none."""
    if answer.status != 200:
        raise NoContact(f"the server answered {answer.status}", status=answer.status)
    try:
        return decode(answer.body, kind)
    except InvalidCommand as error:
        raise NoContact(f"an answer that cannot be read: {error.message}") from None
