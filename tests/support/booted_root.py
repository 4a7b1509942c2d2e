"""A booted root is a copy of a Debian root with systemd as PID 1, in a container.

It has a network of its own, with a loopback and nothing else. Commands run in it as root types
them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support import control_groups, debian_root
from tests.support.waiting import wait_until

BOOT_SECONDS: Final = 60.0
_MEMORY_BYTES: Final = 6 * 1024**3
"""With so much memory to spare, a copy of the root is kept there: its writes need no disk."""
_PIP = """\
[global]
no-index = true
find-links = /srv/wheels
disable-pip-version-check = true
"""
_ENVIRON: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "COLUMNS": "120",
    "DEBIAN_FRONTEND": "noninteractive",
    "SYSTEMD_PAGER": "",
}
_CHANGING: Final = (
    "dev/", "proc/", "run/", "sys/", "tmp/", "var/tmp/",
    "var/log/", "var/lib/systemd/", "var/lib/private", "var/cache/ldconfig/",
    "etc/machine-id", "etc/mtab", "etc/resolv.conf", "root/.bash_history",
)  # fmt: skip
"""What a running system changes by itself."""


class CommandEnded(AssertionError):
    """A command in the root did not end with 0."""

    def __init__(self, argv: Sequence[str], code: int, printed: str) -> None:
        self.code = code
        self.printed = printed
        super().__init__(f"{' '.join(argv)} ended with {code}:\n{printed[-6000:]}")


class BootedRoot:
    """One boot of a copy of the root. Use as a context: nothing of it is left at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pristine, self._wheels = debian_root.parts()
        self._place = Path(tempfile.mkdtemp(prefix=f"{name}-{os.getpid()}-", dir=debian_root.CACHE))
        self.path = self._place / "root"
        """Where the host sees the root's files."""
        self._console = self._place / "console"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> BootedRoot:
        try:
            if _available_bytes() > _MEMORY_BYTES:
                subprocess.run(
                    ["mount", "-t", "tmpfs", "-o", f"size={_MEMORY_BYTES // 2},mode=0755",
                     "arc-root", self._place],
                    check=True,
                )  # fmt: skip
            subprocess.run(["cp", "-a", "--reflink=auto", self._pristine, self.path], check=True)
            (self.path / "etc/hostname").write_text(f"{self._name}\n")
            (self.path / "etc/hosts").write_text(f"127.0.0.1 localhost {self._name}\n")
            (self.path / "etc/pip.conf").write_text(_PIP)
            (self.path / "srv/wheels").mkdir()
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        if self._nspawn is not None:
            if self._leader:  # nothing of the root is needed any more: no orderly power off
                os.kill(self._leader, signal.SIGKILL)
            else:
                self._nspawn.kill()
            self._nspawn.wait()
        _remove(self._place)

    def _boot(self) -> None:
        """Start systemd in the root, and wait until it has started everything."""
        groups = control_groups.create(self._place.name)
        nspawn = [
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot",
            "--private-network", "--console=pipe",
            f"--machine={self._name}-{os.getpid()}", f"--directory={self.path}",
            f"--bind-ro={self._wheels}:/srv/wheels",
        ]  # fmt: skip
        with self._console.open("wb") as console:
            self._nspawn = subprocess.Popen(
                control_groups.entered(groups, nspawn),
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
        self._leader = wait_until(self._first_process, BOOT_SECONDS)
        wait_until(lambda: self.try_run("test", "-S", "/run/systemd/private")[0] == 0, BOOT_SECONDS)
        code, state = self.try_run("systemctl", "is-system-running", "--wait", seconds=120)
        if (code, state) != (0, "running\n"):
            failed = self.run("systemctl", "--failed")
            why = self.run("journalctl", "--boot", "--priority=warning", "--no-pager")
            raise AssertionError(f"{state}\n{failed}\n{why}")

    def control_groups(self) -> str:
        """The control groups of systemd in the root, as the host names them."""
        return Path(f"/proc/{self._leader}/cgroup").read_text()

    def _first_process(self) -> int:
        """The process that is PID 1 in the root; 0 before it runs systemd."""
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, self._console.read_text()
        pid = self._nspawn.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next((int(each) for each in children if _name_of(each) == "systemd"), 0)

    # Commands, as root types them

    def try_run(
        self, *argv: str, directory: str = "/root", seconds: float = 600.0, **environ: str
    ) -> tuple[int, str]:
        """Run a command to its end; its exit code, and all that it printed."""
        done = subprocess.run(
            [*self._entered(directory), *argv],
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=seconds, check=False, env=_ENVIRON | environ,
        )  # fmt: skip
        return done.returncode, done.stdout

    def run(self, *argv: str, **options: Any) -> str:
        """Run a command to its end, which must be 0; what it printed."""
        code, printed = self.try_run(*argv, **options)
        if code:
            raise CommandEnded(argv, code, printed)
        return printed

    def type(self, lines: str, **options: Any) -> str:
        """Type lines into a shell that stops at the first that fails; what they printed."""
        return self.run("bash", "-ec", lines, **options)

    def shell(self, program: str) -> subprocess.Popen[str]:
        """A shell that runs a program of its language, with pipes to it."""
        return subprocess.Popen(
            [*self._entered("/root"), "bash", "-c", program], text=True, env=_ENVIRON, bufsize=1,
            start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file of root's, with the directories that it needs."""
        file = self.path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)

    def copy_in(self, file: Path, directory: str = "/root") -> str:
        """Copy a file or a directory of the host into the root; its path there."""
        place = self.path / directory.lstrip("/") / file.name
        if file.is_dir():
            shutil.copytree(file, place, symlinks=True)
        else:
            shutil.copy(file, place)
        return f"{directory}/{file.name}"

    def _entered(self, directory: str) -> list[str]:
        """The words that let a program run inside."""
        return ["nsenter", f"--target={self._leader}", "--all", f"--wd={self.path}{directory}"]

    # Units

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).strip()

    def pid(self, unit: str) -> int:
        """The main process of a unit, by its number in the root."""
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """The journal's entries of a unit since the boot, with all their fields."""
        printed = self.run("journalctl", f"--unit={unit}", "--output=json", "--all", "--boot")
        return [json.loads(line) for line in printed.splitlines()]

    def until_status(self, unit: str, part: str, seconds: float = 60.0) -> str:
        """Wait until a unit's status line contains a text; the whole line."""
        return self.until(unit, lambda: self._status_with(unit, part), seconds)

    def until(self, unit: str, holds: Any, seconds: float = 60.0) -> Any:
        """Wait until something holds. A failure shows what the unit says of itself."""
        try:
            return wait_until(holds, seconds)
        except TimeoutError as error:
            _, status = self.try_run("systemctl", "status", "--lines=40", "--full", unit)
            raise AssertionError(f"{error}\n{status}") from None

    def _status_with(self, unit: str, part: str) -> str:
        line = self.show(unit, "StatusText")
        return line if part in line else ""

    # Files

    def files(self) -> dict[str, str]:
        """Every file of the root that does not change by itself: kind, mode, owner, content."""
        return dict(self._files())

    def _files(self) -> Iterator[tuple[str, str]]:
        for directory, names, files in os.walk(self.path):
            for name in (*names, *files):
                path = Path(directory, name)
                where = str(path.relative_to(self.path))
                if f"{where}/".startswith(_CHANGING) or where in _CHANGING:
                    continue
                status = path.lstat()
                content = ""
                if path.is_symlink():
                    content = os.readlink(path)
                elif path.is_file() and not where.endswith("-"):  # passwd- is passwd's backup
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                yield where, f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {content}"


def difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Every file of a root that is not as it was, of what `files` said before and after."""
    return sorted(
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    )


def remove_left() -> None:
    """Remove the roots of processes that ended without removing theirs."""
    for place in debian_root.CACHE.glob("*-*-*"):
        pid = place.name.rsplit("-", 2)[1]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            _remove(place)


def _remove(place: Path) -> None:
    """End what runs in a root, and remove its directory."""
    control_groups.remove(control_groups.places(place.name))
    if place.is_mount():
        subprocess.run(["umount", place], check=True)
    shutil.rmtree(place)


def _available_bytes() -> int:
    """The memory that is available without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _name_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):  # it has ended, before or after the open
        return ""


def why_not() -> str:
    """Why no root can be booted here; nothing where one was. The root is made on the way."""
    reason = debian_root.why_not()
    if reason:
        return reason
    try:
        remove_left()
        with BootedRoot("trial"):
            return ""
    except Exception as error:
        return f"no Debian root boots here: {error}"


if __name__ == "__main__":
    sys.exit(why_not() or 0)
