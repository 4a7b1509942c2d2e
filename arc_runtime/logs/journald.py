"""The journal takes log events with fields of their own, by its native protocol.

`journalctl ARC_COMMAND_ID=cmd_…` then finds the events of a command. Each event is one datagram
(systemd.io/JOURNAL_NATIVE_PROTOCOL). An event that the journal does not take is dropped: logging
never waits for it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, TextIO

SOCKET: Final = "/run/systemd/journal/socket"
_PREFIX: Final = "ARC_"
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_NOT_IN_NAMES: Final = re.compile(r"[^A-Z0-9_]+")
_MAX_NAME_CHARS: Final = 64
"""The journal refuses longer names of fields."""
_MAX_SMALL_CHARS: Final = 1024
"""Texts are cut to this when the event is too large for a datagram."""
_PATIENCE_SECONDS: Final = 0.1
_NEVER_SENT: Final = ("timestamp", "level")
"""The journal has its own clock; the level is PRIORITY."""


class JournalOutput:
    """A journal output drops and counts the events that the journal does not take at once.

    The next event is preceded by one with the count. Safe from any thread.
    """

    def __init__(self, address: str = SOCKET) -> None:
        """Connect to the journal. Raises OSError when it does not listen."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.setblocking(False)
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._address = address
        self._dropped: Callable[[int], Any] | None = None
        self._lost = 0
        self._lock = threading.Lock()

    def describe_loss(self, dropped: Callable[[int], Any]) -> None:
        """Let `dropped` make the event that says how many were lost."""
        self._dropped = dropped

    def is_open_for(self, stream: TextIO | None) -> bool:
        """Return True if this output still writes where the stream leads."""
        return self._socket.fileno() >= 0 and leads_to_journal(stream)

    def write(self, line: Any) -> None:
        """Send one event, as `fields` makes it. Never raises."""
        with self._lock:
            if self._lost and self._dropped is not None and self._put(self._dropped(self._lost)):
                self._lost = 0
            if not self._put(line):
                self._lost += 1

    def close(self) -> None:
        """Close the socket. Later events are dropped."""
        with self._lock:
            self._socket.close()

    def _put(self, event: Any) -> bool:
        """Send an event, shortened if need be, and return True if the journal took it."""
        if not isinstance(event, dict):
            return False
        try:
            return self._send(datagram(event))  # pyright: ignore[reportUnknownArgumentType]
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                return False
        try:
            small = {name: value[:_MAX_SMALL_CHARS] for name, value in event.items()}  # pyright: ignore[reportUnknownVariableType]
            return self._send(datagram(small))  # pyright: ignore[reportUnknownArgumentType]
        except OSError:
            return False

    def _send(self, data: bytes) -> bool:
        """Send one datagram, and connect again to a restarted journal. Raises OSError."""
        try:
            self._socket.send(data)
        except BlockingIOError:
            if self._lost or not _is_writable(self._socket):
                return False
            self._socket.send(data)
        except (ConnectionError, FileNotFoundError):
            self._socket.connect(self._address)
            self._socket.send(data)
        return True


def leads_to_journal(
    stream: TextIO | None, environ: Mapping[str, str] = os.environ, path: str = SOCKET
) -> bool:
    """Return True if a stream leads to the journal: JOURNAL_STREAM names the one that does."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if stream is None or not (device.isdecimal() and inode.isdecimal()):
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (found.st_dev, found.st_ino) == (int(device), int(inode)) and os.path.exists(path)


def fields(event: MutableMapping[str, Any], message: str) -> dict[str, str]:
    """Return the journal's fields of an event: `command_id` is ARC_COMMAND_ID, the event ARC_EVENT.

    `journalctl` shows `message`.
    """
    sent = {
        "MESSAGE": message,
        "PRIORITY": str(_PRIORITIES.get(str(event.get("level")), 6)),
        "SYSLOG_IDENTIFIER": os.path.basename(sys.argv[0] or "arc"),
    }
    for name, value in event.items():
        if name not in _NEVER_SENT:
            sent[field_name(name)] = value if isinstance(value, str) else json.dumps(value)
    return sent


def field_name(name: str) -> str:
    """Return ARC_COMMAND_ID for `command_id`: the journal takes capitals, digits, underscores."""
    return (_PREFIX + _NOT_IN_NAMES.sub("_", name.upper()))[:_MAX_NAME_CHARS]


def datagram(sent: Mapping[str, str]) -> bytes:
    """Return the datagram of some fields: a value with a line break is sent with its length."""
    parts: list[bytes] = []
    for name, value in sent.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def _is_writable(opened: socket.socket) -> bool:
    """Return True if the journal takes more within 0.1 s."""
    poll = select.poll()
    poll.register(opened, select.POLLOUT)
    return bool(poll.poll(_PATIENCE_SECONDS * 1000))
