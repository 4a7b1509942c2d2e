"""The program has a virtual environment for each version, and a link to the current one.

<home>/versions/1, 2, …    <home>/current -> versions/2    <home>/previous -> versions/1

A new version begins as a copy of the current one: packages that an operator has added (plug-ins)
come along, and nothing is fetched twice. Then pip installs the new release into it. pip runs from
an environment of its own that is gone afterwards: a version holds no tools to build or install.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from arc_runtime.install.host import Host, InstallError, below, write_link
from arc_runtime.install.services import run_command

DISTRIBUTION: Final = "arc-commands"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOOLS: Final = frozenset({"pip", "setuptools", "wheel", "hatchling", "editables"})
"""Distributions that build or install others. A version holds those that a plug-in requires."""
_HIDDEN: Final = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108
"""A unit with ProtectHome and PrivateTmp does not see these."""


class _DirectoryInfo(msgspec.Struct):
    editable: bool = False


class _Origin(msgspec.Struct):
    """The origin of a package: direct_url.json (PEP 610)."""

    url: str = ""
    dir_info: _DirectoryInfo = msgspec.field(default_factory=_DirectoryInfo)


class InstalledProgram:
    """A program keeps its versions below its home, such as /opt/arc."""

    def __init__(self, host: Host, home: str, extra: str = "") -> None:
        self._host = host
        self._home = home
        self._extra = extra
        self.versions = below(host.root, f"{home}/versions")

    def current(self) -> Path | None:
        """Return the environment of the current version; None without one."""
        return self._linked("current")

    def previous(self) -> Path | None:
        """Return the environment of the previous version; None without one."""
        return self._linked("previous")

    def switch(self, version: Path) -> None:
        """Make a version the current one in one step; the current one becomes the previous one."""
        old = self.current()
        # The whole file system of the versions, and no other: a host's slow disks do not count.
        run_command(["sync", "--file-system", str(self.versions)])
        if old is not None and old != version:
            write_link(self._link("previous"), f"versions/{old.name}")
        write_link(self._link("current"), f"versions/{version.name}")

    def set_previous(self, version: Path | None) -> None:
        """Make a version the previous one; None: there is none."""
        if version is None:
            self._link("previous").unlink(missing_ok=True)
        else:
            write_link(self._link("previous"), f"versions/{version.name}")

    def forget(self, version: Path) -> None:
        """Remove a version that failed."""
        shutil.rmtree(version, ignore_errors=True)

    def prune(self) -> None:
        """Remove all versions but the current and the previous one."""
        kept = {self.current(), self.previous()}
        for version in self.versions.iterdir():
            if version not in kept:
                shutil.rmtree(version)

    def build(self, base: Path, source: str | None) -> Path:
        """Make the next version, and return it: a copy of `base`, then `source` by pip.

        `source` is a wheel, a directory or a requirement; None keeps the release of `base`. Raises
        InstallError, and leaves nothing behind then.
        """
        numbers = [int(each.name) for each in self.versions.iterdir() if each.name.isdecimal()]
        version = self.versions / str(max(numbers, default=0) + 1)
        old_mask = os.umask(0o022)  # the unit's user must be able to read it
        try:
            self._host.run([sys.executable, "-m", "venv", "--without-pip", str(version)])
            origin = _editable_origin(base)
            _copy(base, version, only_needed=origin is not None)
            wanted = source or origin
            if wanted is not None:
                is_ours = origin is not None and source is None
                with tempfile.TemporaryDirectory(prefix="arc-pip-") as place:
                    self._pip(version, base, wanted, Path(place), has_backend=is_ours)
            old = [base, version]
            if base.parent == self.versions:
                old.append(Path(self._final(base)))
            _point_scripts(version, old, Path(self._final(version)))
            for path in version.rglob("*"):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        except BaseException:
            self.forget(version)
            raise
        finally:
            os.umask(old_mask)
        return version

    def _final(self, version: Path) -> str:
        """Return a version's path on the running system, which its scripts name."""
        return f"{self._home}/versions/{version.name}"

    def _pip(
        self, version: Path, base: Path, source: str, place: Path, *, has_backend: bool
    ) -> None:
        """Install `source` by the pip of this environment, or by one made in the directory `place`.

        `has_backend`: build it with the tools of this environment.
        """
        path = Path(source).absolute()
        if has_backend:
            self._host.run(
                [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                 "--no-build-isolation", "--wheel-dir", str(place), source]
            )  # fmt: skip
            path = next(iter(place.glob("*.whl")))
        runs_pip = sys.executable
        if importlib.util.find_spec("pip") is None:  # this is an installed version
            runs_pip = str(place / "tools/bin/python")
            self._host.run([sys.executable, "-m", "venv", str(place / "tools")])
        pip = [runs_pip, "-m", "pip", "--python", str(version / "bin/python"), "install",
               "--quiet", "--no-input", "--disable-pip-version-check"]  # fmt: skip
        if not has_backend:
            extra = f"[{self._extra}]" if self._extra else ""
            self._host.run([*pip, "--upgrade", f"{path}{extra}" if path.exists() else source])
        is_same = _release(version) == _release(base)
        if path.exists() and is_same:  # pip would skip a release of an equal number
            self._host.run([*pip, "--force-reinstall", "--no-deps", str(path)])

    def _linked(self, name: str) -> Path | None:
        link = self._link(name)
        return self.versions / Path(os.readlink(link)).name if link.is_symlink() else None

    def _link(self, name: str) -> Path:
        return below(self._host.root, f"{self._home}/{name}")


def check_interpreter(root: Path) -> None:
    """Raise InstallError if a unit could not see the interpreter of this process."""
    binary = os.path.realpath(sys.executable)
    if root == Path("/") and binary.startswith(_HIDDEN):
        raise InstallError(
            f"this runs with {binary}, which a sandboxed unit cannot see: use the system's"
            " python3 (/usr/bin/python3 -m venv …), or one below /opt or /usr/local"
        )


def _site(prefix: Path) -> Path:
    """Return the packages directory of an environment."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(prefix)}))


def _distributions(prefix: Path) -> dict[str, importlib.metadata.Distribution]:
    """Return the distributions of an environment, by normal name."""
    found = importlib.metadata.distributions(path=[str(_site(prefix))])
    return {_normal(each.metadata["Name"]): each for each in found}


def _release(prefix: Path) -> str:
    """Return the release of ARC in an environment; empty without one."""
    ours = _distributions(prefix).get(DISTRIBUTION)
    return ours.version if ours is not None else ""


def _editable_origin(prefix: Path) -> str | None:
    """Return the directory that ARC is installed from by `pip install -e`; None otherwise."""
    ours = _distributions(prefix).get(DISTRIBUTION)
    if ours is None:
        raise InstallError(f"{prefix} holds no {DISTRIBUTION}: give --from")
    origin = msgspec.json.decode(ours.read_text("direct_url.json") or "{}", type=_Origin)
    return unquote(urlsplit(origin.url).path) if origin.dir_info.editable else None


def _copy(base: Path, version: Path, *, only_needed: bool) -> None:
    """Copy packages and scripts: all but tools, or those ARC needs, from a development environment.

    Tools that a copied package requires come along.
    """
    site, target = _site(base), _site(version)
    if not only_needed:
        tools = set(_files(_unneeded_tools(base)))
        left_out = {str(file.relative_to(site).parts[0]) for file in tools
                    if file.is_relative_to(site)} - {"__pycache__"}  # fmt: skip

        def ignore(directory: str, names: list[str]) -> set[str]:
            return left_out & set(names) if Path(directory) == site else set()

        shutil.copytree(site, target, dirs_exist_ok=True, symlinks=True, ignore=ignore)
        files: Iterable[Path] = [each for each in (base / "bin").iterdir() if each not in tools]
    else:
        files = list(_files(_needed(base)))
        for file in files:
            if file.is_relative_to(site) and file.exists():
                place = target / file.relative_to(site)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place)
    for file in files:
        if file.parent == base / "bin" and _is_script(file) and not file.is_symlink():
            shutil.copy2(file, version / "bin" / file.name)


def _files(found: Iterable[importlib.metadata.Distribution]) -> Iterator[Path]:
    """Yield all files of distributions, with `..` resolved."""
    for each in found:
        for file in each.files or ():
            yield Path(os.path.normpath(str(file.locate())))


def _needed(prefix: Path) -> list[importlib.metadata.Distribution]:
    """Return ARC and all that it requires."""
    there = _distributions(prefix)
    wanted, needed = [DISTRIBUTION], dict[str, bool]()
    while wanted:
        name = wanted.pop()
        if name in needed or name not in there:
            continue
        needed[name] = True
        wanted += _required(there[name])
    return [there[name] for name in needed]


def _unneeded_tools(prefix: Path) -> list[importlib.metadata.Distribution]:
    """Return the tools of an environment that no other distribution requires."""
    there = _distributions(prefix)
    required = {each for name in there if name not in _TOOLS for each in _required(there[name])}
    return [there[name] for name in _TOOLS & there.keys() - required]


def _required(distribution: importlib.metadata.Distribution) -> list[str]:
    """Return what a distribution requires: without its extras, but for ARC's own."""
    has_extras = _normal(distribution.metadata["Name"]) == DISTRIBUTION
    lines = (line for line in distribution.requires or ()
             if has_extras or "extra ==" not in line)  # fmt: skip
    return [_normal(found[0]) for line in lines if (found := _NAME.match(line))]


def _point_scripts(version: Path, old: Iterable[Path], new: Path) -> None:
    """Let scripts and pyvenv.cfg name the version's final path."""
    for file in (*(version / "bin").iterdir(), version / "pyvenv.cfg"):
        if file.is_symlink() or not (_is_script(file) or file.suffix == ".cfg"):
            continue
        content = file.read_bytes()
        for place in old:
            content = content.replace(f"{place}/".encode(), f"{new}/".encode())
        file.write_bytes(content)


def _is_script(file: Path) -> bool:
    """Return True if a file names its interpreter."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(2) == b"#!"


def _normal(name: str) -> str:
    """Return the normal form of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()
