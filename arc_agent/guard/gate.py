"""The gate decides whether a command that was leased may start its handler.

It asks the host's policy, keeps the limits of the policy's rules, waits for an operator where a
rule wants one, and makes the decision durable in the audit log. A command that has to wait keeps
its lease and gives its slot to another command. How many may wait is bounded.
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
from arc_agent.guard.approval_hook import ApprovalHook
from arc_agent.guard.approvals import ApprovalRequest, Approvals, Decision, Operator
from arc_agent.guard.audit import Audit, AuditUnavailable
from arc_agent.guard.digest import digest_of
from arc_agent.guard.in_force import InForce
from arc_agent.guard.policy import Action, Question, Rule, Verdict
from arc_agent.guard.turns import KeyedTurns, Turns
from arc_agent.handlers.context import ParamsSource
from arc_agent.host.clock import MonotonicClock
from arc_agent.jobs.job import Job
from arc_agent.jobs.outcome import NO_COST, Ended, Failed, GivenBack, Outcome, Succeeded
from arc_agent.jobs.responses import name_of
from arc_agent.jobs.result_files import StoredBody

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

DENIED: Final = "DENIED_BY_POLICY"
_HOUR_SECONDS: Final = 3600.0
_PREVIEW_BYTES: Final = 8192
"""The length of the params that an operator is shown, and a little more."""


class Gate:
    """The checks between a lease and its handler. Lives in the main loop."""

    def __init__(
        self,
        *,
        live: InForce,
        audit: Audit | None,
        slots: Turns,
        clock: MonotonicClock,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_approval: Callable[[str, datetime | None], None] = lambda _lease_id, _until: None,
    ) -> None:
        """Limit running handlers by `slots`. `now` is the wall clock, `clock` never jumps.

        Call `on_approval` with a lease and the end of its wait when its command begins to wait for
        an operator, and with None when it no longer does.
        """
        self._live = live
        self._audit = audit
        self._slots = slots
        self._clock = clock
        self._now = now
        self._on_approval = on_approval
        self.approvals = Approvals()
        self._hook = ApprovalHook(
            lambda: live.config.policy.approval_hook,
            lambda: live.config.policy.approval_hook_seconds,
        )
        self._at_once = KeyedTurns(
            limit_of=self._limit_of,
            slots=slots,
            max_waiting=lambda: live.config.policy.max_waiting,
        )
        self._started: set[str] = set()
        self._hourly: dict[str, deque[float]] = {}

    def remember(self, started: Iterable[tuple[str, datetime]]) -> None:
        """Count what an earlier process started, by rule: a restart is no way around `per_hour`."""
        now, on_clock = self._now(), self._clock()
        for rule, at in started:
            seconds_ago = max(0.0, (now - at).total_seconds())
            self._hourly.setdefault(rule, deque()).append(on_clock - seconds_ago)

    def is_waiting(self, lease_id: str) -> bool:
        """Return True if a command waits for an operator, or for other commands of its rule."""
        return self._at_once.is_waiting(lease_id)

    def has_started(self, lease_id: str) -> bool:
        """Return True if the command's handler was started."""
        return lease_id in self._started

    def is_open(self, lease_id: str) -> bool:
        """Return True if nothing can make the command wait."""
        return self._live.policy is None and self._slots.has(lease_id)

    def close(self) -> None:
        """Wait for nothing any longer."""
        self._hook.close()

    def wake(self) -> None:
        """Let waiting commands try again. Call it when the policy has changed."""
        self._at_once.wake()

    def log_bad_signature(self, job: Job, failed: Failed, key_id: str | None) -> None:
        """Record that a signature was refused; `key_id` names the key that it claims."""
        self._log("signature_refused", job, code=failed.code, reason=failed.message, key_id=key_id)

    def log_ended(self, job: Job, outcome: Outcome) -> None:
        """Record that a command ended in any way. The line of its start has its name."""
        fields: dict[str, Any] = {"outcome": name_of(outcome)}
        if self.has_started(job.lease.lease_id):
            fields["command"] = None
        else:
            fields["ran"] = False
        if isinstance(outcome, Succeeded):
            body = outcome.body
            is_stored = isinstance(body, StoredBody)
            fields["bytes"] = body.size if is_stored else len(body)
            fields["result_sha256"] = body.sha256 if is_stored else sha256(body).hexdigest()
        elif not isinstance(outcome, Failed):
            fields["reason"] = outcome.reason
        self._log("ended", job, **fields)

    def check_name(self, job: Job, signed_by: str | None) -> None:
        """Refuse a command before its params are fetched, if the policy can do so without them.

        Raises Ended.
        """
        policy = self._live.policy
        if policy is None:
            return
        verdict = policy.judge(self._question(job, signed_by, None))
        if verdict is not None and verdict.action is Action.DENY:
            raise self._denied(job, verdict)

    async def admit(
        self,
        job: Job,
        source: ParamsSource,
        signed_by: str | None = None,
        *,
        queue: Callable[[], Awaitable[None]] | None = None,
        recheck: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until the handler may start. Raises Ended when it may not.

        `queue` waits for anything else that takes no slot. `recheck` runs when all waiting is over
        and may raise Ended. Cancel the call when the command is to stop; call `release` in any case
        when the run ends.
        """
        verdict = await self._judge(job, source, signed_by)
        if verdict is not None:
            await self._pass(job, source, verdict, signed_by)
        if queue is not None:
            await queue()
        await self._slots.take(job.lease.lease_id)
        recheck()
        await self._record_start(job, source, verdict, signed_by)

    def release(self, lease_id: str, *, is_abandoned: bool = False) -> None:
        """Free the places of a run. Call it once when the run ends.

        An abandoned handler still counts against its rule: call it again when it really ends.
        """
        self._started.discard(lease_id)
        if not is_abandoned:
            self._at_once.release(lease_id)
        self._slots.release(lease_id)

    def decide(
        self, command_id: str, is_yes: bool, note: str | None, by: Operator
    ) -> ApprovalRequest:
        """Take an operator's answer. Raises ControlRefused."""
        return self.approvals.decide(command_id, Decision(is_yes, by, note))

    # The policy

    def _question(
        self, job: Job, signed_by: str | None, params: Callable[[], Any] | None
    ) -> Question:
        """Return the question that the policy judges."""
        command = job.lease.envelope.command
        return Question(command=command, signed_by=signed_by, at=self._now(), params=params)

    async def _judge(self, job: Job, source: ParamsSource, signed_by: str | None) -> Verdict | None:
        """Return the verdict of the policy in force; None when there is no policy."""
        policy = self._live.policy
        if policy is None:
            return None
        params: Callable[[], Any] = _too_large
        if source.size <= MAX_BYTES and any(rule.params is not None for rule in policy.rules):
            data = source.read() if source.file is None else await asyncio.to_thread(source.read)
            params = lru_cache(partial(read_params, data))
        return policy.judge(self._question(job, signed_by, params))

    async def _pass(
        self, job: Job, source: ParamsSource, verdict: Verdict, signed_by: str | None
    ) -> None:
        """Wait until a rule lets the command through. Raises Ended when it does not."""
        rule = verdict.rule
        if rule is None or verdict.action is Action.DENY:
            raise self._denied(job, verdict)
        if rule.per_hour is not None and not self._takes_one(rule, rule.per_hour):
            raise self._limited(job, rule, f"{rule.per_hour} an hour are used up")
        if verdict.action is Action.APPROVE:
            await self._wait_for_approval(job, source, rule, signed_by)
            # The approval may have taken hours: the policy may forbid the command by now.
            again = await self._judge(job, source, signed_by)
            if again is not None and again.action is Action.DENY:
                raise self._denied(job, again)
        if rule.at_once is not None:
            await self._wait_for_turn(job, rule, rule.at_once)

    async def _wait_for_turn(self, job: Job, rule: Rule, at_once: int) -> None:
        """Wait until fewer commands of the rule run than it allows at a time. Raises Ended."""
        lease_id = job.lease.lease_id
        if self._at_once.try_take(rule.name, lease_id):
            return
        if self._at_once.is_full:
            raise self._limited(job, rule, "too many commands wait already")
        log.info("policy.queued", command_id=job.lease.command_id, rule=rule.name, at_once=at_once)
        self._log("queued", job, rule=rule.name)
        seconds = self._live.config.policy.queue_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._at_once.take(rule.name, lease_id)
        except TimeoutError:
            raise self._limited(job, rule, f"others ran for {seconds:g} s") from None

    def _limit_of(self, rule_name: str) -> int | None:
        """Return how many commands of a rule may run at a time, by the policy in force."""
        policy = self._live.policy
        rules = policy.rules if policy is not None else ()
        return next((rule.at_once for rule in rules if rule.name == rule_name), None)

    async def _wait_for_approval(
        self, job: Job, source: ParamsSource, rule: Rule, signed_by: str | None
    ) -> None:
        """Wait until an operator allows the command. Raises Ended when none does."""
        lease = job.lease
        if self._at_once.is_full:
            raise self._limited(job, rule, "too many commands wait already")
        with self._at_once.waiting(lease.lease_id):
            decision = await self._ask_operator(job, source, rule, signed_by)
        if decision is None:
            seconds = self._live.config.policy.approval_seconds
            raise self._limited(job, rule, f"no operator approved it within {seconds:g} s")
        name = "approved" if decision.is_yes else "refused"
        by = decision.by
        log.info(f"approval.{name}", command_id=lease.command_id, by=by.login.name, by_uid=by.uid)
        self._log(name, job, rule=rule.name, **by.fields(), note=decision.note)
        if not decision.is_yes:
            note = f": {decision.note}" if decision.note else ""
            raise self._limited(job, rule, f"a person on the host refused it{note}")

    async def _ask_operator(
        self, job: Job, source: ParamsSource, rule: Rule, signed_by: str | None
    ) -> Decision | None:
        """Show a command to the operators and return the answer of one; None without any."""
        lease, since, policy = job.lease, self._now(), self._live.policy
        seconds = self._live.config.policy.approval_seconds
        request = ApprovalRequest(
            command_id=lease.command_id,
            command=lease.envelope.command,
            attempt=lease.attempt,
            rule=rule.name,
            signed_by=signed_by,
            senders=policy.senders_of(signed_by) if policy is not None else (),
            since=since,
            until=since + timedelta(seconds=seconds),
            params=await _preview(source),
            params_bytes=source.size,
            params_sha256=await digest_of(source),
            shows_params=self._live.config.policy.show_params,
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
        self._log("approval", job, rule=rule.name)
        self._hook.start(request.announced())
        self._on_approval(lease.lease_id, request.until)
        try:
            return await self.approvals.decision(request, seconds)
        finally:
            self._on_approval(lease.lease_id, None)

    def _takes_one(self, rule: Rule, per_hour: int) -> bool:
        """Count a command against its rule's hour. Return False when the hour is full."""
        since = self._clock() - _HOUR_SECONDS
        times = self._hourly.setdefault(rule.name, deque())
        while times and times[0] <= since:
            times.popleft()
        if len(times) >= per_hour:
            return False
        times.append(self._clock())
        return True

    def _denied(self, job: Job, verdict: Verdict) -> Ended:
        """Return the end of a command that the policy denies."""
        return self._refusal(job, verdict.rule_name, verdict.reason, verdict.for_sender)

    def _limited(self, job: Job, rule: Rule, reason: str) -> Ended:
        """Return the end of a command that a rule allows, but its limits or an operator do not."""
        message = f"not let through by the rule {rule.name!r} of this host's policy: {reason}"
        return self._refusal(job, rule.name, reason, message)

    def _refusal(self, job: Job, rule: str | None, reason: str, message: str) -> Ended:
        """Log a refusal and return the command's end; `message` is for the sender."""
        lease = job.lease
        log.warning(
            "policy.denied",
            command_id=lease.command_id,
            command=lease.envelope.command,
            rule=rule,
            reason=reason,
        )
        self._log("denied", job, rule=rule, reason=reason)
        return Ended(Failed(DENIED, message))

    # The audit log

    async def _record_start(
        self, job: Job, source: ParamsSource, verdict: Verdict | None, signed_by: str | None
    ) -> None:
        """Make the decision to start durable. Raises Ended when that fails: it does not start."""
        if self._audit is not None:
            try:
                await self._audit.record(
                    "started",
                    **_who(job),
                    rule=verdict.rule_name if verdict is not None else None,
                    signed_by=signed_by,
                    bytes=source.size,
                    params_sha256=await digest_of(source),
                )
            except (AuditUnavailable, OSError) as error:
                log.error(
                    "command.not_started", command_id=job.lease.command_id, reason=f"audit: {error}"
                )
                raise Ended(GivenBack(NO_COST)) from None
        self._started.add(job.lease.lease_id)

    def _log(self, event: str, job: Job, **fields: Any) -> None:
        """Add a line to the audit log without waiting for the disk."""
        if self._audit is not None:
            self._audit.note(event, **{**_who(job), **fields})


def _who(job: Job) -> dict[str, Any]:
    """Return the fields that name a command and its attempt, if it is not the first."""
    lease = job.lease
    return {
        "command": lease.envelope.command,
        "command_id": lease.command_id,
        "attempt": lease.attempt if lease.attempt != 1 else None,
    }


def _too_large() -> NoReturn:
    """Raise CannotJudge: the policy does not read params of that size."""
    raise CannotJudge(f"the params have more than {MAX_BYTES} bytes")


async def _preview(source: ParamsSource) -> bytes:
    """Return the beginning of the params."""

    def read() -> bytes:
        with source.open() as file:
            return file.read(_PREVIEW_BYTES)

    return read() if source.file is None else await asyncio.to_thread(read)
