"""The console script `arc-agent`: parse the command line and carry out its command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from arc_agent.cli.arguments import ADMINISTRATION, has_token, parser
from arc_agent.cli.output import UNUSABLE, fail
from arc_runtime.startup.standard_streams import open_standard_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line, and return the exit code."""
    open_standard_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in ADMINISTRATION:
        from arc_agent.cli import install

        return install.front().main(words)
    if has_token(words):
        return fail(
            UNUSABLE,
            "a token does not belong on the command line, where every user of this host can read"
            " it, and histories keep it: treat this one as known to others. Use --enrol-token-file"
            " or --token-file, or pipe it in",
        )
    given = parser().parse_args(words)
    try:
        return _command(given.command)(given)
    except Exception as error:
        from arc_agent.cli.failures import report

        return report(error)


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Return the function of a command. Only its own modules are loaded."""
    match name:
        case "run" | "run-once" | "check-config":
            from arc_agent.cli.run import run
        case "enrol":
            from arc_agent.cli.enrol import run
        case "doctor":
            from arc_agent.cli.doctor.command import run
        case "policy":
            from arc_agent.cli.policy import run
        case "audit":
            from arc_agent.cli.audit import run
        case "keys":
            from arc_agent.cli.keys import run
        case "test-handler" | "new-handler":
            from arc_agent.cli.handlers import run
        case _:
            from arc_agent.cli.control import run
    return run
