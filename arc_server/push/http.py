"""The dispatcher sends envelopes over HTTP (docs/protocol.md, Push)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import aiohttp

from arc_protocol.codec import encode
from arc_protocol.messages.leases import Envelope
from arc_protocol.urls import origin, redact
from arc_runtime.network.allowed_hosts import GuardedResolver, HostPolicy, HostRefused
from arc_server.ports.records import Deployment, PushOutcome
from arc_server.push.push_tokens import PushTokenUnreadable

ACCEPTED: Final = 202
DEFINITE_REJECTIONS: Final = frozenset({400, 401, 403, 404, 409, 413, 415, 422})
"""Statuses after which an envelope is not sent again."""


class HttpDispatcher:
    """POSTs envelopes to the push URLs of deployments, with their bearer tokens."""

    def __init__(
        self, timeout_seconds: float, hosts: HostPolicy, open_token: Callable[[str, str], str]
    ) -> None:
        """Push to the hosts that a policy allows; `open_token` opens the tokens of deployments."""
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._hosts = hosts
        self._open_token = open_token
        self._session: aiohttp.ClientSession | None = None

    async def push(self, deployment: Deployment, envelope: Envelope) -> PushOutcome:
        """Send once. Only a 202 accepts. Redirects are not followed: they could take the token."""
        if deployment.push_url is None:
            return PushOutcome(accepted=False, is_definite=True, reason="no push URL configured")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(resolver=GuardedResolver(self._hosts)),
            )
        headers = {"Content-Type": "application/json"}
        try:
            origin(deployment.push_url)
            self._hosts.check(deployment.push_url)
            if deployment.push_token is not None:
                token = self._open_token(deployment.deployment_id, deployment.push_token)
                headers["Authorization"] = f"Bearer {token}"
            async with self._session.post(
                deployment.push_url, data=encode(envelope), headers=headers, allow_redirects=False
            ) as answer:
                status = answer.status
        except TimeoutError:
            return PushOutcome(accepted=False, reason="no answer in time")
        except (ValueError, aiohttp.NonHttpUrlClientError):
            where = redact(deployment.push_url)
            reason = f"bad push URL or token for {where}"
            return PushOutcome(accepted=False, is_definite=True, reason=reason)
        except (HostRefused, PushTokenUnreadable) as error:
            return PushOutcome(accepted=False, reason=str(error))
        except (aiohttp.ClientError, OSError) as error:
            return PushOutcome(accepted=False, reason=type(error).__name__)
        if status == ACCEPTED:
            return PushOutcome(accepted=True)
        return PushOutcome(
            accepted=False, is_definite=status in DEFINITE_REJECTIONS, reason=f"HTTP {status}"
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
