"""A process that dies at any step of an enrolment or of a rotation goes on after its restart."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from arc_agent.cli import enrol
from arc_agent.net import access_token, identity_files
from arc_agent.net.connection import ServerConnection
from arc_agent.net.token import ConfiguredToken
from arc_runtime import failpoints
from tests.support.enrolment_host import EnrolmentHost

ENROLMENT = (
    "agent.after_enrol_key",
    "agent.after_enrol_request",
    "agent.before_identity",
    "agent.after_identity",
)
ROTATION = (
    "agent.before_access_token",
    "agent.after_access_token",
    "agent.before_next_key",
    "agent.after_next_key",
    "agent.before_new_key_request",
    "agent.after_new_key_request",
    "agent.before_new_key",
    "agent.after_new_key",
    "agent.after_old_key",
)
QUARTER = timedelta(days=61)
"""Past two thirds of a key's life of 90 days."""


class Died(BaseException):
    """The process is gone; nothing catches this."""


Arm = Callable[[str | None], None]


@pytest.fixture
def die_at(monkeypatch: pytest.MonkeyPatch) -> Arm:
    """Make this process die at a failpoint; with None at none."""

    def arm(point: str | None) -> None:
        assert point is None or point in failpoints.NAMES

        def hit(name: str, /) -> None:
            if name == point:
                raise Died(name)

        for module in (access_token, enrol, identity_files):
            monkeypatch.setattr(module, "hit", hit)

    return arm


async def renew(host: EnrolmentHost) -> str | None:
    """Return what an agent does at its start; its access token."""
    token = host.token()
    connection = ServerConnection(host.settings, ConfiguredToken(None, None))
    await connection.open()
    try:
        await token.renew(connection)
    finally:
        await connection.close()
    return token.value


def names(host: EnrolmentHost) -> set[str]:
    """The files of the identity."""
    return {path.name for path in host.files.directory.iterdir()}


def key_of(host: EnrolmentHost) -> str:
    """The key in force on the host."""
    found = host.files.read()
    assert found is not None
    return found.key.key_id


@pytest.mark.parametrize("second", [None, *ROTATION])
async def test_a_rotation_survives_a_death_at_every_step_and_another_one_after_it(
    host: EnrolmentHost, die_at: Arm, second: str | None
) -> None:
    for first in ROTATION:
        die_at(None)
        await host.enrol(replace=True)
        assert await host.lease(await renew(host)) == 200
        before = key_of(host)
        host.clock.offset += QUARTER

        for point in (first, second):
            die_at(point)
            if point is not None:
                try:
                    await renew(host)
                except Died:
                    pass
                else:  # what the first death had left to do, does not pass there
                    assert point is second
        die_at(None)
        tokens = [await renew(host), await renew(host)]

        assert [await host.lease(each) for each in tokens] == [200, 200], (first, second)
        assert key_of(host) != before
        assert names(host) == {"identity.json"}
        known = await host.server.parts.store.find_key(key_of(host))
        assert known is not None
        assert known.key.used_at is not None


async def test_a_host_whose_key_took_over_at_the_server_alone_goes_on_with_it(
    host: EnrolmentHost, die_at: Arm
) -> None:
    """An old copy of the state came back: the key in it has ended, the one that follows has not."""
    await host.enrol()
    await renew(host)
    host.clock.offset += QUARTER
    die_at("agent.before_new_key")
    with pytest.raises(Died):
        await renew(host)
    die_at(None)
    following = host.files.next_key()
    assert following is not None
    store = host.server.parts.store
    await store.use_key(following.key_id, host.clock.now(), host.clock.now())

    assert await host.lease(await renew(host)) == 200

    assert key_of(host) == following.key_id
    assert names(host) == {"identity.json"}


@pytest.mark.parametrize("point", ENROLMENT)
async def test_an_enrolment_that_dies_anywhere_is_repeated_with_the_same_token(
    host: EnrolmentHost, die_at: Arm, point: str
) -> None:
    token = await host.enrol_token(uses=1)
    die_at(point)
    with pytest.raises(Died):
        await host.enrol(token)

    die_at(None)
    code = await host.enrol(token)

    is_done = point == "agent.after_identity"
    assert code == (1 if is_done else 0)
    assert await host.lease(await renew(host)) == 200
    assert len(await host.server.parts.store.list_credentials()) == 1


async def test_what_an_enrolment_leaves_is_for_its_owner_only(host: EnrolmentHost) -> None:
    await host.enrol()

    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (host.files.directory, *host.files.directory.iterdir())
    }

    assert modes == {"identity": 0o700, "identity.json": 0o600}
    found = host.files.read()
    assert found is not None
    assert found.key.seed not in repr(found)


async def test_the_private_key_never_crosses_the_wire(
    host: EnrolmentHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    exchange = ServerConnection._exchange

    async def listen(self: ServerConnection, method: str, url: str, body: bytes, *rest: Any):
        sent.append(body)
        return await exchange(self, method, url, body, *rest)

    monkeypatch.setattr(ServerConnection, "_exchange", listen)
    await host.enrol()
    seeds = [host.files.read()]
    host.clock.offset += QUARTER
    await renew(host)
    seeds.append(host.files.read())

    assert len(sent) == 5  # enrol, challenge, token, challenge, key
    for found in seeds:
        assert found is not None
        assert not [body for body in sent if found.key.seed.encode() in body]
