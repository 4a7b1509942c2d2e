"""Log events to systemd's journal as fields of their own, by its native protocol.

`journalctl ARC_COMMAND_ID=cmd_…` then finds what belongs to a command. One datagram an event
(systemd.io/JOURNAL_NATIVE_PROTOCOL); a journal that does not take it costs the event, never time.
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
"""The journal takes no longer names of fields."""
_MAX_SMALL_CHARS: Final = 1024
"""What is left of a text when the whole event is too large for a datagram."""
_PATIENCE_SECONDS: Final = 0.1
_NEVER_SENT: Final = ("timestamp", "level")
"""The journal has its own clock; the level is PRIORITY."""


class JournalOutput:
    """Events to the journal. What it does not take at once is dropped, counted, and told later.

    Safe from several threads.
    """

    def __init__(self, address: str = SOCKET) -> None:
        """Raises OSError when no journal listens there."""
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
        """`dropped` makes the event that tells how many were lost."""
        self._dropped = dropped

    def is_open_for(self, stream: TextIO | None) -> bool:
        """Whether this still writes where that stream leads."""
        return self._socket.fileno() >= 0 and leads_to_journal(stream)

    def write(self, line: Any) -> None:
        """Send one event, as `fields` makes it. Never raises."""
        with self._lock:
            if self._lost and self._dropped is not None and self._put(self._dropped(self._lost)):
                self._lost = 0
            if not self._put(line):
                self._lost += 1

    def close(self) -> None:
        """Send nothing more."""
        with self._lock:
            self._socket.close()

    def _put(self, event: Any) -> bool:
        """Whether the journal has it."""
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
        """One datagram; a journal that was restarted is connected to again. Raises OSError."""
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
    """Whether a stream is connected to the journal: systemd says which one is (JOURNAL_STREAM)."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if stream is None or not (device.isdecimal() and inode.isdecimal()):
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (found.st_dev, found.st_ino) == (int(device), int(inode)) and os.path.exists(path)


def fields(event: MutableMapping[str, Any], message: str) -> dict[str, str]:
    """The journal's fields for an event: `command_id` is ARC_COMMAND_ID, the event ARC_EVENT.

    `message` is what `journalctl` shows.
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
    """`command_id` as ARC_COMMAND_ID: capitals, digits and underscores, as the journal wants it."""
    return (_PREFIX + _NOT_IN_NAMES.sub("_", name.upper()))[:_MAX_NAME_CHARS]


def datagram(sent: Mapping[str, str]) -> bytes:
    """The fields as they are sent: a value with a line break in it goes with its length."""
    parts: list[bytes] = []
    for name, value in sent.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def _is_writable(opened: socket.socket) -> bool:
    """Whether the journal takes more within a moment."""
    poll = select.poll()
    poll.register(opened, select.POLLOUT)
    return bool(poll.poll(_PATIENCE_SECONDS * 1000))
