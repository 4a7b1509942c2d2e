"""The control socket: a Unix socket where an operator on the host gives a running program orders.

A request is a JSON object on a line, and so is its answer. A connection may send many requests:

    {"do": "approve", "id": "cmd_…"}  →  {"ok": true, …}  or  {"ok": false, "error": "…"}

A user who may open the socket may do everything. The agent's has the mode 0660 and its directory
decides; the server's is for its own user and root alone. A part of the program registers a function
for each of its verbs: `control.verb("status", show)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import structlog

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

NAME: Final = "control.sock"
GROUP_MODE: Final = 0o660
OWNER_MODE: Final = 0o600
"""With this mode the kernel's word on the user at the other end is checked too."""
_MAX_LINE_BYTES: Final = 64 * 1024
_MAX_PEERS: Final = 16
"""Connections at the same time; others are closed at once."""
_IDLE_SECONDS: Final = 60.0
_LONGEST_ADDRESS_BYTES: Final = 100
"""Linux allows 107 (unix(7)); a longer path is reached through its directory's descriptor."""


class ControlError(Exception):
    """The socket cannot be made; the message is one line."""


class ControlRefused(Exception):
    """The program refuses a request; the message says why."""


class NotListening(Exception):
    """No program answers at the socket."""


class ControlDenied(Exception):
    """This user may not open the socket."""


class Peer(msgspec.Struct, frozen=True):
    """The process at the other end, as the kernel reports it (SO_PEERCRED)."""

    pid: int
    uid: int


ControlRequest = Mapping[str, Any]
Verb = Callable[[ControlRequest, Peer], Awaitable[Mapping[str, Any]]]
"""Carries out a request and returns its answer; raises ControlRefused."""


class Control:
    """The socket and its verbs. Lives in the main loop."""

    def __init__(self, path: Path, *, mode: int = GROUP_MODE, program: str = "agent") -> None:
        """Serve at a path; `program` is what messages call the process."""
        self.path = path
        self._mode = mode
        self._program = program
        self._verbs: dict[str, Verb] = {}
        self._server: asyncio.Server | None = None
        self._peers: set[asyncio.Task[None]] = set()

    def verb(self, name: str, call: Verb) -> None:
        """Answer requests `{"do": name, …}` by `call`."""
        self._verbs[name] = call

    async def open(self) -> None:
        """Listen, and replace the socket of a dead process. Raises ControlError."""
        try:
            listening = bind_path(self.path, self._mode, self._program)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ControlError(f"the control socket {self.path}: {reason}") from None
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listening, limit=_MAX_LINE_BYTES
        )

    async def close(self) -> None:
        """Close the socket and all connections."""
        if self._server is None:
            return
        self._server.close()
        for peer in list(self._peers):
            peer.cancel()
        if self._peers:
            await asyncio.wait(self._peers)
        with contextlib.suppress(OSError):
            self.path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection to its end."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._peers.add(task)
        try:
            peer = _peer(writer)
            if self._mode == OWNER_MODE and peer.uid not in (0, os.geteuid()):
                async with asyncio.timeout(_IDLE_SECONDS):
                    await reader.read(_MAX_LINE_BYTES)  # unread, it would cost the peer the answer
                await _send(writer, _error(f"the {self._program} takes no orders of this user"))
            elif len(self._peers) <= _MAX_PEERS:
                await self._answer_lines(reader, writer, peer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the peer is gone or idle, or the program ends
        finally:
            self._peers.discard(task)
            writer.close()

    async def _answer_lines(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer
    ) -> None:
        """Answer line by line until the peer closes. Raises OSError, TimeoutError."""
        while True:
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    line = await reader.readline()
            except ValueError:
                await _send(writer, _error(f"a line of more than {_MAX_LINE_BYTES} bytes"))
                return
            if not line.endswith(b"\n"):
                return
            await _send(writer, await self._answer(line, peer))

    async def _answer(self, line: bytes, peer: Peer) -> Mapping[str, Any]:
        """Carry out the request of a line and return the answer."""
        try:
            request: Any = json.loads(line)
        except (ValueError, RecursionError):
            return _error("not JSON")
        name: Any = cast("ControlRequest", request).get("do") if isinstance(request, dict) else None
        call = self._verbs.get(name) if isinstance(name, str) else None
        if call is None:
            return _error(f"unknown verb; known are {', '.join(sorted(self._verbs))}")
        try:
            return {"ok": True, **await call(cast("ControlRequest", request), peer)}
        except ControlRefused as error:
            return _error(str(error))
        except Exception:  # a broken verb must not end the program
            log.exception("control.broken", verb=name)
            return _error(f"the {self._program} failed; its log says more")


def ask(
    path: Path, request: ControlRequest, *, timeout_seconds: float | None = 30.0
) -> dict[str, Any]:
    """Send a running program a request; return its answer without `ok`. Blocks.

    Raises NotListening, ControlDenied, and ControlRefused with the program's message.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.settimeout(timeout_seconds)
        try:
            with _address(path) as address:
                opened.connect(address)
            opened.sendall(json.dumps(dict(request)).encode() + b"\n")
            with opened.makefile("rb") as answers:
                line = answers.readline()
        except PermissionError:
            raise ControlDenied(f"{path}: permission denied") from None
        except OSError as error:
            raise NotListening(f"{path}: {error.strerror or error}") from None
    if not line:
        raise NotListening(f"{path}: the connection was closed")
    answer = cast("dict[str, Any]", json.loads(line))
    if not answer.pop("ok", False):
        raise ControlRefused(str(answer.get("error", "refused")))
    return answer


def text_of(request: ControlRequest, name: str, *, max_chars: int = 500) -> str:
    """Return a text that a request must have. Raises ControlRefused."""
    value = request.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > max_chars:
        raise ControlRefused(f"{name}: a text of 1 to {max_chars} characters is needed")
    return value


def bind_path(path: Path, mode: int, program: str) -> socket.socket:
    """Return a listening socket at a path. Raises OSError.

    The socket is made under another name and renamed: it has its mode from the first moment, and
    replaces a stale one.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _is_alive(path):
        raise OSError(0, f"another {program} listens there")
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _address(fresh) as address:
            listening.bind(address)
        fresh.chmod(mode)
        listening.listen(_MAX_PEERS)
        listening.setblocking(False)
        fresh.rename(path)
    except OSError:
        listening.close()
        raise
    return listening


def _is_alive(path: Path) -> bool:
    """Return True if a process listens at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            with _address(path) as address:
                probe.connect(address)
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _address(path: Path) -> Generator[str]:
    """Yield an address to bind or connect to, for a path of any length. Raises OSError."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _peer(writer: asyncio.StreamWriter) -> Peer:
    """Return the process at the other end."""
    connected = cast("socket.socket", writer.get_extra_info("socket"))
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return Peer(pid, uid)


async def _send(writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    """Send an answer as a line. Raises OSError, TimeoutError."""
    writer.write(json.dumps(answer).encode() + b"\n")
    async with asyncio.timeout(_IDLE_SECONDS):
        await writer.drain()


def _error(text: str) -> dict[str, Any]:
    """Return the answer of a failed request."""
    return {"ok": False, "error": text}
