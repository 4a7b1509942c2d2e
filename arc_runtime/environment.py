"""The environment of this process: what systemd and secrets have in it is not for children."""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Mapping
from typing import Final

_VARIABLES: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
)
"""The variables by which systemd speaks to this process alone."""
_taken: Final[dict[str, str]] = {}
OWN_ENVIRON: Final[Mapping[str, str]] = ChainMap(_taken, os.environ)
"""The environment of this process, with the variables that its children do not inherit."""


def take_variables(*secrets: str) -> None:
    """Take the variables of systemd, and `secrets`, out of the environment of later children.

    A child could notify systemd in this process's name, or read its token. OWN_ENVIRON keeps them.
    """
    for name in (*_VARIABLES, *secrets):
        if name in os.environ:
            _taken[name] = os.environ.pop(name)
