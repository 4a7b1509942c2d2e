"""A Debian root is made once by debootstrap, kept in a directory that git ignores, and copied.

The mirror is the host's own: apt names it. Packages that a page of the docs tells its reader to
install wait in the root's apt cache, and Python packages in a directory of wheels, so that a booted
root needs no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2]
CACHE: Final = PROJECT / ".systemd-root"
RELEASE: Final = os.environ.get("DEBIAN_RELEASE", "bookworm")
NEEDED: Final = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
}
"""Programs of the host, and the Debian packages that have them."""
INSTALLED: Final = ("systemd", "systemd-sysv", "dbus", "python3")
"""What a host has before it meets us: systemd and Python, no build tools, no procps."""
DOWNLOADED: Final = ("git", "make", "curl", "python3-venv")
"""What pages may tell a reader to install."""
_PYTHONS: Final = {"bookworm": "3.11", "trixie": "3.13"}


def why_not() -> str:
    """Why no root can be booted here, and what to do about it; nothing where one can."""
    if os.geteuid() != 0:
        return "booting a Debian root needs root"
    missing = [package for name, package in NEEDED.items() if shutil.which(name) is None]
    if missing:
        return f"programs are missing: apt-get install {' '.join(missing)}"
    if shutil.which("apt-get") is None:
        return "the mirror is taken from apt, which is not here"
    if _PYTHONS.get(RELEASE) is None:
        return f"DEBIAN_RELEASE={RELEASE} is none of {', '.join(_PYTHONS)}"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"],
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    return f"this machine lets no container start: {tried.stderr}" if tried.returncode else ""


def parts() -> tuple[Path, Path]:
    """The root and the wheels, made by one process while the others wait for it."""
    assert not why_not(), why_not()
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _pristine(), _wheels()


def _pristine() -> Path:
    """The root as debootstrap made it; made now if there is none of this recipe."""
    recipe = " ".join((RELEASE, *INSTALLED, *DOWNLOADED))
    place = CACHE / f"{RELEASE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not place.is_dir():
        unfinished = place.with_name(f".{place.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        _call(
            "debootstrap", "--variant=minbase", f"--include={','.join(INSTALLED)}",
            RELEASE, unfinished, _mirror(),
        )  # fmt: skip
        chroot = ("chroot", unfinished, "apt-get", "--quiet")
        _call(*chroot, "update")
        _call(*chroot, "install", "--yes", "--download-only", *DOWNLOADED)
        (unfinished / "etc/machine-id").write_text("")  # each copy makes its own
        unfinished.rename(place)
    return place


def _wheels() -> Path:
    """The locked dependencies as wheels for the root's Python; downloaded now if need be."""
    lock = PROJECT / "requirements.lock"
    python = _PYTHONS[RELEASE]
    name = f"wheels-{python}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    place = CACHE / name
    if not place.is_dir():
        unfinished = place.with_name(f".{name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        platforms = [f"--platform=manylinux_{minor}_{platform.machine()}"
                     for minor in ("2_17", "2_28", "2_34")]  # fmt: skip
        _call(
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--require-hashes", "--only-binary=:all:", f"--python-version={python}",
            *platforms, f"--platform=manylinux2014_{platform.machine()}",
            "--requirement", lock, "--dest", unfinished,
        )  # fmt: skip
        unfinished.rename(place)
    return place


def _mirror() -> str:
    """The mirror of Debian that this host's apt uses."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"],
        text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    places = [line.removeprefix("Debian ") for line in listed.splitlines()
              if line.startswith("Debian ") and "security" not in line]  # fmt: skip
    assert places, "apt knows no mirror of Debian: run apt-get update first"
    return places[0]


def _call(*argv: str | Path) -> None:
    """Run a program to its end, which must be a good one."""
    done = subprocess.run(
        [str(each) for each in argv], text=True, capture_output=True, check=False, timeout=600,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 0, f"{argv[0]}: {(done.stdout + done.stderr)[-3000:]}"
