"""Bounds of tokens, as options of the command line give them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final

import msgspec
import typer

from arc_protocol.codec import split_path
from arc_protocol.messages.base import CommandTarget, Name, ResourceType
from arc_runtime.durations import parse_duration

MAX_EXPIRY: Final = timedelta(days=3_660)

TargetOption = Annotated[
    str | None,
    typer.Option(metavar="ID[:TYPE]", help="Bind it to one target; TYPE is daemon by default"),
]


def named(option: str, given: str) -> str:
    """Return a name, or a pattern of names. Raises BadParameter for a malformed one."""
    try:
        return msgspec.convert(given, Name)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(f"{option}: {split_path(str(error))[0]}") from None


def patterns(option: str, given: Sequence[str]) -> tuple[str, ...] | None:
    """Return the patterns of a repeated option; None if it was not given."""
    return tuple(named(option, each) for each in given) or None


def target_of(given: str | None) -> CommandTarget | None:
    """Return the target that `ID[:TYPE]` names. Raises BadParameter."""
    if given is None:
        return None
    resource_id, _, kind = given.partition(":")
    try:
        resource_type = ResourceType(kind or ResourceType.DAEMON)
    except ValueError:
        kinds = ", ".join(ResourceType)
        raise typer.BadParameter(f"--target: TYPE is one of {kinds}") from None
    return CommandTarget(resource_id=named("--target", resource_id), resource_type=resource_type)


def end_of(option: str, given: str | None, now: datetime) -> datetime | None:
    """Return when a duration from now ends; None if it was not given. Raises BadParameter."""
    if given is None:
        return None
    try:
        life = timedelta(seconds=parse_duration(given))
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None
    if not timedelta() <= life <= MAX_EXPIRY:
        raise typer.BadParameter(f"{option}: must be from 0 to {MAX_EXPIRY.days}d")
    return now + life
