"""The walk kills an operation once at each of its boundaries and compares what is stored.

A boundary is the instant before or after one SQL statement, or one passing of a failpoint. After
each kill, what is stored is what was there before or what an undisturbed run leaves, and nothing
between; the same request again gets the answer that it should; everything can be brought to its
end.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.data_directory_audit import audit, dump
from tests.chaos.forked_children import ForkedChildren, Outcome
from tests.chaos.operations import BY_NAME, TICK_BY_TICK, Operation

SIGKILL = 9
PASSED_UNDER_LOAD = (
    "store.before_begin",
    "store.after_begin",
    "store.after_operation",
    "store.before_commit",
    "store.after_commit",
    "store.before_answer",
    "blob.before_rename",
    "blob.after_rename",
)
FAILPOINTS = (
    *PASSED_UNDER_LOAD,
    "blob.before_unlink",
    "blob.after_unlink",
    "journal.before_rename",
)
"""Those of the server. A purge passes the last ones, and no request does."""

_ID = re.compile(r"(?:cmd|lease)_[a-z0-9_]+")
_RANDOM = re.compile(r"-inline-[0-9a-f]+")
_STATEMENT = re.compile(r"statement \d+: (\S+(?: \S+){0,2})")
_BODIES = ("params", "responses")


class Boundary(NamedTuple):
    """Where a process died."""

    operation: str
    where: str
    said: str
    """The statement, for people."""


class Walk:
    """One operation, killed at one boundary after another."""

    def __init__(self, operation: Operation, children: ForkedChildren, directory: Path) -> None:
        self._operation = operation
        self._children = children
        self._prepared = directory / "prepared"
        self._current = directory / "current"
        self._scratch = directory / "scratch"
        self._job = {"operation": operation.name, "data_dir": str(self._current)}
        job = {**self._job, "do": "prepare", "data_dir": str(self._prepared)}
        self._notes = children.succeed(job)
        self._known = set(_ID.findall(json.dumps(self._notes)))
        self._before = self._dump(self._prepared)
        self._restore()
        self._answer = self._act()
        self._after = self._dump(self._current)
        self._settle(self._answer)

    def at_statements(self) -> Iterator[Boundary]:
        """Before and after every statement of the write connection."""
        for number in range(1, 10_000):
            died = []
            for when in ("before", "after"):
                kill = {"ARC_STATEMENT_KILL": f"{number}:{when}"}
                died += list(self._die(f"{when} statement {number}", kill))
            yield from died
            if not died:
                return

    def at_failpoints(self) -> Iterator[Boundary]:
        """At every passing of every failpoint."""
        for name in FAILPOINTS:
            for ordinal in range(1, 10_000):
                died = list(
                    self._die(
                        f"{name}, pass {ordinal}", {"ARC_FAILPOINT": f"{name}=kill@{ordinal}"}
                    )
                )
                yield from died
                if not died:
                    break

    def _die(self, where: str, kill: dict[str, str]) -> Iterator[Boundary]:
        """Run the operation once and be killed in it, if the boundary is there at all."""
        self._restore()
        outcome = self._children.run({**self._job, "do": "act", "notes": self._notes}, kill)
        if outcome.signal == 0:
            self._expect(where, "no boundary", outcome.code, 0, outcome.said)
            return
        self._expect(where, "signal", outcome.signal, SIGKILL, outcome.said)
        left = self._dump(self._current)
        has_happened = left == self._after
        if self._operation.name not in TICK_BY_TICK and not has_happened:
            self._expect(where, "what is left", left, self._before)
        answer = self._act()
        again = self._operation.again
        if has_happened and self._before != self._after and again is not None:
            self._expect(where, "second answer", answer, again)
        else:
            self._expect(where, "answer", self._masked(answer), self._masked(self._answer))
        self._expect(where, "what is there in the end", self._dump(self._current), self._after)
        if (self._current / "blobs" / "arc").exists():  # else all there is has been compared
            self._settle(answer)
        yield Boundary(self._operation.name, where, _statement(outcome))

    def _act(self) -> Any:
        return self._children.succeed({**self._job, "do": "act", "notes": self._notes})

    def _settle(self, answer: Any) -> None:
        """Everything comes to its end, and nothing that was acknowledged is missing."""
        wanted = dict(self._notes.get("commands", {}))
        if "id" in answer:
            wanted.setdefault(answer["id"], None)
        ends = self._children.succeed({**self._job, "do": "settle"})
        for command_id, digest in wanted.items():
            state, found = ends[command_id]
            self._expect("settled", command_id, state in ("SUCCEEDED", "FAILED", "EXPIRED"), True)
            if digest is not None:
                self._expect("settled", f"params of {command_id}", found, digest)
        are_sealed = not self._operation.name.startswith("create.")  # no client can reach those
        self._expect("settled", "audit", audit(self._current, are_sealed=are_sealed), [])
        leftovers = [each.name for each in (self._current / "blobs" / ".incoming").iterdir()]
        self._expect("settled", "unfinished uploads", leftovers, [])

    def _restore(self) -> None:
        shutil.rmtree(self._current, ignore_errors=True)
        shutil.copytree(self._prepared, self._current)

    def _dump(self, data_dir: Path) -> str:
        tables = dump(data_dir, self._scratch)
        for name in _BODIES:
            # The checksum of a reference is one over its path, and that holds an id.
            tables[name] = [
                row if row[1] in (1, 4) else (*row[:4], "…", *row[5:]) for row in tables[name]
            ]
        return "\n".join(
            line
            for table, rows in tables.items()
            for line in (f"[{table}]", *sorted(self._masked(row) for row in rows))
        )

    def _masked(self, value: Any) -> str:
        """As text, with ids that were made by the operation itself made equal."""
        text = _RANDOM.sub("-inline-…", repr(value))
        return _ID.sub(lambda found: found[0] if found[0] in self._known else "…", text)

    def _expect(self, where: str, what: str, found: Any, wanted: Any, said: str = "") -> None:
        assert found == wanted, (
            f"{self._operation.name} killed at {where}: {what}\n"
            f"found:\n{found}\nwanted:\n{wanted}\nbefore:\n{self._before}\nafter:\n{self._after}\n{said}"
        )


def walk_statements(name: str, directory: Path) -> list[Boundary]:
    """Every statement of one operation."""
    with closing(ForkedChildren()) as children:
        return list(Walk(BY_NAME[name], children, directory).at_statements())


def walk_failpoints(name: str, directory: Path) -> list[Boundary]:
    """Every failpoint that one operation passes."""
    with closing(ForkedChildren()) as children:
        return list(Walk(BY_NAME[name], children, directory).at_failpoints())


def walk_first_start(children: ForkedChildren, directory: Path) -> list[Boundary]:
    """Every statement of a first start: settings, migrations, and what checks them."""
    data_dir, scratch = directory / "data", directory / "scratch"
    found: list[Boundary] = []
    job = {"do": "open", "data_dir": str(data_dir)}
    data_dir.mkdir(parents=True)
    children.succeed(job)
    whole = _dump_of_first_start(data_dir, scratch)
    for number in range(1, 10_000):
        is_over = True
        for when in ("before", "after"):
            shutil.rmtree(data_dir)
            data_dir.mkdir()
            outcome = children.run(job, {"ARC_STATEMENT_KILL": f"open:{number}:{when}"})
            if outcome.signal == 0:
                continue
            assert outcome.signal == SIGKILL, outcome.said
            is_over = False
            children.succeed(job)
            assert _dump_of_first_start(data_dir, scratch) == whole
            assert audit(data_dir) == []
            found.append(Boundary("first start", f"{when} statement {number}", _statement(outcome)))
        if is_over:
            return found
    raise AssertionError("a start without an end")


def _dump_of_first_start(data_dir: Path, scratch: Path) -> dict[str, list[Any]]:
    """Return what a first start has left, without the random id of its first epoch."""
    tables = dump(data_dir, scratch)
    tables["epochs"] = [(number, *rest) for number, _, *rest in tables["epochs"]]
    return tables


def _statement(outcome: Outcome) -> str:
    found = _STATEMENT.search(outcome.said)
    return found[1] if found else ""
