"""Between a lease and its handler: the policy's word, its limits, a person's word, the audit log.

A command that has to wait (for a person, or for another of the same rule to end) keeps its lease,
which is renewed meanwhile, and takes no slot: the others run on. How many may wait is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from hashlib import sha256
from typing import Any, Final, NoReturn

import structlog

from arc_agent.config.params_schema import MAX_BYTES, CannotJudge, read_params
from arc_agent.config.sections import PolicySection
from arc_agent.guard.approvals import Approvals, Asked, Decision
from arc_agent.guard.audit import Audit, AuditUnavailable
from arc_agent.guard.policy import Action, Policy, Question, Rule, Verdict
from arc_agent.guard.turns import Turns
from arc_agent.handlers.context import ParamsSource
from arc_agent.host.clock import Clock
from arc_agent.host.control_socket import Peer
from arc_agent.jobs.job import Job
from arc_agent.jobs.outcome import NO_COST, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.responses import name_of
from arc_agent.jobs.result_files import StoredBody

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

DENIED: Final = "DENIED_BY_POLICY"
_HOUR_SECONDS: Final = 3600.0


class Gate:
    """What every command passes. Lives in the main loop."""

    def __init__(
        self,
        *,
        policy: Callable[[], Policy | None],
        settings: Callable[[], PolicySection],
        audit: Audit | None,
        slots: Turns,
        clock: Clock,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`slots` are the places of running handlers."""
        self._policy = policy
        self._settings = settings
        self._audit = audit
        self._slots = slots
        self._clock = clock
        self._now = now
        self.approvals = Approvals()
        self._waiting: set[str] = set()
        self._started: set[str] = set()
        self._lines: dict[str, Turns] = {}
        self._hourly: dict[str, deque[float]] = {}

    def remember(self, started: Iterable[tuple[str, datetime]]) -> None:
        """Count what an earlier process started, by rule: a restart is no way around `per_hour`."""
        now, on_clock = self._now(), self._clock()
        for rule, at in started:
            seconds_ago = max(0.0, (now - at).total_seconds())
            self._hourly.setdefault(rule, deque()).append(on_clock - seconds_ago)

    def is_waiting(self, lease_id: str) -> bool:
        """Whether a command waits, for a person or for another to end."""
        return lease_id in self._waiting

    def has_started(self, lease_id: str) -> bool:
        """Whether its handler was started."""
        return lease_id in self._started

    def is_quick(self, lease_id: str) -> bool:
        """Whether there is nothing that a command may have to wait for."""
        return self._policy() is None and self._slots.has(lease_id)

    def changed(self) -> None:
        """There is another policy: who waits for a place looks again."""
        for line in self._lines.values():
            line.look()

    def leased(self, job: Job) -> None:
        """A lease has come in."""
        self._note("leased", job)

    def refused(self, job: Job, failed: Failed, key_id: str | None) -> None:
        """A command was refused for its signature; `key_id` is what it claims to be signed by."""
        self._note("signature_refused", job, code=failed.code, reason=failed.message, key_id=key_id)

    def by_name(self, job: Job, signed_by: str | None = None) -> Failed | None:
        """Deny before params are fetched, if the policy needs no params to do so."""
        policy = self._policy()
        if policy is None:
            return None
        verdict = policy.judge(self._question(job, signed_by, None))
        if verdict is None or verdict.action is not Action.DENY:
            return None
        return self._denied(job, verdict)

    async def admit(
        self,
        job: Job,
        source: ParamsSource,
        signed_by: str | None = None,
        queue: Callable[[], Awaitable[None]] | None = None,
        still: Callable[[], Failed | None] = lambda: None,
    ) -> Outcome | None:
        """Until the handler may start: None. Anything else is what becomes of the command instead.

        `queue` waits for whatever else there is to wait for without a slot. `still`: asked when
        all waiting is over; what it answers instead of None ends the command. Cancelled
        when the command is to stop; call `left` in any case when the run is over.
        """
        lease_id = job.lease.lease_id
        verdict: Verdict | None = None
        if self._policy() is not None:
            verdict = await self._judge(job, source, signed_by)
            if verdict is not None:
                refused = await self._wait(job, source, verdict, signed_by)
                if refused is not None:
                    return refused
        if queue is not None:
            await queue()
        await self._slots.enter(lease_id)
        refused = still()
        if refused is not None:
            return refused
        return await self._record_start(job, source, verdict, signed_by)

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A command has come to an end of any kind."""
        fields: dict[str, Any] = {
            "outcome": name_of(outcome),
            "ran": self.has_started(job.lease.lease_id),
        }
        if isinstance(outcome, Succeeded):
            body = outcome.body
            is_stored = isinstance(body, StoredBody)
            fields["bytes"] = body.size if is_stored else len(body)
            fields["result_sha256"] = body.sha256 if is_stored else sha256(body).hexdigest()
        elif not isinstance(outcome, Failed):
            fields["reason"] = outcome.reason
        self._note("ended", job, **fields)

    def left(self, lease_id: str, *, is_abandoned: bool = False) -> None:
        """A run is over, whatever became of it: its places are free.

        A handler that ignores its end still counts against its rule: say so again when it is over.
        """
        self._waiting.discard(lease_id)
        self._started.discard(lease_id)
        if not is_abandoned:
            for line in self._lines.values():
                line.leave(lease_id)
        self._slots.leave(lease_id)

    def decide(self, command_id: str, is_yes: bool, note: str | None, peer: Peer) -> Asked:
        """A person on the host says yes or no. Raises ControlRefused."""
        return self.approvals.decide(command_id, Decision(is_yes, peer.uid, note), peer)

    # The policy

    def _question(
        self, job: Job, signed_by: str | None, params: Callable[[], Any] | None
    ) -> Question:
        """What the policy is asked."""
        command = job.lease.envelope.command
        return Question(command=command, signed_by=signed_by, at=self._now(), params=params)

    async def _judge(self, job: Job, source: ParamsSource, signed_by: str | None) -> Verdict | None:
        """What the policy in force says; None when there is none any more."""
        policy = self._policy()
        if policy is None:
            return None
        params = partial(_too_large)
        if source.size <= MAX_BYTES and any(rule.params is not None for rule in policy.rules):
            data = source.read() if source.file is None else await asyncio.to_thread(source.read)
            params = lru_cache(partial(read_params, data))
        return policy.judge(self._question(job, signed_by, params))

    async def _wait(
        self, job: Job, source: ParamsSource, verdict: Verdict, signed_by: str | None
    ) -> Outcome | None:
        """Until the policy lets a command through: None. Else what it is told."""
        rule = verdict.rule
        if rule is None or verdict.action is Action.DENY:
            return self._denied(job, verdict)
        if rule.per_hour is not None and not self._takes_one(rule, rule.per_hour):
            return self._limited(job, rule, f"{rule.per_hour} an hour are used up")
        if verdict.action is Action.APPROVE:
            refused = await self._approved(job, source, rule, signed_by)
            if refused is not None:
                return refused
            # Hours have passed, perhaps: what was allowed then may be forbidden now.
            again = await self._judge(job, source, signed_by)
            if again is not None and again.action is Action.DENY:
                return self._denied(job, again)
        if rule.at_once is not None:
            return await self._queued(job, rule, rule.at_once)
        return None

    async def _queued(self, job: Job, rule: Rule, at_once: int) -> Failed | None:
        """Until fewer commands of the rule run than it allows at the same time."""
        lease_id = job.lease.lease_id
        line = self._lines.get(rule.name)
        if line is None:
            line = self._lines[rule.name] = Turns(partial(self._at_once, rule.name), lambda: None)
        if line.try_enter(lease_id):
            return None
        if not self._may_wait(lease_id):
            return self._limited(job, rule, "too many commands wait already")
        log.info("policy.queued", command_id=job.lease.command_id, rule=rule.name, at_once=at_once)
        self._note("queued", job, rule=rule.name)
        seconds = self._settings().queue_seconds
        try:
            async with asyncio.timeout(seconds):
                await line.enter(lease_id)
        except TimeoutError:
            return self._limited(job, rule, f"others ran for {seconds:g} s")
        finally:
            self._waiting.discard(lease_id)
        return None

    def _at_once(self, name: str) -> int:
        """How many of a rule may run at the same time, by the policy in force."""
        policy = self._policy()
        rules = policy.rules if policy is not None else ()
        rule = next((each for each in rules if each.name == name), None)
        unlimited = 1_000_000
        return rule.at_once or unlimited if rule is not None else unlimited

    async def _approved(
        self, job: Job, source: ParamsSource, rule: Rule, signed_by: str | None
    ) -> Failed | None:
        """Until a person says yes."""
        lease = job.lease
        if not self._may_wait(lease.lease_id):
            return self._limited(job, rule, "too many commands wait already")
        seconds = self._settings().approval_seconds
        since = self._now()
        asked = Asked(
            command_id=lease.command_id,
            command=lease.envelope.command,
            attempt=lease.attempt,
            rule=rule.name,
            signed_by=signed_by,
            since=since,
            until=since + timedelta(seconds=seconds),
            params=await _start_of(source),
            params_bytes=source.size,
            decision=asyncio.get_running_loop().create_future(),
        )
        log.warning(
            "approval.waiting",
            command_id=lease.command_id,
            command=lease.envelope.command,
            rule=rule.name,
            seconds=seconds,
            hint=f"arc-agent approve {lease.command_id}",
        )
        self._note("approval", job, rule=rule.name)
        try:
            decision = await self.approvals.decision(asked, seconds)
        finally:
            self._waiting.discard(lease.lease_id)
        if decision is None:
            return self._limited(job, rule, f"nobody approved it within {seconds:g} s")
        name = "approved" if decision.is_yes else "refused"
        log.info(f"approval.{name}", command_id=lease.command_id, by_uid=decision.by_uid)
        self._note(name, job, rule=rule.name, by_uid=decision.by_uid, note=decision.note)
        if decision.is_yes:
            return None
        note = f": {decision.note}" if decision.note else ""
        return self._limited(job, rule, f"a person on the host refused it{note}")

    def _may_wait(self, lease_id: str) -> bool:
        """Make a command wait: its slot goes to another. False when too many wait."""
        if len(self._waiting) >= self._settings().max_waiting:
            return False
        self._waiting.add(lease_id)
        self._slots.leave(lease_id)
        return True

    def _takes_one(self, rule: Rule, per_hour: int) -> bool:
        """Count a command against a rule's hour; False when the hour is full."""
        since = self._clock() - _HOUR_SECONDS
        times = self._hourly.setdefault(rule.name, deque())
        while times and times[0] <= since:
            times.popleft()
        if len(times) >= per_hour:
            return False
        times.append(self._clock())
        return True

    def _denied(self, job: Job, verdict: Verdict) -> Failed:
        """The policy says no."""
        return self._refusal(job, verdict.rule_name, verdict.reason, verdict.for_sender)

    def _limited(self, job: Job, rule: Rule, reason: str) -> Failed:
        """A rule would let it through, but for its limits or a person."""
        said = f"not let through by the rule {rule.name!r} of this host's policy: {reason}"
        return self._refusal(job, rule.name, reason, said)

    def _refusal(self, job: Job, rule: str | None, reason: str, said: str) -> Failed:
        """Say no, here and there."""
        lease = job.lease
        log.warning(
            "policy.denied",
            command_id=lease.command_id,
            command=lease.envelope.command,
            rule=rule,
            reason=reason,
        )
        self._note("denied", job, rule=rule, reason=reason)
        return Failed(DENIED, said)

    # The audit log

    async def _record_start(
        self, job: Job, source: ParamsSource, verdict: Verdict | None, signed_by: str | None
    ) -> GivenBack | None:
        """Make the decision to run a command durable. Where that fails, it does not run."""
        if self._audit is not None:
            try:
                await self._audit.record(
                    "started",
                    **_who(job),
                    rule=verdict.rule_name if verdict is not None else None,
                    signed_by=signed_by,
                    bytes=source.size,
                    params_sha256=await _digest(source),
                )
            except (AuditUnavailable, OSError) as error:
                log.error(
                    "command.not_started", command_id=job.lease.command_id, reason=f"audit: {error}"
                )
                return GivenBack(NO_COST)
        self._started.add(job.lease.lease_id)
        return None

    def _note(self, event: str, job: Job, **fields: Any) -> None:
        """A line that nobody waits for."""
        if self._audit is not None:
            self._audit.note(event, **_who(job), **fields)


def _who(job: Job) -> dict[str, Any]:
    """Which command, under which lease."""
    lease = job.lease
    return {
        "command": lease.envelope.command,
        "command_id": lease.command_id,
        "lease_id": lease.lease_id,
        "attempt": lease.attempt,
    }


def _too_large() -> NoReturn:
    """What asking for params that are not looked at gives."""
    raise CannotJudge(f"the params have more than {MAX_BYTES} bytes")


async def _digest(source: ParamsSource) -> str:
    """The SHA-256 of the params as they came. Raises OSError."""
    if source.sha256 is not None:
        return source.sha256
    if source.file is None:
        return sha256(source.read()).hexdigest()

    def of_file() -> str:
        digest = sha256()
        with source.open() as file:
            while chunk := file.read(1024 * 1024):
                digest.update(chunk)
        return digest.hexdigest()

    return await asyncio.to_thread(of_file)


async def _start_of(source: ParamsSource) -> bytes:
    """As much of the params as a person may want to see."""

    def read() -> bytes:
        with source.open() as file:
            return file.read(8192)

    return read() if source.file is None else await asyncio.to_thread(read)
