"""Ids of commands and leases."""

from __future__ import annotations

from datetime import timedelta

from arc_server.service.identifiers import FreshLeaseIds, new_command_id
from tests.support.clocks import START


def test_ids_of_commands_sort_by_the_time_of_their_creation() -> None:
    ids = [new_command_id(START + timedelta(milliseconds=number)) for number in range(100)]

    assert ids == sorted(ids)
    assert len({len(each) for each in ids}) == 1


def test_lease_ids_are_made_once_and_differ() -> None:
    ids = FreshLeaseIds(3, "e1")

    assert len(ids) == 3
    assert ids[1] == ids[1]
    assert list(ids) == ids[:]
    assert len(set(ids[0:3])) == 3
