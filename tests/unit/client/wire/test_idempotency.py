"""Idempotency keys: UUIDs of version 7."""

from __future__ import annotations

import time
import uuid

from arc_client.wire.idempotency import new_idempotency_key


def test_a_key_is_a_uuid_of_version_7_that_begins_with_the_time() -> None:
    before = time.time_ns() // 1_000_000
    key = uuid.UUID(new_idempotency_key())
    after = time.time_ns() // 1_000_000

    assert key.version == 7
    assert key.variant == uuid.RFC_4122
    assert before <= key.int >> 80 <= after


def test_no_two_keys_are_alike() -> None:
    assert len({new_idempotency_key() for _ in range(1_000)}) == 1_000
