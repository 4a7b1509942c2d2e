"""Calls of the methods of the store, and of retention, over the control socket.

While a server runs, it alone opens the database and removes blobs. A command of the operator calls
a method by its name; arguments and answer travel as JSON, by the types that the ports give them. A
user who may open the socket may open the database too, so no method is held back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Final, cast, get_type_hints

import msgspec

from arc_protocol.errors import ArcError
from arc_runtime.control_socket import Control, ControlRefused, ControlRequest, Peer, ask
from arc_server.ports.keeping import Keeping
from arc_server.ports.store import Store

SOCKET: Final = "control.sock"
"""The name of the socket in the data directory."""
_STORE: Final = "store"
_KEEPING: Final = "keeping"


class _Call(msgspec.Struct, frozen=True):
    """A call as it travels."""

    method: str
    given: list[Any] = []
    named: dict[str, Any] = {}


def answer_store_calls(
    control: Control, store: Store, called: Callable[[str], object] = lambda _: None
) -> None:
    """Let operators call the methods of a store over a socket; `called` gets the name of each."""

    async def ping(_request: ControlRequest, _: Peer) -> Mapping[str, Any]:
        return {}

    _answer(control, _STORE, store, Store, called)
    control.verb("ping", ping)


def answer_keeping_calls(control: Control, keeping: Keeping) -> None:
    """Let operators have commands and blobs removed over a socket."""
    _answer(control, _KEEPING, keeping, Keeping)


def _answer(
    control: Control,
    verb: str,
    answering: object,
    port: type,
    called: Callable[[str], object] = lambda _: None,
) -> None:
    async def call(request: ControlRequest, _: Peer) -> Mapping[str, Any]:
        try:
            wanted = msgspec.convert(request, _Call)
            types = _types_of(port, wanted.method)
            given, named = _arguments(port, wanted, types)
        except (msgspec.ValidationError, AttributeError, TypeError) as error:
            raise ControlRefused(f"the server does not know this call: {error}") from None
        try:
            answer = await getattr(answering, wanted.method)(*given, **named)
        except ArcError as error:
            raise ControlRefused(error.message) from None
        called(wanted.method)
        return {"answer": msgspec.to_builtins(answer)}

    control.verb(verb, call)


def remote_store(socket: Path) -> Store:
    """Return the store of the server that listens at a socket. Its methods block.

    They raise NotListening, ControlDenied, and ControlRefused with the store's reason.
    """
    return cast("Store", _Remote(socket, _STORE, Store))


def remote_keeping(socket: Path) -> Keeping:
    """Return the retention of the server that listens at a socket, as `remote_store` does."""
    return cast("Keeping", _Remote(socket, _KEEPING, Keeping))


class _Remote:
    def __init__(self, socket: Path, verb: str, port: type) -> None:
        self._socket = socket
        self._verb = verb
        self._port = port

    def __getattr__(self, method: str) -> Any:
        types = _types_of(self._port, method)

        async def call(*given: Any, **named: Any) -> Any:
            wanted = _Call(method, list(given), named)
            answer = ask(
                self._socket,
                {"do": self._verb, **msgspec.to_builtins(wanted)},
                timeout_seconds=None,  # a snapshot takes its time, and so does a purge
            )
            return msgspec.convert(answer["answer"], types["return"])

        return call


def _types_of(port: type, method: str) -> dict[str, Any]:
    """Return the types of a method of a port. Raises AttributeError for another name."""
    if method.startswith("_") or method == "close":
        raise AttributeError(method)
    return get_type_hints(getattr(port, method))


def _arguments(
    port: type, wanted: _Call, types: Mapping[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the arguments of a call in their types. Raises TypeError, ValidationError."""
    bound = signature(getattr(port, wanted.method)).bind(None, *wanted.given, **wanted.named)
    for name in list(bound.arguments)[1:]:  # after self
        bound.arguments[name] = msgspec.convert(bound.arguments[name], types[name])
    return bound.args[1:], bound.kwargs
