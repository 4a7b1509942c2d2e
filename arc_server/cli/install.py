"""`arc-server install`, `uninstall` and `upgrade`: the product, its options and configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from arc_runtime.install.cli import InstallCli
from arc_runtime.install.product import Product
from arc_runtime.install.services import Services
from arc_runtime.terminal.help_page import examples
from arc_server.config.reading import bad_value, listen_address, load_config

PRODUCT: Final = Product(
    name="arc-server",
    package="arc_server",
    home="/opt/arc-server",
    config_directory="/etc/arc-server",
    config_name="server",
    kept=("arc.db", "keys", "blobs"),
    extra="server",
)

_EXAMPLES: Final = {
    "install": examples(
        "arc-server install --public-url https://arc.example.com --dry-run",
        "arc-server install --public-url https://arc.example.com",
    ),
    "uninstall": examples("arc-server uninstall --dry-run", "arc-server uninstall --purge"),
    "upgrade": examples(
        "arc-server upgrade --from arc_commands-0.2.0-py3-none-any.whl",
        "arc-server upgrade --back",
    ),
}
_CONFIG_FILE: Final = f"{PRODUCT.config_directory[1:]}/{PRODUCT.config_name}.yaml"
_LISTEN: Final = "127.0.0.1:8484"
_DATA: Final = "/var/lib/arc-server"
_CONFIG: Final = """\
# Written by `arc-server install`. All keys: docs/configuration.md.
# After a change: arc-server check-config FILE, then systemctl restart arc-server.
listen: {listen}
data_dir: {data_dir}
public_url: {public_url}
"""


def front(services: Callable[[Path], Services] | None = None) -> InstallCli:
    """Return the command line. `services` runs the units of a root; systemd by default."""
    return InstallCli(
        PRODUCT,
        add_options=_add_options,
        configure=_configure,
        socket_unit=_socket_unit,
        services=services,
        examples=_EXAMPLES,
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="Address to serve on [default: 127.0.0.1:8484]"
    )
    parser.add_argument(
        "--socket",
        action="store_true",
        help="Let systemd hold the socket, so that a restart refuses no connection",
    )
    parser.add_argument("--public-url", metavar="URL", help="URL that clients reach the server by")


def _socket_unit(given: argparse.Namespace) -> bytes | None:
    """Return the unit of the socket to listen on, if the options ask for one.

    Raises SettingsError.
    """
    if not given.socket:
        return None
    file = given.config or Path(given.root, _CONFIG_FILE)
    overrides = {"listen": given.listen, "public_url": given.public_url}
    config = load_config(file if file.exists() else None, overrides, {})
    address = listen_address(config)
    place = str(address) if isinstance(address, Path) else config.listen
    if not isinstance(address, Path):
        try:
            ip_address(address[0])
        except ValueError:
            raise bad_value("listen", "--socket needs an IP address, not a name") from None
    unit = (files(PRODUCT.package) / "units" / f"{PRODUCT.name}.socket").read_text()
    return unit.replace(f"ListenStream={_LISTEN}\n", f"ListenStream={place}\n").encode()


def _configure(given: argparse.Namespace) -> bytes | None:
    """Return a configuration of the options; None to keep the present one. Raises SettingsError."""
    there = Path(given.root, _CONFIG_FILE)
    if given.listen is None and given.public_url is None and there.exists():
        return None
    listen = given.listen or _LISTEN
    load_config(None, {"listen": listen, "public_url": given.public_url}, {})
    return _CONFIG.format(
        listen=json.dumps(listen), data_dir=_DATA, public_url=json.dumps(given.public_url)
    ).encode()
