"""Envelopes: leased commands as their holders get them."""

from __future__ import annotations

from datetime import timedelta

from arc_protocol.errors import InvalidStateTransition
from arc_protocol.messages.base import PROTOCOL
from arc_protocol.messages.bodies import InlineBody
from arc_protocol.messages.leases import Envelope, ResponseHandling
from arc_server.ports.clock import Clock
from arc_server.ports.links import ResponseLinks
from arc_server.ports.records import Grant
from arc_server.service.limits import CommandLimits
from arc_server.service.outgoing_bodies import OutgoingBodies


class Envelopes:
    """Builds envelopes, with URLs that are signed afresh each time."""

    def __init__(
        self, bodies: OutgoingBodies, links: ResponseLinks, clock: Clock, limits: CommandLimits
    ) -> None:
        self._bodies = bodies
        self._links = links
        self._clock = clock
        self._limits = limits

    def of(self, grant: Grant, base_url: str) -> Envelope:
        """Return the envelope of a grant. Raises InvalidStateTransition for one without a lease."""
        command = grant.command
        lease_id = command.lease_id
        if lease_id is None:
            raise InvalidStateTransition("the command has no lease", command_id=command.command_id)
        expires_at = self._clock.now() + timedelta(seconds=self._limits.response_url_seconds)
        params = self._bodies.params(grant.params, base_url, command.lease_credential)
        return Envelope(
            protocol=PROTOCOL,
            deployment_id=command.deployment_id,
            target=command.target,
            command_id=command.command_id,
            attempt=command.attempt,
            deadline=command.deadline,
            command=command.command,
            params=params or InlineBody.of(b""),
            response_handling=ResponseHandling(
                max_inline_bytes=self._limits.inline_bytes,
                submit_response_url=self._links.response_url(
                    base_url,
                    command.command_id,
                    lease_id,
                    expires_at,
                    command.lease_credential,
                ),
                storage_upload_request=self._bodies.response_upload(command, base_url, expires_at),
            ),
            signature=grant.signature,
        )
