"""Collecting blobs: walking their files, and removing those that no command wants any more.

The mark is a look into the database for each old file; the sweep removes the file if it is still
the one that was looked at. A blob that is not wanted is never wanted again, and a new one is young:
so neither a request that goes on nor a death between two steps can cost a body. While a backup
holds the collection, nothing is removed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from arc_runtime import failpoints
from arc_server.blobs.collection_hold import collection_pass
from arc_server.blobs.files import BlobFiles, Directories

CHUNK_FILES: Final = 128
"""Files that are judged, and then removed, at a time."""
_CHUNK_DIRECTORIES: Final = 512
"""Directories that are walked at a time."""
_SUFFIXES: Final = (".blob", ".sealed")


class OldFile(NamedTuple):
    """A file that was written a while ago."""

    file: Path
    path: str | None
    """The path of the blob; None for an unfinished upload."""
    written_ns: int
    size: int


def old_files(
    directories: Directories, temporary: Path, before_ns: int
) -> Iterator[Sequence[OldFile]]:
    """Yield the files that were last written before then, in chunks; remove empty directories.

    A chunk may be empty: then much was walked, and the thread may do something else.
    """
    chunk: list[OldFile] = []
    walked = 0
    for place, names, files in os.walk(directories.root):
        directory = Path(place)
        walked += 1
        if not names and not files and directory not in (directories.root, temporary):
            directories.remove_empty(directory)
        for name in files:
            file = directory / name
            if directory != temporary and file.suffix not in _SUFFIXES:
                continue
            found = _look(directories.root, temporary, file)
            if found is not None and found.written_ns < before_ns:
                chunk.append(found)
        if len(chunk) >= CHUNK_FILES or walked >= _CHUNK_DIRECTORIES:
            yield chunk
            chunk, walked = [], 0
    if chunk:
        yield chunk


def _look(root: Path, temporary: Path, file: Path) -> OldFile | None:
    try:
        status = file.lstat()
    except FileNotFoundError:  # it was sealed or removed since
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    is_upload = file.parent == temporary
    path = None if is_upload else str(file.relative_to(root).with_suffix(""))
    return OldFile(file, path, status.st_mtime_ns, status.st_size)


def unlink(directories: Directories, files: Sequence[OldFile]) -> list[OldFile] | None:
    """Remove files that were not written since, and directories that are empty then.

    Return those that were removed, None while a backup is being taken.
    """
    removed: list[OldFile] = []
    with collection_pass(directories.root) as may_remove:
        if not may_remove:
            return None
        for each in files:
            with suppress(FileNotFoundError):
                if each.file.lstat().st_mtime_ns != each.written_ns:
                    continue
                failpoints.hit("blob.before_unlink")
                each.file.unlink()
                failpoints.hit("blob.after_unlink")
                removed.append(each)
                if each.path is not None:
                    directories.remove_empty(each.file.parent)
    return removed


def remove(directories: Directories, places: Sequence[BlobFiles]) -> bool:
    """Remove the blobs of places, and all below them. Return False while a backup is taken."""
    with collection_pass(directories.root) as may_remove:
        if not may_remove:
            return False
        for place in places:
            for directory, _, names in os.walk(place.blob.with_suffix(""), topdown=False):
                for name in names:
                    failpoints.hit("blob.before_unlink")
                    (Path(directory) / name).unlink(missing_ok=True)
                    failpoints.hit("blob.after_unlink")
                directories.remove_empty(Path(directory))
            place.delete()
    return True
