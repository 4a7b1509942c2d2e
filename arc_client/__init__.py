"""The sender of ARC is a library and the command line `arc`.

    from arc_client import Client

    async with Client("https://arc.example.com", token_file="/etc/arc/token") as arc:
        report = await arc.invoke("edge-7", "reports.generate", {"month": "2026-10"})

`SyncClient` has the same methods without async. The tree of errors is in arc_client.errors.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from arc_client.client import Client, Command
    from arc_client.errors import (
        AccessDenied,
        AgentAbsent,
        CommandCancelled,
        CommandError,
        CommandExpired,
        CommandFailed,
        CommandTimeout,
        ConfigurationError,
        InvalidParams,
        NotAllowed,
        ResultUnreadable,
        ServerUnreachable,
        TokenRefused,
        UnexpectedAnswer,
        UploadFailed,
    )
    from arc_client.list_filters import ListFilter
    from arc_client.retries import Retried
    from arc_client.send_options import SendOptions
    from arc_client.sync import SyncClient, SyncCommand
    from arc_client.wire.progress_callbacks import ProgressCallbacks
    from arc_protocol.errors import ArcError

__all__ = [
    "AccessDenied",
    "AgentAbsent",
    "ArcError",
    "Client",
    "Command",
    "CommandCancelled",
    "CommandError",
    "CommandExpired",
    "CommandFailed",
    "CommandTimeout",
    "ConfigurationError",
    "InvalidParams",
    "ListFilter",
    "NotAllowed",
    "ProgressCallbacks",
    "ResultUnreadable",
    "Retried",
    "SendOptions",
    "ServerUnreachable",
    "SyncClient",
    "SyncCommand",
    "TokenRefused",
    "UnexpectedAnswer",
    "UploadFailed",
]

_HOMES: Final = {
    "ArcError": "arc_protocol.errors",
    "Client": "arc_client.client",
    "Command": "arc_client.client",
    "ListFilter": "arc_client.list_filters",
    "Retried": "arc_client.retries",
    "SendOptions": "arc_client.send_options",
    "SyncClient": "arc_client.sync",
    "SyncCommand": "arc_client.sync",
    "ProgressCallbacks": "arc_client.wire.progress_callbacks",
}
"""The modules of the names that are not errors."""


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562).

    The HTTP client alone takes a quarter of a second, which `arc --help` does without.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "arc_client.errors")), name)
