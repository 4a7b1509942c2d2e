"""Signed queries carry a signature of the server's own in place of a bearer token."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from arc_server.http.calls import Call
from arc_server.server_keys import Signer, limit_parts

LIMITS: Final = ("size", "by")
"""Fields that limit a signed URL, in the order in which they are signed: the most bytes that it
takes, and the token or credential that it is made for."""
_EXPIRES: Final = re.compile(r"[0-9]{1,12}", re.ASCII)


def is_signed(
    call: Call, signer: Signer, now: datetime, purpose: str, *parts: str, field: str
) -> bool | None:
    """Return True if the query is signed for this purpose and these parts, and has not expired.

    Return None if it carries no signature. The query may name limits, which are signed too. Raises
    InvalidCommand for a malformed query.
    """
    token = call.query(field)
    if token is None:
        return None
    expires, key_id = call.query("expires"), call.query("kid")
    if expires is None or key_id is None or _EXPIRES.fullmatch(expires) is None:
        return False
    limits = limit_parts({name: call.query(name) for name in LIMITS})
    return signer.verify(
        purpose, *parts, *limits, expires=int(expires), key_id=key_id, token=token, now=now
    )
