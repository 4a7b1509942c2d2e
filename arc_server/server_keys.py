"""Server keys sign the server's own URLs: those that take responses, and those of blobs.

One file in the data directory holds them, newest first. The first key signs; all of them verify,
until a rotation finds them older than any URL that they can have signed. A running server notices
another process's rotation within seconds, and at once when a URL names a key that it does not know.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
import stat
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog

from arc_runtime.directories import make_directory, sync_directory

log = structlog.get_logger(__name__)

FILE_NAME: Final = "signing.json"
SECRET_BYTES: Final = 32
"""As long as the digest: more adds nothing to HMAC-SHA256 (RFC 2104, 3)."""
RECHECK_SECONDS: Final = 5.0
"""The longest time until a signer notices that the file has changed."""
RESPONSE: Final = "response"
BLOB: Final = "blob"
PLACE: Final = "place"
_PLACE_DIGITS: Final = 32
"""Half of the HMAC, in hex: it guards no more than the order of a list."""
_KEY_ID_DIGITS: Final = 8
_NEVER: Final = 0
"""A place does not expire."""


class KeysUnusable(Exception):
    """The key file is there, but cannot be used. The message says what is wrong with it."""


class SigningKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A key for signing. `retired_at` is when a newer one took its place."""

    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}\Z")]
    secret: str
    """Base64 of 32 random bytes."""
    created_at: datetime
    retired_at: datetime | None = None

    def secret_bytes(self) -> bytes:
        """Return the secret. Raises KeysUnusable when it has not the form that `rotate` writes."""
        try:
            secret = b64decode(self.secret, validate=True)
        except ValueError:
            raise KeysUnusable(f"key {self.id}: the secret is not base64") from None
        if len(secret) != SECRET_BYTES:
            raise KeysUnusable(f"key {self.id}: the secret is not {SECRET_BYTES} bytes long")
        return secret


class KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    """The key file holds at least one key. The first one signs."""

    keys: Annotated[Sequence[SigningKey], msgspec.Meta(min_length=1)]


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """A signature, as it goes into the query of a URL."""

    token: str
    """HMAC-SHA256 in hex."""
    expires: int
    """Unix seconds; the URL is good before that instant."""
    key_id: str


class Signer:
    """The signer signs and verifies with the keys of one directory."""

    def __init__(self, directory: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Load the keys, making the first one if there is none. Raises KeysUnusable, OSError."""
        self.directory = directory
        self._path = directory / FILE_NAME
        self._monotonic = monotonic
        ensure_keys(directory)
        self._stamp = _stamp(self._path)
        self._use(read_keys(self._path))
        self._checked_at = monotonic()

    def sign(self, purpose: str, *parts: str, expires: int) -> Signature:
        """Sign `parts` for one purpose until `expires`, with the newest key."""
        self._recheck()
        token = _hmac(self._current_key, _message(purpose, parts, expires))
        return Signature(token=token, expires=expires, key_id=self._current_id)

    def verify(
        self, purpose: str, *parts: str, expires: int, key_id: str, token: str, now: datetime
    ) -> bool:
        """Return True if one of the keys signed exactly this, and it has not expired."""
        self._recheck()
        if key_id not in self._keys:
            self.reload()
        key = self._keys.get(key_id)
        if key is None:
            return False
        expected = _hmac(key, _message(purpose, parts, expires))
        is_ours = hmac.compare_digest(expected.encode(), token.encode("utf-8", "replace"))
        return is_ours and now.timestamp() < expires

    def response_url(
        self,
        base_url: str,
        command_id: str,
        lease_id: str,
        expires_at: datetime,
        by: str | None = None,
    ) -> str:
        """Return the URL for the response of a lease's holder; `base_url` ends in /v1.

        `by` is the credential of the lease, if it has one.
        """
        parts = (command_id, lease_id, *limit_parts({"by": by}))
        signed = self.sign(RESPONSE, *parts, expires=int(expires_at.timestamp()))
        url = (
            f"{base_url}/commands/{command_id}/response?response_token={signed.token}"
            f"&expires={signed.expires}&lease={lease_id}&kid={signed.key_id}"
        )
        return url if by is None else f"{url}&by={by}"

    def sign_place(self, *parts: str) -> str:
        """Fulfil PlaceSigner.sign_place."""
        signed = self.sign(PLACE, *parts, expires=_NEVER)
        return signed.key_id + signed.token[:_PLACE_DIGITS]

    def has_signed_place(self, signature: str, *parts: str) -> bool:
        """Fulfil PlaceSigner.has_signed_place."""
        self._recheck()
        key = self._keys.get(signature[:_KEY_ID_DIGITS])
        if key is None:
            return False
        expected = _hmac(key, _message(PLACE, parts, _NEVER))[:_PLACE_DIGITS]
        return hmac.compare_digest(expected, signature[_KEY_ID_DIGITS:])

    def reload(self) -> None:
        """Read the file again if it has changed. An unusable file is logged and ignored."""
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            keys = read_keys(self._path)
        except (KeysUnusable, OSError) as error:
            log.warning("keys.reload_failed", reason=str(error))
            return
        self._stamp = stamp
        self._use(keys)
        log.info("keys.reloaded", key_id=self._current_id, count=len(keys))

    @property
    def key_ids(self) -> Sequence[str]:
        """Return the ids of the keys in use; the first one signs."""
        return tuple(self._keys)

    def _use(self, keys: Sequence[SigningKey]) -> None:
        self._keys = {key.id: hmac.new(key.secret_bytes(), digestmod="sha256") for key in keys}
        self._current_id = keys[0].id
        self._current_key = self._keys[self._current_id]

    def _recheck(self) -> None:
        now = self._monotonic()
        if now - self._checked_at < RECHECK_SECONDS:
            return
        self._checked_at = now
        self.reload()


def limit_parts(limits: Mapping[str, str | None]) -> Sequence[str]:
    """Return the limits of a URL as parts to sign; None: the URL has no such limit."""
    return [f"{name}:{value}" for name, value in limits.items() if value is not None]


def ensure_keys(directory: Path) -> None:
    """Make the directory (0700) and the first key, unless they are there. Safe to race."""
    path = directory / FILE_NAME
    if not path.exists():
        make_directory(directory)
    with _locked(directory):
        if not path.exists():
            _write(path, [_new_key(datetime.now(UTC))])
            return
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        log.warning("keys.were_readable_by_others", path=str(path))
        path.chmod(0o600)


def rotate(
    directory: Path, now: datetime, keep: timedelta, *, forget_older: bool = False
) -> Sequence[SigningKey]:
    """Put a new key first, remove keys retired longer than `keep` ago, and return what is left.

    URLs that the kept keys have signed stay good. With `forget_older` no older key stays: every
    URL that is out ends. Raises KeysUnusable, OSError.
    """
    ensure_keys(directory)
    path = directory / FILE_NAME
    with _locked(directory):
        older: Sequence[SigningKey] = () if forget_older else read_keys(path)
        kept = [
            key if key.retired_at else msgspec.structs.replace(key, retired_at=now)
            for key in older
            if key.retired_at is None or now - key.retired_at < keep
        ]
        keys = [_new_key(now), *kept]
        _write(path, keys)
    return keys


def read_keys(path: Path) -> Sequence[SigningKey]:
    """Return the keys of a file. Raises KeysUnusable, OSError."""
    try:
        keys = msgspec.json.decode(path.read_bytes(), type=KeyFile).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeysUnusable(f"{path}: {error}") from None
    for key in keys:
        key.secret_bytes()
    return keys


def _new_key(now: datetime) -> SigningKey:
    secret = b64encode(secrets.token_bytes(SECRET_BYTES)).decode("ascii")
    return SigningKey(id=secrets.token_hex(4), secret=secret, created_at=now)


def _write(path: Path, keys: Sequence[SigningKey]) -> None:
    """Replace the file as a whole: a reader sees the old keys or the new ones, also after a crash.

    Raises OSError; the old file stands then.
    """
    data = msgspec.json.format(msgspec.json.encode(KeyFile(keys=keys)))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def _locked(directory: Path) -> Generator[None]:
    """Hold the lock of writers; it ends with the process at the latest."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _stamp(path: Path) -> tuple[int, int]:
    """Return a value that differs after every replacement of the file."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _hmac(key: hmac.HMAC, message: bytes) -> str:
    """Return the HMAC-SHA256 in hex."""
    # The key was taken in before: that is half of the work.
    code = key.copy()
    code.update(message)
    return code.hexdigest()


def _message(purpose: str, parts: Sequence[str], expires: int) -> bytes:
    """Return unambiguous bytes to sign: each part stands behind its length."""
    texts = (purpose, *parts, str(expires))
    return "".join([f"{len(text)}:{text}" for text in texts]).encode("utf-8", "surrogatepass")
