"""Log outputs write lines to a reader that may have stopped: no long wait, no error."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol, TextIO

_CHUNK_BYTES: Final = 4096
"""PIPE_BUF on Linux: a pipe that polls as writable takes this much at once."""
_PATIENCE_SECONDS: Final = 0.1
"""The time that a reader may stall before lines are dropped; after that there is no wait."""


class LogSink(Protocol):
    """A log sink takes log lines. Safe from any thread."""

    def is_open_for(self, stream: TextIO | None) -> bool:
        """Return True if this output still writes where the stream leads."""
        ...

    def write(self, line: Any) -> None:
        """Write one line as its renderer made it. Never raises, never waits for long."""
        ...

    def close(self) -> None:
        """Close the output. Later lines are dropped."""
        ...


class LogOutput:
    """A log output drops and counts the lines that its stream does not take at once.

    The next line is preceded by one with the count. A stream with a file descriptor is written
    through a duplicate of it: closing the original, or reusing its number, does no harm.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._descriptor = _duplicate(stream)
        self._poll = select.poll()
        if self._descriptor is not None:
            self._poll.register(self._descriptor, select.POLLOUT)
        self._dropped: Callable[[int], str] = "{} lines dropped".format
        self._lost = 0
        self._is_inside_line = False
        self._lock = threading.Lock()

    def describe_loss(self, dropped: Callable[[int], str]) -> None:
        """Let `dropped` make the line that says how many were lost."""
        self._dropped = dropped

    def is_open_for(self, stream: TextIO | None) -> bool:
        """Return True if this output still writes to the stream."""
        return stream is not None and stream is self._stream

    def write(self, line: str) -> None:
        """Write one line, and a newline after it."""
        with self._lock:
            if self._lost and self._put(self._dropped(self._lost)):
                self._lost = 0
            if not self._put(line):
                self._lost += 1

    def close(self) -> None:
        """Close the duplicate. Later lines are dropped."""
        with self._lock:
            descriptor, self._descriptor, self._stream = self._descriptor, None, None
            if descriptor is not None:
                os.close(descriptor)

    def _put(self, line: str) -> bool:
        """Write a line, and return True if all of it went out."""
        try:
            if self._descriptor is None:
                return self._put_stream(line)
            data = f"{line}\n".encode("utf-8", "backslashreplace")
            return self._put_descriptor(b"\n" + data if self._is_inside_line else data)
        except (OSError, ValueError):  # the reader is gone; the stream was closed
            return False

    def _put_stream(self, line: str) -> bool:
        """Write to a stream without a descriptor: a test's, or a host program's."""
        if self._stream is None:
            return False
        self._stream.write(f"{line}\n")
        self._stream.flush()
        return True

    def _put_descriptor(self, data: bytes) -> bool:
        """Write in pieces that a writable pipe takes without blocking."""
        assert self._descriptor is not None
        patience = 0.0 if self._lost else _PATIENCE_SECONDS
        rest = memoryview(data)
        while rest:
            if not self._poll.poll(patience * 1000):
                return False
            written = os.write(self._descriptor, rest[:_CHUNK_BYTES])
            rest = rest[written:]
            self._is_inside_line = bool(rest)
        return True


def _duplicate(stream: TextIO | None) -> int | None:
    """Return a duplicate of a stream's descriptor; None when it has none."""
    if stream is None:
        return None
    try:
        stream.flush()
        return os.dup(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None
