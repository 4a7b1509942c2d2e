"""Bodies of params and results, inline or behind a presigned request, and responses."""

from __future__ import annotations

import binascii
import re
from base64 import b64encode
from typing import Final, Literal

from arc_protocol.messages.base import Message, Size, Timestamp

DEFAULT_INLINE_BYTES: Final = 150_000
"""The default of `inlineAllowedUpTo` and `maxInlineBytes`."""
_STORE_HEADERS: Final = (
    "cache-control",
    "content-disposition",
    "content-md5",
    "content-type",
    "if-none-match",
)
_STORE_PREFIXES: Final = ("x-amz-", "x-goog-", "x-ms-")
"""Headers that object stores sign. Public servers send no header but Azure's `x-ms-blob-type`; any
other name could carry a credential, or be what a neighbour asks of its own callers."""
_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,4096}", re.ASCII)


class HttpBackend(
    Message, frozen=True, kw_only=True, tag_field="type", tag="http", omit_defaults=False
):
    """A presigned HTTP request: send it byte for byte, with exactly these headers."""

    url: str
    method: str
    headers: dict[str, str]

    def check(self, method: str) -> None:
        """Raise ValueError unless this is a request of `method` whose headers a store may need."""
        if self.method.upper() != method:
            raise ValueError("a presigned request of the wrong kind")
        for name, value in self.headers.items():
            known = name.lower()
            if known not in _STORE_HEADERS and not known.startswith(_STORE_PREFIXES):
                raise ValueError(f"a presigned request with the header {name[:64]!a}")
            if not _VALUE.fullmatch(value):
                raise ValueError(f"a presigned request with an odd value of {known[:64]!a}")


class LocalBackend(
    Message, frozen=True, kw_only=True, tag_field="type", tag="local", omit_defaults=False
):
    """A file on the receiver's own host. ARC reads this form and never produces it."""

    file_path: str
    operation: Literal["put", "get", "delete"]


class PresignedRequest(Message, frozen=True, kw_only=True, omit_defaults=False):
    """A presigned request reads or writes one blob until `expiration`, without a token."""

    backend: HttpBackend | LocalBackend
    expiration: Timestamp
    operation: Literal["put", "get", "delete"]
    path: str


class InlineBody(
    Message, frozen=True, kw_only=True, tag_field="mode", tag="inline", omit_defaults=False
):
    """A body within the message, base64 of the standard alphabet with padding."""

    inline_base64: str

    @classmethod
    def of(cls, data: bytes) -> InlineBody:
        """Wrap raw bytes."""
        return cls(inline_base64=b64encode(data).decode("ascii"))

    def data(self) -> bytes:
        """Return the raw bytes. Raises ValueError when the base64 is not canonical."""
        return decode_base64(self.inline_base64)


class StorageBody(Message, frozen=True, kw_only=True, tag_field="mode", tag="storage"):
    """A body in blob storage. `size` is in bytes, None when unknown."""

    size: Size | None = None
    storage_get_request: PresignedRequest | None = None
    storage_put_used: bool | None = None


BodySpec = InlineBody | StorageBody


class SuccessResponse(Message, frozen=True, kw_only=True, tag_field="status", tag="success"):
    """The handler returned."""

    response: BodySpec


class ErrorResponse(Message, frozen=True, kw_only=True, tag_field="status", tag="error"):
    """The handler, or a party on the way to it, failed. `details` is a string, never an object."""

    code: str
    message: str
    details: str | None = None


CommandResponse = SuccessResponse | ErrorResponse
_FINAL_QUADS: Final = {1: frozenset("AEIMQUYcgkosw048"), 2: frozenset("AQgw")}
"""By length of the padding: the characters before it whose unused bits are zero (RFC 4648, 3.5)."""


def decode_base64(text: str) -> bytes:
    """Return the bytes of padded, canonical base64 (RFC 4648 section 4). Raises ValueError."""
    padding = len(text) - len(text.rstrip("="))
    if len(text) % 4 or padding > 2:
        raise ValueError("not padded base64")
    if padding and text[-padding - 1] not in _FINAL_QUADS[padding]:
        raise ValueError("not canonical base64")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64 of the standard alphabet") from None
