"""The output of a program: its standard output in a file, and the end of its standard error."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

import msgspec

from arc_agent.config.declared_handlers import ExecSection
from arc_agent.handlers.context import CommandFailed

_CHUNK_BYTES: Final = 64 * 1024


class ProgramOutput:
    """The standard output of a program in a file, up to a limit. Bytes above it are counted
    only.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.cut_bytes = 0
        self.error: OSError | None = None
        self._limit = limit
        self._size = 0
        self._file: BinaryIO | None = None

    async def write(self, chunk: bytes) -> None:
        """Write the bytes that fit. A failed write is kept in `error`: the pipe must be read on."""
        kept = chunk[: max(0, self._limit - self._size)]
        self.cut_bytes += len(chunk) - len(kept)
        self._size += len(kept)
        if kept and self.error is None:
            try:
                await asyncio.to_thread(self._append, kept)
            except OSError as error:
                self.error = error

    def _append(self, chunk: bytes) -> None:
        """Write bytes; open the file at the first."""
        if self._file is None:
            self._file = self.path.open("wb")
        self._file.write(chunk)

    def close(self) -> None:
        """Close the file, which then exists in any case."""
        try:
            if self._file is None:
                self._file = self.path.open("wb")
            self._file.close()
        except OSError as error:
            self.error = self.error or error

    def mark_cut(self) -> None:
        """Write the mark of a cut at the end of the file."""
        if self.cut_bytes:
            with self.path.open("ab") as file:
                file.write(self.cut_mark().encode())

    def cut_mark(self) -> str:
        """Return the mark of a cut; empty without one."""
        return f"\n[arc-agent: {self.cut_bytes} bytes cut]\n" if self.cut_bytes else ""


class Tail:
    """The last bytes of a program's standard error."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: deque[bytes] = deque()
        self._size = 0

    async def write(self, chunk: bytes) -> None:
        """Add bytes, and drop the oldest above the limit."""
        self._parts.append(chunk[-self._limit :])
        self._size += len(self._parts[-1])
        while self._size - len(self._parts[0]) >= self._limit:
            self._size -= len(self._parts.popleft())

    def text(self) -> str:
        """Return the bytes as text."""
        return b"".join(self._parts)[-self._limit :].decode("utf-8", "replace").strip()


async def drain(pipe: IO[bytes] | None, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Read a pipe to its end: a full pipe would stop the program."""
    if pipe is None:
        return
    reader = asyncio.StreamReader(limit=_CHUNK_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            await write(chunk)
    finally:
        transport.close()


def result_of(section: ExecSection, output: ProgramOutput) -> Any:
    """Return the output in the form that the section declares. Raises CommandFailed."""
    if section.output == "bytes":
        output.mark_cut()
        return output.path
    data = output.path.read_bytes()
    if section.output == "text":
        text = data.decode("utf-8", "replace")
        return text + output.cut_mark()
    if output.cut_bytes:
        raise CommandFailed(
            "HANDLER_ERROR",
            f"the output is {output.cut_bytes} bytes over the limit of {section.max_output_bytes}",
        )
    data = data.strip()
    if not data:
        return None
    try:
        msgspec.json.decode(data, type=msgspec.Raw)  # validates without building objects
        return data if data.isascii() else json.loads(data)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise CommandFailed("HANDLER_ERROR", f"the output is not JSON: {error}") from None
