"""`arc-agent keys`: the key of a host that senders seal params for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from arc_runtime.key_files import SEALING, KeyFileError, new_key, read_private, write_private

_DONE = 0
_BAD = 2


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    keys = commands.add_parser(
        "keys", help="this host's key for sealed params", description="Keys for sealed params."
    )
    parts = keys.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    new = parts.add_parser(
        "new", help="make a key: the private part to a file (0600), the public line to stdout"
    )
    new.add_argument("name", metavar="NAME", help="what senders call this host")
    new.add_argument("--out", type=Path, metavar="FILE", help="its file; NAME.key unless given")
    public = parts.add_parser("public", help="print the public line of a key")
    public.add_argument("file", type=Path, metavar="FILE", help="a private key's file")


def run(given: argparse.Namespace) -> int:
    """Do it; the exit code."""
    try:
        if given.subcommand == "new":
            key = new_key(given.name, SEALING)
            write_private(given.out or Path(f"{given.name}.key"), key)
        else:
            key = read_private(given.file, SEALING)
        sys.stdout.write(f"{key.public().line}\n")
    except KeyFileError as error:
        sys.stderr.write(f"arc-agent: {error}\n")
        return _BAD
    return _DONE
