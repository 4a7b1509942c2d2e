"""Places on the host's disk: the data directory, the audit log and the control socket.

Each is the configured path, if there is a configuration, else the one that systemd gives the unit,
else the user's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from arc_agent.config.sections import Config


def data_directory(config: Config | None, environ: Mapping[str, str]) -> Path:
    """Return the directory of the spool and of temporary files."""
    if config is not None and config.data_dir is not None:
        return config.data_dir.expanduser().absolute()
    from_systemd = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if from_systemd:
        return Path(from_systemd)
    base = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "arc-agent"


def audit_directory(config: Config | None, environ: Mapping[str, str]) -> Path:
    """Return the directory of the audit log."""
    if config is not None and config.audit.directory is not None:
        return config.audit.directory.expanduser().absolute()
    return data_directory(config, environ) / "audit"


def control_socket(config: Config | None, environ: Mapping[str, str]) -> Path:
    """Return the path of the socket where the agent answers its operator."""
    if config is not None and config.control.socket is not None:
        return config.control.socket.expanduser().absolute()
    from_systemd = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    directory = Path(from_systemd) if from_systemd else data_directory(config, environ)
    return directory / "control.sock"
