"""`arc-server backup`, `restore`, `begin-epoch` and `fsck`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from arc_runtime.directories import kept_by_owner
from arc_runtime.terminal.table import print_note
from arc_runtime.terminal.text import counted, printable
from arc_server.app import DATABASE
from arc_server.backup.checking import Findings, check_data, repair_usage
from arc_server.backup.manifest import BackupManifest, check_files, read_manifest
from arc_server.backup.restoring import begin_epoch, restore_backup
from arc_server.backup.taking import take_backup
from arc_server.cli.database import (
    FAILED,
    ConfigOption,
    DataDirOption,
    config_here,
    with_store,
)
from arc_server.config.reading import load_config
from arc_server.ports.store import Store

FormerOption = Annotated[
    Path | None,
    typer.Option(
        "--former",
        metavar="PATH",
        help="The data directory of before, or a copy of its ended.jsonl",
    ),
]


def backup(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory to make; it must not exist")
    ],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Back the server's data up, also while it runs"""
    place = config_here(config, data_dir).data_dir

    async def take(store: Store) -> BackupManifest:
        return await take_backup(store, place, directory)

    manifest = with_store(config, data_dir, take)
    counts = manifest.counts
    print_note(f"{_counted(counts['commands'], counts['blobs'])} are in {directory}")
    for path in manifest.missing:
        print_note(f"blob {path} is missing in the data directory, and so in the backup")
    if manifest.missing:
        raise typer.Exit(FAILED)


def restore(
    directory: Annotated[Path, typer.Argument(metavar="BACKUP", help="Directory of the backup")],
    former: FormerOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Restore a backup into an empty data directory"""
    place = load_config(config, {"data_dir": data_dir}).data_dir
    restored = restore_backup(directory, place, former)
    print_note(f"{place} is as it was at {restored.manifest.taken_at.isoformat()}, in a new epoch")
    for line in restored.damaged:
        print_note(f"{printable(line)}, as in the backup")
    if former is None:
        print_note("without --former, tokens that were revoked since the backup are good again")
    print_note("hosts that enrolled since the backup must enrol again")


def begin(
    taken: Annotated[
        datetime | None,
        typer.Option("--taken", help="When the data was copied, in UTC; this moment unless given"),
    ] = None,
    former: FormerOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Begin a new epoch, after other means than restore have turned the data back"""
    place = config_here(config, data_dir).data_dir
    at = datetime.now(UTC) if taken is None else taken.replace(tzinfo=UTC)
    with kept_by_owner(place):
        epoch = begin_epoch(place, former, at)
    print_note(f"{place / DATABASE} is in epoch {epoch}")


def fsck(
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every body and every blob to its end")
    ] = False,
    of: Annotated[
        Path | None,
        typer.Option("--backup", metavar="DIR", help="Check a backup by its digests instead"),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Count anew what quotas are judged by")
    ] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Check the database, the blobs, and that they fit together"""
    if of is not None:
        check_files(of, manifest := read_manifest(of))
        print_note(f"{of}: {counted(len(manifest.files), 'file')} unchanged since the backup")
        return
    place = config_here(config, data_dir).data_dir

    async def check(store: Store) -> Findings:
        if repair:
            for line in await repair_usage(store, place):
                print_note(f"{printable(line)}: mended")
        return await check_data(store, place, is_deep=deep)

    findings = with_store(config, data_dir, check)
    for orphan in findings.orphans:
        print_note(f"blob {orphan}: no command names it")
    for problem in findings.problems:
        typer.echo(printable(problem))
    if findings.problems:
        raise typer.Exit(FAILED)
    print_note(f"{_counted(findings.commands, findings.blobs)} are sound")


def _counted(commands: int, blobs: int) -> str:
    return f"{counted(commands, 'command')} and {counted(blobs, 'blob')}"
