"""Push tokens are encrypted in the database, with a key in a file beside the keys that sign URLs.

A copy of the database alone gives no token away; a backup has both. The text of a sealed token is
bound to its deployment: moved to another row it does not open.
"""

from __future__ import annotations

import os
import secrets
import stat
from base64 import b64decode, b64encode
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from arc_runtime.directories import make_directory, sync_directory
from arc_runtime.startup.late_module import late_module
from arc_server.ports.records import Deployment
from arc_server.server_keys import KeysUnusable

if TYPE_CHECKING:
    from nacl import exceptions, secret
else:
    exceptions = late_module("nacl.exceptions")
    secret = late_module("nacl.secret")

FILE_NAME: Final = "push.json"
KEY_BYTES: Final = 32
"""The size of a key of XChaCha20-Poly1305."""
PREFIX: Final = "sealed:1:"
"""Begins a sealed token. Earlier releases stored the token itself."""


class PushTokenUnreadable(Exception):
    """A token was sealed with another key or for another deployment. The message says so."""


class _KeyFile(msgspec.Struct, frozen=True):
    key: str
    """Base64."""


class PushTokens:
    """Seals and opens push tokens with the key of one directory."""

    def __init__(self, directory: Path) -> None:
        """Read the key, and make it if there is none. Raises KeysUnusable, OSError."""
        path = directory / FILE_NAME
        if not path.exists():
            _make_key(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
        self._box = secret.Aead(_read_key(path))

    def seal(self, deployment_id: str, token: str) -> str:
        """Return a token as it is stored."""
        sealed = self._box.encrypt(token.encode(), deployment_id.encode())
        return PREFIX + b64encode(bytes(sealed)).decode("ascii")

    def sealed(self, deployment: Deployment) -> Deployment:
        """Return a deployment whose push token is sealed, if it has one."""
        token = deployment.push_token
        if token is None or is_sealed(token):
            return deployment
        sealed = self.seal(deployment.deployment_id, token)
        return msgspec.structs.replace(deployment, push_token=sealed)

    def open(self, deployment_id: str, stored: str) -> str:
        """Return a token for its use. Raises PushTokenUnreadable."""
        if not is_sealed(stored):
            return stored
        try:
            sealed = b64decode(stored.removeprefix(PREFIX), validate=True)
            return self._box.decrypt(sealed, deployment_id.encode()).decode()
        except (exceptions.CryptoError, ValueError, TypeError):
            raise PushTokenUnreadable(
                "the push token was sealed with another key: set it again"
            ) from None


def is_sealed(stored: str) -> bool:
    """Return True unless a token is stored as an earlier release stored it."""
    return stored.startswith(PREFIX)


def _make_key(path: Path) -> None:
    """Make the key file whole, for its owner alone, unless another process makes it first."""
    make_directory(path.parent)
    key = b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(_KeyFile(key)))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _read_key(path: Path) -> bytes:
    """Return the key of a file. Raises KeysUnusable, OSError."""
    try:
        key = b64decode(msgspec.json.decode(path.read_bytes(), type=_KeyFile).key, validate=True)
    except (msgspec.DecodeError, ValueError) as error:
        raise KeysUnusable(f"{path}: {error}") from None
    if len(key) != KEY_BYTES:
        raise KeysUnusable(f"{path}: the key is not {KEY_BYTES} bytes long")
    return key
