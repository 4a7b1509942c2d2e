"""Sealing makes bodies that only one party can read: params for a host, results for a sender.

    params   b"arc-sealed-p1\n"  key (80: crypto_box_seal)            header (24)  frames
    result   b"arc-sealed-r1\n"  nonce of the command (22, ASCII)
                                 key (72: crypto_box, host to sender) header (24)  frames

Each body has a fresh key, and with it crypto_secretstream_xchacha20poly1305 in frames of 64 KiB. A
frame is 17 bytes longer than its content, and the last one is marked: bytes that are cut off,
reordered, changed or added are refused. The signature of the command proves who sealed the params,
since its digest is over the sealed bytes; crypto_box proves who sealed the result. Every frame of a
result authenticates the command that it belongs to.

Sizes are not hidden. A thief of a host's private key can read what was sealed for it. No I/O. This
module imports PyNaCl: import it by `late_module`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from nacl.bindings import (
    crypto_box_easy,
    crypto_box_NONCEBYTES,
    crypto_box_open_easy,
    crypto_box_seal,
    crypto_box_seal_open,
    crypto_scalarmult_base,
    crypto_secretstream_xchacha20poly1305_ABYTES,
    crypto_secretstream_xchacha20poly1305_HEADERBYTES,
    crypto_secretstream_xchacha20poly1305_init_pull,
    crypto_secretstream_xchacha20poly1305_init_push,
    crypto_secretstream_xchacha20poly1305_keygen,
    crypto_secretstream_xchacha20poly1305_pull,
    crypto_secretstream_xchacha20poly1305_push,
    crypto_secretstream_xchacha20poly1305_state,
    crypto_secretstream_xchacha20poly1305_TAG_FINAL,
    crypto_secretstream_xchacha20poly1305_TAG_MESSAGE,
)
from nacl.exceptions import CryptoError

PARAMS_MAGIC: Final = b"arc-sealed-p1\n"
RESULT_MAGIC: Final = b"arc-sealed-r1\n"
FRAME_BYTES: Final = 64 * 1024
"""The content of a frame; all but the last are full."""

_KEY_BYTES: Final = 32
_MAC_BYTES: Final = 16
_NONCE_CHARS: Final = 22
_SEALED_KEY_BYTES: Final = _KEY_BYTES + _KEY_BYTES + _MAC_BYTES
_BOXED_KEY_BYTES: Final = crypto_box_NONCEBYTES + _KEY_BYTES + _MAC_BYTES
_EXTRA_BYTES: Final = crypto_secretstream_xchacha20poly1305_ABYTES
_START_BYTES: Final = crypto_secretstream_xchacha20poly1305_HEADERBYTES
_SEALED_FRAME_BYTES: Final = FRAME_BYTES + _EXTRA_BYTES


class SealBroken(Exception):
    """A body is not sealed for this key or by that party, or was changed."""


class Sealer:
    """A sealer seals one body, a part at a time."""

    def __init__(self, opening: bytes, key: bytes, about: bytes) -> None:
        """Take the bytes before the frames. Call `params_sealer` or `result_sealer` instead."""
        self._state = crypto_secretstream_xchacha20poly1305_state()
        start = crypto_secretstream_xchacha20poly1305_init_push(self._state, key)
        self._about = about
        self._opening = opening + start
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take `data`, and return the bytes to send now: none, or some frames."""
        self._held += data
        out = bytearray(self._take_opening())
        while len(self._held) > FRAME_BYTES:  # the last frame is kept back: it is marked
            out += self._frame(FRAME_BYTES, crypto_secretstream_xchacha20poly1305_TAG_MESSAGE)
        return bytes(out)

    def finish(self) -> bytes:
        """Return the rest of the sealed body."""
        last = self._frame(len(self._held), crypto_secretstream_xchacha20poly1305_TAG_FINAL)
        return self._take_opening() + last

    def _take_opening(self) -> bytes:
        """Return the bytes before the frames, once."""
        opening, self._opening = self._opening, b""
        return opening

    def _frame(self, size: int, tag: int) -> bytes:
        """Return the next frame."""
        data = bytes(self._held[:size])
        del self._held[:size]
        return crypto_secretstream_xchacha20poly1305_push(self._state, data, self._about, tag)


class Opener:
    """An opener opens one body, a part at a time.

    It returns only bytes that were not changed. The body is complete once `finish` has returned.
    """

    def __init__(
        self, magic: bytes, prefix_bytes: int, key: Callable[[bytes], tuple[bytes, bytes]]
    ) -> None:
        """Take the form of the bytes before the frames. Call `params_opener` or `result_opener`.

        `prefix_bytes`: the length between magic and frames; `key` turns these bytes into the key of
        the frames and the bytes that they authenticate, or raises SealBroken.
        """
        self._magic = magic
        self._prefix_bytes = prefix_bytes
        self._key = key
        self._held = bytearray()
        self._state: crypto_secretstream_xchacha20poly1305_state | None = None
        self._about = b""
        self._is_over = False

    def feed(self, data: bytes) -> bytes:
        """Take `data`, and return the bytes that it opens. Raises SealBroken."""
        self._held += data
        if self._state is None and not self._opened():
            return b""
        out = bytearray()
        while len(self._held) > _SEALED_FRAME_BYTES:
            out += self._frame(_SEALED_FRAME_BYTES)
        return bytes(out)

    def finish(self) -> bytes:
        """Return the rest of the body. Raises SealBroken when bytes are missing."""
        if self._state is None:
            raise SealBroken("it is cut off")
        rest = bytearray()
        while not self._is_over:
            if len(self._held) < _EXTRA_BYTES:
                raise SealBroken("it is cut off")
            rest += self._frame(min(len(self._held), _SEALED_FRAME_BYTES))
        if self._held:
            raise SealBroken("there is more after its end")
        return bytes(rest)

    def _opened(self) -> bool:
        """Read the bytes before the frames; return False until all of them are there."""
        if not self._held.startswith(self._magic[: len(self._held)]):
            raise SealBroken("it is not sealed")
        size = len(self._magic) + self._prefix_bytes + _START_BYTES
        if len(self._held) < size:
            return False
        prefix = bytes(self._held[len(self._magic) : size - _START_BYTES])
        start = bytes(self._held[size - _START_BYTES : size])
        del self._held[:size]
        key, self._about = self._key(prefix)
        self._state = crypto_secretstream_xchacha20poly1305_state()
        crypto_secretstream_xchacha20poly1305_init_pull(self._state, start, key)
        return True

    def _frame(self, size: int) -> bytes:
        """Open the next frame. Raises SealBroken."""
        if self._is_over or self._state is None:
            raise SealBroken("there is more after its end")
        try:
            data, tag = crypto_secretstream_xchacha20poly1305_pull(
                self._state, bytes(self._held[:size]), self._about
            )
        except CryptoError:
            raise SealBroken("it was changed or cut off") from None
        del self._held[:size]
        self._is_over = tag == crypto_secretstream_xchacha20poly1305_TAG_FINAL
        return data


def params_sealer(host: bytes) -> Sealer:
    """Seal params for a host, by its public key."""
    key = crypto_secretstream_xchacha20poly1305_keygen()
    return Sealer(PARAMS_MAGIC + crypto_box_seal(key, host), key, PARAMS_MAGIC)


def params_opener(host_secret: bytes) -> Opener:
    """Open params with the host's private key."""

    def key(prefix: bytes) -> tuple[bytes, bytes]:
        try:
            opened = crypto_box_seal_open(prefix, crypto_scalarmult_base(host_secret), host_secret)
        except CryptoError:
            raise SealBroken("it is not sealed for this key") from None
        return opened, PARAMS_MAGIC

    return Opener(PARAMS_MAGIC, _SEALED_KEY_BYTES, key)


def result_sealer(host_secret: bytes, sender: bytes, nonce: str) -> Sealer:
    """Seal the result of a command (by the nonce of its signature) for its sender."""
    key = crypto_secretstream_xchacha20poly1305_keygen()
    box_nonce = os.urandom(crypto_box_NONCEBYTES)
    boxed = box_nonce + crypto_box_easy(key, box_nonce, sender, host_secret)
    about = nonce.encode("ascii")
    return Sealer(RESULT_MAGIC + about + boxed, key, RESULT_MAGIC + about)


def result_opener(sender_secret: bytes, host: bytes, nonce: str | None) -> Opener:
    """Open a result that a host sealed. `nonce`: of the command; None takes any of this sender."""

    def key(prefix: bytes) -> tuple[bytes, bytes]:
        about, boxed = prefix[:_NONCE_CHARS], prefix[_NONCE_CHARS:]
        if nonce is not None and about != nonce.encode("ascii"):
            raise SealBroken("it is the result of another command")
        box_nonce, sealed = boxed[:crypto_box_NONCEBYTES], boxed[crypto_box_NONCEBYTES:]
        try:
            opened = crypto_box_open_easy(sealed, box_nonce, host, sender_secret)
        except CryptoError:
            raise SealBroken("it is not sealed by that host for this key") from None
        return opened, RESULT_MAGIC + about

    return Opener(RESULT_MAGIC, _NONCE_CHARS + _BOXED_KEY_BYTES, key)
