"""Arguments of the command line become what the client takes."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import typer

from arc_client.bodies.params import NO_PARAMS, Body, body_of_file, open_file
from arc_client.bodies.results import is_special
from arc_client.environment import access_of
from arc_client.errors import ConfigurationError, InvalidParams
from arc_protocol.messages.bodies import DEFAULT_INLINE_BYTES
from arc_runtime.durations import parse_duration

STDOUT: Final = Path("-")
"""As the file of a result, this is stdout, byte for byte."""
CHECKED_BYTES: Final = DEFAULT_INLINE_BYTES
"""Params up to this size are checked to be JSON; larger ones are streamed as they are."""

_SHOWN: Final = 30
"""Characters around a mistake that are shown, on each side."""


class ConnectionOptions(msgspec.Struct, frozen=True):
    """Connection options name the server and the keys; the environment fills in the rest."""

    server: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    signing_key: Path | None = None
    """The private key that signs commands."""
    encrypt_to: Path | None = None
    """The public key of the host that params are sealed for."""

    def over(self, other: ConnectionOptions | None) -> ConnectionOptions:
        """Return these options, with the other's where these have none."""
        if other is None:
            return self
        return ConnectionOptions(
            self.server or other.server,
            self.token_file or other.token_file,
            self.ca_file or other.ca_file,
            self.signing_key or other.signing_key,
            self.encrypt_to or other.encrypt_to,
        )

    def with_keys(self, signing_key: Path | None, encrypt_to: Path | None) -> ConnectionOptions:
        """Return these options with the keys of a subcommand that sends or reads results."""
        return msgspec.structs.replace(self, signing_key=signing_key, encrypt_to=encrypt_to)

    def client_options(self, environ: Mapping[str, str]) -> dict[str, Any]:
        """Return the arguments of Client. Raises ConfigurationError without a server."""
        access = access_of(
            environ,
            server_url=self.server,
            token_file=self.token_file,
            ca_file=self.ca_file,
            how="use --server URL or set ARC_SERVER_URL",
        )
        options: dict[str, Any] = access._asdict()
        if self.signing_key is not None:
            options["signing_key"] = self.signing_key
        if self.encrypt_to is not None:
            options["encrypt_to"] = self.encrypt_to
        return options


def duration(text: str | float) -> float:
    """Return a duration in seconds. Raises typer.BadParameter."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@contextmanager
def params_body(text: str | None, *, is_raw: bool) -> Generator[Body]:
    """Make a body of `--params`: JSON, `@FILE`, `-` for stdin; `{}` without it.

    A file that can be read again is not read here. Raises InvalidParams for params that cannot be
    read, and, unless `is_raw`, for params that are small enough to be checked and are not JSON.
    """
    with ExitStack() as files:
        if text is None:
            yield Body(NO_PARAMS, size=len(NO_PARAMS))
            return
        if text in ("-", "@-"):
            name, file = "stdin", sys.stdin.buffer
        elif text.startswith("@"):
            name = text[1:]
            file = files.enter_context(open_file(Path(name)))
        else:
            data = text.encode("utf-8", "surrogateescape")
            if not is_raw:
                _check_typed(text, data)
            yield Body(data, size=len(data))
            return
        body, spooled = body_of_file(file)
        if spooled is not None:
            files.enter_context(spooled)
        if not is_raw and body.size <= CHECKED_BYTES:
            _check_file(body.data(), name)
        yield body


def _check_file(data: bytes, name: str) -> None:
    """Raise InvalidParams for a file that is not JSON."""
    try:
        check_json(data, name)
    except InvalidParams as error:
        raise InvalidParams(f"{error.message}\nTo send it as it is: --raw") from None


def _check_typed(text: str, data: bytes) -> None:
    """Raise InvalidParams for text that is not JSON; a file's name lacks its `@`."""
    try:
        check_json(data, "--params", is_shown=True)
    except InvalidParams as error:
        if not _names_file(text):
            raise
        likely = f"Did you mean --params @{shlex.quote(text)}?"
        raise InvalidParams(f"{error.message}\n{likely}") from None


def _names_file(text: str) -> bool:
    """Return True if a text is the name of a file that is there."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null byte
        return False


def check_json(data: bytes, where: str, *, is_shown: bool = False) -> None:
    """Raise InvalidParams, with the position, if an agent could not decode the data.

    `is_shown`: the message repeats the text around it. Only for text that was typed: a file may
    hold a secret.
    """
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise InvalidParams(_not_json(data, where, str(problem), is_shown)) from None


def _not_json(data: bytes, where: str, problem: str, is_shown: bool) -> str:
    """Return where the data stops being JSON, by Python's parser: it counts lines and columns."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"{where} is not UTF-8 at byte {error.start + 1}"
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if not text.strip():
            return f"{where} is empty; leave it out to send {{}}"
        message = f"{where} is not JSON: line {error.lineno} column {error.colno}: {error.msg}"
        return f"{message}\n{_around(text, error.pos)}" if is_shown else message
    except RecursionError:
        return f"{where} is nested too deeply"
    return f"{where} is not JSON: {problem}"


def _around(text: str, position: int) -> str:
    """Return the line with the mistake, and a mark under it."""
    begin = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    begin, end = max(begin, position - _SHOWN), min(end, position + _SHOWN)
    return f"  {text[begin:end]}\n  {' ' * (position - begin)}^"


def check_writable(path: Path | None, *, is_raw: bool = False) -> None:
    """Raise ConfigurationError if a result file cannot be written: before anything is sent.

    `is_raw`: the result is to be text, which `--out`, byte for byte, is not.
    """
    if path is not None and is_raw:
        raise ConfigurationError("give --out or --raw-output: --out writes byte for byte")
    if path is None or path == STDOUT:
        return
    if path.is_dir():
        raise ConfigurationError(f"cannot write to {path}: it is a directory")
    if path.is_socket():
        raise ConfigurationError(f"cannot write to {path}: it is a socket")
    place = path if is_special(path) else Path(os.path.realpath(path)).parent
    if not place.exists():
        missing = "there is no such file" if place == path else f"there is no directory {place}"
        raise ConfigurationError(f"cannot write to {path}: {missing}")
    if not os.access(place, os.W_OK):
        raise ConfigurationError(f"cannot write to {path}: permission denied")
