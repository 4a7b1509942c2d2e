"""The subcommands `install`, `uninstall` and `upgrade` of each service.

Exit codes: 0 done; 1 it failed; 2 usage or configuration; 4 not root.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from arc_runtime.config.arguments import duration
from arc_runtime.config.settings import SettingsError
from arc_runtime.install.host import Host, InstallError
from arc_runtime.install.product import (
    Names,
    Product,
    ProductContact,
    Request,
    go_back,
    install,
    show_install,
    show_uninstall,
    uninstall,
    upgrade_product,
)
from arc_runtime.install.services import Services, run_command, services_of
from arc_runtime.terminal.argparse_programs import Parser
from arc_runtime.terminal.errors import print_error

VERBS: Final = {
    "install": "Install on this host: program, user, configuration, unit",
    "uninstall": "Remove all that install made; kept data stays, unless --purge",
    "upgrade": "Switch to another version, and back if it does not become ready",
}
_FAILED: Final = 1
_UNUSABLE: Final = 2
_NOT_ALLOWED: Final = 4


class InstallCli:
    """An install CLI is the command line of one product's installation."""

    def __init__(
        self,
        product: Product,
        *,
        add_options: Callable[[argparse.ArgumentParser], None],
        configure: Callable[[argparse.Namespace], bytes | None],
        read_token: Callable[[Path], bytes] | None = None,
        socket_unit: Callable[[argparse.Namespace], bytes | None] = lambda _: None,
        has_instances: bool = False,
        has_contact: ProductContact = lambda _names, _root: False,
        services: Callable[[Path], Services] | None = None,
        examples: Mapping[str, str] = {},
    ) -> None:
        """Take what differs between products. `examples`: the end of each verb's help.

        `configure` makes the configuration from the options that `add_options` adds, and raises
        SettingsError. `read_token` makes `--token-file` an option. `socket_unit` returns the unit
        of a socket for systemd to hold, if the options ask for it. A version that loses the contact
        which `has_contact` found before an upgrade is taken back.
        """
        self._product = product
        self._add_options = add_options
        self._configure = configure
        self._read_token = read_token
        self._socket_unit = socket_unit
        self._has_instances = has_instances
        self._has_contact = has_contact
        self._services = services or _services_of
        self._examples = examples

    def main(self, arguments: Sequence[str]) -> int:
        """Carry out one verb, and return the exit code."""
        given = self._parser().parse_args(arguments)
        root = Path(given.root).absolute()
        host = Host(root, run_command, _print_message)
        if os.geteuid() != 0 and not host.is_scratch and not given.dry_run:
            print_error(f"{given.verb} needs root (or --dry-run, or --root)")
            return _NOT_ALLOWED
        os.umask(0o022)
        try:
            _check_source(getattr(given, "source", None))
            match given.verb:
                case "install":
                    self._install(given, host)
                case "uninstall":
                    self._uninstall(given, host)
                case _:
                    self._upgrade(given, host)
        except SettingsError as error:
            print_error(str(error))
            return _UNUSABLE
        except InstallError as error:
            print_error(str(error))
            return _FAILED
        except OSError as error:
            print_error(f"{error.filename}: {error.strerror}")
            return _FAILED
        return 0

    def _install(self, given: argparse.Namespace, host: Host) -> None:
        token = None
        if given.token_file is not None and self._read_token is not None:
            token = self._read_token(given.token_file)
        request = Request(
            config=self._config(given),
            token=token,
            socket=self._socket_unit(given),
            instance=given.instance,
            source=given.source,
            starts=not given.no_start,
            ready_seconds=given.ready_within,
        )
        if given.dry_run:
            _print_lines(show_install(self._product, request, host))
            return
        is_changed = install(self._product, request, host, self._services(host.root))
        names = Names(self._product, given.instance)
        _print_message(
            f"{names.installation}: {'installed' if is_changed else 'nothing to change'}"
        )

    def _config(self, given: argparse.Namespace) -> bytes | None:
        """Return the requested configuration; None for the existing one."""
        if given.config is None:
            return self._configure(given)
        content: bytes = given.config.read_bytes()
        return content

    def _uninstall(self, given: argparse.Namespace, host: Host) -> None:
        if given.dry_run:
            _print_lines(show_uninstall(self._product, given.instance, host, purge=given.purge))
            return
        services = self._services(host.root)
        uninstall(self._product, given.instance, host, services, purge=given.purge)
        _print_message(f"{Names(self._product, given.instance).installation}: uninstalled")

    def _upgrade(self, given: argparse.Namespace, host: Host) -> None:
        services = self._services(host.root)
        if given.back:
            version = go_back(self._product, host, services, given.ready_within, self._has_contact)
        else:
            version = upgrade_product(
                self._product, given.source, host, services, given.ready_within, self._has_contact
            )
        _print_message(f"{self._product.name}: version {version.name} is the current one")

    def _parser(self) -> Parser:
        name = self._product.name
        parser = Parser(prog=name)
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
        made = {
            verb: verbs.add_parser(
                verb, help=text, description=text, epilog=self._examples.get(verb, "")
            )
            for verb, text in VERBS.items()
        }
        for verb, each in made.items():
            each.add_argument(
                "--root", default="/", metavar="DIR", help="Work below a scratch root"
            )
            each.set_defaults(instance="", dry_run=False, token_file=None)
            if verb != "upgrade":
                each.add_argument(
                    "--dry-run",
                    action="store_true",
                    help="Print every file and command, and change nothing",
                )
                if self._has_instances:
                    each.add_argument(
                        "--instance",
                        default="",
                        metavar="NAME",
                        help="One of several instances on this host",
                    )
            if verb != "uninstall":
                each.add_argument(
                    "--ready-within", type=duration, default=60.0, metavar="DURATION",
                    help="Time for the unit to become ready [default: 60s]",
                )  # fmt: skip
        self._add_install(made["install"])
        made["uninstall"].add_argument(
            "--purge", action="store_true", help="Remove the kept data, too"
        )
        which = made["upgrade"].add_mutually_exclusive_group(required=True)
        which.add_argument(
            "--from",
            dest="source",
            metavar="SOURCE",
            help="Install this wheel, directory or requirement by pip",
        )
        which.add_argument("--back", action="store_true", help="Go back to the previous version")
        return parser

    def _add_install(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--config", type=Path, metavar="FILE", help="Install this configuration (YAML)"
        )
        if self._read_token is not None:
            parser.add_argument(
                "--token-file", type=Path, metavar="FILE",
                help="Install the bearer token in this file",
            )  # fmt: skip
        parser.add_argument(
            "--from", dest="source", metavar="SOURCE",
            help="Install the program from this wheel, directory or requirement by pip"
            " [default: what this runs from]",
        )  # fmt: skip
        parser.add_argument("--no-start", action="store_true", help="Leave the unit stopped")
        self._add_options(parser)


def _check_source(source: str | None) -> None:
    """Raise SettingsError for the path of a wheel or a directory that is not there."""
    is_path = source is not None and (source.endswith(".whl") or os.sep in source)
    if source is not None and is_path and "://" not in source and not Path(source).exists():
        raise SettingsError(f"--from {source}: there is no such file", key=None, source=None)


def _services_of(root: Path) -> Services:
    """Return systemd if it runs."""
    return services_of(root, _print_message)


def _print_lines(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _print_message(text: str) -> None:
    sys.stderr.write(f"{text}\n")
