"""Views lay out commands, agents and handlers as tables and as lists of facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from arc_client.cli.handlers import Offer, rows_of
from arc_client.cli.output import laid_out, print_line, show_facts
from arc_client.cli.states import error_code_of, is_cancelled, shown_state
from arc_client.wire.waiting_reasons import reason_of
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.agents import AgentInfo, DeploymentPresence, HandlerInfo, ReceiverInfo
from arc_protocol.messages.bodies import ErrorResponse, InlineBody
from arc_protocol.messages.commands import AttemptInfo, CommandStatus
from arc_runtime.durations import format_duration
from arc_runtime.terminal.table import Cell, Column, print_table
from arc_runtime.terminal.text import printable
from arc_runtime.terminal.times import age, local, short_span


def show_commands(
    commands: Sequence[CommandStatus], *, is_wide: bool = False, more: str | None = None
) -> None:
    """Show commands as a table."""
    print_table(
        [
            Column("ID"),
            Column("STATE", is_state=True),
            Column("ERROR", rank=2),
            Column("COMMAND", rank=1),
            Column("DEPLOYMENT", rank=4),
            Column("CREATED", rank=3),
            Column("TOOK", rank=5),
            Column("ATTEMPT", rank=6),
            Column("TARGET", is_wide=True),
            Column("DISPATCHED", is_wide=True),
            Column("COMPLETED", is_wide=True),
            Column("DEADLINE", is_wide=True),
        ],
        [
            [
                status.command_id,
                shown_state(status),
                None if is_cancelled(status) else error_code_of(status),
                status.command,
                status.deployment_id,
                status.created_at,
                _took(status),
                status.attempt,
                status.target.resource_id if status.target else None,
                status.dispatched_at,
                status.completed_at,
                status.deadline,
            ]
            for status in commands
        ],
        is_wide=is_wide,
        more=more,
    )


def show_counts(counts: Mapping[str, int]) -> None:
    """Show how many commands are in each state as a table."""
    print_table(
        [Column("STATE", is_state=True), Column("COUNT")],
        [[state, f"{number:,}"] for state, number in counts.items()],
    )


def show_agents(found: Sequence[AgentInfo | ReceiverInfo], *, is_wide: bool = False) -> None:
    """Show agents, and receivers that do not register, as a table."""
    print_table(
        [
            Column("DEPLOYMENT", rank=1),
            Column("HOST"),
            Column("STATUS", is_state=True),
            Column("SEEN", rank=2),
            Column("NOTE", rank=3, is_text=True),
            Column("RUNNING", rank=5),
            Column("HANDLERS", rank=4, is_text=True),
            Column("VERSION", rank=6),
            Column("TARGET", rank=7),
            Column("AGENT", is_wide=True),
        ],
        [_row_of(each) for each in found],
        is_wide=is_wide,
    )


def push_note(deployment: str, presence: DeploymentPresence) -> str:
    """Return how the commands of a deployment with a push URL are delivered."""
    circuit = presence.push_circuit
    if circuit is None:
        return f"commands of {deployment} are pushed to a URL"
    left = (circuit.retry_at - presence.now).total_seconds()
    following = f"the next try is in {short_span(left)}" if left > 0 else "it is being tried"
    since = short_span((presence.now - circuit.since).total_seconds())
    return (
        f"the push URL of {deployment} has not answered for {since}"
        f" ({printable(circuit.reason)}); {following}"
    )


def _row_of(each: AgentInfo | ReceiverInfo) -> list[Cell]:
    """Return the row of an agent or a receiver."""
    target = each.target.resource_id if each.target else None
    if isinstance(each, ReceiverInfo):
        note = "polls without registering"
        facts: list[Cell] = ["", "unregistered", each.last_seen_at, note, "", "", "", target, ""]
        return [each.deployment_id, *facts]
    return [
        each.deployment_id,
        each.hostname,
        _standing(each),
        each.last_seen_at,
        _note(each),
        len(each.holding),
        " ".join(handler.name for handler in each.handlers),
        each.version,
        target,
        each.agent_id,
    ]


def show_offers(found: Sequence[Offer], *, is_wide: bool = False) -> None:
    """Show the handlers of agents as a table."""
    print_table(
        [
            Column("DEPLOYMENT", rank=2),
            Column("COMMAND"),
            Column("DESCRIPTION", rank=1, is_text=True),
            Column("REPEATABLE", rank=5),
            Column("TIMEOUT", rank=4),
            Column("HOSTS", rank=3, is_text=True),
        ],
        [
            [
                offer.deployment_id,
                offer.handler.name,
                offer.handler.description,
                _yes_or_no(offer.handler.idempotent),
                _timeout(offer.handler),
                _hosts(offer),
            ]
            for offer in found
        ],
        is_wide=is_wide,
    )


def show_offer(offer: Offer, *, is_wide: bool = False) -> None:
    """Show one handler: what it is for, what it takes, what it returns."""
    handler = offer.handler
    show_facts(
        {
            "command": handler.name,
            "deployment": offer.deployment_id,
            "about": handler.description,
            "repeatable": _yes_or_no(handler.idempotent),
            "timeout": _timeout(handler),
            "hosts": _hosts(offer),
        }
    )
    for title, schema in (("params", handler.params_schema), ("result", handler.result_schema)):
        print_line("")
        if schema is None:
            print_line(f"{title:<12}the agent does not say")
            continue
        print_line(f"{title}:")
        print_table(
            [
                Column("FIELD"),
                Column("TYPE", rank=1, is_text=True),
                Column("REQUIRED", rank=3),
                Column("DEFAULT", rank=4, is_text=True),
                Column("ABOUT", rank=2, is_text=True),
            ],
            [
                [row.path, row.type, "yes" if row.is_required else "no", row.default, row.about]
                for row in rows_of(schema)
            ],
            is_wide=is_wide,
        )


def show_status(status: CommandStatus) -> None:
    """Show one command, a fact a line."""
    failure = status.response if isinstance(status.response, ErrorResponse) else None
    attempts = f" of {status.max_attempts}" if status.max_attempts is not None else ""
    facts: dict[str, str | datetime | None] = {
        "command": status.command_id,
        "state": shown_state(status),
        "deployment": status.deployment_id,
        "name": status.command,
        "target": status.target.resource_id if status.target else None,
        "attempt": f"{status.attempt}{attempts}",
        "created": status.created_at,
        "dispatched": status.dispatched_at,
        "completed": status.completed_at,
        "took": _took(status),
        "deadline": status.deadline,
        "retry of": status.retry_of,
        "not before": status.not_before,
        "tags": " ".join(f"{key}={value}" for key, value in (status.tags or {}).items()),
        "waiting": reason_of(status),
        "error": f"{failure.code}: {failure.message}" if failure else None,
        "details": laid_out(failure.details) if failure else None,
        "result": _size(status),
    }
    show_facts(facts)


def show_life(
    status: CommandStatus, attempts: Sequence[AttemptInfo], *, is_wide: bool = False
) -> None:
    """Show one command, a fact a line, and its attempts as a table."""
    show_status(status)
    who = {"created by": status.created_by, "ended by": status.completed_by}
    show_facts(who)
    print_line("")
    print_table(
        [
            Column("ATTEMPT"),
            Column("OUTCOME", is_state=True),
            Column("LEASED", rank=1),
            Column("HELD", rank=3),
            Column("AGENT", rank=2),
            Column("CREDENTIAL", rank=4),
            Column("ENDED", is_wide=True),
        ],
        [
            [
                each.attempt,
                each.outcome or str(status.state),
                each.leased_at,
                _span(each.leased_at, each.ended_at),
                each.holder,
                each.credential,
                each.ended_at,
            ]
            for each in attempts
        ],
        is_wide=is_wide,
    )


def show_cancel(status: CommandStatus) -> None:
    """Show what became of a command that was to be cancelled."""
    if is_cancelled(status):
        outcome = "is cancelled"
    elif status.state in TERMINAL:
        outcome = f"had ended before: {status.state}"
    else:
        outcome = "is being cancelled; its agent has yet to stop it"
    print_line(printable(f"{status.command_id} {outcome}"))


def _hosts(offer: Offer) -> str:
    """Return the hosts that have a handler."""
    return ", ".join(dict.fromkeys(agent.hostname for agent in offer.agents))


def _yes_or_no(value: bool | None) -> str:
    """Return `yes`, `no`, or nothing when it is not known."""
    return "" if value is None else "yes" if value else "no"


def _timeout(handler: HandlerInfo) -> str:
    """Return the longest time that a handler may run."""
    seconds = handler.timeout_seconds
    return "" if seconds is None else format_duration(seconds)


def _standing(agent: AgentInfo) -> str:
    """Return `ok`, `gone`, or the state in which an agent takes no work."""
    if agent.is_gone:
        return "gone"
    return "ok" if agent.status is None else agent.status.state


def _note(agent: AgentInfo) -> str:
    """Return why an agent takes no work, and until when: `until 14:30 (in 20m): disk is full`."""
    status = None if agent.is_gone else agent.status
    if status is None:
        return ""
    parts = [] if status.until is None else [f"until {_until(status.until)}"]
    return ": ".join([*parts, *([status.note] if status.note else [])])


def _until(moment: datetime) -> str:
    """Return an instant ahead on the clock of this machine, with its day if it is another."""
    here, now = local(moment), datetime.now().astimezone()
    shown = here.strftime("%H:%M" if here.date() == now.date() else "%Y-%m-%d %H:%M")
    return f"{shown} ({age(moment, now)})"


def _took(status: CommandStatus) -> str:
    """Return the time from create to the end; empty while that is not known."""
    return _span(status.created_at, status.completed_at)


def _span(begun_at: datetime | None, ended_at: datetime | None) -> str:
    """Return the time between two instants; empty while that is not known."""
    if begun_at is None or ended_at is None:
        return ""
    seconds = max(0.0, (ended_at - begun_at).total_seconds())
    return format_duration(round(seconds, 3 if seconds < 10 else 0))


def _size(status: CommandStatus) -> str | None:
    """Return the size of the result; None when there is none."""
    response = status.response
    if response is None or isinstance(response, ErrorResponse):
        return None
    body = response.response
    if isinstance(body, InlineBody):
        padding = body.inline_base64.count("=", -2)
        return f"{len(body.inline_base64) // 4 * 3 - padding:,} bytes"
    return f"{body.size:,} bytes" if body.size is not None else "of unknown size"
