"""`arc-agent enrol` on the command line, without what a running agent need not hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_TOKEN: Final = re.compile(r"arc_(?:enrol|access|agent|sender|admin)_[A-Za-z0-9_-]{16}", re.ASCII)
WHY_NOT: Final = (
    "a token does not belong on the command line, where every user of this host can read it, and"
    " histories keep it: take this one as known to others. Give --enrol-token-file or --token-file"
    " a file, or pipe it in"
)


def has_token(words: Sequence[str]) -> bool:
    """Whether a token of ours stands on a command line."""
    return any(_TOKEN.search(word) for word in words)


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    text = "get this agent a credential of its own, for an enrol token"
    parser = commands.add_parser("enrol", help=text, description=text)
    parser.add_argument("--server", metavar="URL", help="the server")
    parser.add_argument("--deployment", metavar="ID", help="refuse a token for any other")
    parser.add_argument(
        "--enrol-token-file",
        type=Path,
        metavar="F",
        help="a file that holds the enrol token; else standard input, or it is asked for",
    )
    parser.add_argument("-c", "--config", type=Path, metavar="F", help="the configuration (YAML)")
    parser.add_argument("--data-dir", type=Path, metavar="D", help="where the agent's state is")
    parser.add_argument(
        "--replace", action="store_true", help="make a new credential where there is one"
    )
