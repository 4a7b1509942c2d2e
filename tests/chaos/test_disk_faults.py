"""Disks that are full, and disks that fail: at every call of a kind, once and for ever."""

from __future__ import annotations

import base64
import errno
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from tests.chaos import disk_shim as shim
from tests.chaos.data_directory_audit import audit
from tests.chaos.disk_scenarios import Fault
from tests.chaos.forked_children import ForkedChildren
from tests.chaos.killed_server import KilledServer
from tests.chaos.load import Load
from tests.chaos.power_cut import Remains, read_log
from tests.chaos.promises import Promises
from tests.chaos.random_kills import under_load

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(shim.why_not()), reason=shim.why_not()),
]

FAILED = 1
"""The exit code of a server that cannot go on."""
DISK_BYTES = 32 << 20
ROOM_BYTES = 1 << 17
"""What is left of it at first."""
AT_A_TIME = 2
COMMANDS = 3
FLOOR = 900
"""There were 1,143 faults when this was written."""
KINDS = (("write", errno.ENOSPC), ("write", errno.EIO), ("sync", errno.EIO))
REFUSALS = {"UNAVAILABLE", "STORAGE_OPERATION_FAILED"}
"""What callers may hear: 503, or 500 for a blob."""


def no_namespaces() -> str:
    """Why a file system of one's own cannot be had; empty when it can."""
    probe = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True
    )
    return "" if probe.returncode == 0 else f"no user namespaces: {probe.stderr.decode().strip()}"


class Series(NamedTuple):
    """One kind of fault at its first call, its second, and so on."""

    kind: str
    number: int
    is_for_ever: bool
    when: str

    def __str__(self) -> str:
        how = "for ever" if self.is_for_ever else "once"
        return f"{self.kind} {errno.errorcode[self.number]} {how}, counted from {self.when}"


SERIES = [
    Series(kind, number, is_for_ever, when)
    for kind, number in KINDS
    for is_for_ever in (False, True)
    for when in ("work", "open")
]


def walk(series: Series, library: Path, directory: Path) -> Counter[str]:
    """A fault at call 1, 2, … until a run ends without it; how runs have ended."""
    ended: Counter[str] = Counter()
    with closing(ForkedChildren(env={shim.SHIM_VARIABLE: str(library)})) as children:
        n = 1
        while (end := live(series, n, children, directory)) is not None:
            ended[end] += 1
            n += 1
    return ended


def live(series: Series, n: int, children: ForkedChildren, directory: Path) -> str | None:
    """One run with one fault, and the look at what it leaves; None when the fault never came."""
    shutil.rmtree(directory, ignore_errors=True)
    data_dir, log = directory / "data", directory / "log"
    data_dir.mkdir(parents=True)
    fault = Fault(series.kind, series.number, n, series.is_for_ever, series.when)
    outcome = children.run(
        {
            "module": "tests.chaos.disk_scenarios",
            "data_dir": str(data_dir),
            "log": str(log),
            "commands": COMMANDS if series.when == "work" else 0,
            "fault": fault._asdict(),
        }
    )
    where = f"{series}, call {n}: {outcome}"
    assert (outcome.signal, outcome.code) == (0, 0), where
    if not outcome.answer["came"]:
        assert outcome.answer["ends"] == [], where
        return None
    broken = list(broken_promises(data_dir, log, directory / "image"))
    assert broken == [], where
    if series.when == "work":
        assert set(outcome.answer["ends"]) <= REFUSALS, where
    children.succeed({"do": "settle", "operation": "create", "data_dir": str(data_dir)})
    assert audit(data_dir) == [], where
    if outcome.answer["stops"]:
        return "the process stops"
    return "refused" if outcome.answer["ends"] else "unnoticed"


def broken_promises(data_dir: Path, log: Path, image: Path) -> Iterator[str]:
    """Yield what was acknowledged and is not there, now or if the power fails.

    The kernel forgets what it could not write: what a failed fsync was for counts as lost.
    """
    records = list(read_log(log))
    promises = Promises(records)
    remains = Remains(data_dir, image, random.Random(0))
    for record in records:
        promises.follow(record)
        remains.follow(record)
    remains.cut("none")
    yield from promises.broken(image)
    shutil.rmtree(image)
    shutil.copytree(data_dir, image)
    yield from promises.broken(image)


def test_every_call_that_can_fail_fails_once_and_nothing_is_lost(tmp_path: Path, scratch: Path):
    library = shim.build(tmp_path)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        ends = list(
            pool.map(lambda each: walk(each, library, scratch / str(SERIES.index(each))), SERIES)
        )

    for series, ended in zip(SERIES, ends, strict=True):
        print(f"  {series}: {ended.total()} faults; {dict(ended)}")
    total = sum(ended.total() for ended in ends)
    print(f"disk faults: {total} runs")
    assert total >= FLOOR


async def test_a_server_whose_fsync_fails_stops_and_has_lost_nothing(tmp_path: Path):
    library = shim.build(tmp_path)

    async def fail(server: KilledServer, load: Load, source: random.Random) -> None:
        await server.start(
            {
                shim.SHIM_VARIABLE: str(library),
                "DISK_ROOT": str(server.data_dir),
                "DISK_FAULT": f"sync:{errno.EIO}:{source.randint(10, 40)}:ever:arc.db-wal",
            }
        )
        await server.died(FAILED)

    verdict = await under_load(fail, tmp_path)

    print(f"fsync fails for ever: exit code {FAILED}; {verdict.summary()}")
    assert verdict.is_good, verdict.complaint()


@pytest.mark.skipif(bool(no_namespaces()), reason=no_namespaces())
async def test_a_full_disk_is_answered_503_until_there_is_room_again(tmp_path: Path):
    server = KilledServer(tmp_path)
    ballast = "ballast"
    try:
        await server.start(memory_bytes=DISK_BYTES)
        async with aiohttp.ClientSession() as session:
            kept = await create(server, session, "before")
            assert kept[0] == 200
            filled = fill(server.inside / ballast) - ROOM_BYTES
            os.truncate(server.inside / ballast, filled)

            answers = [await create(server, session, f"{n}") for n in range(200)]

            assert {status for status, _ in answers} == {200, 503}
            assert {body["code"] for status, body in answers if status == 503} == {"UNAVAILABLE"}
            assert (await status_of(server, session, kept[1]["commandId"])) == "PENDING"
            (server.inside / ballast).unlink()
            again = [await create(server, session, f"{n}") for n in range(200)]
            assert {status for status, _ in again} == {200}
            for (status, body), (_, repeated) in zip(answers, again, strict=True):
                if status == 200:
                    assert repeated["commandId"] == body["commandId"]
            refused = sum(status == 503 for status, _ in answers)
        shutil.copytree(server.inside, tmp_path / "copy")
        await server.stop()
    finally:
        await server.put_away()

    print(f"disk full ({filled} bytes of ballast): {refused} of 200 creates heard 503")
    assert audit(tmp_path / "copy") == []


def fill(file: Path) -> int:
    """Write until nothing goes in any more; how many bytes did."""
    with file.open("wb", buffering=0) as ballast:
        return sum(
            written
            for size in (1 << 16, 1 << 12, 1)
            for written in iter(lambda size=size: put(ballast, size), 0)
        )


def put(file: FileIO, size: int) -> int:
    """Write that many bytes; how many the disk took."""
    try:
        return file.write(bytes(size))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return 0


async def create(server: KilledServer, session: aiohttp.ClientSession, key: str) -> tuple[int, Any]:
    """One create; its status and its answer."""
    body = {
        "deploymentId": "site-1",
        "command": "report",
        "params": {"mode": "inline", "inlineBase64": base64.b64encode(bytes(300)).decode()},
        "idempotencyKey": key,
    }
    async with session.post(f"{server.url}/commands", json=body) as answer:
        return answer.status, await answer.json()


async def status_of(server: KilledServer, session: aiohttp.ClientSession, command_id: str) -> str:
    """The state of a command."""
    async with session.get(f"{server.url}/commands/{command_id}") as answer:
        assert answer.status == 200
        return (await answer.json())["state"]
