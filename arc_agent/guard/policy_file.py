"""The policy file has a host's own rules, which nothing from the server can change.

An error names the key by its path.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from datetime import UTC, tzinfo
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from arc_agent.config.params_schema import BadSchema, ParamsSchema, compile_schema
from arc_agent.guard.policy import MINUTES_A_DAY, Action, OpenHours, Policy, Rule, minutes_of
from arc_runtime.config.settings import SettingsError, load

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the file. An unknown key is an error."""


class HoursSection(_Section, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    """A window of time."""

    days: tuple[str, ...] = ("mon-sun",)
    """`mon`, or `mon-fri`."""
    start: str | int = "00:00"
    end: str | int = "24:00"
    zone: str = "UTC"
    """A name of the tz database: `Europe/Berlin`."""


class RuleSection(_Section, frozen=True, kw_only=True):
    """A rule as the file has it."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    action: Literal["allow", "deny", "approve"]
    commands: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    keys: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    senders: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    hours: Annotated[list[HoursSection], msgspec.Meta(min_length=1)] | None = None
    params: dict[str, Any] | None = None
    at_once: Annotated[int, msgspec.Meta(ge=1)] | None = None
    per_hour: Annotated[int, msgspec.Meta(ge=1)] | None = None


class PolicyFile(_Section, frozen=True, kw_only=True):
    """The whole file."""

    senders: dict[str, list[str]] = {}
    """The ids of the keys that each sender signs with, by the sender's name."""
    rules: list[RuleSection]


def read_policy(file: Path) -> Policy:
    """Return the policy in a file. Raises SettingsError.

    A file that every user may write to is refused.
    """
    _check_mode(file)
    written = load(PolicyFile, prefix="ARC_AGENT_POLICY_FILE", file=file, environ={})
    names: set[str] = set()
    rules: list[Rule] = []
    for index, rule in enumerate(written.rules):
        path = f"rules[{index}]"
        if rule.name in names:
            raise _error(f"{path}.name", "another rule has this name", file)
        names.add(rule.name)
        rules.append(
            Rule(
                name=rule.name,
                action=Action(rule.action),
                commands=None if rule.commands is None else tuple(rule.commands),
                keys=_keys(written, rule, path, file),
                hours=_hours(rule.hours, f"{path}.hours", file),
                params=_params(rule.params, f"{path}.params", file),
                at_once=rule.at_once,
                per_hour=rule.per_hour,
            )
        )
    digest = sha256(file.read_bytes()).hexdigest()
    return Policy(rules=tuple(rules), source=str(file), sha256=digest, senders=written.senders)


def _check_mode(file: Path) -> None:
    """Raise SettingsError if every user may change the rules."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise SettingsError(
            f"cannot be read: {error.strerror}", key=None, source=str(file)
        ) from None
    if mode & stat.S_IWOTH:
        raise SettingsError("every user may write to it (chmod o-w)", key=None, source=str(file))


def _keys(written: PolicyFile, rule: RuleSection, path: str, file: Path) -> tuple[str, ...] | None:
    """Return the keys of a rule, the keys of its senders included."""
    if rule.keys is None and rule.senders is None:
        return None
    found = list(rule.keys or ())
    for index, sender in enumerate(rule.senders or ()):
        if sender not in written.senders:
            raise _error(f"{path}.senders[{index}]", "is not among the file's senders", file)
        found += written.senders[sender]
    return tuple(found)


def _hours(
    given: Sequence[HoursSection] | None, path: str, file: Path
) -> tuple[OpenHours, ...] | None:
    """Return the windows of a rule."""
    if given is None:
        return None
    return tuple(_window(each, f"{path}[{index}]", file) for index, each in enumerate(given))


def _window(given: HoursSection, path: str, file: Path) -> OpenHours:
    """Return one window."""
    times: dict[str, int] = {}
    for name, value in (("from", given.start), ("to", given.end)):
        try:
            times[name] = minutes_of(value)
        except ValueError as error:
            raise _error(f"{path}.{name}", str(error), file) from None
    if times["from"] == times["to"]:
        raise _error(f"{path}.to", "is the same as `from`; a whole day is 00:00 to 24:00", file)
    start, end = times["from"], times["to"]
    if start == MINUTES_A_DAY:
        raise _error(f"{path}.from", "is the end of the day; its start is 00:00", file)
    days: set[int] = set()
    for index, text in enumerate(given.days):
        days |= _day_range(text, f"{path}.days[{index}]", file)
    if not days:
        raise _error(f"{path}.days", "no day at all", file)
    text = f"{_time(start)}-{_time(end)} {given.zone} on {', '.join(given.days)}"
    zone = _zone(given.zone, f"{path}.zone", file)
    return OpenHours(days=frozenset(days), start=start, end=end, zone=zone, text=text)


def _day_range(text: str, path: str, file: Path) -> set[int]:
    """Return the weekdays of `mon` or `mon-fri`; `sat-mon` goes on past the week's end."""
    first, dash, last = text.lower().partition("-")
    if first not in _DAYS or (dash and last not in _DAYS):
        raise _error(path, f"Expected {', '.join(_DAYS)} or a range such as mon-fri", file)
    start = _DAYS.index(first)
    length = (_DAYS.index(last) - start) % 7 if dash else 0
    return {(start + offset) % 7 for offset in range(length + 1)}


def _zone(name: str, path: str, file: Path) -> tzinfo:
    """Return a time zone by its name."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # for rules with hours

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise _error(path, "no such time zone on this host", file) from None


def _time(minutes: int) -> str:
    """Return minutes after midnight as `08:30`."""
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _params(given: dict[str, Any] | None, path: str, file: Path) -> ParamsSchema | None:
    """Return the schema of a rule."""
    if given is None:
        return None
    try:
        return compile_schema(given, path)
    except BadSchema as error:
        raise _error(error.path, error.message, file) from None


def _error(key: str, message: str, file: Path) -> SettingsError:
    """Return an error about a key."""
    return SettingsError(message, key=key, source=str(file))
