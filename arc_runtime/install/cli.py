"""`install`, `uninstall` and `upgrade`, for each of our services.

Exit codes: 0 done; 1 it did not work, and why; 2 usage or configuration; 4 not root.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from arc_runtime.config.settings import SettingsError
from arc_runtime.install.plan import Host, InstallError
from arc_runtime.install.product import (
    Names,
    Product,
    Request,
    go_back,
    install,
    show_install,
    show_uninstall,
    uninstall,
    upgrade_product,
)
from arc_runtime.install.services import Services, run_command, services_of

VERBS: Final = {
    "install": "install it on this host: program, user, configuration, unit",
    "uninstall": "take all that back; what it has kept of its work stays, unless --purge",
    "upgrade": "go to another version, and back when it does not come up",
}
_FAILED: Final = 1
_UNUSABLE: Final = 2
_NOT_ALLOWED: Final = 4


class Front:
    """The command line of one product's installation."""

    def __init__(
        self,
        product: Product,
        *,
        add_options: Callable[[argparse.ArgumentParser], None],
        configure: Callable[[argparse.Namespace], bytes | None],
        read_token: Callable[[Path], bytes] | None = None,
        has_instances: bool = False,
        services: Callable[[Path], Services] | None = None,
    ) -> None:
        """`configure` makes the configuration from the options that `add_options` adds.

        It raises SettingsError. `read_token` makes `--token-file` an option.
        """
        self._product = product
        self._add_options = add_options
        self._configure = configure
        self._read_token = read_token
        self._has_instances = has_instances
        self._services = services or _services_of

    def main(self, arguments: Sequence[str]) -> int:
        """Carry one verb out; the exit code."""
        given = self._parser().parse_args(arguments)
        root = Path(given.root).absolute()
        host = Host(root, run_command, _say)
        if os.geteuid() != 0 and not host.is_scratch and not given.dry_run:
            _say(f"{self._product.name}: {given.verb} is root's to do (or --dry-run, or --root)")
            return _NOT_ALLOWED
        os.umask(0o022)
        try:
            match given.verb:
                case "install":
                    self._install(given, host)
                case "uninstall":
                    self._uninstall(given, host)
                case _:
                    self._upgrade(given, host)
        except SettingsError as error:
            _say(f"{self._product.name}: {error}")
            return _UNUSABLE
        except InstallError as error:
            _say(f"{self._product.name}: {error}")
            return _FAILED
        except OSError as error:
            _say(f"{self._product.name}: {error.filename}: {error.strerror}")
            return _FAILED
        return 0

    def _install(self, given: argparse.Namespace, host: Host) -> None:
        token = None
        if given.token_file is not None and self._read_token is not None:
            token = self._read_token(given.token_file)
        request = Request(
            config=self._config(given),
            token=token,
            instance=given.instance,
            source=given.source,
            starts=not given.no_start,
            ready_seconds=given.ready_within,
        )
        if given.dry_run:
            _print(show_install(self._product, request, host))
            return
        is_changed = install(self._product, request, host, self._services(host.root))
        names = Names(self._product, given.instance)
        _say(f"{names.installation}: {'installed' if is_changed else 'nothing to change'}")

    def _config(self, given: argparse.Namespace) -> bytes | None:
        """The configuration that was asked for, None for the one that is there."""
        if given.config is None:
            return self._configure(given)
        content: bytes = given.config.read_bytes()
        return content

    def _uninstall(self, given: argparse.Namespace, host: Host) -> None:
        if given.dry_run:
            _print(show_uninstall(self._product, given.instance, host, purge=given.purge))
            return
        services = self._services(host.root)
        uninstall(self._product, given.instance, host, services, purge=given.purge)
        _say(f"{Names(self._product, given.instance).installation}: uninstalled")

    def _upgrade(self, given: argparse.Namespace, host: Host) -> None:
        services = self._services(host.root)
        if given.back:
            version = go_back(self._product, host, services, given.ready_within)
        else:
            version = upgrade_product(
                self._product, given.source, host, services, given.ready_within
            )
        _say(f"{self._product.name}: version {version.name} is the current one")

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=self._product.name)
        verbs = parser.add_subparsers(dest="verb", required=True)
        made = {verb: verbs.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.")
                for verb, text in VERBS.items()}  # fmt: skip
        for verb, each in made.items():
            each.add_argument("--root", default="/", metavar="DIR", help="a scratch root")
            each.set_defaults(instance="", dry_run=False, token_file=None)
            if verb != "upgrade":
                each.add_argument(
                    "--dry-run",
                    action="store_true",
                    help="print every file and command, do nothing",
                )
                if self._has_instances:
                    each.add_argument(
                        "--instance", default="", metavar="NAME", help="one of several on this host"
                    )
            if verb != "uninstall":
                each.add_argument(
                    "--ready-within", type=float, default=60.0, metavar="SECONDS",
                    help="how long the unit may take until it is ready (60)",
                )  # fmt: skip
        self._add_install(made["install"])
        made["uninstall"].add_argument(
            "--purge", action="store_true", help="also what it has kept of its work"
        )
        which = made["upgrade"].add_mutually_exclusive_group(required=True)
        which.add_argument(
            "--from",
            dest="source",
            metavar="WHEEL|DIR|REQUIREMENT",
            help="the new version, for pip",
        )
        which.add_argument("--back", action="store_true", help="the version before")
        return parser

    def _add_install(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--config", type=Path, metavar="F", help="a configuration to install (YAML)"
        )
        if self._read_token is not None:
            parser.add_argument(
                "--token-file", type=Path, metavar="F", help="a file that holds the bearer token"
            )
        parser.add_argument(
            "--from", dest="source", metavar="WHEEL|DIR|REQUIREMENT",
            help="the program, for pip; default: what this runs from",
        )  # fmt: skip
        parser.add_argument(
            "--no-start",
            action="store_true",
            help="leave it to be started by hand or by the next boot",
        )
        self._add_options(parser)


def _services_of(root: Path) -> Services:
    """Systemd, where it runs."""
    return services_of(root, _say)


def _print(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
