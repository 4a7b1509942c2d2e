"""Results on their way through an agent's spool, on a watched disk.

forked_children.py runs this in a process that was started with the shim. A note says what must be
true of one result from then on: it is `in` the spool, `leaving` it (either may be true), or `out`.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from arc_agent.config.sections import SpoolSection
from arc_agent.host.data_dir import DataDir
from arc_agent.host.disk_thread import DiskThread
from arc_agent.jobs.job import ReplyTo
from arc_agent.jobs.result_files import StoredBody, store_bytes
from arc_agent.jobs.spool import Spool
from arc_agent.jobs.spool_rows import Entry
from arc_protocol.messages.bodies import HttpBackend, PresignedRequest
from tests.chaos.disk_scenarios import CHECKPOINT_PAGES
from tests.chaos.disk_shim import Disk
from tests.chaos.server_parts import INLINE_BYTES
from tests.support.clocks import START

SETTINGS = SpoolSection(min_free_bytes=0)
UPLOAD = PresignedRequest(
    backend=HttpBackend(url="http://server.test/v1/blobs/b", method="PUT", headers={}),
    expiration=START,
    operation="put",
    path="b",
)


async def perform(job: dict[str, Any]) -> dict[str, Any]:
    """Put results in and take most of them out, in several starts; or, to `look`, what is in."""
    path = Path(job["data_dir"])
    if job["do"] == "look":
        with DataDir(path) as data_dir:
            return await _inside(data_dir)
    disk = Disk()
    disk.watch(path, Path(job["log"]))
    for generation in range(job["generations"]):
        with DataDir(path) as data_dir:
            async with DiskThread() as thread:
                spool = await Spool.open(data_dir, SETTINGS, thread)
                for pragma in (
                    f"synchronous = {job['synchronous']}",
                    f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
                ):
                    await thread.call(
                        partial(spool._database.connection.execute, f"PRAGMA {pragma}")
                    )
                for n in range(job["commands"]):
                    await _live(data_dir, spool, disk, f"{generation}-{n}", n)
                await spool.close()
    return {}


async def _live(data_dir: DataDir, spool: Spool, disk: Disk, name: str, n: int) -> None:
    """One result; `n` decides its size and how it leaves."""
    data = f"result {name} ".encode() * (100 if n % 2 else 1)
    stored = store_bytes(data_dir, data, INLINE_BYTES, lambda: True)
    is_file = isinstance(stored, StoredBody)
    facts = {"entry": name, "digest": hashlib.sha256(data).hexdigest()}
    to = ReplyTo(
        command_id=name,
        lease_id=f"lease_{name}",
        command="report",
        attempt=1,
        submit_url="http://server.test/v1/commands/c/response",
        upload=UPLOAD if is_file else None,
    )
    entry = await spool.put(
        to,
        message=None if is_file else data,
        body=stored if is_file else None,
    )
    assert not spool.lack(), "the disk did not take it"
    disk.note({**facts, "is": "in"})
    if n % 5 == 0:
        return
    if n % 3 == 0:
        leased_again = replace(to, lease_id="lease_new", attempt=2, submit_url=None, upload=UPLOAD)
        entry = await spool.rebind(entry, leased_again)
    if is_file:
        entry = await spool.mark_uploaded(entry)
    disk.note({**facts, "is": "leaving"})
    await _leave(spool, entry, n)
    disk.note({**facts, "is": "out"})


async def _leave(spool: Spool, entry: Entry, n: int) -> None:
    if n % 7 == 0:
        await spool.bury(entry, "the server will never take it")
    else:
        await spool.remove(entry)


async def _inside(data_dir: DataDir) -> dict[str, Any]:
    """Return an agent's finds at its start: for each result the digest of what it would send."""
    async with DiskThread() as thread:
        spool = await Spool.open(data_dir, SETTINGS, thread)
        found: dict[str, Any] = {}
        for entry in spool.entries():
            (message,) = await spool.messages([entry])
            data = spool.body_path(entry).read_bytes() if entry.body is not None else message or b""
            found[entry.to.command_id] = hashlib.sha256(data).hexdigest()
        await spool.close()
    return found
