"""Kills at chosen points: once before and after every SQL statement, and at every failpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arc_runtime import failpoints
from tests.chaos import operations
from tests.chaos.boundaries import (
    FAILPOINTS,
    Boundary,
    Walk,
    walk_failpoints,
    walk_first_start,
    walk_statements,
)
from tests.chaos.forked_children import ForkedChildren

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

AT_A_TIME = 2
STATEMENT_FLOOR = 540
FAILPOINT_FLOOR = 220
FIRST_START_FLOOR = 200
"""There were 598, 234 and 234 when this was written. What falls below misses boundaries."""

Walker = Callable[[str, Path], list[Boundary]]


def walk_all(walker: Walker, directory: Path) -> list[Boundary]:
    """Every operation, two at a time. The first one that fails ends it."""
    names = [operation.name for operation in operations.OPERATIONS]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        walks = pool.map(lambda name: walker(name, directory / name), names)
        return [boundary for died in walks for boundary in died]


def show(what: str, boundaries: Sequence[Boundary]) -> None:
    """A line an operation, and how many there were."""
    for operation, count in Counter(boundary.operation for boundary in boundaries).items():
        print(f"  {operation:<20} {count:>4}")
    print(f"{what}: {len(boundaries)} boundaries, the process died once at each")


def test_every_statement_of_every_operation(scratch: Path):
    died = walk_all(walk_statements, scratch)

    show("SQL statements, before and after", died)
    assert len(died) >= STATEMENT_FLOOR
    assert all(boundary.said for boundary in died)


def test_every_failpoint_of_every_operation(scratch: Path):
    died = walk_all(walk_failpoints, scratch)

    show("failpoints", died)
    assert len(died) >= FAILPOINT_FLOOR
    assert {boundary.where.partition(",")[0] for boundary in died} == set(FAILPOINTS)


def test_every_statement_of_a_first_start(children: ForkedChildren, scratch: Path):
    died = walk_first_start(children, scratch)

    show("first start", died)
    assert len(died) >= FIRST_START_FLOOR


def test_the_walk_knows_every_failpoint_of_the_server():
    ours = {name for name in failpoints.NAMES if not name.startswith("agent.")}

    assert ours == set(FAILPOINTS)


def test_the_walk_notices_an_operation_that_is_not_one_transaction(
    children: ForkedChildren, scratch: Path, monkeypatch: pytest.MonkeyPatch
):
    walk = Walk(operations.BY_NAME["sweep.tick"], children, scratch)
    monkeypatch.setattr("tests.chaos.boundaries.TICK_BY_TICK", frozenset())

    with pytest.raises(AssertionError, match="what is left"):
        list(walk.at_statements())
