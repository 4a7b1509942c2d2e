"""`arc-agent status`, `approve`, `deny`, `approvals`, `pause`, `resume` and `stop-all`.

Each sends a request to the control socket of a running agent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from arc_agent.cli import approvals, status
from arc_agent.cli.output import DONE, NO, NOT_ALLOWED, NOT_THERE, UNUSABLE, fail, show, show_json
from arc_agent.cli.place import socket_of
from arc_agent.host.logins import own_login
from arc_runtime.control_socket import ControlDenied, ControlRefused, NotListening, ask
from arc_runtime.durations import format_duration
from arc_runtime.terminal.prefixes import PrefixError, id_of
from arc_runtime.terminal.text import counted


def run(given: argparse.Namespace) -> int:
    """Carry out one of these commands; return the exit code. Raises SettingsError."""
    try:
        return _COMMANDS[given.command](given)
    except (ControlRefused, PrefixError) as error:
        return fail(NO, str(error))
    except NotListening as error:
        hint = "Is it running? Name it by --config, --data-dir or --socket"
        return fail(NOT_THERE, f"no agent answers at {error}\n{hint}")
    except ControlDenied as error:
        return fail(NOT_ALLOWED, str(error))
    except (ValueError, OSError) as error:
        return fail(UNUSABLE, error)


def _status(given: argparse.Namespace) -> int:
    """Show the agent's state."""
    facts = _ask(given)
    is_json = given.json or given.output == "json"
    if is_json:
        show_json(status.as_json(facts))
    else:
        status.print_text(facts, is_wide=given.output == "wide")
    return DONE if facts["is_healthy"] else NO


def _decide(given: argparse.Namespace) -> int:
    """Approve or deny a command."""
    command_id = _chosen(given)
    if command_id is None:
        return fail(NO, "nothing was decided")
    answer = _ask(given, id=command_id, note=given.note)
    done = "approved" if given.command == "approve" else "denied"
    show(f"{answer['id']} ({answer['command']}) is {done}")
    return DONE


def _approvals(given: argparse.Namespace) -> int:
    """List the commands that wait for approval."""
    waiting = _waiting(given)
    if given.json or given.output == "json":
        show_json(json.dumps(waiting, indent=2, ensure_ascii=False))
    else:
        approvals.print_waiting(waiting, is_wide=given.output == "wide")
    return DONE


def _chosen(given: argparse.Namespace) -> str | None:
    """Return the id of the command that is meant; None if the operator says no.

    Raises PrefixError, ControlRefused, and ValueError without an id where there is no terminal.
    """
    waiting = _waiting(given)
    ids = [str(each["id"]) for each in waiting]
    if given.id is not None:
        return id_of(given.id, ids, "waiting command")
    if not waiting:
        raise ControlRefused("no command waits for approval")
    if len(waiting) > 1:
        raise ValueError("\n".join([f"{len(ids)} commands wait; name one of them:", *ids]))
    if not sys.stdin.isatty():
        raise ValueError(f"name the command: {ids[0]} waits")
    show(approvals.as_text(waiting[0]))
    sys.stdout.flush()
    sys.stderr.write(f"{given.command.capitalize()} it? [y/N] ")
    sys.stderr.flush()
    return ids[0] if sys.stdin.readline().strip().lower() in ("y", "yes") else None


def _waiting(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the commands that wait for approval."""
    found: list[dict[str, Any]] = ask(socket_of(given), {"do": "approvals"})["approvals"]
    return found


def _pause(given: argparse.Namespace) -> int:
    """Pause the agent."""
    answer = _ask(given, note=given.note, seconds=given.seconds)
    until = "until resume" if given.seconds is None else f"for {format_duration(given.seconds)}"
    show(f"paused {until}")
    return _kept(answer)


def _resume(given: argparse.Namespace) -> int:
    """Resume the agent."""
    show("resumed" if _ask(given)["was_on"] else "it was neither paused nor stopped")
    return DONE


def _stop_all(given: argparse.Namespace) -> int:
    """Stop all commands."""
    answer = _ask(given, note=given.note)
    show(f"stopping {counted(answer['stopped'], 'command')}; no more until resume")
    return _kept(answer)


def _kept(answer: Mapping[str, Any]) -> int:
    """Report an order that will not survive a restart."""
    if answer["not_kept"] is None:
        return DONE
    return fail(NO, f"done, but it will not survive a restart: {answer['not_kept']}")


def _ask(given: argparse.Namespace, **request: Any) -> dict[str, Any]:
    """Send the agent a request, and return its answer."""
    order = {"do": given.command, "login": own_login(), **request}
    return ask(socket_of(given), order)


_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "status": _status,
    "approve": _decide,
    "deny": _decide,
    "approvals": _approvals,
    "pause": _pause,
    "resume": _resume,
    "stop-all": _stop_all,
}
