"""The configured bearer token: a literal, or a file that is read again after a refusal."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec
import structlog

from arc_runtime.logs.redaction import keep_secret

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_MAX_BYTES: Final = 64 * 1024


class TokenError(Exception):
    """A token cannot be used. The message never quotes it."""


class Bearer(Protocol):
    """A source of the bearer token. Safe from any thread."""

    value: str | None
    """The current token; None for none."""

    async def ready(self) -> None:
        """Wait until requests can be sent. Raises NoContact when there is no token."""
        ...

    async def refused(self, used: str | None) -> bool:
        """Return True if there is another token than `used`, which the server refused."""
        ...

    def reload(self) -> None:
        """Look for another token."""
        ...

    def status(self) -> msgspec.Struct:
        """Return the state of the credential for `arc-agent status`. Blocks."""
        ...

    async def keep(self) -> None:
        """Keep the token fresh until cancelled. Runs in the heartbeat's thread."""
        ...


class ConfiguredTokenStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a configured token, for the operator on the host."""

    kind: Literal["none", "literal", "file"]
    file: str | None = None
    age_seconds: float | None = None
    """The time since the file was written; None for no file, or one that cannot be read."""


class ConfiguredToken:
    """A token in the configuration or in a file, or none. Safe from any thread."""

    def __init__(self, literal: str | None, file: Path | None) -> None:
        """Read the file if there is one, else use the literal. Raises TokenError."""
        self._file = file
        self._lock = threading.Lock()
        self._is_readable = True
        if file is not None:
            self.value = _read(file)
        else:
            self.value = _checked(literal, "the token") if literal else None

    @property
    def file(self) -> Path | None:
        """Return the token's file; None for a literal, or without a token."""
        return self._file

    async def ready(self) -> None:
        """Return at once: the token is there from the start."""

    async def keep(self) -> None:
        """Return at once: an operator replaces the file."""

    async def refused(self, used: str | None) -> bool:  # noqa: ARG002  # the file decides
        """Read the file again; return True if it holds another token now."""
        return await asyncio.to_thread(self.reread)

    def reload(self) -> None:
        """Read the file again."""
        self.reread()

    def status(self) -> ConfiguredTokenStatus:
        """Return the state of the token. Blocks."""
        if self._file is None:
            return ConfiguredTokenStatus(kind="none" if self.value is None else "literal")
        try:
            age = max(0.0, time.time() - self._file.stat().st_mtime)
        except OSError:
            age = None
        return ConfiguredTokenStatus(kind="file", file=str(self._file), age_seconds=age)

    def reread(self) -> bool:
        """Read the file again; return True if it holds another token now.

        A file that cannot be read is logged once, and the old token stays.
        """
        if self._file is None:
            return False
        try:
            value = _read(self._file)
        except TokenError as error:
            with self._lock:
                is_news, self._is_readable = self._is_readable, False
            if is_news:
                log.error("token.unreadable", reason=str(error))
            return False
        with self._lock:
            is_other = value != self.value
            self.value, self._is_readable = value, True
        return is_other


def _read(file: Path) -> str:
    """Return the token in a file. Raises TokenError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise TokenError(f"the token file {file} cannot be read: {error.strerror}") from None
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise TokenError(f"the token file {file} does not hold a token") from None
    return _checked(text, f"the token file {file}")


def _checked(text: str, where: str) -> str:
    """Return a token that a header can hold. Raises TokenError."""
    value = text.strip()
    if not value:
        raise TokenError(f"{where} is empty")
    if len(value) > _MAX_BYTES or not all("!" <= char <= "~" for char in value):
        raise TokenError(f"{where} holds characters that no token has")
    keep_secret(value)
    return value
