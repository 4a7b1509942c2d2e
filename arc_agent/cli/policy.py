"""`arc-agent policy test`: which rule of a policy decides about a command."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from arc_agent.cli.output import DONE, NO, NOT_ALLOWED, UNUSABLE, fail, show, show_sentence
from arc_agent.config.params_schema import CannotJudge, read_params
from arc_agent.guard.policy import Action, Question
from arc_agent.guard.policy_file import read_policy

_A_TIME: Final = "2026-05-04T09:00+02:00"


def run(given: argparse.Namespace) -> int:
    """Show the verdict of a policy; return the exit code. Raises SettingsError."""
    try:
        return _test(given)
    except (ValueError, OSError) as error:
        return fail(UNUSABLE, error)


def read_given_params(given: str) -> bytes:
    """Return the params of `--params`: JSON, `@FILE`, or `-` for standard input. Raises OSError."""
    if given == "-":
        return sys.stdin.buffer.read()
    return Path(given[1:]).read_bytes() if given.startswith("@") else given.encode()


def _test(given: argparse.Namespace) -> int:
    """Show the verdict. Raises ValueError, OSError, SettingsError."""
    policy = read_policy(given.file)
    data = read_given_params(given.params)
    if not given.params.startswith(("@", "-")):
        try:
            read_params(data)  # a mistake in what was typed is one even if no rule looks at it
        except CannotJudge as error:
            raise ValueError(f"--params: {error}") from None
    verdict = policy.judge(
        Question(
            command=given.name,
            signed_by=given.key,
            at=_instant(given.at),
            params=lambda: read_params(data),
        )
    )
    if verdict is None:  # only a question without params has no verdict
        raise ValueError("the params are needed")
    for miss in verdict.missed:
        show_sentence(f"not {miss.rule!r}: {miss.reason}")
    by = f"the rule {verdict.rule_name!r}" if verdict.rule is not None else "default"
    show_sentence(f"{verdict.action}, by {by}: {verdict.reason}")
    if verdict.rule is not None and verdict.action is not Action.DENY:
        for limit, text in (
            (verdict.rule.at_once, "at once"),
            (verdict.rule.per_hour, "an hour"),
        ):
            if limit is not None:
                show(f"at most {limit} {text}")
    return {Action.ALLOW: DONE, Action.DENY: NO, Action.APPROVE: NOT_ALLOWED}[verdict.action]


def _instant(given: str | None) -> datetime:
    """Return the instant of `--at`, or now. Raises ValueError."""
    if given is None:
        return datetime.now(UTC)
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        raise ValueError(f"--at: {given!r} is no time such as {_A_TIME}") from None
    if at.tzinfo is None:
        raise ValueError(f"--at: a time needs its offset, {_A_TIME} or …Z")
    return at
