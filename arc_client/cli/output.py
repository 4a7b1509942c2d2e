"""What `arc` writes: results to stdout, everything else to stderr; laid out on terminals only."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import IO, Any, Final

import msgspec

from arc_client.cli.explain import Explanation, as_record, printable
from arc_client.cli.handlers import Offer, rows_of
from arc_protocol.errors import ArcError
from arc_protocol.lifecycle import CANCELLED, TERMINAL
from arc_protocol.messages.agents import AgentInfo, AgentStatus, HandlerInfo
from arc_protocol.messages.bodies import ErrorResponse, InlineBody
from arc_protocol.messages.commands import CommandStatus
from arc_runtime.durations import format_duration

SHOWN_BYTES: Final = 1024 * 1024
"""Results up to here are shown on a terminal; larger ones belong in a file or a pipe."""

_INVISIBLE: Final = re.compile("[\x7f-\x9f]")
_NOT_TEXT: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def say(text: str) -> None:
    """A line for the person, on stderr."""
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]  # `arc … 2>&-`
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def prompt(text: str) -> None:
    """A question on stderr, on a line of its own; the answer is typed behind it."""
    sys.stderr.write(f"\n{printable(text)}")
    sys.stderr.flush()


def print_line(text: str) -> None:
    """A line on stdout, for a script to read."""
    write_bytes(f"{text}\n".encode())


def tell_error(error: ArcError, explanation: Explanation, *, as_json: bool) -> None:
    """An error on stderr: for a person, or one JSON object on a line."""
    if as_json:
        say(msgspec.json.encode(as_record(error, explanation)).decode())
        return
    say(f"error: {printable(explanation.what)}")
    for line in printable(explanation.details or "").splitlines():
        say(f"  {line}")
    for step in explanation.next_steps:
        say(f"  {step}")


def show_json(value: Any) -> None:
    """Something as JSON on stdout: laid out on a terminal, on one line in a pipe."""
    write_result(msgspec.json.encode(value))


def write_result(data: bytes) -> None:
    """A result that is held in memory, on stdout.

    JSON comes as it is, with a line feed after it; laid out on a terminal. Other bytes come
    exactly as they are. Raises NotShown for what would garble a terminal.
    """
    is_terminal = is_shown_on(sys.stdout)
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if not is_terminal:
            write_bytes(data)
            return
        text = _text(data)
        write_bytes((text if text.endswith("\n") else f"{text}\n").encode())
        return
    if not is_terminal:
        write_bytes(data if data.endswith(b"\n") else data + b"\n")
        return
    _print_json(msgspec.json.format(data, indent=2).decode())


def is_shown_on(stream: IO[Any] | None) -> bool:
    """Whether a standard stream is a terminal; it may be closed altogether."""
    return stream is not None and stream.isatty()


def write_bytes(data: bytes) -> None:
    """Bytes on stdout, at once. Raises OSError, also when there is no stdout."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  # `arc … >&-`
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


class NotShown(Exception):
    """A result that is not fit for a terminal."""


def _text(data: bytes) -> str:
    """Bytes as text that a terminal only shows. Raises NotShown."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise NotShown from None
    if _NOT_TEXT.search(text):
        raise NotShown
    return text


def _print_json(text: str) -> None:
    """JSON in colours; control characters that JSON lets through are escaped."""
    from rich.console import Console
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    shown = Text(_INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
    JSONHighlighter().highlight(shown)
    Console().print(shown, soft_wrap=True)


def show_commands(commands: Sequence[CommandStatus]) -> None:
    """A list of commands as a table."""
    _show_table(
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


def show_agents(agents: Sequence[AgentInfo]) -> None:
    """Agents as a table."""
    _show_table(
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
                agent.deployment_id,
                agent.target.resource_id if agent.target else "",
                agent.hostname,
                agent.version,
                _moment(agent.last_seen_at),
                _standing(agent.status),
                str(len(agent.holding)),
                " ".join(handler.name for handler in agent.handlers),
                agent.agent_id,
            ]
            for agent in agents
        ],
    )


def show_offers(found: Sequence[Offer]) -> None:
    """Commands that agents have, as a table."""
    _show_table(
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


def describe_offer(offer: Offer) -> None:
    """One command: what it is for, what it takes, what it returns."""
    handler = offer.handler
    _show_facts(
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
        _show_table(
            ["FIELD", "TYPE", "REQUIRED", "DEFAULT", "ABOUT"],
            [
                [row.path, row.type, "yes" if row.is_required else "no", row.default, row.about]
                for row in rows_of(schema)
            ],
        )


def _hosts(offer: Offer) -> str:
    """Where it can be done."""
    return ", ".join(dict.fromkeys(agent.hostname for agent in offer.agents))


def _yes_or_no(value: bool | None) -> str:
    """As a word; nothing when it is not known."""
    return "" if value is None else "yes" if value else "no"


def _timeout(handler: HandlerInfo) -> str:
    """The longest that it may run."""
    seconds = handler.timeout_seconds
    return "" if seconds is None else format_duration(seconds)


def _standing(status: AgentStatus | None) -> str:
    """`ok`, or what keeps an agent from its work: `paused until 2026-…: disk is replaced`."""
    if status is None:
        return "ok"
    until = f" until {_moment(status.until)}" if status.until is not None else ""
    note = f": {status.note}" if status.note else ""
    return f"{status.state}{until}{note}"


def show_status(status: CommandStatus) -> None:
    """One command, a fact a line."""
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
        "error": f"{failure.code}: {failure.message}" if failure else None,
        "details": failure.details if failure else None,
        "result": _size(status),
    }
    _show_facts(facts)


def _show_facts(facts: Mapping[str, str | None]) -> None:
    """A fact a line; what there is not is left out."""
    for name, value in facts.items():
        if value:
            lines = printable(value).splitlines()
            print_line(f"{name:<12}{lines[0]}")
            for line in lines[1:]:
                print_line(f"{'':<12}{line}")


def show_cancel(status: CommandStatus) -> None:
    """What became of a command that was to be cancelled."""
    failure = status.response if isinstance(status.response, ErrorResponse) else None
    if failure is not None and failure.code == CANCELLED:
        outcome = "is cancelled"
    elif status.state in TERMINAL:
        outcome = f"had ended before: {status.state}"
    else:
        outcome = "is being cancelled; its agent has yet to stop it"
    print_line(f"{status.command_id} {outcome}")


def _show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; in a pipe the same in plain columns, nothing cut off."""
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    if is_shown_on(sys.stdout):
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, no_wrap=column == "ID", overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line(line.rstrip())


def _state(status: CommandStatus) -> str:
    """The state, and whether somebody wants it to end."""
    return f"{status.state} (to be cancelled)" if status.cancel_requested else str(status.state)


def _moment(moment: datetime | None) -> str:
    """An instant in this machine's time zone, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment is not None else ""


def _took(status: CommandStatus) -> str:
    """From create to the end; empty while that is not known."""
    if status.created_at is None or status.completed_at is None:
        return ""
    seconds = max(0.0, (status.completed_at - status.created_at).total_seconds())
    return format_duration(round(seconds, 3 if seconds < 10 else 0))


def _size(status: CommandStatus) -> str | None:
    """How large the result is; None when there is none."""
    response = status.response
    if response is None or isinstance(response, ErrorResponse):
        return None
    body = response.response
    if isinstance(body, InlineBody):
        padding = body.inline_base64.count("=", -2)
        return f"{len(body.inline_base64) // 4 * 3 - padding:,} bytes"
    return f"{body.size:,} bytes" if body.size is not None else "of unknown size"
