"""Signatures decide whether this host may run the command that a signature came with.

A server can deliver a signed command late, or never; it cannot make one. Everything that the
envelope says is compared with what was signed, by keys on this host and by this host's own clock:

    there is no signature, and `signing.required` is set                   SIGNATURE_REQUIRED
    it is malformed, by another key, or for anything but this command      SIGNATURE_INVALID
    its deadline or `signing.max_age_seconds` has passed                   SIGNATURE_EXPIRED
    another command used it before, or this command has ended here         REPLAYED
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import structlog

from arc_agent.guard.digest import digest_of
from arc_agent.guard.in_force import InForce
from arc_agent.guard.used_signatures import Claim, UsedSignatures, UsedSignaturesError
from arc_agent.handlers.context import ParamsSource
from arc_agent.jobs.job import Job
from arc_agent.jobs.outcome import Ended, Failed, GivenBack, Outcome, Succeeded
from arc_protocol.messages.base import IMPLICIT_TARGET
from arc_protocol.signatures import (
    Claims,
    MalformedSignature,
    SignatureParts,
    read_claims,
    take_apart,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

REQUIRED: Final = "SIGNATURE_REQUIRED"
INVALID: Final = "SIGNATURE_INVALID"
EXPIRED: Final = "SIGNATURE_EXPIRED"
REPLAYED: Final = "REPLAYED"
_NO_RECORD: Final = "no_record_of_signatures"
_REFUSED_CLAIMS: Final = {
    Claim.TAKEN: (REPLAYED, "another command came with this signature"),
    Claim.ENDED: (REPLAYED, "this command has been run to its end here"),
    Claim.FORGOTTEN: (EXPIRED, "it is too old"),
}


class Signed(msgspec.Struct, frozen=True):
    """A signature that was verified."""

    key_id: str
    claims: Claims
    until: float
    """When it expires, as POSIX time by this host's clock."""


class Signatures:
    """Verifies signatures with the keys in force. Lives in the main loop."""

    def __init__(
        self,
        *,
        live: InForce,
        directory: Path,
        on_refused: Callable[[Job, Failed, str | None], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Keep the used signatures in `directory`. `on_refused` gets the claimed key id."""
        self._live = live
        self._directory = directory
        self._on_refused = on_refused
        self._now = now
        self._nonces: UsedSignatures | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Open the record of used signatures, where signatures are verified.

        Raises UsedSignaturesError.
        """
        if self._live.signing_keys is not None:
            await self._record()

    def close(self) -> None:
        """Close the record."""
        if self._nonces is not None:
            self._nonces.close()

    def verify(self, job: Job) -> Signed | None:
        """Verify a command's signature, before its params are there.

        Returns None where signatures are not verified, and for an unsigned command where signatures
        are not required. Raises Ended for a signature that does not hold.
        """
        keys = self._live.signing_keys
        if keys is None:
            return None
        envelope = job.lease.envelope
        if envelope.signature is None:
            if not self._live.config.signing.required:
                return None
            raise self._refusal(job, REQUIRED, "this host runs signed commands only", None)
        parts: SignatureParts | None = None
        try:
            parts = take_apart(envelope.signature)
            claims = self._claims(job, parts, keys.get(parts.header.kid))
        except MalformedSignature as problem:
            key_id = None if parts is None else parts.header.kid
            raise self._refusal(job, INVALID, str(problem), key_id) from None
        signed = Signed(parts.header.kid, claims, self._until(claims))
        self._check_time(job, signed)
        return signed

    async def admit(self, job: Job, signed: Signed, source: ParamsSource) -> None:
        """Compare the params with what was signed, and use the signature up. Raises Ended.

        Durable before it returns, so that no handler is started by a signature that could be used
        again.
        """
        if source.size != signed.claims.params_bytes or not hmac.compare_digest(
            await digest_of(source), signed.claims.params_sha256
        ):
            raise self._refusal(job, INVALID, "the params are others", signed.key_id)
        settings = self._live.config.signing
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
        except UsedSignaturesError as error:
            log.error("command.not_started", command_id=job.lease.command_id, reason=str(error))
            raise Ended(GivenBack(_NO_RECORD)) from None
        if claim is not Claim.GRANTED:
            raise self._refusal(job, *_REFUSED_CLAIMS[claim], signed.key_id)

    def recheck(self, job: Job) -> None:
        """Verify again after a wait: the time may be over, or the key taken away. Raises Ended."""
        self.verify(job)

    async def end(self, job: Job, signed: Signed, outcome: Outcome) -> None:
        """Use a signature up for good: its command was started, and its result is in the spool."""
        if self._nonces is None or not isinstance(outcome, Succeeded | Failed):
            return  # the command may come again
        try:
            await asyncio.to_thread(self._nonces.end, signed.key_id, signed.claims.nonce)
        except UsedSignaturesError as error:
            log.error("signature.not_ended", command_id=job.lease.command_id, reason=str(error))

    async def end_commands(self, command_ids: Sequence[str]) -> None:
        """Use up the signatures of commands that an earlier process started.

        They are answered and not run again. Also where signatures are not verified now: they may be
        again. Raises UsedSignaturesError.
        """
        if command_ids and (
            self._live.signing_keys is not None or UsedSignatures.is_in(self._directory)
        ):
            nonces = await self._record()
            await asyncio.to_thread(nonces.end_commands, command_ids)

    # Inside

    def _claims(self, job: Job, parts: SignatureParts, key: bytes | None) -> Claims:
        """Return what was signed, if the envelope says it too. Raises MalformedSignature."""
        if key is None:
            raise MalformedSignature("this host has no such key")
        if not _is_by(key, parts):
            raise MalformedSignature("it is not by that key, or was changed")
        claims = read_claims(parts.claims)
        envelope, config = job.lease.envelope, self._live.config
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
        """Return when a signature expires."""
        settings = self._live.config.signing
        issued = claims.issued_at.timestamp()
        latest = issued + settings.max_age_seconds
        if claims.deadline is not None:
            latest = min(latest, claims.deadline.timestamp())
        return latest + settings.skew_seconds

    def _check_time(self, job: Job, signed: Signed) -> None:
        """Compare a signature with this host's clock. Raises Ended."""
        now, skew = self._now(), self._live.config.signing.skew_seconds
        issued = signed.claims.issued_at.timestamp()
        if issued > now + skew:
            ahead = timedelta(seconds=round(issued - now))
            reason = f"it was made {ahead} ahead of this host's clock"
            raise self._refusal(job, INVALID, reason, signed.key_id)
        if signed.until < now:
            deadline = signed.claims.deadline
            is_overdue = deadline is not None and deadline.timestamp() + skew < now
            problem = "its deadline has passed" if is_overdue else "it is too old"
            clock = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
            reason = f"{problem}: by this host's clock it is {clock}"
            raise self._refusal(job, EXPIRED, reason, signed.key_id)

    def _refusal(self, job: Job, code: str, reason: str, key_id: str | None) -> Ended:
        """Log a refusal and return the command's end."""
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
        self._on_refused(job, failed, key_id)
        return Ended(failed)

    async def _record(self) -> UsedSignatures:
        """Return the record, opened when it is first needed. Raises UsedSignaturesError."""
        async with self._opening:
            if self._nonces is None:
                self._nonces = await asyncio.to_thread(UsedSignatures, self._directory)
            return self._nonces


def _is_by(key: bytes, parts: SignatureParts) -> bool:
    """Return True if a signature is by a key, over these very bytes."""
    from nacl.bindings import crypto_sign_open  # 4 MB, for hosts that verify signatures
    from nacl.exceptions import BadSignatureError

    try:
        crypto_sign_open(parts.signature + parts.signed, key)
    except BadSignatureError:
        return False
    return True
