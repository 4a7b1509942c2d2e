"""Subcommands that act on the commands of a filter: list, count and retry them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from arc_client.cli.arguments import duration
from arc_client.cli.explain import ExitCode, explain
from arc_client.cli.output import print_line, show_json, show_message, show_prompt
from arc_client.cli.session import Session, in_session
from arc_client.cli.views import show_commands, show_counts
from arc_protocol.lifecycle import TERMINAL, ShownState
from arc_runtime.terminal.styles import is_terminal
from arc_runtime.terminal.table import print_note
from arc_runtime.terminal.text import printable

if TYPE_CHECKING:
    from arc_client.client import Client
    from arc_client.list_filters import ListFilter
    from arc_protocol.messages.commands import CommandStatus

LISTED: Final = 50


def moment(text: str | datetime) -> datetime:
    """Return an instant: RFC 3339, or a duration ago. Raises typer.BadParameter."""
    if isinstance(text, datetime):
        return text
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.now(UTC) - timedelta(seconds=duration(text))
        except typer.BadParameter:
            raise typer.BadParameter(
                "expected a duration such as 30m or 7d, or an instant such as 2026-10-01T09:00:00Z"
            ) from None
    return given.astimezone()  # without an offset: by the clock of this machine


def tags_of(given: Sequence[str] | None) -> dict[str, str] | None:
    """Return tags that were given as `key=value`. Raises typer.BadParameter."""
    tags: dict[str, str] = {}
    for each in given or ():
        key, equals, value = each.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected KEY=VALUE: {each}", param_hint="--tag")
        if key in tags:
            raise typer.BadParameter(f"{key} is given twice", param_hint="--tag")
        tags[key] = value
    return tags or None


DeploymentOption = Annotated[
    str | None, typer.Option("--deployment", metavar="NAME", help="Filter by deployment")
]
StatesOption = Annotated[
    list[ShownState] | None,
    typer.Option(
        "--state",
        case_sensitive=False,
        metavar="STATE",
        help="Filter by state, several by repeating it: "
        + ", ".join(each.lower() for each in ShownState),
    ),
]
NameOption = Annotated[str | None, typer.Option("--command", metavar="NAME", help="Filter by name")]
TargetOption = Annotated[
    str | None, typer.Option("--target", metavar="ID", help="Filter by target")
]
SenderOption = Annotated[
    str | None,
    typer.Option("--sender", metavar="TOKEN", help="Filter by the id of the token that sent it"),
]
TagOption = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="KEY=VALUE", help="Filter by tag; all that are given match"),
]
SinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        parser=moment,
        metavar="TIME",
        help="Filter by creation: from this long ago, or this instant, on",
    ),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option("--until", parser=moment, metavar="TIME", help="Filter by creation: before that"),
]


def _filter_of(
    deployment: str | None,
    states: Sequence[ShownState] | None,
    command: str | None,
    target: str | None,
    sender: str | None,
    tags: Sequence[str] | None,
    since: datetime | None,
    until: datetime | None,
) -> ListFilter:
    """Return the filter of the options that subcommands share. Raises typer.BadParameter."""
    if since is not None and until is not None and since >= until:
        raise typer.BadParameter("must be later than --since", param_hint="--until")
    return {
        "deployment": deployment,
        "states": states or None,
        "command": command,
        "target": target,
        "created_by": sender,
        "tags": tags_of(tags),
        "created_after": since,
        "created_before": until,
    }


@in_session
def list_commands(
    session: Session,
    deployment: DeploymentOption = None,
    state: StatesOption = None,
    command: NameOption = None,
    target: TargetOption = None,
    sender: SenderOption = None,
    tag: TagOption = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="TEXT", help="Filter by idempotency key")
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, metavar="N", help="List the newest N")
    ] = LISTED,
    count: Annotated[
        bool, typer.Option("--count", help="Count them by state; --limit does not bound it")
    ] = False,
) -> None:
    """List commands, newest first"""
    which = _filter_of(deployment, state, command, target, sender, tag, since, until)
    which["idempotency_key"] = key
    if count:
        session.show(session.run(lambda client: _counted(client, which)), show_counts)
        return

    async def work(client: Client) -> list[CommandStatus]:
        from arc_client.cli.lookup import deployment_suggestion, newest_commands

        found = await newest_commands(client, which, limit + 1)
        if not found and deployment is not None:
            likely = await deployment_suggestion(client, deployment)
            if likely:
                print_note(f"there is no deployment {deployment}{likely}")
        return found

    found = session.run(work)
    more = f"--limit {2 * limit}" if len(found) > limit else None
    session.show(
        found[:limit], lambda shown: show_commands(shown, is_wide=session.is_wide, more=more)
    )


async def _counted(client: Client, which: ListFilter) -> Mapping[str, int]:
    """Return how many commands are in each state that is asked for.

    The server knows it for a deployment and for all; for another filter the list is read.
    """
    from arc_client.cli.lookup import counted

    states = which.get("states") or tuple(ShownState)
    counts = await counted(client, which)
    return {state.value: counts[state] for state in ShownState if state in states}


@in_session
def retry(
    session: Session,
    command_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID…", help="Ids of commands, or the beginnings of them"),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="TEXT", help="Idempotency key, for one command"),
    ] = None,
    deployment: DeploymentOption = None,
    state: StatesOption = None,
    command: NameOption = None,
    target: TargetOption = None,
    sender: SenderOption = None,
    tag: TagOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
) -> None:
    """Run commands that have ended again and print the new ids"""
    which = _filter_of(deployment, state, command, target, sender, tag, since, until)
    is_filtered = any(value is not None for value in which.values())
    if command_ids and is_filtered:
        raise typer.BadParameter("give ids or filters, not both")
    if command_ids:
        _retry_named(session, command_ids, key)
        return
    if not is_filtered:
        raise typer.BadParameter("give ids, or filters such as --state failed --since 1h")
    if key is not None:
        raise typer.BadParameter("--key: for one command only")
    if live := [each.lower() for each in state or () if each.stored not in TERMINAL]:
        raise typer.BadParameter(f"{live[0]}: only what has ended can run again")
    which["states"] = state or [ShownState.FAILED]
    refused = session.run(lambda client: _retry_found(session, client, which, is_asked=not yes))
    if refused:
        raise typer.Exit(ExitCode.FAILED)


def _retry_named(session: Session, command_ids: Sequence[str], key: str | None) -> None:
    """Run commands again that were named."""
    if key is not None and len(command_ids) > 1:
        raise typer.BadParameter("--key: for one command only")

    async def work(client: Client) -> None:
        from arc_client.cli.lookup import with_whole_id

        async def again(whole: str) -> None:
            sent = await client.retry(whole, idempotency_key=key)
            _show_retried(session, whole, sent.id, sent.state)

        for command_id in command_ids:
            await with_whole_id(client, command_id, again)

    session.run(work)


async def _retry_found(
    session: Session, client: Client, which: ListFilter, *, is_asked: bool
) -> int:
    """Run the commands of a filter again, after a question; return how many were refused."""
    found = [status.command_id async for status in client.list(**which)]
    noun = "command" if len(found) == 1 else "commands"
    if not found:
        print_note("no command matches")
        return 0
    if is_asked and not _agreed(f"Run {len(found):,} {noun} again? [y/N] "):
        show_message("nothing was changed")
        raise typer.Exit(ExitCode.USAGE)
    refused = repeated = 0
    async for outcome in client.retry_each(found):
        if outcome.command is None:
            refused += 1
            reason = "" if outcome.error is None else explain(outcome.error).what
            show_message(f"{outcome.command_id}: {reason}")
            continue
        repeated += not outcome.is_new
        _show_retried(session, outcome.command_id, outcome.command.id, outcome.command.state)
    new = len(found) - refused - repeated
    before = f", {repeated:,} ran again before" if repeated else ""
    print_note(f"{new:,} of {len(found):,} {noun} run again{before}")
    return refused


def _agreed(question: str) -> bool:
    """Return True if a person says yes. Raises typer.BadParameter where there is none to ask."""
    if not is_terminal(sys.stdin):
        raise typer.BadParameter(f"{question.removesuffix(' [y/N] ')} Say so with --yes")
    show_prompt(question)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _show_retried(session: Session, old: str, new: str, state: str) -> None:
    """Write the id of a new command, for a program with that of the old."""
    if session.as_json:
        show_json({"commandId": new, "state": state, "retryOf": old})
    else:
        print_line(printable(new))
