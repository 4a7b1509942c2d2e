"""The agent's control channel: a Unix socket through which an operator on the host speaks to it.

One JSON object a line, one answer a line, as many as wanted on a connection:

    {"do": "approve", "id": "cmd_…"}  →  {"ok": true, …}  or  {"ok": false, "error": "…"}

Who may open the socket may do everything: its mode is 0660, and its directory is the agent's own.
A part of the agent adds a verb by registering a function: `control.verb("status", show)`.
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
_MODE: Final = 0o660
_MAX_LINE_BYTES: Final = 64 * 1024
_MAX_PEERS: Final = 16
"""Connections at the same time; more are turned away."""
_IDLE_SECONDS: Final = 60.0
_LONGEST_ADDRESS_BYTES: Final = 100
"""Linux takes 107 (unix(7)); a longer path is reached through its directory's descriptor."""


class ControlError(Exception):
    """A socket that cannot be made; the message is one clear line."""


class ControlRefused(Exception):
    """What an operator asked for cannot be done; the message says why."""


class AgentNotThere(Exception):
    """No agent answers at the socket."""


class ControlDenied(Exception):
    """The socket is not this user's to open."""


class Peer(msgspec.Struct, frozen=True):
    """Who asks, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int


ControlRequest = Mapping[str, Any]
Verb = Callable[[ControlRequest, Peer], Awaitable[Mapping[str, Any]]]
"""Does what a request asks for and answers; raises ControlRefused."""


class Control:
    """The socket, and what can be asked for there. Lives in the main loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._verbs: dict[str, Verb] = {}
        self._server: asyncio.Server | None = None
        self._peers: set[asyncio.Task[None]] = set()

    def verb(self, name: str, call: Verb) -> None:
        """Answer requests `{"do": name, …}` with `call`."""
        self._verbs[name] = call

    async def open(self) -> None:
        """Listen. A socket that a dead agent left is replaced. Raises ControlError."""
        try:
            listening = _bound(self.path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ControlError(f"the control socket {self.path}: {reason}") from None
        self._server = await asyncio.start_unix_server(
            self._meet, sock=listening, limit=_MAX_LINE_BYTES
        )

    async def close(self) -> None:
        """Listen no more; who is connected is cut off."""
        if self._server is None:
            return
        self._server.close()
        for peer in list(self._peers):
            peer.cancel()
        if self._peers:
            await asyncio.wait(self._peers)
        with contextlib.suppress(OSError):
            self.path.unlink()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._peers.add(task)
        try:
            if len(self._peers) <= _MAX_PEERS:
                await self._converse(reader, writer, _peer(writer))
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # it is gone, it has nothing to say, or the agent ends
        finally:
            self._peers.discard(task)
            writer.close()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer
    ) -> None:
        """Answer line by line until the peer hangs up. Raises OSError, TimeoutError."""
        while True:
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    line = await reader.readline()
            except ValueError:
                await _say(writer, _error(f"a line of more than {_MAX_LINE_BYTES} bytes"))
                return
            if not line.endswith(b"\n"):
                return
            await _say(writer, await self._answer(line, peer))

    async def _answer(self, line: bytes, peer: Peer) -> Mapping[str, Any]:
        """Do what a line asks for."""
        try:
            request: Any = json.loads(line)
        except (ValueError, RecursionError):
            return _error("not JSON")
        name: Any = cast("ControlRequest", request).get("do") if isinstance(request, dict) else None
        call = self._verbs.get(name) if isinstance(name, str) else None
        if call is None:
            return _error(f"it can do {', '.join(sorted(self._verbs))}")
        try:
            return {"ok": True, **await call(cast("ControlRequest", request), peer)}
        except ControlRefused as error:
            return _error(str(error))
        except Exception:  # a broken verb must not end the agent
            log.exception("control.broken", verb=name)
            return _error("it broke; the agent's log says more")


def ask(path: Path, request: ControlRequest, *, timeout_seconds: float = 30.0) -> dict[str, Any]:
    """Ask a running agent; its answer without `ok`. For commands: it blocks.

    Raises AgentNotThere, ControlDenied, and ControlRefused with the agent's own words.
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
            raise AgentNotThere(f"{path}: {error.strerror or error}") from None
    if not line:
        raise AgentNotThere(f"{path}: it hung up")
    answer = cast("dict[str, Any]", json.loads(line))
    if not answer.pop("ok", False):
        raise ControlRefused(str(answer.get("error", "refused")))
    return answer


def text_of(request: ControlRequest, name: str, *, max_chars: int = 500) -> str:
    """A text that a request must have. Raises ControlRefused."""
    value = request.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > max_chars:
        raise ControlRefused(f"{name}: a text of 1 to {max_chars} characters is needed")
    return value


def _bound(path: Path) -> socket.socket:
    """A listening socket at a path, with the right mode from its first moment. Raises OSError.

    It is made under another name and moved: nobody sees it half made, and a stale one is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _is_alive(path):
        raise OSError(0, "another agent listens there")
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _address(fresh) as address:
            listening.bind(address)
        fresh.chmod(_MODE)
        listening.listen(_MAX_PEERS)
        listening.setblocking(False)
        fresh.rename(path)
    except OSError:
        listening.close()
        raise
    return listening


def _is_alive(path: Path) -> bool:
    """Whether somebody listens at a path."""
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
    """What to bind or connect to, for a path of any length. Raises OSError."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _peer(writer: asyncio.StreamWriter) -> Peer:
    """Who is at the other end."""
    connected = cast("socket.socket", writer.get_extra_info("socket"))
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return Peer(pid, uid)


async def _say(writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    """Send a line. Raises OSError, TimeoutError."""
    writer.write(json.dumps(answer).encode() + b"\n")
    async with asyncio.timeout(_IDLE_SECONDS):
        await writer.drain()


def _error(text: str) -> dict[str, Any]:
    """An answer that says what is wrong."""
    return {"ok": False, "error": text}
