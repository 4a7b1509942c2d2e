"""Key files hold one private key each, or public keys a line each.

A private key is a JWK (RFC 8037) in a file that only its owner may read. A public key is a line
`NAME TYPE BASE64URL`, with blank lines and `#` comments between; several lines, or several files in
a directory, are several keys. Ed25519 keys sign; bodies are sealed for X25519 keys.
"""

from __future__ import annotations

import os
import re
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
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
"""The names of public key files in a directory end with this."""
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
    """A key file cannot be used. The message is one line, and holds no part of a key."""


class PublicKey(msgspec.Struct, frozen=True):
    """The public part of a key."""

    name: str
    kind: Kind
    data: bytes

    @property
    def line(self) -> str:
        """Return the key's line in a file."""
        return f"{self.name} {self.kind} {_text(self.data)}"


class PrivateKey(msgspec.Struct, frozen=True):
    """A private key. Its `repr` shows no part of the secret."""

    name: str
    kind: Kind
    secret: bytes

    def __repr__(self) -> str:
        return f"PrivateKey({self.name!r}, {self.kind!r})"

    def public(self) -> PublicKey:
        """Return its public part."""
        return PublicKey(self.name, self.kind, _public_of(self.kind, self.secret))


class _Jwk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a private key's file."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519", "X25519"]
    kid: Annotated[str, msgspec.Meta(pattern=rf"\A{_NAME_PATTERN}\Z")]
    x: str
    d: str


def new_key(name: str, kind: Kind) -> PrivateKey:
    """Return a fresh key from the system's CSPRNG. Raises KeyFileError for a bad name."""
    check_name(name)
    return PrivateKey(name, kind, os.urandom(KEY_BYTES))


def check_name(name: str) -> None:
    """Raise KeyFileError if a key cannot have this name."""
    if not _NAME.fullmatch(name):
        raise KeyFileError(
            "a key's name has 1 to 64 characters: letters, digits, `.`, `_`, `@` and `-`"
        )


def write_private(file: Path, key: PrivateKey) -> None:
    """Write a new key file, mode 0600, durably. Raises KeyFileError, also if the file exists."""
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
    """Return a private key. Raises KeyFileError, also when every user may read the file."""
    data, mode = _read(file)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise KeyFileError(f"{file} is open to every user of this machine (chmod 600)")
    try:
        jwk = msgspec.json.decode(data, type=_Jwk)
        secret, public = _bytes(jwk.d), _bytes(jwk.x)
    except (msgspec.MsgspecError, ValueError):
        raise KeyFileError(f"{file} is not a private key file of ARC") from None
    if _KINDS[jwk.crv] != kind:
        raise KeyFileError(
            f"{file} holds a key for {_purpose(_KINDS[jwk.crv])}, not for {_purpose(kind)}"
        )
    key = PrivateKey(jwk.kid, kind, secret)
    if key.public().data != public:
        raise KeyFileError(f"{file} is damaged: its two halves do not belong together")
    return key


def read_public(place: Path, kind: Kind) -> dict[str, PublicKey]:
    """Return the public keys of a kind in a file, or in the `*.pub` files of a directory, by name.

    Keys of the other kind are skipped. Raises KeyFileError, naming file and line, for a file that
    cannot be read or that every user may write, for a line that is no key, and for two keys of one
    name.
    """
    found: dict[str, PublicKey] = {}
    for file in _files(place):
        data, mode = _read(file)
        if mode & stat.S_IWOTH:
            raise KeyFileError(f"{file}: every user may write to it (chmod o-w)")
        for where, key in _lines(file, data):
            if key.kind != kind:
                continue
            known = found.setdefault(key.name, key)
            if known.data != key.data:
                raise KeyFileError(f"{where}: there is another key of the name {key.name}")
    return found


def exposed(files: Mapping[str, Path | None], config: Path | None, *texts: str | None) -> list[str]:
    """Return a line about each file of a secret that every user of this machine may read or write.

    `files` has token files and the like by their keys. `config` is the configuration: it is one of
    them if it holds one of the secret `texts`. A file that cannot be read is none.
    """
    lines: list[str] = []
    for key, file in files.items():
        if file is not None and _is_exposed(file):
            lines.append(f"{key}: {file} is open to every user of this machine (chmod 600)")
    if config is not None and _is_exposed(config):
        with suppress(KeyFileError):
            data, _ = _read(config)
            if any(text and text.encode() in data for text in texts):
                lines.append(f"{config} holds a token and is open to every user (chmod 600)")
    return lines


def _is_exposed(file: Path) -> bool:
    with suppress(OSError):
        status = file.stat()
        return stat.S_ISREG(status.st_mode) and bool(status.st_mode & (stat.S_IROTH | stat.S_IWOTH))
    return False


def _files(place: Path) -> list[Path]:
    """Return the files that a path stands for. Raises KeyFileError."""
    try:
        if not place.is_dir():
            return [place]
        if place.stat().st_mode & stat.S_IWOTH:
            raise KeyFileError(f"{place}: every user may write to it (chmod o-w)")
        return sorted(each for each in place.iterdir() if each.name.endswith(PUBLIC_SUFFIX))
    except OSError as error:
        raise KeyFileError(f"cannot read {place}: {error.strerror}") from None


def _read(file: Path) -> tuple[bytes, int]:
    """Return the content of a file and its mode. Raises KeyFileError."""
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
    """Yield the keys of a public file, each with its file and line. Raises KeyFileError."""
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
    """Return the use of a kind of key, in a word."""
    return "signing" if kind == SIGNING else "sealing"


def _public_of(kind: Kind, secret: bytes) -> bytes:
    """Return the public part of a key."""
    if kind == SIGNING:
        return bindings.crypto_sign_seed_keypair(secret)[0]
    return bindings.crypto_scalarmult_base(secret)


def _text(data: bytes) -> str:
    """Return bytes as base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    """Return the bytes of a key. Raises ValueError."""
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(data) != KEY_BYTES or _text(data) != text:
        raise ValueError("not a key")
    return data
