"""The isolation of programs: limits of the process, scopes of systemd, and other users.

A scope (`systemd-run --scope`) bounds and ends all processes of a run together. It needs systemd,
and an agent that may use it: as root, or with its user's own systemd. Limits of the process
(setrlimit(2)) work everywhere, but bind each process by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from arc_agent.config.declared_handlers import NO_LIMITS, ExecSection
from arc_agent.handlers.registry import HandlerError

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

Chosen = Literal["scope", "rlimits", "none"]

_LAUNCHER: Final = Path(__file__).with_name("launcher.py")
_SYSTEMD: Final = Path("/run/systemd/system")
"""Exists where systemd runs: sd_booted(3)."""
_CAPABILITIES: Final[Mapping[str, int]] = {"CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
_STOP_SECONDS: Final = 5.0
_RLIMITS: Final[Mapping[str, str]] = {
    "memory_bytes": "RLIMIT_AS",
    "cpu_seconds": "RLIMIT_CPU",
    "file_bytes": "RLIMIT_FSIZE",
    "processes": "RLIMIT_NPROC",
    "open_files": "RLIMIT_NOFILE",
}
_BY_SCOPE: Final = ("memory_bytes", "cpu_percent", "processes")
"""Limits that a scope enforces for all processes together; the others stay with the process."""


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """The isolation chosen for a program."""

    chosen: Chosen
    reason: str
    """The reason of the choice, for the log."""
    is_plain: bool
    """The program needs no isolation, and is started directly."""


class ProgramUser(msgspec.Struct, frozen=True):
    """The user that a program runs as."""

    uid: int
    gid: int
    groups: list[int]
    home: str


def choose(section: ExecSection, environ: Mapping[str, str] = os.environ) -> Fence:
    """Return the isolation for a section on this host, judged without a call of systemd."""
    wanted = section.isolation
    if section.limits == NO_LIMITS or wanted == "none":
        return Fence(chosen="none", reason="no limits", is_plain=section.user is None)
    if wanted == "rlimits":
        return Fence(chosen="rlimits", reason="as configured", is_plain=False)
    missing = _no_scope(environ)
    if missing is None:
        return Fence(chosen="scope", reason="systemd is here", is_plain=False)
    return Fence(chosen="rlimits", reason=missing, is_plain=False)


def check(sections: Mapping[str, ExecSection], environ: Mapping[str, str] = os.environ) -> None:
    """Check at the start that this host can isolate the sections' programs; log the choices.

    Raises HandlerError for a section that this host cannot run.
    """
    by_choice: dict[str, list[str]] = {}
    for name, section in sections.items():
        key = f"handlers.exec.{name}"
        if section.user is not None:
            find_user(section.user, key)
            _check_powers(key)
        fence = choose(section, environ)
        if section.isolation == "scope" and fence.chosen == "rlimits":
            raise HandlerError(f"{key}.isolation: no scope here: {fence.reason}")
        if fence.chosen == "rlimits" and section.limits.cpu_percent is not None:
            log.warning("exec.not_limited", handler=name, limit="cpu_percent", reason=fence.reason)
        if fence.chosen != "none":
            by_choice.setdefault(fence.chosen, []).append(name)
    for chosen, names in by_choice.items():
        log.info("exec.isolation", isolation=chosen, handlers=names)


def find_user(name: str, key: str) -> ProgramUser:
    """Return a user of this host. Raises HandlerError."""
    try:
        entry = pwd.getpwnam(name)
        groups = os.getgrouplist(name, entry.pw_gid)
    except (KeyError, OSError):
        raise HandlerError(f"{key}.user: this host has no user {name!r}") from None
    return ProgramUser(entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


def of_user(
    environment: Mapping[str, str], section: ExecSection, user: ProgramUser
) -> dict[str, str]:
    """Return the program's variables with the user's home and name."""
    own = {"HOME": user.home, "USER": section.user or "", "LOGNAME": section.user or ""}
    return {**environment, **{k: v for k, v in own.items() if k not in section.env}}


def place(directory: Path, user: ProgramUser | None) -> Path:
    """Return the working directory of a program without `cwd`: the run's own, if possible."""
    if user is None:
        return directory
    own = directory / "work"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        os.chown(own, user.uid, user.gid)
    except PermissionError:  # an agent without CAP_CHOWN cannot give the directory to the user
        return Path("/")
    return own


def unit_name(command_id: str, attempt: int) -> str:
    """Return a unique name for the scope of a run."""
    known = "".join(char if char.isalnum() and char.isascii() else "-" for char in command_id)
    return f"arc-exec-{known[:80]}-{attempt}-{os.urandom(4).hex()}.scope"


def wrapped(
    argv: list[str], section: ExecSection, chosen: Chosen, *, unit: str, channel: int
) -> list[str]:
    """Return the argv of the launcher, which sets limits and user and becomes the program."""
    launcher = [sys.executable, "-SIE", str(_LAUNCHER), str(channel), *argv]
    return [*_scope(unit, section), "--", *launcher] if chosen == "scope" else launcher


def instructions(
    section: ExecSection, chosen: Chosen, user: ProgramUser | None, environment: Mapping[str, str]
) -> bytes:
    """Return the launcher's instructions. Its argv would show them to every user of the host."""
    rlimits = {
        number: value
        for key, number in _RLIMITS.items()
        if (value := getattr(section.limits, key)) is not None
        and chosen != "none"
        and not (chosen == "scope" and key in _BY_SCOPE)
    }
    spec = {
        "rlimits": rlimits,
        "user": None if user is None else [user.uid, user.gid, user.groups],
        "env": dict(environment),
    }
    return json.dumps(spec).encode()


def _scope(unit: str, section: ExecSection) -> list[str]:
    """Return the argv of systemd-run with the limits of a scope."""
    limits = section.limits
    has_memory = limits.memory_bytes is not None
    properties = {
        "MemoryMax": limits.memory_bytes,
        "MemorySwapMax": 0 if has_memory else None,
        "CPUQuota": None if limits.cpu_percent is None else f"{limits.cpu_percent}%",
        "TasksMax": limits.processes,
    }
    return [
        "systemd-run",
        *_manager(),
        "--scope",
        "--quiet",
        "--collect",
        f"--unit={unit}",
        *(f"--property={name}={value}" for name, value in properties.items() if value is not None),
    ]


def for_systemd(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables by which systemd-run finds systemd."""
    names = ("PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    return {name: environ[name] for name in names if name in environ}


def end_scope(unit: str) -> None:
    """Kill all processes of a scope, if it still exists. Blocks."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(  # noqa: S603  # no argument is from outside
            ["systemctl", *_manager(), "kill", "--signal=SIGKILL", unit],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=for_systemd(),
            timeout=_STOP_SECONDS,
            check=False,
        )


def _manager() -> list[str]:
    """Return the option for the user's own systemd; none for root."""
    return [] if os.geteuid() == 0 else ["--user"]


def _no_scope(environ: Mapping[str, str]) -> str | None:
    """Return why a scope is impossible here, judged without a call; None if it may work."""
    if not _SYSTEMD.is_dir():
        return "systemd does not run here"
    if shutil.which("systemd-run", path=environ.get("PATH")) is None:
        return "there is no systemd-run"
    if os.geteuid() == 0:
        return None
    runtime = environ.get("XDG_RUNTIME_DIR")
    if not runtime or not os.access(Path(runtime) / "systemd" / "private", os.W_OK):
        return "only root may make one, and this user has no systemd of its own"
    return None


def _check_powers(key: str) -> None:
    """Raise HandlerError unless this process may become another user, and kill its processes."""
    missing = _missing(_CAPABILITIES)
    if missing:
        raise HandlerError(
            f"{key}.user: the agent cannot become another user: it needs {', '.join(missing)}"
            " (root, or AmbientCapabilities= in the unit)"
        )


def _missing(names: Iterable[str]) -> list[str]:
    """Return the capabilities that are not in effect."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return [] if os.geteuid() == 0 else list(names)
    held = next(
        (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0
    )
    return [name for name in names if not held >> _CAPABILITIES[name] & 1]
