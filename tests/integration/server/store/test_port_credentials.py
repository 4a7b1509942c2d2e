"""Enrolment tokens, credentials, their keys, and the count of revocations."""

from __future__ import annotations

from typing import Any

import pytest

from arc_protocol.errors import Conflict, Forbidden, StoreUnavailable, Unauthorized
from arc_server.ports.records import AgentKey, EnrolToken, NewCredential
from arc_server.ports.store import Store
from tests.support.store_samples import DEPLOYMENT, NOW, after, secret, token


def enrol_token(number: int = 1, **changes: Any) -> EnrolToken:
    return EnrolToken(
        **{
            "token_hash": number.to_bytes(32, "big"),
            "token_id": f"enr_{number}",
            "deployment_id": DEPLOYMENT,
            "uses": 1,
            "created_at": NOW,
            "expires_at": after(3600),
            **changes,
        }
    )


def new(number: int = 1, **changes: Any) -> NewCredential:
    return NewCredential(
        **{
            "credential_id": f"cred_{number}",
            "key_id": f"key_{number}",
            "public_key": number.to_bytes(32, "big"),
            "hostname": "db-7",
            **changes,
        }
    )


def key(name: str, credential: int = 1) -> AgentKey:
    return AgentKey(
        key_id=name, credential_id=f"cred_{credential}", public_key=name.encode(), made_at=NOW
    )


async def enrolled(store: Store, number: int = 1) -> None:
    made = enrol_token(number)
    await store.put_enrol_token(made)
    await store.enrol(made.token_hash, new(number), NOW)


async def test_an_enrolment_stores_a_credential_and_its_key(store: Store) -> None:
    made = enrol_token(uses=2)
    await store.put_enrol_token(made)

    known = await store.enrol(made.token_hash, new(deployment_id=DEPLOYMENT), after(5))

    assert (known.credential.credential_id, known.credential.deployment_id) == (
        "cred_1",
        DEPLOYMENT,
    )
    assert (known.credential.enrol_token_id, known.credential.hostname) == ("enr_1", "db-7")
    assert (known.key.key_id, known.key.made_at, known.key.used_at) == ("key_1", after(5), None)
    assert known.is_good(after(9_999_999))
    assert await store.find_key("key_1") == known
    assert await store.find_credential("cred_1") == known.credential
    assert await store.list_credentials() == [known.credential]
    assert [each.used for each in await store.list_enrol_tokens()] == [1]
    assert await store.find_key("key_2") is None
    assert await store.find_credential("cred_2") is None


async def test_a_token_enrols_as_many_as_it_has_uses(store: Store) -> None:
    made = enrol_token(uses=2)
    await store.put_enrol_token(made)
    for number in (1, 2):
        await store.enrol(made.token_hash, new(number), NOW)

    with pytest.raises(Unauthorized, match="used up"):
        await store.enrol(made.token_hash, new(3), NOW)

    assert len(await store.list_credentials()) == 2
    assert await store.find_key("key_3") is None


async def test_the_same_key_again_is_answered_as_it_stands_also_after_the_end(
    store: Store,
) -> None:
    made = enrol_token()
    await store.put_enrol_token(made)
    known = await store.enrol(made.token_hash, new(), NOW)

    again = await store.enrol(made.token_hash, new(credential_id="cred_other"), after(9_999))

    assert again == known
    assert [each.used for each in await store.list_enrol_tokens()] == [1]


@pytest.mark.parametrize(
    ("changes", "request_changes", "error"),
    [
        ({"expires_at": NOW}, {}, Unauthorized),
        ({"revoked_at": NOW}, {}, Unauthorized),
        ({"used": 1}, {}, Unauthorized),
        ({}, {"deployment_id": "dep-2"}, Forbidden),
    ],
)
async def test_a_refused_enrolment_stores_nothing(
    store: Store,
    changes: dict[str, Any],
    request_changes: dict[str, Any],
    error: type[Exception],
) -> None:
    made = enrol_token(**changes)
    await store.put_enrol_token(made)

    with pytest.raises(error):
        await store.enrol(made.token_hash, new(**request_changes), NOW)
    with pytest.raises(Unauthorized):
        await store.enrol(b"no such token", new(), NOW)

    assert await store.list_enrol_tokens() == [made]
    assert await store.list_credentials() == []


async def test_a_key_is_enrolled_by_one_token_only(store: Store) -> None:
    await enrolled(store)
    other = enrol_token(2)
    await store.put_enrol_token(other)

    with pytest.raises(Conflict):
        await store.enrol(other.token_hash, new(), NOW)


async def test_enrol_tokens_are_listed_in_order_and_revoked_once(store: Store) -> None:
    late, early = enrol_token(1, created_at=after(2)), enrol_token(2)
    await store.put_enrol_token(late)
    await store.put_enrol_token(early)

    assert await store.list_enrol_tokens() == [early, late]
    assert await store.revoke_enrol_token("enr_1", after(5))
    assert await store.revoke_enrol_token("enr_1", after(6))
    assert not await store.revoke_enrol_token("enr_9", after(5))
    assert [each.revoked_at for each in await store.list_enrol_tokens()] == [None, after(5)]
    with pytest.raises(StoreUnavailable):
        await store.put_enrol_token(early)


async def test_the_older_keys_end_when_a_newer_one_is_first_used(store: Store) -> None:
    await enrolled(store)
    await enrolled(store, 2)
    await store.use_key("key_1", NOW, after(1))
    await store.add_key(key("key_new"), "key_1", after(5))

    before = await store.find_key("key_1")
    await store.use_key("key_new", after(10), after(20))
    await store.use_key("key_new", after(12), after(99))
    after_use = await store.find_key("key_1")

    assert before is not None
    assert after_use is not None
    assert (before.key.used_at, before.key.ends_at) == (NOW, None)
    assert after_use.key.ends_at == after(20)
    assert (after_use.is_good(after(19)), after_use.is_good(after(20))) == (True, False)
    untouched = await store.find_key("key_2")
    assert untouched is not None
    assert untouched.key.ends_at is None


async def test_keys_that_have_ended_go_when_a_newer_one_is_used(store: Store) -> None:
    await enrolled(store)
    await store.add_key(key("key_b"), "key_1", NOW)
    await store.use_key("key_b", NOW, after(10))
    await store.add_key(key("key_c"), "key_b", after(11))

    await store.use_key("key_c", after(11), after(20))

    assert await store.find_key("key_1") is None
    ending = await store.find_key("key_b")
    assert ending is not None
    assert ending.key.ends_at == after(20)


async def test_a_new_key_again_stays_as_it_is_and_unused_ones_go(store: Store) -> None:
    await enrolled(store)
    first = await store.add_key(key("key_lost"), "key_1", NOW)

    assert await store.add_key(key("key_lost"), "key_1", after(9)) == first
    await store.add_key(key("key_new"), "key_1", after(9))

    assert await store.find_key("key_lost") is None
    assert await store.find_key("key_1") is not None
    assert await store.find_key("key_new") is not None


async def test_only_a_good_key_of_the_same_credential_lets_another_in(store: Store) -> None:
    await enrolled(store)
    await enrolled(store, 2)
    await store.add_key(key("key_b"), "key_1", NOW)
    await store.use_key("key_b", NOW, after(10))

    for signer, at in (("key_2", NOW), ("key_none", NOW), ("key_1", after(10))):
        with pytest.raises(Unauthorized):
            await store.add_key(key("key_new"), signer, at)
    with pytest.raises(Conflict):
        await store.add_key(key("key_2"), "key_b", NOW)
    await store.revoke_credential("cred_1", NOW)
    with pytest.raises(Unauthorized):
        await store.add_key(key("key_new"), "key_b", NOW)

    assert await store.find_key("key_new") is None


async def test_a_revoked_credential_has_no_good_key(store: Store) -> None:
    await enrolled(store)

    assert await store.revoke_credential("cred_1", after(5))
    assert await store.revoke_credential("cred_1", after(6))
    assert not await store.revoke_credential("cred_9", after(5))

    known = await store.find_key("key_1")
    assert known is not None
    assert known.credential.revoked_at == after(5)
    assert not known.is_good(after(5))
    with pytest.raises(Unauthorized, match="revoked"):
        await store.enrol(enrol_token().token_hash, new(), NOW)


async def test_every_revocation_is_counted(store: Store) -> None:
    await enrolled(store)
    plain = token()
    await store.put_token(plain, secret(plain))
    counts = [await store.revocations()]

    for revoke in (
        store.revoke_token("tok_none", NOW),
        store.revoke_token(plain.token_id, NOW),
        store.revoke_credential("cred_none", NOW),
        store.revoke_credential("cred_1", NOW),
    ):
        await revoke
        counts.append(await store.revocations())

    assert counts == [0, 0, 1, 1, 2]
