"""A policy decides which commands a host runs: the first of its rules that matches decides.

A command that no rule matches is denied. So is one that a rule cannot judge, for example because
the rule asks about params that are not JSON. The module is pure: `policy_file` reads the file, and
the gate keeps the limits and asks operators.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from arc_agent.config.params_schema import CannotJudge, ParamsSchema, misfit

MINUTES_A_DAY: Final = 24 * 60


class Action(StrEnum):
    """The decision of a rule."""

    ALLOW = "allow"
    DENY = "deny"
    APPROVE = "approve"
    """An operator on the host decides."""


class OpenHours(msgspec.Struct, frozen=True, kw_only=True):
    """Open hours are some hours of some days, by the wall clock of a time zone.

    If their end is not after their start, they go on past midnight, and their day is the one on
    which they start.
    """

    days: frozenset[int]
    """Monday is 0."""
    start: int
    """Minutes after midnight."""
    end: int
    """Minutes after midnight; the first minute after them."""
    zone: tzinfo
    text: str
    """The window as the file has it, for explanations."""

    def holds(self, now: datetime) -> bool:
        """Return True if an instant lies in the window."""
        local = now.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        if self.start < self.end:
            return local.weekday() in self.days and self.start <= minute < self.end
        yesterday = (local - timedelta(days=1)).weekday()
        return (local.weekday() in self.days and minute >= self.start) or (
            yesterday in self.days and minute < self.end
        )


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule, ready to be tried. A condition that is None matches everything."""

    name: str
    action: Action
    commands: tuple[str, ...] | None = None
    """Globs: `reports.*`."""
    keys: tuple[str, ...] | None = None
    """Globs of the ids of keys that the command must be signed with."""
    hours: tuple[OpenHours, ...] | None = None
    params: ParamsSchema | None = None
    at_once: int | None = None
    """The limit of its commands that run at a time; further ones wait."""
    per_hour: int | None = None
    """The limit of its commands in any 3,600 seconds; further ones are denied."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A command that a policy judges."""

    command: str
    signed_by: str | None
    """The id of the key whose signature was verified; None when it is not signed."""
    at: datetime
    params: Callable[[], Any] | None
    """Reads the params, and may raise CannotJudge; None while they are not there yet."""


class Miss(msgspec.Struct, frozen=True):
    """A rule that did not match, and why."""

    rule: str
    reason: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The decision of a policy."""

    action: Action
    rule: Rule | None
    """The rule that decided; None when none matched."""
    reason: str
    """For the host's operators. It quotes no params."""
    missed: Sequence[Miss] = ()
    """The rules before it, each with the reason why it did not match."""

    @property
    def rule_name(self) -> str | None:
        """Return the name of the rule that decided."""
        return self.rule.name if self.rule is not None else None

    @property
    def for_sender(self) -> str:
        """Return a denial's message for the sender: the rule's name alone."""
        if self.rule is None:
            return "no rule of this host's policy allows it"
        return f"denied by the rule {self.rule.name!r} of this host's policy"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of a host, in order."""

    rules: tuple[Rule, ...]
    source: str
    """The file that has the rules."""
    sha256: str
    """The file's digest, for the audit log."""
    senders: Mapping[str, Sequence[str]] = {}
    """Globs of the ids of the keys that a sender signs with, by the sender's name."""

    def senders_of(self, key: str | None) -> list[str]:
        """Return the names of the senders who sign with a key."""
        if key is None:
            return []
        return [name for name, globs in self.senders.items() if _any_glob(globs, key)]

    def judge(self, question: Question) -> Verdict | None:
        """Return the verdict of the first rule that matches.

        Returns None when it depends on params that are not there yet.
        """
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
    """Return why a rule does not match, params aside; None when it does."""
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
    """Return True if a text matches one of the globs. Case counts."""
    return any(fnmatchcase(text, glob) for glob in globs)


_TIME: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})")


def minutes_of(given: str | int) -> int:
    """Return the minutes after midnight, 0 to 1440, of a time such as `08:30`. Raises ValueError.

    YAML 1.1 reads an unquoted 18:00 as the number 1080, which is the minute itself. A number below
    60 is refused, because it can only be meant otherwise.
    """
    if isinstance(given, int):
        minutes = given if given >= 60 else -1
    else:
        found = _TIME.fullmatch(given)
        minutes = int(found[1]) * 60 + int(found[2]) if found and int(found[2]) < 60 else -1
    if not 0 <= minutes <= MINUTES_A_DAY:
        raise ValueError("Expected a time of day such as 08:30")
    return minutes
