"""Views lay out commands, agents and handlers as tables and as lists of facts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from arc_client.cli.handlers import Offer, rows_of
from arc_client.cli.output import print_line, show_facts, show_table
from arc_client.wire.waiting_reasons import reason_of
from arc_protocol.lifecycle import CANCELLED, TERMINAL
from arc_protocol.messages.agents import AgentInfo, HandlerInfo, ReceiverInfo
from arc_protocol.messages.bodies import ErrorResponse, InlineBody
from arc_protocol.messages.commands import CommandStatus
from arc_runtime.durations import format_duration


def show_commands(commands: Sequence[CommandStatus]) -> None:
    """Show commands as a table."""
    show_table(
        ["ID", "DEPLOYMENT", "COMMAND", "STATE", "ATTEMPT", "CREATED", "TOOK"],
        [
            [
                status.command_id,
                status.deployment_id or "",
                status.command or "",
                _state(status),
                str(status.attempt),
                _moment(status.created_at),
                _took(status),
            ]
            for status in commands
        ],
    )


def show_agents(found: Sequence[AgentInfo | ReceiverInfo]) -> None:
    """Show agents, and receivers that do not register, as a table."""
    show_table(
        [
            "DEPLOYMENT",
            "TARGET",
            "HOST",
            "VERSION",
            "LAST SEEN",
            "STATUS",
            "RUNNING",
            "HANDLERS",
            "AGENT",
        ],
        [
            [
                each.deployment_id,
                each.target.resource_id if each.target else "",
                *_facts_of(each),
            ]
            for each in found
        ],
    )


def _facts_of(each: AgentInfo | ReceiverInfo) -> list[str]:
    """Return the cells of a row of agents, from HOST on."""
    seen = _moment(each.last_seen_at)
    if isinstance(each, ReceiverInfo):
        return ["", "", seen, "does not register", "", "", ""]
    return [
        each.hostname,
        each.version,
        seen,
        _standing(each),
        str(len(each.holding)),
        " ".join(handler.name for handler in each.handlers),
        each.agent_id,
    ]


def show_offers(found: Sequence[Offer]) -> None:
    """Show the handlers of agents as a table."""
    show_table(
        ["DEPLOYMENT", "COMMAND", "DESCRIPTION", "REPEATABLE", "TIMEOUT", "HOSTS"],
        [
            [
                offer.deployment_id,
                offer.handler.name,
                offer.handler.description or "",
                _yes_or_no(offer.handler.idempotent),
                _timeout(offer.handler),
                _hosts(offer),
            ]
            for offer in found
        ],
    )


def show_offer(offer: Offer) -> None:
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
        show_table(
            ["FIELD", "TYPE", "REQUIRED", "DEFAULT", "ABOUT"],
            [
                [row.path, row.type, "yes" if row.is_required else "no", row.default, row.about]
                for row in rows_of(schema)
            ],
        )


def show_status(status: CommandStatus) -> None:
    """Show one command, a fact a line."""
    failure = status.response if isinstance(status.response, ErrorResponse) else None
    attempts = f" of {status.max_attempts}" if status.max_attempts is not None else ""
    took = _took(status)
    facts = {
        "command": status.command_id,
        "state": _state(status),
        "deployment": status.deployment_id,
        "name": status.command,
        "target": status.target.resource_id if status.target else None,
        "attempt": f"{status.attempt}{attempts}",
        "created": _moment(status.created_at),
        "dispatched": _moment(status.dispatched_at),
        "completed": _moment(status.completed_at) + (f" (took {took})" if took else ""),
        "deadline": _moment(status.deadline),
        "waiting": reason_of(status),
        "error": f"{failure.code}: {failure.message}" if failure else None,
        "details": failure.details if failure else None,
        "result": _size(status),
    }
    show_facts(facts)


def show_cancel(status: CommandStatus) -> None:
    """Show what became of a command that was to be cancelled."""
    failure = status.response if isinstance(status.response, ErrorResponse) else None
    if failure is not None and failure.code == CANCELLED:
        outcome = "is cancelled"
    elif status.state in TERMINAL:
        outcome = f"had ended before: {status.state}"
    else:
        outcome = "is being cancelled; its agent has yet to stop it"
    print_line(f"{status.command_id} {outcome}")


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
    """Return `ok`, `gone`, or what keeps an agent from work: `paused until 2026-…: new disk`."""
    status = agent.status
    if agent.is_gone:
        return "gone"
    if status is None:
        return "ok"
    until = f" until {_moment(status.until)}" if status.until is not None else ""
    note = f": {status.note}" if status.note else ""
    return f"{status.state}{until}{note}"


def _state(status: CommandStatus) -> str:
    """Return the state, and that the command is to be cancelled if it is."""
    is_to_end = status.cancel_requested and status.state not in TERMINAL
    return f"{status.state} (to be cancelled)" if is_to_end else str(status.state)


def _moment(moment: datetime | None) -> str:
    """Return an instant in this machine's time zone, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment is not None else ""


def _took(status: CommandStatus) -> str:
    """Return the time from create to the end; empty while that is not known."""
    if status.created_at is None or status.completed_at is None:
        return ""
    seconds = max(0.0, (status.completed_at - status.created_at).total_seconds())
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
