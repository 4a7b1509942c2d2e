"""What a program may use, and as whom it runs: limits of the process, scopes of systemd, users.

A scope (`systemd-run --scope`) bounds all processes of a run together, and ends them together. It
is taken where systemd runs and this agent may ask it: as root, or of its user's own systemd.
Elsewhere there are limits of the process (setrlimit(2)), which hold for each process by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
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
"""Is there where systemd runs: sd_booted(3)."""
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
"""What a scope enforces better; the others are limits of the process in a scope too."""


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """How a program is started."""

    chosen: Chosen
    reason: str
    """Why not something stronger, for the log."""
    is_plain: bool
    """Whether nothing is to be done: the program is started as it is."""


class ProgramUser(msgspec.Struct, frozen=True):
    """Another user to run as."""

    uid: int
    gid: int
    groups: list[int]
    home: str


def choose(section: ExecSection, environ: Mapping[str, str] = os.environ) -> Fence:
    """What enforces a section's limits on this host. Asks nobody."""
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
    """See at the start whether this host can do what the sections ask; say what is chosen.

    Raises HandlerError for what it cannot.
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
    """A user of this host. Raises HandlerError."""
    import pwd  # only who asks for it pays

    try:
        entry = pwd.getpwnam(name)
        groups = os.getgrouplist(name, entry.pw_gid)
    except (KeyError, OSError):
        raise HandlerError(f"{key}.user: this host has no user {name!r}") from None
    return ProgramUser(entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


def of_user(
    environment: Mapping[str, str], section: ExecSection, user: ProgramUser
) -> dict[str, str]:
    """The program's variables, those that name the agent's user replaced."""
    own = {"HOME": user.home, "USER": section.user or "", "LOGNAME": section.user or ""}
    return {**environment, **{k: v for k, v in own.items() if k not in section.env}}


def place(directory: Path, user: ProgramUser | None) -> Path:
    """Where a program runs that has no `cwd`: a directory of its own, if it can be given one."""
    if user is None:
        return directory
    own = directory / "work"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        os.chown(own, user.uid, user.gid)
    except PermissionError:  # may become another user, but give nothing away: CAP_CHOWN
        return Path("/")
    return own


def unit_name(command_id: str, attempt: int) -> str:
    """A name for the scope of a run, which no other has."""
    known = "".join(char if char.isalnum() and char.isascii() else "-" for char in command_id)
    return f"arc-exec-{known[:80]}-{attempt}-{os.urandom(4).hex()}.scope"


def wrapped(
    argv: list[str], section: ExecSection, chosen: Chosen, *, unit: str, channel: int
) -> list[str]:
    """The argv that sets limits and user, and then becomes the program."""
    launcher = [sys.executable, "-SIE", str(_LAUNCHER), str(channel), *argv]
    return [*_scope(unit, section), "--", *launcher] if chosen == "scope" else launcher


def instructions(
    section: ExecSection, chosen: Chosen, user: ProgramUser | None, environment: Mapping[str, str]
) -> bytes:
    """What the launcher reads. Not in its argv, which all of the host can see."""
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
    """systemd-run and what it is to enforce."""
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
    """The variables by which systemd-run finds whom to ask."""
    names = ("PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    return {name: environ[name] for name in names if name in environ}


def end_scope(unit: str) -> None:
    """End all that is left in a scope, at once. Blocks. One that is gone is fine."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(  # noqa: S603  # nothing of it is from outside
            ["systemctl", *_manager(), "kill", "--signal=SIGKILL", unit],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=for_systemd(),
            timeout=_STOP_SECONDS,
            check=False,
        )


def _manager() -> list[str]:
    """Which systemd is asked: the system's, or the user's own."""
    return [] if os.geteuid() == 0 else ["--user"]


def _no_scope(environ: Mapping[str, str]) -> str | None:
    """Why there can be no scope here, as far as can be seen without asking."""
    if not _SYSTEMD.is_dir():
        return "systemd does not run here"
    if shutil.which("systemd-run", path=environ.get("PATH")) is None:
        return "there is no systemd-run"
    if os.geteuid() == 0:
        return None
    runtime = environ.get("XDG_RUNTIME_DIR")
    if not runtime or not os.access(Path(runtime) / "systemd" / "private", os.W_OK):
        return "only root may, and this user has no systemd of its own"
    return None


def _check_powers(key: str) -> None:
    """Raises HandlerError unless this process may become another user, and end what it started."""
    missing = _missing(_CAPABILITIES)
    if missing:
        raise HandlerError(
            f"{key}.user: the agent cannot become another user: it needs {', '.join(missing)}"
            " (root, or AmbientCapabilities= in the unit)"
        )


def _missing(names: Iterable[str]) -> list[str]:
    """Which capabilities are not in effect."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return [] if os.geteuid() == 0 else list(names)
    held = next(
        (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0
    )
    return [name for name in names if not held >> _CAPABILITIES[name] & 1]
