"""`arc-agent status`, `approve`, `deny`, `approvals`, `pause`, `resume` and `stop-all`.

Each sends a request to the control socket of a running agent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from arc_agent.cli import status
from arc_agent.cli.output import DONE, NO, NOT_ALLOWED, NOT_THERE, UNUSABLE, fail, show
from arc_agent.cli.place import socket_of
from arc_agent.host.control_socket import AgentNotThere, ControlDenied, ControlRefused, ask
from arc_agent.host.logins import own_login
from arc_runtime.durations import format_duration

_SHOWN_PARAMS_CHARS: Final = 200


def run(given: argparse.Namespace) -> int:
    """Carry out one of these commands; return the exit code. Raises SettingsError."""
    try:
        return _COMMANDS[given.command](given)
    except ControlRefused as error:
        return fail(NO, str(error))
    except AgentNotThere as error:
        return fail(NOT_THERE, f"no agent answers at {error}")
    except ControlDenied as error:
        return fail(NOT_ALLOWED, str(error))
    except (ValueError, OSError) as error:
        return fail(UNUSABLE, str(error))


def _status(given: argparse.Namespace) -> int:
    """Show the agent's state."""
    facts = _ask(given)
    show(status.as_json(facts) if given.json else status.as_text(facts))
    return DONE if facts["is_healthy"] else NO


def _decide(given: argparse.Namespace) -> int:
    """Approve or deny a command."""
    answer = _ask(given, id=given.id, note=given.note)
    done = "approved" if given.command == "approve" else "denied"
    show(f"{answer['id']} ({answer['command']}) is {done}")
    return DONE


def _approvals(given: argparse.Namespace) -> int:
    """List the commands that wait for approval."""
    for each in _ask(given)["approvals"]:
        signed = f", signed by {each['signed_by']}" if each["signed_by"] else ""
        show(f"{each['id']}  {each['command']}  (rule {each['rule']!r}{signed})")
        show(f"  waits since {each['since']}, until {each['until']}")
        params = each["params"][:_SHOWN_PARAMS_CHARS]
        cut = "…" if len(params) < each["params_bytes"] else ""
        show(f"  params, {each['params_bytes']} bytes: {json.dumps(params)[1:-1]}{cut}")
    return DONE


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
    show(f"{answer['stopped']} commands are being stopped; no more until resume")
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
