"""Bootstrap tokens: for an hour, for one deployment, and for one of its targets if a receiver's.

Public clients in hosted mode show a token once, and work with the bootstrap token that they get for
it. The server signs bootstrap tokens and stores none. Each names its authority, the token or
credential that asked for it, and is good only as long as that one (callers.py).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from arc_protocol.errors import Unauthorized
from arc_protocol.messages.base import CommandTarget
from arc_protocol.signatures import decode_base64url, encode_base64url
from arc_server.auth.tokens import Scope
from arc_server.ports.clock import Clock
from arc_server.server_keys import Signer

PREFIX: Final = "arc_bootstrap_"
LIFE_SECONDS: Final = 3_600
"""Public clients ask again 30 s before the end."""

_PURPOSE: Final = "bootstrap"
_TEXT: Final = re.compile(
    PREFIX + r"([A-Za-z0-9_-]{1,8192})\.([0-9]{1,12})\.([0-9a-f]{1,32})\.([0-9a-f]{64})", re.ASCII
)


class BootstrapGrant(msgspec.Struct, frozen=True, kw_only=True):
    """The rights of a bootstrap token, as they are signed."""

    scope: Scope
    deployment_id: str
    target: CommandTarget | None = None
    authority: str | None
    """The authority of the caller that asked for the token (`Caller.authority`)."""


class BootstrapTokens:
    """Makes and reads bootstrap tokens, with the keys that sign URLs."""

    def __init__(self, signer: Signer, clock: Clock) -> None:
        self._signer = signer
        self._clock = clock

    def mint(self, grant: BootstrapGrant, expires: int) -> str:
        """Return a token that is good until `expires`, in seconds since 1970."""
        subject = encode_base64url(msgspec.json.encode(grant))
        signed = self._signer.sign(_PURPOSE, subject, expires=expires)
        return f"{PREFIX}{subject}.{expires}.{signed.key_id}.{signed.token}"

    def read(self, text: str) -> BootstrapGrant:
        """Return what a token grants. Raises Unauthorized."""
        found = _TEXT.fullmatch(text)
        if found is None or not self._signer.verify(
            _PURPOSE,
            found[1],
            expires=int(found[2]),
            key_id=found[3],
            token=found[4],
            now=self._clock.now(),
        ):
            raise Unauthorized("this bootstrap token is not known, or has expired")
        return msgspec.json.decode(decode_base64url(found[1]), type=BootstrapGrant)
