"""What this host lets senders do: rules, tried in order, the first that matches decides.

Pure: the file is read in `policy_file`, limits are kept and people are asked in `gate`. Without any
match a command is denied. Whatever cannot be judged (params that are no JSON, for instance, when a
rule asks about them) is denied as well, whatever the rule says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from arc_agent.config.params_schema import CannotJudge, ParamsSchema, misfit

MINUTES_A_DAY: Final = 24 * 60


class Action(StrEnum):
    """What a rule says."""

    ALLOW = "allow"
    DENY = "deny"
    APPROVE = "approve"
    """A person on the host decides."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Some hours of some days, by the clock on the wall of a zone.

    A window whose end is not after its start goes on past midnight; its day is the one on which it
    starts.
    """

    days: frozenset[int]
    """Monday is 0."""
    start: int
    """Minutes after midnight."""
    end: int
    """Minutes after midnight; this minute is no longer in it."""
    zone: tzinfo
    text: str
    """As it was written, for explanations."""

    def holds(self, now: datetime) -> bool:
        """Whether an instant lies in it."""
        local = now.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        if self.start < self.end:
            return local.weekday() in self.days and self.start <= minute < self.end
        yesterday = (local - timedelta(days=1)).weekday()
        return (local.weekday() in self.days and minute >= self.start) or (
            yesterday in self.days and minute < self.end
        )


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule, ready to be tried. What is None is not asked about."""

    name: str
    action: Action
    commands: tuple[str, ...] | None = None
    """Globs: `reports.*`."""
    keys: tuple[str, ...] | None = None
    """Globs of the ids of keys that the command must be signed with."""
    hours: tuple[Window, ...] | None = None
    params: ParamsSchema | None = None
    at_once: int | None = None
    """How many that this rule lets through may run at the same time; the others wait."""
    per_hour: int | None = None
    """How many it lets through in any 3,600 seconds; more are denied."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a policy."""

    command: str
    signed_by: str | None
    """The id of the key whose signature was verified; None when there is none."""
    at: datetime
    params: Callable[[], Any] | None
    """Reads the params, and raises CannotJudge. None: they are not there yet."""


class Miss(msgspec.Struct, frozen=True):
    """A rule that did not match."""

    rule: str
    reason: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy says."""

    action: Action
    rule: Rule | None
    """The rule that decided, None when none matched."""
    reason: str
    """For the host's people. Quotes no params."""
    missed: Sequence[Miss] = ()
    """The rules before it, and why each did not match."""

    @property
    def rule_name(self) -> str | None:
        """The name of the rule that decided."""
        return self.rule.name if self.rule is not None else None

    @property
    def for_sender(self) -> str:
        """What a sender is told of a denial: the rule's name, nothing of what is in it."""
        if self.rule is None:
            return "no rule of this host's policy allows it"
        return f"denied by the rule {self.rule.name!r} of this host's policy"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All rules, in order."""

    rules: tuple[Rule, ...]
    source: str
    """The file it came from."""
    sha256: str
    """Of the file, for the audit log."""

    def judge(self, question: Question) -> Verdict | None:
        """The first rule that matches. None: it depends on params, and they are not there yet."""
        missed: list[Miss] = []
        for rule in self.rules:
            reason = _misses(rule, question)
            if reason is not None:
                missed.append(Miss(rule.name, reason))
                continue
            if rule.params is not None:
                if question.params is None:
                    return None
                try:
                    reason = misfit(rule.params, question.params())
                except CannotJudge as error:
                    return Verdict(
                        action=Action.DENY,
                        rule=rule,
                        reason=f"it asks about the params, which cannot be judged: {error}",
                        missed=missed,
                    )
                if reason is not None:
                    missed.append(Miss(rule.name, reason))
                    continue
            return Verdict(
                action=rule.action, rule=rule, reason="the first that matches", missed=missed
            )
        return Verdict(action=Action.DENY, rule=None, reason="no rule matches", missed=missed)


def _misses(rule: Rule, question: Question) -> str | None:
    """Why a rule does not match, params aside; None when it does."""
    if rule.commands is not None and not _any_glob(rule.commands, question.command):
        return f"commands: {question.command} is not among {', '.join(rule.commands)}"
    if rule.keys is not None:
        if question.signed_by is None:
            return "keys: it is not signed"
        if not _any_glob(rule.keys, question.signed_by):
            return f"keys: {question.signed_by} is not among {', '.join(rule.keys)}"
    if rule.hours is not None and not any(window.holds(question.at) for window in rule.hours):
        return f"hours: it is not {' or '.join(window.text for window in rule.hours)}"
    return None


def _any_glob(globs: Sequence[str], text: str) -> bool:
    """Whether a text matches one of some globs. Case counts."""
    return any(fnmatchcase(text, glob) for glob in globs)


_TIME: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})")


def minutes_of(given: str | int) -> int:
    """`08:30` as minutes after midnight, 0 to 1440. Raises ValueError.

    YAML 1.1 reads an unquoted 18:00 as the number 1080, which is the same thing; a number below 60
    can only be meant otherwise.
    """
    if isinstance(given, int):
        minutes = given if given >= 60 else -1
    else:
        found = _TIME.fullmatch(given)
        minutes = int(found[1]) * 60 + int(found[2]) if found and int(found[2]) < 60 else -1
    if not 0 <= minutes <= MINUTES_A_DAY:
        raise ValueError("Expected a time of day such as 08:30")
    return minutes
