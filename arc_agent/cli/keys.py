"""`arc-agent keys`: this host's key, for which senders seal params."""

from __future__ import annotations

import argparse
from pathlib import Path

from arc_agent.cli.output import DONE, UNUSABLE, fail, show
from arc_runtime.key_files import SEALING, KeyFileError, new_key, read_private, write_private


def run(given: argparse.Namespace) -> int:
    """Create a key or show its public line; return the exit code."""
    try:
        if given.subcommand == "new":
            key = new_key(given.name, SEALING)
            write_private(given.out or Path(f"{given.name}.key"), key)
        else:
            key = read_private(given.file, SEALING)
        show(key.public().line)
    except KeyFileError as error:
        return fail(UNUSABLE, error)
    return DONE
