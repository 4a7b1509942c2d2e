"""Signed commands: what a signature must be for this host to run the command that it came with.

A server can pass a signed command on late, or not at all; it cannot make one. Whatever the envelope
says is held against what was signed, by keys on this host and by this host's own clock:

    no signature             SIGNATURE_REQUIRED, where `signing.required` is set
    not one, another key's, or of anything else than this command here     SIGNATURE_INVALID
    its deadline or `signing.max_age_seconds` has passed                   SIGNATURE_EXPIRED
    used before by another command, or this command has ended here         REPLAYED
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
import structlog

from arc_agent.config.sections import Config
from arc_agent.guard.used_signatures import Claim, Nonces, NoncesError
from arc_agent.handlers.context import ParamsSource
from arc_agent.jobs.job import Job
from arc_agent.jobs.outcome import Failed, GivenBack, Outcome, Succeeded
from arc_protocol.messages.base import IMPLICIT_TARGET
from arc_protocol.signatures import Claims, MalformedSignature, Parts, read_claims, take_apart

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

REQUIRED: Final = "SIGNATURE_REQUIRED"
INVALID: Final = "SIGNATURE_INVALID"
EXPIRED: Final = "SIGNATURE_EXPIRED"
REPLAYED: Final = "REPLAYED"
_NO_RECORD: Final = "no_record_of_signatures"


class Signed(msgspec.Struct, frozen=True):
    """A signature that holds."""

    key_id: str
    claims: Claims
    until: float
    """When it is out of date in any case, as POSIX time by this host's clock."""


class Signatures:
    """Judges signatures by the keys in force. Lives in the main loop."""

    def __init__(
        self,
        *,
        config: Callable[[], Config],
        keys: Callable[[], Mapping[str, bytes] | None],
        directory: Path,
        note: Callable[[Job, Failed, str | None], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`keys`: by id, None when signatures are not looked at. `note` is told of refusals."""
        self._config = config
        self._keys = keys
        self._directory = directory
        self._note = note
        self._now = now
        self._nonces: Nonces | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Make sure that there can be a record, where signatures are looked at.

        Raises NoncesError.
        """
        if self._keys() is not None:
            await self._record()

    def close(self) -> None:
        """Close the record."""
        if self._nonces is not None:
            self._nonces.close()

    def verify(self, job: Job) -> Signed | Failed | None:
        """Who signed a command, before its params are there; None: nobody, and nobody had to."""
        keys = self._keys()
        if keys is None:
            return None
        envelope = job.lease.envelope
        if envelope.signature is None:
            if not self._config().signing.required:
                return None
            return self._refuse(job, REQUIRED, "this host runs signed commands only", None)
        parts: Parts | None = None
        try:
            parts = take_apart(envelope.signature)
            claims = self._claims(job, parts, keys.get(parts.header.kid))
        except MalformedSignature as problem:
            key_id = None if parts is None else parts.header.kid
            return self._refuse(job, INVALID, str(problem), key_id)
        signed = Signed(parts.header.kid, claims, self._until(claims))
        return self._in_time(job, signed) or signed

    async def admit(self, job: Job, signed: Signed, source: ParamsSource) -> Outcome | None:
        """Hold the params against what was signed, and use the signature up: None when it holds.

        Durable before it returns, so that a handler is never started by a signature that could be
        used again.
        """
        if source.size != signed.claims.params_bytes or not hmac.compare_digest(
            await _digest(source), signed.claims.params_sha256
        ):
            return self._refuse(job, INVALID, "the params are others", signed.key_id)
        settings = self._config().signing
        try:
            nonces = await self._record()
            claim = await asyncio.to_thread(
                nonces.claim,
                signed.key_id,
                signed.claims.nonce,
                job.lease.command_id,
                made=signed.claims.issued_at.timestamp(),
                until=signed.until - settings.skew_seconds,
                now=self._now() - settings.skew_seconds,
                max_age=settings.max_age_seconds,
            )
        except NoncesError as error:
            log.error("command.not_started", command_id=job.lease.command_id, reason=str(error))
            return GivenBack(_NO_RECORD)
        match claim:
            case Claim.GRANTED:
                return None
            case Claim.TAKEN:
                return self._refuse(
                    job, REPLAYED, "another command came with this signature", signed.key_id
                )
            case Claim.ENDED:
                return self._refuse(
                    job, REPLAYED, "this command has been run to its end here", signed.key_id
                )
            case Claim.FORGOTTEN:
                return self._refuse(job, EXPIRED, "it is too old", signed.key_id)

    def may_start(self, job: Job) -> Failed | None:
        """Look once more: the command may have waited, for a person or for others, and its time may
        be over, or its key taken away."""
        again = self.verify(job)
        return again if isinstance(again, Failed) else None

    async def ended(self, job: Job, signed: Signed, outcome: Outcome) -> None:
        """A command that was started has come to an end of any kind; the result is in the spool."""
        if self._nonces is None or not isinstance(outcome, Succeeded | Failed):
            return  # it may come again
        try:
            await asyncio.to_thread(self._nonces.end, signed.key_id, signed.claims.nonce)
        except NoncesError as error:
            log.error("signature.not_ended", command_id=job.lease.command_id, reason=str(error))

    async def ended_before(self, command_ids: Sequence[str]) -> None:
        """Commands that an earlier process started are answered now, and not run again: use their
        signatures up. Raises NoncesError.

        Also where signatures are not looked at now: they may be again.
        """
        if command_ids and (self._keys() is not None or Nonces.is_in(self._directory)):
            nonces = await self._record()
            await asyncio.to_thread(nonces.end_commands, command_ids)

    # Inside

    def _claims(self, job: Job, parts: Parts, key: bytes | None) -> Claims:
        """What was signed, if it is what the envelope says. Raises MalformedSignature."""
        if key is None:
            raise MalformedSignature("this host has no such key")
        if not _is_by(key, parts):
            raise MalformedSignature("it is not by that key, or was changed")
        claims = read_claims(parts.claims)
        envelope, config = job.lease.envelope, self._config()
        if claims.deployment != config.deployment_id:
            raise MalformedSignature("it is for another deployment")
        if claims.command != envelope.command:
            raise MalformedSignature("it is for another command")
        if claims.deadline != envelope.deadline:
            raise MalformedSignature("it has another deadline")
        own = config.target
        if claims.target is None:
            if own is not None and not config.signing.any_target:
                raise MalformedSignature("it names no target, and this host asks for one")
        elif claims.target != (IMPLICIT_TARGET if own is None else own).resource_id:
            raise MalformedSignature("it is for another target")
        return claims

    def _until(self, claims: Claims) -> float:
        """When a signature is out of date."""
        settings = self._config().signing
        issued = claims.issued_at.timestamp()
        latest = issued + settings.max_age_seconds
        if claims.deadline is not None:
            latest = min(latest, claims.deadline.timestamp())
        return latest + settings.skew_seconds

    def _in_time(self, job: Job, signed: Signed) -> Failed | None:
        """Whether it is in time by this host's clock."""
        now, skew = self._now(), self._config().signing.skew_seconds
        issued = signed.claims.issued_at.timestamp()
        if issued > now + skew:
            ahead = timedelta(seconds=round(issued - now))
            return self._refuse(
                job, INVALID, f"it was made {ahead} ahead of this host's clock", signed.key_id
            )
        if signed.until < now:
            deadline = signed.claims.deadline
            is_overdue = deadline is not None and deadline.timestamp() + skew < now
            what = "its deadline has passed" if is_overdue else "it is too old"
            clock = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
            return self._refuse(
                job, EXPIRED, f"{what}: by this host's clock it is {clock}", signed.key_id
            )
        return None

    def _refuse(self, job: Job, code: str, reason: str, key_id: str | None) -> Failed:
        """Say no, here and there."""
        lease = job.lease
        log.warning(
            "signature.refused",
            command_id=lease.command_id,
            command=lease.envelope.command,
            code=code,
            reason=reason,
            key_id=key_id,
        )
        failed = Failed(code, reason if code == REQUIRED else f"the signature: {reason}")
        self._note(job, failed, key_id)
        return failed

    async def _record(self) -> Nonces:
        """The record, opened when it is first needed. Raises NoncesError."""
        async with self._opening:
            if self._nonces is None:
                self._nonces = await asyncio.to_thread(Nonces, self._directory)
            return self._nonces


def _is_by(key: bytes, parts: Parts) -> bool:
    """Whether a signature is by a key, over these very bytes."""
    from nacl.bindings import crypto_sign_open  # loaded only where there is something to verify
    from nacl.exceptions import BadSignatureError

    try:
        crypto_sign_open(parts.signature + parts.signed, key)
    except BadSignatureError:
        return False
    return True


async def _digest(source: ParamsSource) -> str:
    """The SHA-256 of the params as they came. Of a file it was taken while it was fetched."""
    return source.sha256 if source.sha256 is not None else sha256(source.read()).hexdigest()
