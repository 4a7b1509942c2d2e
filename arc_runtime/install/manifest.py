"""The manifest lists what an installation has made, so that uninstall removes exactly that.

A thing is recorded before it is made: an uninstall after a crash in the middle finds it too. What
was there before the installation is never recorded, and never touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from arc_runtime.install.host import InstallError, below, write_file


class ManifestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest entry is one thing that was made."""

    kind: Literal["directory", "file", "link", "owned", "user"]
    path: str
    digest: str = ""
    """The digest of the content that was written, or the target of the link."""
    kept: tuple[str, ...] = ()
    name: str = ""


class Manifest:
    """A manifest is a file beside the program of its installation."""

    def __init__(self, root: Path, path: str) -> None:
        """Read the manifest if there is one. Raises InstallError."""
        self._file = below(root, path)
        self.path = path
        self.entries: list[ManifestEntry] = []
        if self._file.exists():
            try:
                self.entries = msgspec.json.decode(
                    self._file.read_bytes(), type=list[ManifestEntry]
                )
            except (OSError, msgspec.DecodeError) as error:
                raise InstallError(f"{self._file} cannot be read: {error}") from None

    @property
    def is_there(self) -> bool:
        """Return True if something is installed."""
        return self._file.exists()

    def find(self, path: str) -> ManifestEntry | None:
        """Return the entry of a path."""
        return next((entry for entry in self.entries if entry.path == path), None)

    def record(self, entry: ManifestEntry) -> None:
        """Add an entry, or replace the one of its path; durable on return."""
        found = self.find(entry.path)
        if found == entry:
            return
        if found is None:
            self.entries.append(entry)
        else:
            self.entries[self.entries.index(found)] = entry
        self._save()

    def forget(self, entry: ManifestEntry) -> None:
        """Remove an entry; the last one takes the manifest with it."""
        self.entries.remove(entry)
        if self.entries:
            self._save()
        else:
            self._file.unlink(missing_ok=True)

    def _save(self) -> None:
        data = msgspec.json.format(msgspec.json.encode(self.entries), indent=1)
        write_file(self._file, data + b"\n", 0o644)
