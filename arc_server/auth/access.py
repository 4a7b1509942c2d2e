"""Access tokens of enrolled agents: short-lived, and given for a signed challenge.

Tokens and challenges are signed by the server and stored nowhere; a challenge that was used is
remembered until it ends. A revoked credential is found by the look-up of each access token
(callers.py).
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from arc_protocol.errors import Unauthorized, Unavailable
from arc_server.ports.clock import Clock
from arc_server.server_keys import Signer

PREFIX: Final = "arc_access_"
CHALLENGE_SECONDS: Final = 60
"""The life of a challenge: many round trips through a slow proxy."""

_ACCESS: Final = "access"
_CHALLENGE: Final = "challenge"
_SEALED: Final = r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,12})\.([0-9a-f]{1,32})\.([0-9a-f]{64})"
_TEXT: Final = re.compile(PREFIX + _SEALED, re.ASCII)
_CHALLENGE_TEXT: Final = re.compile(_SEALED, re.ASCII)


class AccessTokens:
    """Makes and reads access tokens and challenges, with the keys that sign URLs."""

    def __init__(self, signer: Signer, clock: Clock) -> None:
        self._signer = signer
        self._clock = clock
        self._start = secrets.token_hex(4)
        """Begins each challenge, and differs after a restart."""
        self._used: dict[str, int] = {}

    def mint(self, credential_id: str, seconds: float) -> str:
        """Return an access token of a credential that is good for that many seconds."""
        return PREFIX + self._seal(_ACCESS, credential_id, seconds)

    def read(self, text: str) -> str:
        """Return the credential id of an access token. Raises Unauthorized."""
        found = _TEXT.fullmatch(text)
        if found is None or not self._is_sealed(_ACCESS, *found.groups()):
            raise Unauthorized("this access token is not known, or has expired")
        return found[1]

    def challenge(self) -> str:
        """Return a fresh challenge."""
        return self._seal(
            _CHALLENGE, f"{self._start}{secrets.token_urlsafe(16)}", CHALLENGE_SECONDS
        )

    def check_challenge(self, text: str) -> None:
        """Raise Unauthorized unless the server made this challenge within its life."""
        found = _CHALLENGE_TEXT.fullmatch(text)
        # One with a later end was made by a clock that was ahead, and has been set back since: it
        # would be good, and remembered once used, until the clock has caught up.
        latest = self._clock.now().timestamp() + CHALLENGE_SECONDS + 1
        is_sealed = found is not None and self._is_sealed(_CHALLENGE, *found.groups())
        if found is None or not is_sealed or int(found[2]) > latest:
            raise Unauthorized("this challenge is not known, or has expired")

    def use_challenge(self, text: str) -> None:
        """Use a good challenge up. Call after its signature was verified. Raises Unauthorized, and
        Unavailable for one from before this start of the server: it may have been used.
        """
        now = self._clock.now().timestamp()
        latest = now + CHALLENGE_SECONDS + 1
        expires = int(text.split(".")[1])
        if not text.startswith(self._start):
            raise Unavailable("the server was started after this challenge: ask for another one")
        if text in self._used:
            raise Unauthorized("this challenge was used before: ask for another one")
        while self._used and not now < next(iter(self._used.values())) <= latest:
            del self._used[next(iter(self._used))]
        self._used[text] = expires

    def _seal(self, purpose: str, subject: str, seconds: float) -> str:
        # Rounded up to whole seconds, or a token of less than a second would never be good.
        expires = int(self._clock.now().timestamp() + seconds) + 1
        signed = self._signer.sign(purpose, subject, expires=expires)
        return f"{subject}.{expires}.{signed.key_id}.{signed.token}"

    def _is_sealed(self, purpose: str, subject: str, expires: str, key_id: str, token: str) -> bool:
        return self._signer.verify(
            purpose,
            subject,
            expires=int(expires),
            key_id=key_id,
            token=token,
            now=self._clock.now(),
        )
