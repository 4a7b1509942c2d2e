"""The checks of this host: disk, audit log, handlers, policy, and the unit of systemd."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import arc_agent
from arc_agent.cli.doctor.finding import CHECK_SECONDS, Finding, bad, ok, untested
from arc_agent.cli.status import size
from arc_agent.config.places import audit_directory, data_directory
from arc_agent.config.sections import Config
from arc_agent.handlers.loading import ImportFailed, load_handlers
from arc_agent.handlers.registry import HandlerError
from arc_agent.work.live_config import Source, policy_of
from arc_runtime.config.settings import SettingsError

_SLOW_FSYNC_SECONDS: Final = 1.0


async def examine(
    source: Source, config: Config, unit: str, running: Mapping[str, Any] | None
) -> AsyncIterator[Finding]:
    """Run the checks of this module. `running` is the status of the running agent."""
    for check in (_disk, _audit):
        yield await asyncio.to_thread(check, config, source.environ)
    yield await asyncio.to_thread(_handlers, config)
    yield _policy(config, running)
    yield await _unit(unit)


def _disk(config: Config, environ: Mapping[str, str]) -> Finding:
    """Check that the spool can be written: space, inodes, and durable writes."""
    directory = data_directory(config, environ)
    if not directory.exists():
        return untested("disk", f"{directory} does not exist yet; the agent creates it")
    try:
        found = os.statvfs(directory)
        free = found.f_bavail * found.f_frsize
        if free < config.spool.min_free_bytes:
            return bad("disk", f"{directory}: {size(free)} free: below spool.min_free_bytes")
        if found.f_files and found.f_favail < config.spool.min_free_inodes:
            return bad("disk", f"{directory}: {found.f_favail} files: spool.min_free_inodes")
        seconds = _write(directory)
    except OSError as error:
        return bad("disk", f"{directory}: {error.strerror}: does the agent's user own it?")
    if seconds > _SLOW_FSYNC_SECONDS:
        return bad("disk", f"{directory}: a durable write takes {seconds:.1f} s: the disk is slow")
    return ok("disk", f"{directory}: {size(free)} free, durable write {seconds * 1000:.0f} ms")


def _write(directory: Path) -> float:
    """Return the seconds of a small durable write. Raises OSError."""
    file = directory / f".doctor-{os.getpid()}"
    began = time.monotonic()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(4096))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        file.unlink()
    return time.monotonic() - began


def _audit(config: Config, environ: Mapping[str, str]) -> Finding:
    """Check that the audit log can be written: a command runs only after its line."""
    if not config.audit.enabled:
        return ok("audit", "switched off (audit.enabled)")
    directory = audit_directory(config, environ)
    if not directory.exists():
        return untested("audit", f"{directory} does not exist yet; the agent creates it")
    if not os.access(directory, os.W_OK | os.X_OK):
        return bad("audit", f"{directory} cannot be written: does the agent's user own it?")
    return ok("audit", f"{directory}; `arc-agent audit verify` checks its lines")


def _handlers(config: Config) -> Finding:
    """Check that all handlers can be loaded."""
    try:
        registry = load_handlers(config.handlers)
    except ImportFailed as error:
        last = error.report.strip().rpartition("\n")[2]
        return bad("handlers", f"{error}: {last}")
    except HandlerError as error:
        return bad("handlers", str(error))
    return ok("handlers", f"{len(registry)} load")


def _policy(config: Config, running: Mapping[str, Any] | None) -> Finding:
    """Check that the policy can be read, and that the running agent has it."""
    try:
        policy = policy_of(config)
    except (SettingsError, OSError) as error:
        return bad("policy", str(error))
    in_force = None if running is None else running["policy"]
    if in_force is not None and (policy is None or policy.sha256 != in_force["sha256"]):
        return untested(
            "policy",
            f"the running agent has {in_force['file']}, {in_force['rules']} rules; what this"
            f" command reads is {'none' if policy is None else 'another'}: its environment or its"
            " options differ, or a reload is due",
        )
    if running is not None and in_force is None and policy is not None:
        return bad("policy", f"{policy.source} is not in force: the running agent has none")
    if policy is None:
        return ok("policy", "none: every command that has a handler may run (policy.file)")
    return ok("policy", f"{policy.source}, {len(policy.rules)} rules")


async def _unit(unit: str) -> Finding:
    """Check that systemd runs the unit, in the form of this version."""
    names = ("LoadState", "ActiveState", "FragmentPath", "NeedDaemonReload")
    try:
        process = await asyncio.create_subprocess_exec(
            "systemctl",
            *("show", unit, f"--property={','.join(names)}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return untested("unit", "this host has no systemd")
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            printed, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return untested("unit", "systemctl does not answer")
    if process.returncode != 0:
        return untested("unit", "systemd does not run here")
    found = dict(each.split("=", 1) for each in printed.decode().splitlines() if "=" in each)
    return judge_unit(unit, found)


def judge_unit(unit: str, found: Mapping[str, str]) -> Finding:
    """Return the finding for the unit's properties in systemd."""
    if found.get("LoadState") != "loaded":
        return untested("unit", f"{unit} is not installed: arc-agent install")
    if found.get("NeedDaemonReload") == "yes":
        return bad("unit", f"{unit} was changed on disk: systemctl daemon-reload")
    if found.get("ActiveState") != "active":
        state = found.get("ActiveState")
        return bad("unit", f"{unit} is {state}: systemctl start, or journalctl -u {unit}")
    file = Path(found.get("FragmentPath", ""))
    packaged = Path(arc_agent.__file__).with_name("units") / (
        "arc-agent@.service" if "@" in unit else unit
    )
    with suppress(OSError):
        if file.read_bytes() != packaged.read_bytes():
            return bad("unit", f"{unit} runs, but {file} is of another version: install again")
    return ok("unit", f"{unit} runs, {file} is of this version")
