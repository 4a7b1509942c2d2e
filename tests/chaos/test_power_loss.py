"""Power cuts, replayed: every acknowledged fact is there, with any part of the rest."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.chaos import disk_shim as shim
from tests.chaos.data_directory_audit import audit
from tests.chaos.forked_children import ForkedChildren
from tests.chaos.power_cut import Remains, read_log
from tests.chaos.promises import Promises, SpoolPromises

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(shim.why_not()), reason=shim.why_not()),
]

CUTS = int(os.environ.get("CHAOS_CUTS", "6000"))
"""For each of server and agent."""
CONTROL_CUTS = 400
COMMANDS = 20
REOPENED_EVERY = 300
"""So often the server (the agent) itself opens what is left."""


class Cuts(NamedTuple):
    """What many power cuts came to."""

    count: int
    broken: list[str]
    acknowledgements: int
    ways: Counter[str]


def cut_power(
    root: Path,
    log: Path,
    count: int,
    promises: Promises | SpoolPromises,
    reopen: Callable[[Path], list[str]],
) -> Cuts:
    """Cut the power that many times at any point of a log. `reopen`: our own code looks at it."""
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    records = list(read_log(log))
    remains = Remains(root, log.with_name("image"), source)
    ways: Counter[str] = Counter()
    broken: list[str] = []
    at = 0
    for nth, point in enumerate(sorted(source.choices(range(len(records) + 1), k=count))):
        for record in records[at:point]:
            remains.follow(record)
            promises.follow(record)
        at = point
        how = remains.cut()
        ways[how] += 1
        found = list(promises.broken(remains.image))
        if not found and nth % REOPENED_EVERY == REOPENED_EVERY - 1:
            found = reopen(remains.image)
            remains.forget_image()
        broken += [f"seed {seed}, cut {point} ({how}): {problem}" for problem in found[:1]]
    return Cuts(count, broken, promises.acknowledgements, ways)


def cut_power_of_a_server(
    children: ForkedChildren, directory: Path, count: int, *, synchronous: str = "FULL"
) -> Cuts:
    """Run lives of commands once, and cut the power at any point of them."""
    data_dir, log = directory / "data", directory / "log"
    data_dir.mkdir()
    job = {"module": "tests.chaos.disk_scenarios", "data_dir": str(data_dir), "log": str(log)}
    children.succeed({**job, "synchronous": synchronous, "generations": 2, "commands": COMMANDS})

    def reopen(image: Path) -> list[str]:
        children.succeed({"do": "settle", "operation": "create", "data_dir": str(image)})
        return audit(image)

    return cut_power(data_dir, log, count, Promises(read_log(log)), reopen)


def cut_power_of_an_agent(
    children: ForkedChildren, directory: Path, count: int, *, synchronous: str = "FULL"
) -> Cuts:
    """Cut the power with results in an agent's spool."""
    data_dir, log = directory / "data", directory / "log"
    data_dir.mkdir()
    job = {
        "module": "tests.chaos.spool_scenarios",
        "data_dir": str(data_dir),
        "log": str(log),
        "do": "work",
    }
    children.succeed(
        {**job, "synchronous": synchronous, "generations": 3, "commands": 3 * COMMANDS}
    )
    promises = SpoolPromises()

    def reopen(image: Path) -> list[str]:
        inside = children.succeed({**job, "do": "look", "data_dir": str(image)})
        return list(promises.differ(inside))

    return cut_power(data_dir, log, count, promises, reopen)


def test_no_power_cut_takes_what_was_acknowledged(shimmed_children: ForkedChildren, scratch: Path):
    cuts = cut_power_of_a_server(shimmed_children, scratch, CUTS)

    print(f"server: {cuts.count} power cuts {dict(cuts.ways)}, {cuts.acknowledgements} promises")
    assert cuts.broken == []
    assert cuts.acknowledgements > 5 * COMMANDS


def test_no_power_cut_takes_a_result_from_an_agents_spool(
    shimmed_children: ForkedChildren, scratch: Path
):
    cuts = cut_power_of_an_agent(shimmed_children, scratch, CUTS)

    print(f"spool: {cuts.count} power cuts {dict(cuts.ways)}, {cuts.acknowledgements} promises")
    assert cuts.broken == []
    assert cuts.acknowledgements > 5 * COMMANDS


@pytest.mark.parametrize("cut", [cut_power_of_a_server, cut_power_of_an_agent])
def test_the_replay_notices_a_database_that_is_not_synced_at_every_commit(
    shimmed_children: ForkedChildren, scratch: Path, cut: Callable[..., Cuts]
):
    cuts = cut(shimmed_children, scratch, CONTROL_CUTS, synchronous="NORMAL")

    print(f"control, synchronous=NORMAL: {len(cuts.broken)} of {cuts.count} cuts lose something")
    assert len(cuts.broken) > CONTROL_CUTS // 10
