"""An agent's side of enrolment, and credentials that are there already."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from nacl.signing import SigningKey

from arc_protocol import enrolment as wire
from arc_server.app import RunningServer
from arc_server.auth.enrolment import new_enrol_token
from tests.support.running_server import Answer, Client


class Host:
    """A host with a key of its own."""

    def __init__(self, deployment: str | None = None) -> None:
        self.key = SigningKey.generate()
        self.deployment = deployment
        self.credential_id = ""

    @property
    def public_key(self) -> str:
        return wire.to_text(bytes(self.key.verify_key))

    @property
    def key_id(self) -> str:
        return wire.key_id(bytes(self.key.verify_key))

    def sign(self, purpose: wire.Purpose, *parts: str) -> str:
        return wire.to_text(self.key.sign(wire.to_sign(purpose, *parts)).signature)

    def enrol_request(self, token: str) -> dict[str, Any]:
        """The body of an enrolment."""
        request = {
            "publicKey": self.public_key,
            "signature": self.sign("enrol", wire.fingerprint(token), self.public_key),
            "hostname": "db-7",
        }
        return request if self.deployment is None else request | {"deploymentId": self.deployment}

    def token_request(self, challenge: str) -> dict[str, str]:
        """The body of a request for an access token."""
        return {
            "keyId": self.key_id,
            "challenge": challenge,
            "signature": self.sign("token", self.key_id, challenge),
        }

    def key_request(self, challenge: str, new: Host) -> dict[str, str]:
        """The body that puts the key of `new` in this one's place."""
        parts = (self.key_id, challenge, new.public_key)
        return {
            "keyId": self.key_id,
            "challenge": challenge,
            "publicKey": new.public_key,
            "signature": self.sign("key", *parts),
            "newSignature": new.sign("key", *parts),
        }

    async def try_to_enrol(self, client: Client, token: str) -> Answer:
        """Enrol; return any answer."""
        request = self.enrol_request(token)
        answer = await client.call("POST", "/v1/agents/enrol", request, token=token)
        if answer.status == 200:
            self.credential_id = answer.json["credentialId"]
        return answer

    async def enrol(self, client: Client, token: str) -> None:
        """Enrol."""
        answer = await self.try_to_enrol(client, token)
        assert answer.status == 200, answer

    async def challenge(self, client: Client) -> str:
        """Something to sign."""
        answer = await client.call("POST", "/v1/agents/challenges", token="")
        assert answer.status == 200, answer
        return answer.json["challenge"]

    async def try_access(self, client: Client) -> Answer:
        """Ask for an access token."""
        request = self.token_request(await self.challenge(client))
        return await client.call("POST", "/v1/agents/tokens", request, token="")

    async def access(self, client: Client) -> str:
        """An access token."""
        answer = await self.try_access(client)
        assert answer.status == 200, answer
        return answer.json["token"]

    async def rotate(self, client: Client, new: Host) -> Answer:
        """Put another key in the place of this one."""
        request = self.key_request(await self.challenge(client), new)
        return await client.call("POST", "/v1/agents/keys", request, token="")


async def enrol_token(
    server: RunningServer, deployment: str, *, uses: int = 1, seconds: float = 3600
) -> str:
    """An enrolment token that the server knows."""
    made = new_enrol_token(deployment, uses, timedelta(seconds=seconds), datetime.now(UTC))
    await server.parts.store.put_enrol_token(made.stored)
    return made.text
