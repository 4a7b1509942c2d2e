"""The agent that a command is about: its configuration, control socket and audit log."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Final

from arc_agent.config.places import audit_directory, control_socket
from arc_agent.config.reading import read
from arc_agent.config.sections import Config
from arc_runtime.config.settings import SettingsError

_INSTALLED_CONFIG: Final = Path("/etc/arc/agent.yaml")
_INSTALLED_SOCKETS: Final = (
    Path("/run/arc-agent/control.sock"),
    Path("/var/lib/arc-agent/control.sock"),
)


def config_file(given: argparse.Namespace) -> Path | None:
    """Return the configuration on the command line, else the installed one, if there is one."""
    return given.config or (_INSTALLED_CONFIG if _exists(_INSTALLED_CONFIG) else None)


def overrides_of(given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings on the command line of `run`, and of each command that takes the same.

    A module with handlers that is named there may be in the working directory.
    """
    if given.handlers:
        sys.path.insert(0, os.getcwd())
    return {
        "server.url": given.server,
        "deployment": given.deployment,
        "server.token_file": given.token_file,
        "handlers.modules": given.handlers,
        "data_dir": None if given.data_dir is None else str(given.data_dir),
    }


def socket_of(given: argparse.Namespace) -> Path:
    """Return the control socket. Raises SettingsError.

    systemd alone knows the unit's runtime directory for certain: the usual places are tried.
    Without any configuration, the last of them is that of an agent that this user has started.
    """
    if given.socket is not None:
        return given.socket
    if given.data_dir is not None:
        return given.data_dir / "control.sock"
    config = _config(given)
    own = control_socket(config, os.environ)
    if config is None:
        places = [*_INSTALLED_SOCKETS, own]
    elif given.config is None or config.control.socket is None:
        places = [own, *_INSTALLED_SOCKETS]
    else:
        places = [own]
    return next((place for place in places if _exists(place)), places[0])


def audit_of(given: argparse.Namespace) -> Path:
    """Return the directory of the audit log. Raises ValueError, SettingsError."""
    if given.directory is not None:
        return given.directory
    if given.data_dir is not None:
        return given.data_dir / "audit"
    config = _config(given)
    directory = audit_directory(config, os.environ)
    if config is None and not directory.is_dir():
        raise ValueError("there is no configuration: name the directory of the audit log")
    return directory


def environ_of(unit: str) -> dict[str, str]:
    """Return the environment of a unit: its credentials and state, as far as they are readable."""
    environ = dict(os.environ)
    name = unit.removesuffix(".service")
    for variable, place in {
        "CREDENTIALS_DIRECTORY": f"/run/credentials/{unit}",
        "STATE_DIRECTORY": f"/var/lib/{name.replace('@', '-')}",
    }.items():
        if variable not in environ and os.access(place, os.R_OK | os.X_OK):
            environ[variable] = place
    return environ


def _config(given: argparse.Namespace) -> Config | None:
    """Return the agent's configuration; None if none is found. Raises SettingsError."""
    try:
        return read(config_file(given), os.environ)
    except SettingsError:
        if given.config is not None:
            raise
        return None


def _exists(path: Path) -> bool:
    """Return True if a path exists, or may exist where this user may not look."""
    try:
        return path.exists()
    except PermissionError:
        return True
