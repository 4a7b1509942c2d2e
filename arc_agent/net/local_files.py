"""Bodies in files of a server on this host (`local` backends): refused unless configured."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 1024 * 1024


class LocalFiles:
    """The files below one directory. Paths outside it are refused."""

    def __init__(self, directory: Path | None) -> None:
        """Serve the files of `directory`; without one, refuse every path."""
        self._directory = directory

    def get(self, path: str, into: Path, max_bytes: int) -> tuple[int, str]:
        """Copy a body to `into`; return its size and SHA-256.

        Raises PermissionError for a path that is not allowed or a body that is too large, OSError
        when it cannot be read.
        """
        source = self._resolve(path)
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as reader, into.open("wb") as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    raise PermissionError(f"the body is larger than {max_bytes} bytes")
                digest.update(chunk)
                writer.write(chunk)
        return size, digest.hexdigest()

    def put(self, path: str, source: Path) -> None:
        """Copy `source` to a path, whole or not at all. Raises PermissionError, OSError."""
        destination = self._resolve(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        part = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.part")
        try:
            with source.open("rb") as reader, part.open("xb") as writer:
                shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
                writer.flush()
                os.fsync(writer.fileno())
            part.replace(destination)
        finally:
            part.unlink(missing_ok=True)

    def _resolve(self, path: str) -> Path:
        """Return the file, every link followed. Raises PermissionError outside the directory."""
        if self._directory is None:
            raise PermissionError("bodies in local files are switched off; see transfer.local_dir")
        root = self._directory.resolve()
        found = Path(path).resolve() if "\0" not in path else root
        if not found.is_relative_to(root) or found == root:
            raise PermissionError("a path outside transfer.local_dir")
        return found
