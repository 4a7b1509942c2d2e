"""The failures that a command reports in one line; every other exception is a bug."""

from __future__ import annotations

from typing import Final

from arc_agent.cli.output import NO, UNUSABLE, fail, log_line
from arc_agent.guard.audit import AuditError
from arc_agent.guard.used_signatures import UsedSignaturesError
from arc_agent.handlers.lifespans import LifespanFailed
from arc_agent.handlers.loading import ImportFailed
from arc_agent.handlers.registry import HandlerError
from arc_agent.host.data_dir import DataDirError
from arc_agent.jobs.spool_database import SpoolError
from arc_agent.net.token import TokenError
from arc_agent.work.meter import MetricsError
from arc_runtime.config.settings import SettingsError
from arc_runtime.control_socket import ControlError

_KNOWN: Final = (
    SettingsError,
    TokenError,
    HandlerError,
    DataDirError,
    SpoolError,
    UsedSignaturesError,
    AuditError,
    ControlError,
    MetricsError,
)


def report(error: Exception) -> int:
    """Write an error and return the exit code. Raises an error that is not a known failure."""
    if not isinstance(error, _KNOWN):
        raise error
    if isinstance(error, ImportFailed | LifespanFailed) and error.report:
        log_line(error.report.rstrip())
    # A failure that may pass, such as a full disk, gives the code at which systemd tries again.
    return fail(NO if getattr(error, "may_pass", False) else UNUSABLE, str(error))
