"""The manifest of a backup: what was backed up, and the size and digest of each of its files.

It is written last, and the directory gets its name after that: a directory with a manifest is a
whole backup.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from arc_runtime.directories import sync_directory

NAME: Final = "manifest.json"
FORMAT: Final = 1
_CHUNK_BYTES: Final = 1 << 20


class BackupError(Exception):
    """A backup cannot be taken or used. The message is a line for the terminal."""


class BackedUpFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file, by its path below the backup."""

    path: str
    size: int
    sha256: str


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a backup."""

    format: int
    release: str
    schema: int
    epoch: str
    taken_at: datetime
    """A moment before the snapshot: all that was acknowledged by then is in the backup."""
    counts: Mapping[str, int]
    missing: Sequence[str] = ()
    """Blobs that the database names and that were not there."""
    files: Sequence[BackedUpFile]


def write_manifest(directory: Path, manifest: BackupManifest) -> None:
    """Write the manifest, durably. Raises OSError."""
    path = directory / NAME
    with open(path, "xb", opener=_open_private) as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def read_manifest(directory: Path) -> BackupManifest:
    """Return the manifest of a backup. Raises BackupError."""
    try:
        manifest = msgspec.json.decode((directory / NAME).read_bytes(), type=BackupManifest)
    except FileNotFoundError:
        raise BackupError(f"{directory}: not a backup, or not a whole one: no {NAME}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise BackupError(f"{directory / NAME}: {error}") from None
    if manifest.format != FORMAT:
        raise BackupError(
            f"{directory}: a backup of format {manifest.format}, and this release"
            f" ({manifest.release} wrote it) reads format {FORMAT}"
        )
    for file in manifest.files:
        if os.path.isabs(file.path) or ".." in Path(file.path).parts:
            raise BackupError(f"{directory / NAME}: {file.path!r} leads out of the backup")
    return manifest


def check_files(directory: Path, manifest: BackupManifest) -> None:
    """Read every file of a backup and compare it with the manifest. Raises BackupError, OSError."""
    for file in manifest.files:
        path = directory / file.path
        try:
            found = digest_of(path)
        except FileNotFoundError:
            raise BackupError(f"{path}: is missing in the backup") from None
        if found != (file.size, file.sha256):
            raise BackupError(f"{path}: is not what was backed up")


def digest_of(path: Path) -> tuple[int, str]:
    """Return the size and the SHA-256 of a file, read from the disk where that can be asked for."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def copy_file(source: Path, directory: Path, path: str) -> BackedUpFile:
    """Copy a file to `path` below a directory, durably, for the owner alone. Raises OSError."""
    target = directory / path
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reading, open(target, "xb", opener=_open_private) as writing:
        while chunk := reading.read(_CHUNK_BYTES):
            writing.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    return BackedUpFile(path=path, size=size, sha256=digest.hexdigest())


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def sync_tree(directory: Path) -> None:
    """Make the names in a directory and below it durable. Raises OSError."""
    for place, _, _ in os.walk(directory):
        sync_directory(Path(place))
