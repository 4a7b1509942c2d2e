"""The access token of an enrolled agent: fetched, refused, and the key behind it renewed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from arc_agent.config.sections import ServerSection
from arc_agent.net.access_token import AccessToken
from arc_agent.net.connection import Answer, NoContact, Refused, ServerConnection
from arc_agent.net.identity_files import Identity, IdentityError, IdentityFiles, KeyPair
from arc_protocol.enrolment import AccessTokenRequest
from tests.support.clocks import AgentClock

LIFE_SECONDS = 900


class ScriptedConnection:
    """A server that gives tokens to known keys, and fails as the test says."""

    def __init__(self, *keys: KeyPair) -> None:
        self.known = {key.key_id for key in keys}
        self.rotates = False
        self.fails_at: str | None = None
        self.asked: list[str] = []

    def url(self, *path: str) -> str:
        return "/".join(path)

    async def call(self, method: str, url: str, message: Any = None) -> Answer:
        route = url.rpartition("/")[2]
        self.asked.append(route)
        if route == self.fails_at:
            raise NoContact("no answer")
        if route == "challenges":
            return answer({"challenge": "c", "expiresInSeconds": 60})
        if route == "keys":
            self.known.add(KeyPair(seed="", public_key=message.public_key).key_id)
            return answer(CREDENTIAL)
        assert isinstance(message, AccessTokenRequest)
        if message.key_id not in self.known:
            raise Refused("the server answered 401", status=401, detail="unknown")
        return answer(
            {
                "token": f"arc_access_{len(self.asked)}",
                "credentialId": "cred_1",
                "deploymentId": "dep-1",
                "expiresInSeconds": LIFE_SECONDS,
                "rotateKey": self.rotates,
            }
        )

    @property
    def real(self) -> ServerConnection:
        return cast("ServerConnection", self)


CREDENTIAL = {
    "credentialId": "cred_1",
    "deploymentId": "dep-1",
    "keyId": "key_1",
    "hostname": "host",
    "createdAt": "2026-05-04T09:00:00Z",
}


def answer(body: dict[str, Any], status: int = 200) -> Answer:
    return Answer(status, msgspec.json.encode(body), {})


@pytest.fixture
def key() -> KeyPair:
    return KeyPair.generate()


@pytest.fixture
def files(tmp_path: Path, key: KeyPair) -> IdentityFiles:
    enrolled = IdentityFiles(tmp_path)
    enrolled.enrolled(
        Identity(credential_id="cred_1", deployment_id="dep-1", server="https://a.b", key=key)
    )
    return enrolled


@pytest.fixture
def clock() -> AgentClock:
    return AgentClock()


@pytest.fixture
def make(files: IdentityFiles, clock: AgentClock) -> Callable[[], AccessToken]:
    def token() -> AccessToken:
        identity = files.read()
        assert identity is not None
        return AccessToken(files, identity, ServerSection(url="https://a.b"), clock)

    return token


async def test_a_renewal_takes_the_token_of_the_server(
    make: Callable[[], AccessToken], key: KeyPair, clock: AgentClock
) -> None:
    token, server = make(), ScriptedConnection(key)

    await token.renew(server.real)
    clock.now += 10

    status = token.status()
    assert token.value == "arc_access_2"
    assert (status.state, status.token_age_seconds) == ("good", 10)
    assert status.token_ends_in_seconds == LIFE_SECONDS - 10
    await token.ready()


async def test_without_a_loop_that_fetches_there_is_no_token(
    make: Callable[[], AccessToken], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arc_agent.net.access_token._FIRST_SECONDS", 0.0)

    with pytest.raises(NoContact, match="no access token yet"):
        await make().ready()


async def test_a_token_replaced_meanwhile_is_tried_instead_of_the_refused_one(
    make: Callable[[], AccessToken], key: KeyPair
) -> None:
    token = make()
    await token.renew(ScriptedConnection(key).real)

    assert await token.refused("arc_access_0")


async def test_a_second_refusal_within_seconds_fetches_no_other_token(
    make: Callable[[], AccessToken], key: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arc_agent.net.access_token._FIRST_SECONDS", 0.0)
    token = make()
    await token.renew(ScriptedConnection(key).real)

    assert not await token.refused(token.value)
    monkeypatch.setattr("arc_agent.net.access_token._FIRST_SECONDS", 3600.0)
    async with asyncio.timeout(60):
        assert not await token.refused(token.value)  # or it would wait for an hour


async def test_a_check_of_the_credential_changes_nothing(
    make: Callable[[], AccessToken], key: KeyPair
) -> None:
    token = make()

    fetched = await token.fetch_another(ScriptedConnection(key).real)

    assert fetched.token == "arc_access_2"
    assert token.value is None


async def test_an_identity_that_is_gone_or_of_another_deployment_is_an_error(
    make: Callable[[], AccessToken], files: IdentityFiles, key: KeyPair
) -> None:
    token, server = make(), ScriptedConnection(key)

    files.enrolled(
        Identity(credential_id="cred_2", deployment_id="dep-2", server="https://a.b", key=key)
    )
    with pytest.raises(IdentityError, match="restart"):
        await token.renew(server.real)
    (files.directory / "identity.json").unlink()
    with pytest.raises(IdentityError, match="no identity any more"):
        await token.renew(server.real)

    assert server.asked == []


# The key behind it


async def test_a_key_that_is_due_is_replaced_at_the_server_and_here(
    make: Callable[[], AccessToken], files: IdentityFiles, key: KeyPair
) -> None:
    token, server = make(), ScriptedConnection(key)
    server.rotates = True

    await token.renew(server.real)

    identity = files.read()
    assert identity is not None
    assert identity.key != key
    assert identity.key.key_id in server.known
    assert token.identity == identity
    assert files.next_key() is None


async def test_a_key_that_did_not_reach_the_server_is_sent_at_the_next_renewal(
    make: Callable[[], AccessToken], files: IdentityFiles, key: KeyPair
) -> None:
    token, server = make(), ScriptedConnection(key)
    server.rotates, server.fails_at = True, "keys"

    await token.renew(server.real)

    assert token.value is not None
    assert token.identity.key == key
    following = files.next_key()
    assert following is not None

    server.rotates, server.fails_at = False, None
    await token.renew(server.real)

    assert token.identity.key == following


async def test_a_key_that_the_server_took_over_before_a_crash_takes_over_here(
    make: Callable[[], AccessToken], files: IdentityFiles
) -> None:
    following = files.begin_next()
    token, server = make(), ScriptedConnection(following)

    await token.renew(server.real)

    identity = files.read()
    assert identity is not None
    assert identity.key == following
    assert token.value is not None


async def test_a_refused_key_without_a_successor_is_refused(
    make: Callable[[], AccessToken],
) -> None:
    with pytest.raises(Refused, match="401"):
        await make().renew(ScriptedConnection().real)
