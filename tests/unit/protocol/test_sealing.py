"""Sealed bodies: any size comes back, and nothing that was changed does."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from nacl.bindings import crypto_scalarmult_base

from arc_protocol.sealing import (
    FRAME_BYTES,
    PARAMS_MAGIC,
    RESULT_MAGIC,
    Opener,
    SealBroken,
    Sealer,
    params_opener,
    params_sealer,
    result_opener,
    result_sealer,
)

HOST = bytes(range(32))
SENDER = bytes(range(1, 33))
OTHER = bytes(range(2, 34))
NONCE = "A" * 22
FRAME = FRAME_BYTES + 17
RESULT_START = len(RESULT_MAGIC) + 22 + 72 + 24
PARAMS_START = len(PARAMS_MAGIC) + 80 + 24


def public(secret: bytes) -> bytes:
    return crypto_scalarmult_base(secret)


def sealed(sealer: Sealer, data: bytes, step: int = 1_000_003) -> bytes:
    parts = [sealer.feed(data[at : at + step]) for at in range(0, len(data), step)]
    return b"".join(parts) + sealer.finish()


def opened(opener: Opener, data: bytes, step: int = 1_000_003) -> bytes:
    parts = [opener.feed(data[at : at + step]) for at in range(0, len(data), step)]
    return b"".join(parts) + opener.finish()


def of_result(data: bytes) -> bytes:
    return sealed(result_sealer(HOST, public(SENDER), NONCE), data)


def open_result(data: bytes, nonce: str | None = NONCE) -> bytes:
    return opened(result_opener(SENDER, public(HOST), nonce), data)


@pytest.mark.parametrize(
    "size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES, 1_000_000]
)
@pytest.mark.parametrize("step", [FRAME_BYTES, 77_777, 1_000_003])
def test_a_body_of_any_size_comes_back_in_any_parts(size: int, step: int) -> None:
    data = os.urandom(size)
    params = sealed(params_sealer(public(HOST)), data, step)
    result = sealed(result_sealer(HOST, public(SENDER), NONCE), data, step)

    assert opened(params_opener(HOST), params, step) == data
    assert opened(result_opener(SENDER, public(HOST), NONCE), result, step) == data
    assert len(params) == PARAMS_START + size + 17 * max(1, -(-size // FRAME_BYTES))


def test_a_body_that_comes_byte_by_byte_is_opened_too() -> None:
    assert opened(params_opener(HOST), sealed(params_sealer(public(HOST)), b"hello"), 1) == b"hello"


def test_nothing_of_a_body_can_be_seen_in_it() -> None:
    assert b"secret" not in sealed(params_sealer(public(HOST)), b"secret" * 1000)


FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "plain": lambda _: b'{"plain": true}',
    "of the other kind": lambda _: sealed(params_sealer(public(SENDER)), b"x"),
    "the magic only": lambda data: data[: len(RESULT_MAGIC)],
    "no frames": lambda data: data[:RESULT_START],
    "the last byte missing": lambda data: data[:-1],
    "the last frame missing": lambda data: data[: RESULT_START + 2 * FRAME],
    "cut in the first frame": lambda data: data[: RESULT_START + 100],
    "a byte more": lambda data: data + b"\0",
    "a frame more": lambda data: data + data[-17:],
    "two bodies": lambda data: data + data,
    "a bit turned in the first frame": lambda d: _turned(d, RESULT_START + 5),
    "a bit turned in the last": lambda d: _turned(d, len(d) - 1),
    "a bit turned in the key": lambda d: _turned(d, len(RESULT_MAGIC) + 22 + 30),
    "a bit turned in the start": lambda d: _turned(d, RESULT_START - 1),
    "frames in another order": lambda d: (
        d[:RESULT_START]
        + d[RESULT_START + FRAME : RESULT_START + 2 * FRAME]
        + d[RESULT_START : RESULT_START + FRAME]
        + d[RESULT_START + 2 * FRAME :]
    ),
    "a frame twice": lambda d: d[: RESULT_START + FRAME] + d[RESULT_START:],
    "a frame left out": lambda d: d[:RESULT_START] + d[RESULT_START + FRAME :],
    "frames of another body": lambda d: d[:RESULT_START] + of_result(b"x" * 200_000)[RESULT_START:],
    "for another sender": lambda _: sealed(result_sealer(HOST, public(OTHER), NONCE), b"x"),
    "by another host": lambda _: sealed(result_sealer(OTHER, public(SENDER), NONCE), b"x"),
    "of another command": lambda _: sealed(result_sealer(HOST, public(SENDER), "B" * 22), b"x"),
    "renamed to this command": lambda _: _renamed(
        sealed(result_sealer(HOST, public(SENDER), "B" * 22), b"x")
    ),
}


def _turned(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _renamed(data: bytes) -> bytes:
    return RESULT_MAGIC + NONCE.encode() + data[len(RESULT_MAGIC) + 22 :]


@pytest.mark.parametrize("name", FORGERIES)
def test_a_body_that_was_tampered_with_is_refused(name: str) -> None:
    forged = FORGERIES[name](of_result(bytes(2 * FRAME_BYTES + 10)))

    with pytest.raises(SealBroken):
        open_result(forged)


def test_who_does_not_know_the_command_takes_any_of_its_own() -> None:
    assert open_result(of_result(b"x"), None) == b"x"


def test_params_for_another_host_stay_closed() -> None:
    with pytest.raises(SealBroken, match="not sealed for this key"):
        opened(params_opener(OTHER), sealed(params_sealer(public(HOST)), b"x"))
