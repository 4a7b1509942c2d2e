import asyncio
from datetime import UTC, datetime, timedelta
from typing import cast

import msgspec
import pytest

from arc_protocol.errors import StoreUnavailable, Unauthorized
from arc_server.auth.callers import Authenticator, Caller
from arc_server.auth.tokens import NewToken, Scope, hash_token, is_well_formed, new_token
from arc_server.ports.reach import Reach
from arc_server.ports.records import KnownSecret
from arc_server.ports.store import Store
from tests.support.clocks import ServerClock

NOW = datetime(2026, 11, 24, tzinfo=UTC)


class Tokens:
    """A store of tokens that counts its look-ups, and fails or waits when told to."""

    def __init__(self, *tokens: NewToken) -> None:
        self.known = {
            token.secret.token_hash: KnownSecret(secret=token.secret, token=token.stored)
            for token in tokens
        }
        self.look_ups = 0
        self.is_away = False
        self.open = asyncio.Event()
        self.open.set()

    async def find_token(self, token_hash: bytes) -> KnownSecret | None:
        self.look_ups += 1
        await self.open.wait()
        if self.is_away:
            raise StoreUnavailable("away")
        return self.known.get(token_hash)


def authenticator(tokens: Tokens, clock: ServerClock, *, no_auth: bool = False) -> Authenticator:
    return Authenticator(cast("Store", tokens), clock, cache_seconds=5, no_auth=no_auth)


@pytest.mark.parametrize("scope", list(Scope))
def test_a_token_names_its_scope_and_only_its_hash_is_stored(scope: Scope) -> None:
    made = new_token(scope, ["dep-1"], NOW)

    assert made.text.startswith(f"arc_{scope.value}_")
    assert len(made.text.removeprefix(f"arc_{scope.value}_")) == 12 + 1 + 43 + 6
    assert made.stored.token_id.removeprefix("tok_") in made.text
    assert is_well_formed(made.text)
    assert made.secret.token_hash == hash_token(made.text)
    assert made.text.encode() not in made.secret.token_hash
    assert made.text not in repr((made.stored, made.secret))


def test_no_two_tokens_are_alike() -> None:
    assert len({new_token(Scope.AGENT, None, NOW).text for _ in range(100)}) == 100


async def test_a_caller_is_what_its_token_says() -> None:
    made = new_token(Scope.AGENT, ["dep-1"], NOW)
    judge = authenticator(Tokens(made), ServerClock())

    caller = await judge.caller(f"Bearer {made.text}")

    assert caller == Caller(
        scope=Scope.AGENT,
        reach=Reach(deployments=("dep-1",), credential=made.stored.token_id),
        authority=f"token:{made.secret.token_hash.hex()}",
    )


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer arc_king_" + "x" * 43,
        "Bearer arc_admin_" + "x" * 42,
        "Bearer arc_admin_" + "x" * 44,
        "Bearer arc_admin_" + "é" * 43,
        "Bearer arc_admin_" + "x" * 43 + "\n",
        "Bearer " + "x" * 100_000,
    ],
)
async def test_what_cannot_be_a_token_is_refused_without_a_look_up(header: str | None) -> None:
    tokens = Tokens()

    with pytest.raises(Unauthorized):
        await authenticator(tokens, ServerClock()).caller(header)

    assert tokens.look_ups == 0


@pytest.mark.parametrize("place", [4, 20, 40, -1])
async def test_a_token_with_a_wrong_checksum_is_refused_without_a_look_up(place: int) -> None:
    made = new_token(Scope.SENDER, None, NOW)
    tokens = Tokens(made)
    wrong = "1" if made.text[place] == "0" else "0"
    changed = made.text[:place] + wrong + made.text[place:][1:]

    with pytest.raises(Unauthorized):
        await authenticator(tokens, ServerClock()).caller(f"Bearer {changed}")

    assert tokens.look_ups == 0


async def test_a_token_of_an_earlier_release_is_looked_up() -> None:
    tokens = Tokens()

    with pytest.raises(Unauthorized):
        await authenticator(tokens, ServerClock()).caller("Bearer arc_sender_" + "x" * 43)

    assert tokens.look_ups == 1


async def test_a_token_that_expires_is_refused_from_that_moment_on() -> None:
    clock = ServerClock()
    made = new_token(Scope.SENDER, None, NOW, expires_at=clock.now() + timedelta(seconds=2))
    judge = authenticator(Tokens(made), clock)

    assert await judge.caller(f"Bearer {made.text}")
    clock.advance(1.9)
    assert await judge.caller(f"Bearer {made.text}")
    clock.advance(0.2)
    with pytest.raises(Unauthorized):
        await judge.caller(f"Bearer {made.text}")


async def test_the_use_of_a_token_is_told_once_in_five_minutes() -> None:
    clock = ServerClock()
    made = new_token(Scope.SENDER, None, NOW)
    tokens = Tokens(made)
    judge = authenticator(tokens, clock)

    await judge.caller(f"Bearer {made.text}")
    assert judge.take_used() == {made.stored.token_id: clock.now()}
    known = tokens.known[made.secret.token_hash]
    used = msgspec.structs.replace(known.token, last_used_at=clock.now())
    tokens.known[made.secret.token_hash] = msgspec.structs.replace(known, token=used)
    for seconds in (200, 99):
        clock.advance(seconds)
        await judge.caller(f"Bearer {made.text}")
        assert judge.take_used() == {}
    clock.advance(5)
    await judge.caller(f"Bearer {made.text}")
    assert judge.take_used() == {made.stored.token_id: clock.now()}


async def test_a_look_up_is_remembered_for_its_time() -> None:
    made = new_token(Scope.SENDER, None, NOW)
    tokens, clock = Tokens(made), ServerClock()
    judge = authenticator(tokens, clock)

    for seconds in (0, 1, 3.9):
        clock.advance(seconds)
        await judge.caller(f"Bearer {made.text}")
    assert tokens.look_ups == 1

    clock.advance(0.2)
    await judge.caller(f"Bearer {made.text}")
    assert tokens.look_ups == 2


async def test_a_revoked_token_is_refused_when_its_look_up_is_over() -> None:
    made = new_token(Scope.SENDER, None, NOW)
    tokens, clock = Tokens(made), ServerClock()
    judge = authenticator(tokens, clock)
    await judge.caller(f"Bearer {made.text}")
    tokens.known.clear()

    assert await judge.caller(f"Bearer {made.text}")
    clock.advance(5)
    with pytest.raises(Unauthorized):
        await judge.caller(f"Bearer {made.text}")


async def test_requests_that_come_at_once_share_one_look_up() -> None:
    made = new_token(Scope.SENDER, None, NOW)
    tokens = Tokens(made)
    tokens.open.clear()
    judge = authenticator(tokens, ServerClock())

    calls = [asyncio.create_task(judge.caller(f"Bearer {made.text}")) for _ in range(20)]
    await asyncio.wait(calls, timeout=0)
    calls[0].cancel()
    tokens.open.set()
    ended = await asyncio.gather(*calls, return_exceptions=True)

    assert tokens.look_ups == 1
    assert isinstance(ended[0], asyncio.CancelledError)
    assert {caller.scope for caller in ended[1:] if isinstance(caller, Caller)} == {Scope.SENDER}


async def test_a_database_that_is_away_does_not_make_a_token_unknown() -> None:
    made = new_token(Scope.SENDER, None, NOW)
    tokens = Tokens(made)
    judge = authenticator(tokens, ServerClock())
    tokens.is_away = True

    with pytest.raises(StoreUnavailable):
        await judge.caller(f"Bearer {made.text}")

    tokens.is_away = False
    assert await judge.caller(f"Bearer {made.text}")


async def test_without_auth_everybody_is_an_admin() -> None:
    judge = authenticator(Tokens(), ServerClock(), no_auth=True)

    for header in (None, "Bearer x", "Basic YTpi"):
        assert (await judge.caller(header)).scope is Scope.ADMIN
    assert judge.anonymous() is not None
    assert authenticator(Tokens(), ServerClock()).anonymous() is None
