"""A product is installed, uninstalled and upgraded, from its program to its unit."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from arc_runtime.config.settings import SettingsError
from arc_runtime.install.host import Host, InstallError, below
from arc_runtime.install.manifest import Manifest, ManifestEntry
from arc_runtime.install.plan import (
    AnyStep,
    Directory,
    File,
    Link,
    Owned,
    SystemUser,
    carry_out,
    check,
    preview,
)
from arc_runtime.install.program import InstalledProgram, check_interpreter
from arc_runtime.install.removal import preview_removal, remove_directory, remove_entry
from arc_runtime.install.services import Services, run_command, systemd_version
from arc_runtime.install.upgrade import HasContact, switch_to, upgrade

_INSTANCE: Final = re.compile(r"[a-z][a-z0-9-]{0,19}")
"""A name that fits a user name of 31 characters."""
_UNITS: Final = "/etc/systemd/system"
_WANTS: Final = f"{_UNITS}/multi-user.target.wants"
_SOCKET_WANTS: Final = f"{_UNITS}/sockets.target.wants"
_GROWING_DELAY: Final = 254
"""The first systemd that has RestartSteps."""
_RELOADING: Final = 253
"""The first systemd that has Type=notify-reload."""
_RELOAD: Final = b"""# systemd sends the signal itself, and waits until the reload is over.
[Service]
Type=notify-reload
ExecReload=
"""
_DELAY: Final = b"""# Restarts come later and later, as long as it does not stay up.
[Service]
RestartSteps=8
RestartMaxDelaySec=5min
"""


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """A product is a service that can be installed."""

    name: str
    """The name of the unit, its user, its state and its program: `arc-agent`."""
    package: str
    """The Python package that holds `units/`."""
    home: str
    config_directory: str
    config_name: str
    """The name of the configuration, without `.yaml`, on a host with one instance."""
    kept: tuple[str, ...]
    """Names in the state directory that outlive an uninstall."""
    extra: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request says what the operator asked for."""

    config: bytes | None
    """None: keep the existing one."""
    token: bytes | None = None
    socket: bytes | None = None
    """The unit of a socket that systemd holds for the service; None: leave it as it is."""
    instance: str = ""
    source: str | None = None
    starts: bool = True
    ready_seconds: float = 60.0


class Names:
    """The names of the parts of one installation."""

    def __init__(self, product: Product, instance: str = "") -> None:
        """Derive the names. Raises SettingsError for an instance that no user can have."""
        if instance and not _INSTANCE.fullmatch(instance):
            what = "--instance: a name is a to z, 0 to 9 and -, 20 at most"
            raise SettingsError(what, key=None, source=None)
        self.user = f"{product.name}-{instance}" if instance else product.name
        self.installation = f"{product.name}@{instance}" if instance else product.name
        self.unit = f"{self.installation}.service"
        self.socket = f"{self.installation}.socket"
        self.unit_file = f"{product.name}@.service" if instance else self.unit
        self.config = f"{product.config_directory}/{instance or product.config_name}.yaml"
        self.state = f"/var/lib/{self.user}"
        self.manifest = f"{product.home}/installed/{self.installation}.json"


ProductContact: TypeAlias = Callable[[Names, Path], bool]
"""Returns True if the service of an installation, below a root, has contact with its server."""


def plan(product: Product, request: Request) -> list[AnyStep]:
    """Return all steps but the program and the start, in order, with the directories they need."""
    names = Names(product, request.instance)
    units = files(product.package) / "units"
    user = (units / f"{product.name}.sysusers.conf").read_text()
    user = user.replace(f"u {product.name} ", f"u {names.user} ").replace(
        f"/var/lib/{product.name}", names.state
    )
    sysusers = f"/etc/sysusers.d/{names.user}.conf"
    unit = (units / names.unit_file).read_bytes()
    steps: list[AnyStep] = [
        File(path=sysusers, content=user.encode()),
        SystemUser(path=sysusers, name=names.user),
        Owned(path=names.state, kept=product.kept),
        Directory(path=product.config_directory),
    ]
    if request.config is not None:
        steps.append(File(path=names.config, content=request.config, is_edited=True))
    if request.token is not None:
        steps += [
            Directory(path="/etc/credstore", mode=0o700),
            File(
                path=f"/etc/credstore/{names.user}.token",
                content=request.token,
                mode=0o600,
                is_secret=True,
            ),
        ]
    steps.append(File(path=f"/etc/systemd/system/{names.unit_file}", content=unit))
    drop_ins = {"delay": (_GROWING_DELAY, _DELAY), "reload": (_RELOADING, _RELOAD)}
    steps += [
        File(path=f"/etc/systemd/system/{names.unit_file}.d/10-{name}.conf", content=content)
        for name, (since, content) in drop_ins.items()
        if systemd_version() >= since
    ]
    if request.socket is not None:
        socket_file = f"{_UNITS}/{names.socket}"
        steps += [
            File(path=socket_file, content=request.socket),
            Link(path=f"{_SOCKET_WANTS}/{names.socket}", target=socket_file),
        ]
    steps += [
        Link(
            path=f"/usr/local/bin/{product.name}",
            target=f"{product.home}/current/bin/{product.name}",
        ),
        Link(path=f"{_WANTS}/{names.unit}", target=f"/etc/systemd/system/{names.unit_file}"),
    ]
    return list(_with_parents(steps))


def _with_parents(steps: Sequence[AnyStep]) -> Iterator[AnyStep]:
    """Yield each step after the directories that it needs."""
    seen: set[str] = {"/"}
    for step in steps:
        if not isinstance(step, SystemUser | Owned):
            for parent in reversed(Path(step.path).parents):
                if str(parent) not in seen:
                    seen.add(str(parent))
                    yield Directory(path=str(parent))
        seen.add(step.path)
        yield step


# Installing


def install(product: Product, request: Request, host: Host, services: Services) -> bool:
    """Carry out the plan, start the unit, and return True if anything changed.

    Raises InstallError.
    """
    names = Names(product, request.instance)
    check_request(product, request, host)
    manifest = _begin(product, names, host)
    others = _others(product, names, host)
    has_program = _install_program(product, request, host, manifest, others)
    steps = plan(product, request)
    changed = [
        step.path
        for step in steps
        if carry_out(step, host, manifest, others) in ("made", "changed")
    ]
    is_changed = has_program or bool(changed)
    version = InstalledProgram(host, product.home).current()
    if version is not None:
        check_config(product, names, host, version)
    if is_changed:
        services.reload()
    if request.starts and request.socket is not None:
        is_new = f"{_UNITS}/{names.socket}" in changed
        start_socket(names, services, request.ready_seconds, is_new=is_new)
    is_to_start = request.starts and (is_changed or not services.is_active(names.unit))
    if is_to_start and not services.restart(names.unit, request.ready_seconds):
        raise InstallError(
            f"{names.unit} is installed, and was not ready within {request.ready_seconds:g} s;"
            f" see: journalctl -u {names.unit}"
        )
    return is_changed


def start_socket(names: Names, services: Services, ready_seconds: float, *, is_new: bool) -> None:
    """Let systemd listen for the service. Raises InstallError."""
    if not is_new and services.is_active(names.socket):
        return
    services.stop(names.unit)  # it may hold the address
    if not services.restart(names.socket, ready_seconds):
        raise InstallError(f"{names.socket} does not listen; see: journalctl -u {names.socket}")


def check_request(product: Product, request: Request, host: Host) -> None:
    """Raise InstallError for what would stop an installation and shows beforehand.

    The configuration is judged by the program that is installed, or else by this one, unless
    another is to be installed from `request.source`.
    """
    names = Names(product, request.instance)
    _refuse_packaged(product, host)
    config = below(host.root, names.config)
    if request.config is None and not config.exists():
        what = f"{config} does not exist: give --server and --deployment, or --config"
        raise SettingsError(what, key=None, source=None)
    check_interpreter(host.root)
    manifest = Manifest(host.root, names.manifest)
    for step in plan(product, request):
        check(step, host, manifest, _others(product, names, host))
    version = InstalledProgram(host, product.home).current()
    if request.config is None or (version is None and request.source is not None):
        return
    program = [sys.executable, "-m", product.package]
    if version is not None:
        program = [str(version / "bin/python"), str(version / "bin" / product.name)]
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(request.config)
        file.flush()
        try:
            run_command([*program, "check-config", file.name])
        except InstallError as error:
            raise InstallError(str(error).replace(file.name, names.config)) from None


def _refuse_packaged(product: Product, host: Host) -> None:
    """Raise InstallError if the product is installed as a package."""
    if below(host.root, f"/var/lib/dpkg/info/{product.name}.list").exists():
        raise InstallError(f"{product.name} is installed as a package here: apt manages it")


def show_install(product: Product, request: Request, host: Host) -> list[str]:
    """Return every file and command that `install` would make or run. Changes nothing.

    Raises InstallError where `install` would before it changes anything.
    """
    names = Names(product, request.instance)
    check_request(product, request, host)
    lines: list[str] = []
    if InstalledProgram(host, product.home).current() is None:
        place = below(host.root, f"{product.home}/versions/1")
        lines.append(f"build  {place} from {request.source or sys.prefix}")
        lines.append(f"link   {below(host.root, product.home)}/current -> versions/1")
    lines += [f"write  {below(host.root, names.manifest)} (0644 root): the manifest, for uninstall"]
    for step in plan(product, request):
        lines += preview(step, host)
    lines += [
        f"run    {product.name} check-config {names.config}, as {names.user}",
        "run    systemctl daemon-reload",
    ]
    if not request.starts:
        return lines
    if request.socket is not None:
        lines += [f"run    systemctl stop {names.unit}", f"run    systemctl restart {names.socket}"]
    return [*lines, f"run    systemctl restart {names.unit}"]


def check_config(product: Product, names: Names, host: Host, version: Path) -> None:
    """Let a version check the configuration, as the user that it will run as.

    Raises InstallError.
    """
    config = below(host.root, names.config)
    argv = [str(version / "bin/python"), str(version / "bin" / product.name), "check-config"]
    as_user = [
        "setpriv", f"--reuid={names.user}", f"--regid={names.user}", "--clear-groups",
    ]  # fmt: skip
    may = os.geteuid() == 0 and not host.is_scratch
    # The user may not be allowed to enter root's working directory, such as /root.
    run_command([*(as_user if may else []), *argv, str(config)], directory="/")


def _begin(product: Product, names: Names, host: Host) -> Manifest:
    """Return the manifest, and make the directories around it."""
    made: list[str] = []
    for path in (*reversed(Path(product.home).parents), Path(product.home)):
        _make(below(host.root, str(path)), str(path), made)
    _make(below(host.root, f"{product.home}/installed"), f"{product.home}/installed", made)
    manifest = Manifest(host.root, names.manifest)
    shared = {
        entry.path
        for other in _others(product, names, host)
        for entry in other.entries
        if entry.kind == "directory"
    }
    for path in (*(str(each) for each in Path(product.home).parents), product.home,
                 f"{product.home}/installed"):  # fmt: skip
        if path in made or path in shared:
            manifest.record(ManifestEntry(kind="directory", path=path))
    return manifest


def _make(directory: Path, path: str, made: list[str]) -> None:
    if not directory.is_dir():
        directory.mkdir()
        directory.chmod(0o755)
        made.append(path)


def _install_program(
    product: Product,
    request: Request,
    host: Host,
    manifest: Manifest,
    others: Sequence[Manifest],
) -> bool:
    """Build the first version if there is none. Return True if it was built."""
    program = InstalledProgram(host, product.home, product.extra)
    versions = f"{product.home}/versions"
    is_there = program.current() is not None
    if not is_there or any(other.find(versions) for other in others):
        manifest.record(ManifestEntry(kind="owned", path=versions))
        manifest.record(ManifestEntry(kind="link", path=f"{product.home}/previous"))
        manifest.record(ManifestEntry(kind="link", path=f"{product.home}/current"))
    if is_there:
        if request.source is not None:
            host.print(
                f"a version is installed: `{product.name} upgrade --from …` installs another"
            )
        return False
    program.versions.mkdir(exist_ok=True)
    host.print(f"building {program.versions}")
    program.switch(program.build(Path(sys.prefix), request.source))
    return True


def _others(product: Product, names: Names, host: Host) -> list[Manifest]:
    """Return the manifests of other instances of the program."""
    directory = below(host.root, f"{product.home}/installed")
    return [
        Manifest(host.root, f"{product.home}/installed/{file.name}")
        for file in sorted(directory.glob("*.json"))
        if file.name != Path(names.manifest).name
    ]


# Uninstalling


def uninstall(
    product: Product, instance: str, host: Host, services: Services, *, purge: bool
) -> None:
    """Stop the unit and remove all that was made. Raises InstallError."""
    names = Names(product, instance)
    manifest = _installed(names, host)
    others = _others(product, names, host)
    for unit in _units_of(names, manifest):
        services.stop(unit)
    bootstrap = _bootstrap(product)
    for entry in reversed([each for each in manifest.entries if each.path not in bootstrap]):
        if any(other.find(entry.path) for other in others):
            manifest.forget(entry)
        else:
            remove_entry(entry, host, manifest, purge=purge)
    left = [entry for entry in manifest.entries if entry.path in bootstrap]
    below(host.root, names.manifest).unlink(missing_ok=True)
    for entry in sorted(left, key=lambda each: each.path, reverse=True):
        if not any(other.find(entry.path) for other in others):
            remove_directory(below(host.root, entry.path), host)
    services.reload()


def show_uninstall(product: Product, instance: str, host: Host, *, purge: bool) -> list[str]:
    """Return every file and command that `uninstall` would remove or run. Changes nothing."""
    names = Names(product, instance)
    manifest = _installed(names, host)
    others = _others(product, names, host)
    lines = [f"run    systemctl stop {unit}" for unit in _units_of(names, manifest)]
    for entry in reversed(manifest.entries):
        if not any(other.find(entry.path) for other in others):
            lines += preview_removal(entry, host, purge=purge)
    return [*lines, f"remove {below(host.root, names.manifest)}", "run    systemctl daemon-reload"]


def _units_of(names: Names, manifest: Manifest) -> list[str]:
    """Return the units of an installation, the socket first: it would start the service again."""
    has_socket = manifest.find(f"{_UNITS}/{names.socket}") is not None
    return [names.socket, names.unit] if has_socket else [names.unit]


def _installed(names: Names, host: Host) -> Manifest:
    manifest = Manifest(host.root, names.manifest)
    if not manifest.is_there:
        raise InstallError(f"{names.installation} is not installed here")
    return manifest


def _bootstrap(product: Product) -> set[str]:
    """Return the directories around the manifest, which are removed last."""
    parents = (str(parent) for parent in Path(product.home).parents)
    return {f"{product.home}/installed", product.home, *parents}


# Upgrading


def upgrade_product(
    product: Product,
    source: str,
    host: Host,
    services: Services,
    ready_seconds: float,
    has_contact: ProductContact,
) -> Path:
    """Upgrade to the version that `source` makes, and return it. Raises InstallError."""
    _refuse_packaged(product, host)
    every = _instances(product, host)
    refuse_from_within([names.unit for names in every])

    def check(version: Path) -> None:
        for names in every:
            check_config(product, names, host, version)

    return upgrade(
        InstalledProgram(host, product.home, product.extra),
        host,
        services,
        source=source,
        units=[names.unit for names in every],
        check=check,
        has_contact=_contact_of(every, host, has_contact),
        within_seconds=ready_seconds,
    )


def go_back(
    product: Product,
    host: Host,
    services: Services,
    ready_seconds: float,
    has_contact: ProductContact,
) -> Path:
    """Go back to the previous version, and return it. Raises InstallError."""
    every = _instances(product, host)
    program = InstalledProgram(host, product.home, product.extra)
    previous = program.previous()
    if previous is None:
        raise InstallError("there is no previous version")
    switch_to(
        program,
        host,
        services,
        previous,
        units=[names.unit for names in every],
        has_contact=_contact_of(every, host, has_contact),
        within_seconds=ready_seconds,
    )
    return previous


def _contact_of(every: Sequence[Names], host: Host, has_contact: ProductContact) -> HasContact:
    """Return the question about contact by the name of a unit."""
    by_unit = {names.unit: names for names in every}
    return lambda unit: has_contact(by_unit[unit], host.root)


def _instances(product: Product, host: Host) -> list[Names]:
    """Return the installations of a product. Raises InstallError when there is none."""
    directory = below(host.root, f"{product.home}/installed")
    found = [
        Names(product, file.stem.partition("@")[2]) for file in sorted(directory.glob("*.json"))
    ]
    if not found:
        raise InstallError(f"{product.name} is not installed here")
    return found


def refuse_from_within(units: Sequence[str], cgroup: Path = Path("/proc/self/cgroup")) -> None:
    """Raise InstallError if this process is part of a unit that is to be restarted."""
    try:
        place = cgroup.read_text()
    except OSError:
        return
    for unit in units:
        if f"/{unit}" in place:
            raise InstallError(
                f"this runs inside {unit} and would end with it:"
                " systemd-run --collect arc-agent upgrade … does it from outside"
            )
