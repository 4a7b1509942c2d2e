"""The promises compare a data directory with the acknowledgements that disk_scenarios.py noted."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.chaos.data_directory_audit import BLOB, INLINE, blob_file, problems
from tests.chaos.power_cut import Kind, Record

Facts = dict[str, Any]


class Promises:
    """What is acknowledged so far, and what a command may have become by then."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._stages: dict[str, list[Facts]] = {}
        for record in records:
            facts = _note(record)
            if facts is not None and "id" in facts:
                self._stages.setdefault(facts["id"], []).append(facts)
        self._reached: dict[str, int] = {}
        self._blobs: dict[str, str] = {}
        self.acknowledgements = 0

    def follow(self, record: Record) -> None:
        """One step on in the log."""
        facts = _note(record)
        if facts is None:
            return
        self.acknowledgements += 1
        if "id" in facts:
            self._reached[facts["id"]] = facts["stage"]
        elif "blob" in facts:
            self._blobs[facts["blob"]] = facts["digest"]

    def broken(self, data_dir: Path) -> Iterator[str]:
        """Yield what was promised and is not so. The database is opened, and recovers by that."""
        blobs = data_dir / "blobs"
        keys = data_dir / "keys" / "signing.json"
        if self.acknowledgements and not keys.exists():
            yield "the keys of all URLs are gone"
        for path, digest in self._blobs.items():
            file = blob_file(blobs, path)
            if file is None or _digest(file.read_bytes()) != digest:
                yield f"an uploaded blob is gone: {path}"
        if not (data_dir / "arc.db").exists():
            if self._reached:
                yield "the database is gone"
            return
        with closing(sqlite3.connect(data_dir / "arc.db")) as database:
            try:
                if not database.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall():
                    if self._reached:
                        yield "the database is empty"
                    return
                yield from problems(database, blobs, is_thorough=False)
                yield from self._commands(database, blobs)
            except sqlite3.Error as error:
                yield f"the database cannot be read: {error}"

    def _commands(self, database: sqlite3.Connection, blobs: Path) -> Iterator[str]:
        rows = {
            row[0]: row[1:]
            for row in database.execute(
                """
                SELECT c.command_id, c.state, c.attempt, c.lease_id, k.key,
                       p.form, p.data, r.form, r.data
                FROM commands AS c LEFT JOIN params AS p ON p.command = c.seq
                LEFT JOIN responses AS r ON r.command = c.seq
                LEFT JOIN idempotency_keys AS k ON k.command_seq = c.seq
                """
            )
        }
        for command_id, stage in self._reached.items():
            if command_id not in rows:
                yield f"{command_id} is gone; it had reached stage {stage}"
        for command_id, (state, attempt, lease, key, *bodies) in rows.items():
            if command_id not in self._stages:  # made, and never acknowledged
                continue
            at = next(
                (
                    facts
                    for facts in self._stages[command_id]
                    if (facts["state"], facts["attempt"], facts["lease"]) == (state, attempt, lease)
                ),
                None,
            )
            if at is None:
                last = self._stages[command_id][-1]
                if not _follows(last, state, attempt, lease):
                    yield f"{command_id} was never {state} in attempt {attempt} under {lease}"
                continue
            if at["stage"] < self._reached.get(command_id, 0):
                yield f"{command_id} is back in stage {at['stage']}"
            if key != at["key"]:
                yield f"{command_id} has lost its key"
            params, response = _body(blobs, *bodies[:2]), _body(blobs, *bodies[2:])
            if state != "PENDING_UPLOAD" and params != at["params"]:
                yield f"{command_id}: other params"
            if response != at["response"]:
                yield f"{command_id}: another response"


def _follows(last: Facts, state: str, attempt: int, lease: str | None) -> bool:
    """Return True if the last request of a life that was broken off may have done this, unheard."""
    was = (last["state"], last["attempt"], last["lease"])
    match state:
        case "PENDING":
            before = [("PENDING_UPLOAD", attempt, lease), ("DISPATCHED", attempt - 1, lease)]
            return was in before
        case "DISPATCHED":
            return was[:2] == ("PENDING", attempt) and was[2] != lease
        case "SUCCEEDED" | "FAILED":
            return was == ("DISPATCHED", attempt, lease)
        case _:
            return False


def _note(record: Record) -> Facts | None:
    return json.loads(record.data) if record.kind is Kind.NOTE else None


def _body(blobs: Path, form: int | None, data: bytes) -> str | None:
    """The digest of a body; None when there is none."""
    if form == INLINE:
        return _digest(data)
    if form != BLOB:
        return None
    file = blob_file(blobs, data.decode())
    return "no such blob" if file is None else _digest(file.read_bytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class SpoolPromises:
    """Check an agent's spool, as noted by spool_lives.py."""

    def __init__(self) -> None:
        self._facts: dict[str, Facts] = {}
        self.acknowledgements = 0

    def follow(self, record: Record) -> None:
        """One step on in the log."""
        facts = _note(record)
        if facts is not None:
            self.acknowledgements += facts["is"] != "leaving"
            self._facts[facts["entry"]] = facts

    def broken(self, data_dir: Path) -> Iterator[str]:
        """Yield what was promised and is not so: read from outside."""
        yield from self.differ(dict(_spooled(data_dir)))

    def differ(self, found: Mapping[str, str]) -> Iterator[str]:
        """Yield what was promised and is not so, when that is in the spool."""
        for name, facts in self._facts.items():
            if facts["is"] == "in" and name not in found:
                yield f"a result is lost: {name}"
            if facts["is"] == "out" and name in found:
                yield f"a result that was handed in is back: {name}"
            if found.get(name, facts["digest"]) != facts["digest"]:
                yield f"a result is damaged: {name}"


def _spooled(data_dir: Path) -> Iterator[tuple[str, str]]:
    """The results in a spool and their digests; one whose body is not there counts as damaged."""
    file = data_dir / "spool.db"
    if not file.exists():
        return
    with closing(sqlite3.connect(file)) as database:
        if not database.execute("SELECT 1 FROM sqlite_schema").fetchall():
            return
        for (verdict,) in database.execute("PRAGMA quick_check"):
            assert verdict == "ok", verdict
        for name, message, body in database.execute(
            "SELECT command_id, message, body FROM responses"
        ):
            if body is None:
                yield name, _digest(message)
                continue
            path = data_dir / "bodies" / body
            yield name, _digest(path.read_bytes()) if path.exists() else "no body"
