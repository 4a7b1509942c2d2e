"""`arc-server purge` and `delete-command`."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from arc_runtime.durations import parse_duration
from arc_runtime.terminal.prefixes import PrefixError
from arc_runtime.terminal.table import print_note
from arc_server.cli.database import ConfigOption, DataDirOption, with_keeping
from arc_server.cli.listing import JsonOption
from arc_server.ports.keeping import Keeping
from arc_server.ports.records import Removed


def purge(
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="DURATION",
            help="Remove commands that ended longer ago, such as 7d; by default as configured",
        ),
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Remove what has been kept for long enough, and blobs that no command names"""
    age = None if older_than is None else _seconds(older_than)

    async def remove(keeping: Keeping) -> Removed:
        return await keeping.purge(age)

    removed = with_keeping(config, data_dir, remove)
    if as_json:
        sys.stdout.write(msgspec.json.encode(removed).decode() + "\n")
    else:
        print_note(_summary(removed))
    if removed.is_held:
        print_note("a backup is being taken: blobs are left alone until it is done")


def delete_command(
    command_id: Annotated[str, typer.Argument(metavar="ID", help="The command's whole id")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Delete a command that has ended, with its params and its result"""

    async def delete(keeping: Keeping) -> bool:
        return await keeping.delete_command(command_id)

    if not with_keeping(config, data_dir, delete):
        raise PrefixError(f"no such command: {command_id}")
    print_note(f"{command_id} is deleted")


def _seconds(given: str) -> float:
    try:
        return parse_duration(given)
    except ValueError as error:
        raise typer.BadParameter(f"--older-than: {error}") from None


def _summary(removed: Removed) -> str:
    counts = [
        (removed.commands, "command", "commands"),
        (removed.agents, "agent", "agents"),
        (removed.tokens, "token", "tokens"),
        (removed.bodies, "body of kept commands", "bodies of kept commands"),
        (removed.blobs, "blob that no command named", "blobs that no command named"),
    ]
    parts = [f"{count} {one if count == 1 else several}" for count, one, several in counts if count]
    if removed.uploads:
        parts.append(f"{removed.uploads} uploads that never came")
    return f"removed: {', '.join(parts)}" if parts else "nothing was to be removed"
