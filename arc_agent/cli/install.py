"""`arc-agent install`, `uninstall` and `upgrade`: the agent's part of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from arc_agent.config.places import control_socket
from arc_agent.config.reading import read
from arc_agent.net.token import ConfiguredToken, TokenError
from arc_runtime.config.settings import SettingsError
from arc_runtime.control_socket import ControlDenied, ControlRefused, NotListening, ask
from arc_runtime.install.cli import InstallCli
from arc_runtime.install.host import below
from arc_runtime.install.product import Names, Product
from arc_runtime.install.services import Services
from arc_runtime.terminal.help_page import examples

PRODUCT: Final = Product(
    name="arc-agent",
    package="arc_agent",
    home="/opt/arc",
    config_directory="/etc/arc",
    config_name="agent",
    kept=("spool.db", "bodies", "audit"),
)

_EXAMPLES: Final = {
    "install": examples(
        "arc-agent install --server https://arc.example.com --deployment acme-eu-1",
        "arc-agent install --config agent.yaml --token-file agent.token --dry-run",
    ),
    "uninstall": examples("arc-agent uninstall --dry-run", "arc-agent uninstall --purge"),
    "upgrade": examples(
        "arc-agent upgrade --from arc_commands-0.2.0-py3-none-any.whl",
        "arc-agent upgrade --back",
    ),
}
_ASK_SECONDS: Final = 5.0
_CONFIG: Final = """\
# Written by `arc-agent install`; the token is a credential of the unit.
# All keys: docs/configuration.md.
# After a change: arc-agent check-config {file}, then systemctl reload {unit}.
server:
  url: {url}
deployment: {deployment}
"""
_METRICS_CONFIG: Final = """\
metrics:                        # GET /healthz, /readyz, /metrics: docs/operating.md
  listen: {listen}
"""
_METRICS: Final = "127.0.0.1:9180"
_NO_METRICS: Final = "none"


def front(services: Callable[[Path], Services] | None = None) -> InstallCli:
    """Return the command line. `services` runs the units of a root; default: systemd."""
    return InstallCli(
        PRODUCT,
        add_options=_add_options,
        configure=_configure,
        read_token=_read_token,
        has_instances=True,
        has_contact=_has_contact,
        services=services,
        examples=_EXAMPLES,
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", metavar="URL", help="Server")
    parser.add_argument("--deployment", metavar="ID", help="Deployment to run commands of")
    parser.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        help="Address for a monitoring system, or none"
        f" [default: {_METRICS}, with --instance none]",
    )


def _configure(given: argparse.Namespace) -> bytes | None:
    """Return a configuration with the options; None without options. Raises SettingsError."""
    if given.server is None and given.deployment is None:
        return None
    metrics = given.metrics or (_NO_METRICS if given.instance else _METRICS)
    listen = None if metrics == _NO_METRICS else metrics
    settings = {"server.url": given.server, "deployment": given.deployment}
    read(None, {}, {**settings, "metrics.listen": listen})
    name = given.instance or PRODUCT.config_name
    unit = f"{PRODUCT.name}@{given.instance}" if given.instance else PRODUCT.name
    config = _CONFIG if listen is None else _CONFIG + _METRICS_CONFIG
    return config.format(
        file=f"{PRODUCT.config_directory}/{name}.yaml",
        unit=unit,
        url=json.dumps(given.server, ensure_ascii=False),
        deployment=json.dumps(given.deployment, ensure_ascii=False),
        listen=json.dumps(listen),
    ).encode()


def _has_contact(names: Names, root: Path) -> bool:
    """Return True if the agent of an installation runs, and its server answers it."""
    directories = [f"/run/{names.user}", names.state]
    try:
        config = read(below(root, names.config), {"RUNTIME_DIRECTORY": directories[0]})
    except SettingsError:
        return False
    sockets = [control_socket(config, {"RUNTIME_DIRECTORY": each}) for each in directories]
    for socket in sockets:
        try:
            status = ask(below(root, str(socket)), {"do": "status"}, timeout_seconds=_ASK_SECONDS)
        except (NotListening, ControlDenied, ControlRefused):
            continue
        contact = status["contact"]
        return not contact["is_lost"] and contact["answered_seconds_ago"] is not None
    return False


def _read_token(file: Path) -> bytes:
    """Return the token of a file. Raises SettingsError."""
    try:
        token = ConfiguredToken(None, file).value
    except TokenError as error:
        raise SettingsError(str(error), key=None, source=None) from None
    return f"{token}\n".encode()
