"""The identity of an enrolled agent on its disk: the credential and its key pair.

The files are in `identity/` in the data directory (0700). Each has mode 0600 and is written whole:

    enrolling.json   the key pair of an enrolment that the server has not answered yet
    identity.json    the credential and its key pair in one file: a rename replaces the key
    next.json        the next key pair, written before the server gets it

A process may die after any step; the files then say how to go on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import structlog

from arc_agent.host.data_dir import sync_directory
from arc_agent.net.token import TokenError
from arc_protocol.enrolment import KEY_BYTES, Purpose, from_text, key_id, to_sign, to_text
from arc_runtime.directories import make_directory
from arc_runtime.failpoints import hit
from arc_runtime.startup.late_module import late_module

if TYPE_CHECKING:
    from nacl import signing
else:
    signing = late_module("nacl.signing")  # 2 MB

T = TypeVar("T")

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

DIRECTORY: Final = "identity"
_IDENTITY: Final = "identity.json"
_NEXT: Final = "next.json"
_ENROLLING: Final = "enrolling.json"


class IdentityError(TokenError):
    """An identity cannot be read or written. The message never quotes it."""


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    """An Ed25519 key pair. The seed never leaves the host."""

    seed: str
    """The private part, base64 of 32 bytes."""
    public_key: str
    """Base64 of 32 bytes."""

    @classmethod
    def generate(cls) -> KeyPair:
        """Return a new key pair from the system's randomness."""
        key = signing.SigningKey.generate()
        return cls(seed=to_text(bytes(key)), public_key=to_text(bytes(key.verify_key)))

    @property
    def key_id(self) -> str:
        """Return the id of the key. Raises ValueError."""
        return key_id(from_text(self.public_key, KEY_BYTES))

    def sign(self, purpose: Purpose, *parts: str) -> str:
        """Return a signature over the parts in the wire's form."""
        signer = signing.SigningKey(from_text(self.seed, KEY_BYTES))
        return to_text(signer.sign(to_sign(purpose, *parts)).signature)

    def __repr__(self) -> str:
        """Show the id without the seed, which must not get into a log or a traceback."""
        return f"KeyPair({self.key_id})"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A credential and its key pair."""

    credential_id: str
    deployment_id: str
    server: str
    """The server where the agent enrolled, for operators."""
    key: KeyPair
    agent_name: str | None = None
    """The name that the credential is bound to; None if an earlier release enrolled."""


class IdentityFiles:
    """The directory of an identity. Its methods block, and are safe beside another process."""

    def __init__(self, data_directory: Path) -> None:
        self.directory = data_directory / DIRECTORY

    def read(self) -> Identity | None:
        """Return the identity; None when the agent has not enrolled. Raises IdentityError."""
        return self._read(_IDENTITY, Identity)

    def next_key(self) -> KeyPair | None:
        """Return the next key pair, if there is one. Raises IdentityError."""
        return self._read(_NEXT, KeyPair)

    def begin_next(self) -> KeyPair:
        """Return the next key pair, made if there is none and durable. Raises IdentityError."""
        with self._locked():
            key = self.next_key()
            if key is not None:
                return key
            key = KeyPair.generate()
            hit("agent.before_next_key")
            self._write(_NEXT, key)
            hit("agent.after_next_key")
            return key

    def take_over(self, before: Identity, key: KeyPair) -> bool:
        """Make a key that the server knows the identity's; return False if the agent has enrolled
        anew meanwhile.

        Raises IdentityError.
        """
        with self._locked():
            now = self.read()
            if now is None or now.credential_id != before.credential_id:
                return False
            hit("agent.before_new_key")
            self._write(_IDENTITY, msgspec.structs.replace(now, key=key))
            hit("agent.after_new_key")
            self._remove(_NEXT)
            hit("agent.after_old_key")
            return True

    def begin_enrolment(self, *, afresh: bool = False) -> KeyPair:
        """Return the key pair to enrol, durable. An enrolment without an answer uses its key again,
        unless `afresh`.

        Raises IdentityError.
        """
        with self._locked():
            key = None if afresh else self._read(_ENROLLING, KeyPair)
            if key is None:
                key = KeyPair.generate()
                self._write(_ENROLLING, key)
            hit("agent.after_enrol_key")
            return key

    def enrolled(self, identity: Identity) -> None:
        """Store the identity of an enrolment that the server answered. Raises IdentityError."""
        with self._locked():
            self._remove(_NEXT)  # of the former identity
            hit("agent.before_identity")
            self._write(_IDENTITY, identity)
            hit("agent.after_identity")
            self._remove(_ENROLLING)

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self.directory / name
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read()
            if mode & 0o077:
                log.warning("identity.was_readable_by_others", path=str(path))
                path.chmod(0o600)
            return msgspec.json.decode(data, type=kind)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IdentityError(f"{path} cannot be read: {error.strerror}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise IdentityError(f"{path} is damaged: enrol again") from None

    def _write(self, name: str, content: msgspec.Struct) -> None:
        """Replace a file, durably. The directory's owner owns the file. Raises IdentityError."""
        path = self.directory / name
        part = path.with_suffix(".part")
        try:
            part.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(part, flags, 0o600), "wb") as file:
                _give(file.fileno(), self.directory)
                file.write(msgspec.json.encode(content))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_directory(self.directory)
        except OSError as error:
            raise IdentityError(f"{path} cannot be written: {error.strerror}") from None

    def _remove(self, name: str) -> None:
        try:
            (self.directory / name).unlink(missing_ok=True)
            sync_directory(self.directory)
        except OSError as error:
            raise IdentityError(f"{self.directory}: {error.strerror}") from None

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Hold the lock for writers. It ends with the process at the latest."""
        try:
            is_new = not self.directory.exists()
            make_directory(self.directory.parent)
            self.directory.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise IdentityError(f"{self.directory} cannot be made: {error.strerror}") from None
        try:
            if is_new:
                _give(handle, self.directory.parent)
                sync_directory(self.directory.parent)
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _give(descriptor: int, directory: Path) -> None:
    """Give a file to the owner of the directory: root may enrol for the agent's user."""
    owner = directory.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
