"""The forgeries that a lying server may try with signed commands, and their ends.

Each row spoils a lease that was good. Keys: `OPS` is known to the host, `STRANGER` is not.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from arc_runtime.key_files import SIGNING, PrivateKey

OPS: Final = PrivateKey("ops-2026", SIGNING, bytes(range(32)))
STRANGER: Final = PrivateKey("stranger", SIGNING, bytes(range(1, 33)))
TARGET: Final = "edge-1"
PARAMS: Final = b'{"amount": 1}'
COMMAND: Final = "pay"
_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""Of the group of Ed25519 (RFC 8032, 5.1)."""

Lease = dict[str, Any]
Spoil = Callable[[Lease], Any]

REQUIRED, INVALID = "SIGNATURE_REQUIRED", "SIGNATURE_INVALID"
EXPIRED, REPLAYED, ENVELOPE = "SIGNATURE_EXPIRED", "REPLAYED", "INVALID_ENVELOPE"

_nonces = iter(range(1, 1_000_000))


def in_seconds(seconds: float) -> str:
    """An instant from now, as on the wire."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good signature of `PARAMS`; None leaves one out."""
    whole = {
        "deployment": "dep-1",
        "target": TARGET,
        "command": COMMAND,
        "paramsSha256": hashlib.sha256(PARAMS).hexdigest(),
        "paramsBytes": len(PARAMS),
        "issuedAt": in_seconds(0),
        "nonce": f"{next(_nonces):022}",
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


def encoded(data: bytes) -> str:
    """base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def signature(
    payload: dict[str, Any] | bytes | None = None,
    header: dict[str, Any] | bytes | None = None,
    *,
    key: PrivateKey = OPS,
    **changes: Any,
) -> str:
    """Sign the given bytes with the key holder's key, so that only the form can be wrong.

    `changes` are of the header; None leaves a field out.
    """
    if not isinstance(header, bytes):
        fields = {"alg": "EdDSA", "kid": key.name, "typ": "arc-command+jws", **changes}
        header = json.dumps({n: v for n, v in fields.items() if v is not None}).encode()
    if not isinstance(payload, bytes):
        payload = json.dumps(claims() if payload is None else payload).encode()
    signed = f"{encoded(header)}.{encoded(payload)}"
    return f"{signed}.{encoded(signed_by(key, signed.encode()))}"


def signed_by(key: PrivateKey, message: bytes) -> bytes:
    """64 bytes of Ed25519."""
    return crypto_sign(message, crypto_sign_seed_keypair(key.secret)[1])[:64]


def carrying(text: Any) -> Spoil:
    """Put another signature into the envelope."""
    return lambda lease: lease["envelope"].update(signature=text)


def _made(**header: Any) -> Spoil:
    """A signature of the right key with another header."""
    return lambda lease: lease["envelope"].update(signature=signature(**header))


def _claiming(**changes: Any) -> Spoil:
    """A signature of the right key of something else."""
    return lambda lease: lease["envelope"].update(signature=signature(claims(**changes)))


def _params(data: bytes) -> Spoil:
    """Other params under the same signature."""
    return lambda lease: lease["envelope"]["params"].update(inlineBase64=b64encode(data).decode())


def _rewritten(change: Callable[[str], Any]) -> Spoil:
    """A good signature, written otherwise."""
    return lambda lease: lease["envelope"].update(signature=change(signature()))


def _part(number: int, change: Callable[[str], str]) -> Spoil:
    """A good signature with one of its three parts written otherwise."""

    def rewrite(text: str) -> str:
        words = text.split(".")
        words[number] = change(words[number])
        return ".".join(words)

    return _rewritten(rewrite)


def _other_base(text: str) -> str:
    """The last character with loose bits set: the same bytes to a lenient reader."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + letters[letters.index(text[-1]) + 1]


def _s_plus_order(text: str) -> str:
    """The same signature with S + L: what a lenient verifier takes as well (RFC 8032, 8.4)."""
    head, _, tail = text.rpartition(".")
    data = b64url(tail)
    larger = int.from_bytes(data[32:], "little") + _ORDER
    return f"{head}.{encoded(data[:32] + larger.to_bytes(32, 'little'))}"


def b64url(text: str) -> bytes:
    """Bytes of base64url."""
    from base64 import urlsafe_b64decode

    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _hmac(alg: str) -> Spoil:
    """The public key as a secret of HMAC: what `alg` confusion is."""

    def spoil(lease: Lease) -> None:
        header = json.dumps({"alg": alg, "kid": OPS.name, "typ": "arc-command+jws"}).encode()
        signed = f"{encoded(header)}.{encoded(json.dumps(claims()).encode())}"
        digest = hmac.new(OPS.public().data, signed.encode(), hashlib.sha512).digest()
        lease["envelope"]["signature"] = f"{signed}.{encoded(digest)}"

    return spoil


def _header(text: str) -> Spoil:
    """A signature over a header that is written by hand."""
    return lambda lease: lease["envelope"].update(signature=signature(header=text.encode()))


def _doubled(name: str, value: str) -> Spoil:
    """A claim that stands twice: the first reader sees one, the second another."""

    def spoil(lease: Lease) -> None:
        text = json.dumps(claims())
        payload = text[:-1] + f', "{name}": {json.dumps(value)}}}'
        lease["envelope"]["signature"] = signature(payload.encode())

    return spoil


def _swapped(lease: Lease) -> None:
    """The claims of one signature under the bytes of another."""
    one, other = signature(), signature(claims(command="other"))
    lease["envelope"]["signature"] = f"{one.rpartition('.')[0]}.{other.rpartition('.')[2]}"


def _envelope(**changes: Any) -> Spoil:
    """Another envelope around a good signature; None takes a field away."""

    def spoil(lease: Lease) -> None:
        lease["envelope"].update(changes)
        for name, value in changes.items():
            if value is None:
                del lease["envelope"][name]

    return spoil


def _with_deadline(signed: float, said: float | None) -> Spoil:
    """A deadline that is signed, and what the envelope says of it."""

    def spoil(lease: Lease) -> None:
        deadline = in_seconds(signed)
        lease["envelope"]["signature"] = signature(claims(deadline=deadline))
        if said is not None:
            lease["envelope"]["deadline"] = deadline if said == signed else in_seconds(said)

    return spoil


_KEY: Final = {"kty": "OKP", "crv": "Ed25519", "x": encoded(STRANGER.public().data)}
_GOOD_HEADER: Final = '{"alg": "EdDSA", "kid": "ops-2026", "typ": "arc-command+jws"'

FORGERIES: Final[dict[str, tuple[str, Spoil]]] = {
    # no signature
    "stripped": (REQUIRED, _envelope(signature=None)),
    "null": (REQUIRED, carrying(None)),
    "empty": (INVALID, carrying("")),
    "an object": (ENVELOPE, carrying({"payload": "x", "signature": "y"})),
    "a list": (ENVELOPE, carrying(["a.b.c"])),
    # another command around it
    "other params": (INVALID, _params(b'{"amount": 9}')),
    "params with a space more": (INVALID, _params(PARAMS + b" ")),
    "the same params, written otherwise": (INVALID, _params(b'{"amount":1}')),
    "no params": (INVALID, _params(b"")),
    "another command": (INVALID, _envelope(command="refund")),
    "a deadline that was not signed": (INVALID, _envelope(deadline=in_seconds(3600))),
    "the deadline taken away": (INVALID, _with_deadline(3600, None)),
    "the deadline put off": (INVALID, _with_deadline(3600, 7200)),
    # a signature of something else
    "for another deployment": (INVALID, _claiming(deployment="dep-2")),
    "for another target": (INVALID, _claiming(target="edge-2")),
    "for no target": (INVALID, _claiming(target=None)),
    "for another command": (INVALID, _claiming(command="refund")),
    "of other params": (INVALID, _claiming(paramsSha256="0" * 64)),
    "of params of another size": (INVALID, _claiming(paramsBytes=12)),
    # at another time
    "after its deadline": (EXPIRED, _with_deadline(-3600, -3600)),
    "a day late": (EXPIRED, _claiming(issuedAt=in_seconds(-2 * 86_400))),
    "from the future": (INVALID, _claiming(issuedAt=in_seconds(7200))),
    # by another host
    "by a key that is not known": (INVALID, _made(key=STRANGER)),
    "by another key under a known name": (INVALID, _made(key=STRANGER, kid=OPS.name)),
    "the bytes of another signature": (INVALID, _swapped),
    "zeros": (INVALID, _part(2, lambda _: encoded(bytes(64)))),
    "a bit turned": (INVALID, _part(2, lambda t: ("B" if t[0] == "A" else "A") + t[1:])),
    "another S": (INVALID, _rewritten(_s_plus_order)),
    "a signature cut off": (INVALID, _part(2, lambda t: t[:43])),
    "a signature with bytes after it": (INVALID, _part(2, lambda t: t + "AAAA")),
    # `alg` and its like
    "alg none, no signature": (INVALID, _rewritten(lambda t: t.rpartition(".")[0] + ".")),
    "alg none": (INVALID, _made(alg="none")),
    "alg None": (INVALID, _made(alg="None")),
    "alg in small letters": (INVALID, _made(alg="eddsa")),
    "alg Ed25519": (INVALID, _made(alg="Ed25519")),
    "alg HS256 by the public key": (INVALID, _hmac("HS256")),
    "HMAC under the name EdDSA": (INVALID, _hmac("EdDSA")),
    "no alg": (INVALID, _made(alg=None)),
    "no typ": (INVALID, _made(typ=None)),
    "typ JWT": (INVALID, _made(typ="JWT")),
    "crit": (INVALID, _made(crit=["exp"], exp=0)),
    "a jwk of its own": (INVALID, _made(key=STRANGER, jwk=_KEY)),
    "a jku of its own": (INVALID, _made(key=STRANGER, jku="https://evil.example/keys")),
    "b64 false": (INVALID, _made(b64=False)),
    "a certificate of its own": (INVALID, _made(x5c=["MIIB"])),
    "no kid": (INVALID, _made(kid=None)),
    "a kid that is a path": (INVALID, _made(kid="../../ops-2026")),
    "a kid that is a number": (INVALID, _made(kid=1)),
    "two algs": (INVALID, _header(_GOOD_HEADER + ', "alg": "none"}')),
    "two algs, escaped": (INVALID, _header(_GOOD_HEADER + ', "\\u0061lg": "EdDSA"}')),
    "two kids": (INVALID, _header('{"kid": "stranger", ' + _GOOD_HEADER[1:] + "}")),
    "a header that is no object": (INVALID, _header('["EdDSA"]')),
    "a header that is not JSON": (INVALID, _header(_GOOD_HEADER)),
    "a header in UTF-16": (INVALID, _made(header=(_GOOD_HEADER + "}").encode("utf-16"))),
    # claims that parsers read differently
    "a claim twice": (INVALID, _doubled("command", COMMAND)),
    "a nonce twice": (INVALID, _doubled("nonce", "A" * 22)),
    "a claim that is not known": (INVALID, _claiming(onlyOn="monday")),
    "a size with a fraction": (INVALID, _claiming(paramsBytes=13.0)),
    "a digest in capitals": (
        INVALID,
        _claiming(paramsSha256=hashlib.sha256(PARAMS).hexdigest().upper()),
    ),
    "no nonce": (INVALID, _claiming(nonce=None)),
    "a short nonce": (INVALID, _claiming(nonce="A")),
    "no time of issue": (INVALID, _claiming(issuedAt=None)),
    "a time without a zone": (INVALID, _claiming(issuedAt="2026-11-24T10:00:00")),
    # the same bytes, written otherwise
    "padding": (INVALID, _part(2, lambda t: t + "==")),
    "loose bits": (INVALID, _part(2, _other_base)),
    "a line feed at the end": (INVALID, _rewritten(lambda t: t + "\n")),
    "a space in the middle": (INVALID, _part(1, lambda t: t[:8] + " " + t[8:])),
    "the other alphabet": (INVALID, _part(2, lambda t: "+/" + t[2:])),
    "four parts": (INVALID, _rewritten(lambda t: t + ".AAAA")),
    "two parts": (INVALID, _rewritten(lambda t: t.rpartition(".")[0])),
    "too long": (INVALID, _part(1, lambda t: t + "A" * 4096)),
    "letters that are not ASCII": (INVALID, _part(1, lambda t: t + "é")),
}
