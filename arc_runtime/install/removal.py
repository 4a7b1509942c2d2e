"""Removal takes an installation back, entry by entry of its manifest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from arc_runtime.install.host import Host, below, digest
from arc_runtime.install.manifest import Manifest, ManifestEntry


def preview_removal(entry: ManifestEntry, host: Host, *, purge: bool) -> list[str]:
    """Return what the removal of an entry would do, for `--dry-run`."""
    path = below(host.root, entry.path)
    match entry.kind:
        case "user":
            return [f"run    {' '.join(_delete('userdel', entry, host))}"]
        case "owned" if entry.kept and not purge and path.is_dir():
            left = sorted(each.name for each in path.iterdir() if _is_kept(each.name, entry))
            return [f"clear  {path}; kept: {', '.join(left) or 'nothing'}"]
        case "directory" | "owned":
            return [f"rmdir  {path}"] if path.is_dir() else []
        case _:
            return [f"remove {path}"] if path.is_symlink() or path.exists() else []


def remove_entry(entry: ManifestEntry, host: Host, manifest: Manifest, *, purge: bool) -> None:
    """Remove the thing that an entry stands for, and the entry. Raises InstallError."""
    path = below(host.root, entry.path)
    match entry.kind:
        case "user":
            if host.has(entry.name):
                host.run(_delete("userdel", entry, host))
            if host.has(entry.name, "group"):  # userdel removes it where login.defs says so
                host.run(_delete("groupdel", entry, host))
        case "owned":
            _clear(path, entry, host, purge=purge)
        case "directory":
            remove_directory(path, host)
        case "file" | "link":
            _report_edited(path, entry, host)
            path.unlink(missing_ok=True)
    manifest.forget(entry)


def _delete(program: str, entry: ManifestEntry, host: Host) -> list[str]:
    """Return the command that removes a user or a group, but not its home."""
    prefix = ["--prefix", str(host.root)] if host.is_scratch else []
    return [program, *prefix, entry.name]


def _is_kept(name: str, entry: ManifestEntry) -> bool:
    """Return True if a name, or the part before its hyphen, is to be kept."""
    return any(name == kept or name.startswith(f"{kept}-") for kept in entry.kept)


def _clear(path: Path, entry: ManifestEntry, host: Host, *, purge: bool) -> None:
    """Empty a directory but for the names that are kept, which then belong to root."""
    if not path.is_dir():
        return
    for each in path.iterdir():
        if purge or not _is_kept(each.name, entry):
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    left = sorted(path.iterdir())
    if not left:
        path.rmdir()
        return
    host.print(f"left: {', '.join(str(each) for each in left)}")
    if not host.is_scratch:  # the next user with this number must not own it
        for each in (path, *path.rglob("*")):
            os.chown(each, 0, 0, follow_symlinks=False)


def remove_directory(path: Path, host: Host) -> None:
    """Remove a directory, or print that it is not empty."""
    if not path.is_dir():
        return
    try:
        path.rmdir()
    except OSError:
        host.print(f"left: {path}, which holds other files")


def _report_edited(path: Path, entry: ManifestEntry, host: Host) -> None:
    """Print that a file is removed although it was edited."""
    if (
        entry.digest
        and entry.kind == "file"
        and path.is_file()
        and digest(path.read_bytes()) != entry.digest
    ):
        host.print(f"removed although it was edited: {path}")
