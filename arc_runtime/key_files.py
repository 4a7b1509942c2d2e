"""Key files: one private key each, and public keys a line each.

Private: a JWK (RFC 8037) in a file that nobody else may read. Public: `NAME TYPE BASE64URL`, blank
lines and `#` comments between; several lines, or several files in a directory, are several keys.
Ed25519 keys sign, X25519 keys are sealed for.
"""

from __future__ import annotations

import os
import re
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from arc_runtime.startup.late_module import late_module

if TYPE_CHECKING:
    from nacl import bindings
else:
    bindings = late_module("nacl.bindings")

SIGNING: Final = "ed25519"
SEALING: Final = "x25519"
KEY_BYTES: Final = 32
PUBLIC_SUFFIX: Final = ".pub"
"""Of the files of a directory, those that hold public keys."""
MAX_FILE_BYTES: Final = 1024 * 1024

Kind = Literal["ed25519", "x25519"]
_CURVES: Final[Mapping[Kind, Literal["Ed25519", "X25519"]]] = {
    SIGNING: "Ed25519",
    SEALING: "X25519",
}
_KINDS: Final[Mapping[str, Kind]] = {"Ed25519": SIGNING, "X25519": SEALING}
_NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
_NAME: Final = re.compile(_NAME_PATTERN)


class KeyFileError(Exception):
    """A key file that cannot be used; the message is one clear line, and never a part of a key."""


class PublicKey(msgspec.Struct, frozen=True):
    """What others may know of a key."""

    name: str
    kind: Kind
    data: bytes

    @property
    def line(self) -> str:
        """As it stands in a file."""
        return f"{self.name} {self.kind} {_text(self.data)}"


class PrivateKey(msgspec.Struct, frozen=True):
    """A key of one's own. Its `repr` tells nothing."""

    name: str
    kind: Kind
    secret: bytes

    def __repr__(self) -> str:
        return f"PrivateKey({self.name!r}, {self.kind!r})"

    def public(self) -> PublicKey:
        """Its public part."""
        return PublicKey(self.name, self.kind, _public_of(self.kind, self.secret))


class _Jwk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A private key's file."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519", "X25519"]
    kid: Annotated[str, msgspec.Meta(pattern=rf"\A{_NAME_PATTERN}\Z")]
    x: str
    d: str


def new_key(name: str, kind: Kind) -> PrivateKey:
    """A fresh key from the system's CSPRNG. Raises KeyFileError for a name that cannot be one."""
    check_name(name)
    return PrivateKey(name, kind, os.urandom(KEY_BYTES))


def check_name(name: str) -> None:
    """Refuse what a key cannot be called. Raises KeyFileError."""
    if not _NAME.fullmatch(name):
        raise KeyFileError(
            "a key's name has 1 to 64 characters: letters, digits, `.`, `_`, `@` and `-`"
        )


def write_private(file: Path, key: PrivateKey) -> None:
    """Write a new key file, mode 0600, durably. Never over another. Raises KeyFileError."""
    jwk = _Jwk(
        kty="OKP",
        crv=_CURVES[key.kind],
        kid=key.name,
        x=_text(key.public().data),
        d=_text(key.secret),
    )
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{file} exists; a key is not written over another") from None
    except OSError as error:
        raise KeyFileError(f"cannot write {file}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(msgspec.json.encode(jwk) + b"\n")
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        file.unlink(missing_ok=True)
        raise KeyFileError(f"cannot write {file}: {error.strerror}") from None


def read_private(file: Path, kind: Kind) -> PrivateKey:
    """A private key. Raises KeyFileError, also when others may read the file."""
    data, mode = _read(file)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise KeyFileError(f"{file} is open to everybody on this machine (chmod 600)")
    try:
        jwk = msgspec.json.decode(data, type=_Jwk)
        secret, public = _bytes(jwk.d), _bytes(jwk.x)
    except (msgspec.MsgspecError, ValueError):
        raise KeyFileError(f"{file} is not a private key of ours") from None
    if _KINDS[jwk.crv] != kind:
        raise KeyFileError(
            f"{file} holds a key for {_purpose(_KINDS[jwk.crv])}, not for {_purpose(kind)}"
        )
    key = PrivateKey(jwk.kid, kind, secret)
    if key.public().data != public:
        raise KeyFileError(f"{file} is damaged: its two halves do not belong together")
    return key


def read_public(place: Path, kind: Kind) -> dict[str, PublicKey]:
    """The public keys of a kind in a file, or in the `*.pub` files of a directory, by name.

    Keys of the other kind are passed over. Raises KeyFileError, naming file and line: unreadable,
    writable by everybody, not a key, or two keys of one name.
    """
    found: dict[str, PublicKey] = {}
    for file in _files(place):
        data, mode = _read(file)
        if mode & stat.S_IWOTH:
            raise KeyFileError(f"{file}: everybody may write to it (chmod o-w)")
        for where, key in _lines(file, data):
            if key.kind != kind:
                continue
            known = found.setdefault(key.name, key)
            if known.data != key.data:
                raise KeyFileError(f"{where}: there is another key of the name {key.name}")
    return found


def _files(place: Path) -> list[Path]:
    """The files that a path means. Raises KeyFileError."""
    try:
        if not place.is_dir():
            return [place]
        if place.stat().st_mode & stat.S_IWOTH:
            raise KeyFileError(f"{place}: everybody may write to it (chmod o-w)")
        return sorted(each for each in place.iterdir() if each.name.endswith(PUBLIC_SUFFIX))
    except OSError as error:
        raise KeyFileError(f"cannot read {place}: {error.strerror}") from None


def _read(file: Path) -> tuple[bytes, int]:
    """A file and its mode. Raises KeyFileError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
            mode = os.fstat(opened.fileno()).st_mode
    except OSError as error:
        raise KeyFileError(f"cannot read {file}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise KeyFileError(f"{file} is too large for a key file")
    return data, mode


def _lines(file: Path, data: bytes) -> Iterator[tuple[str, PublicKey]]:
    """The keys of a public file, and where each stands."""
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{file}:{number}"
        if len(words) != 3 or not _NAME.fullmatch(words[0]):
            raise KeyFileError(f"{where}: Expected NAME ed25519|x25519 KEY")
        name, kind, text = words
        try:
            if kind == SIGNING:
                yield where, PublicKey(name, SIGNING, _bytes(text))
            elif kind == SEALING:
                yield where, PublicKey(name, SEALING, _bytes(text))
            else:
                raise KeyFileError(f"{where}: the type of a key is ed25519 or x25519")
        except ValueError:
            raise KeyFileError(f"{where}: the key is not 32 bytes of base64url") from None


def _purpose(kind: Kind) -> str:
    """What a key is for, in words."""
    return "signing" if kind == SIGNING else "sealing"


def _public_of(kind: Kind, secret: bytes) -> bytes:
    """Return the public part of a key."""
    if kind == SIGNING:
        return bindings.crypto_sign_seed_keypair(secret)[0]
    return bindings.crypto_scalarmult_base(secret)


def _text(data: bytes) -> str:
    """base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    """A key's bytes. Raises ValueError."""
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(data) != KEY_BYTES or _text(data) != text:
        raise ValueError("not a key")
    return data
