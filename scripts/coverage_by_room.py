"""Measures branch coverage of the five packages and prints it by room; a room below its floor fails.

python scripts/coverage_by_room.py [--floors-only] [ARGUMENTS OF PYTEST …]

Programs that the tests start are measured too. A program that a test kills leaves no data: what
only such a program runs counts as not covered. Ends with pytest's exit code if a test failed,
with 1 if a room is below its floor. With --floors-only the floors alone decide: CI has judged the
tests before, without coverage, which slows them down.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".coverage"
FLOORS = {
    "arc_agent/guard": 95,
    "arc_agent/jobs": 95,
    "arc_protocol/lifecycle.py": 95,
    "arc_server/service": 95,
    "arc_server/store": 95,
}
"""Per cent of statements and branches together. These rooms keep the promises."""


@dataclass
class Room:
    """A room's totals: a directory of a package, or the files beside the directories."""

    statements: int = 0
    missed_statements: int = 0
    branches: int = 0
    missed_branches: int = 0

    def add(self, summary: dict[str, int]) -> None:
        """Add the summary of one file."""
        self.statements += summary["num_statements"]
        self.missed_statements += summary["missing_lines"]
        self.branches += summary["num_branches"]
        self.missed_branches += summary["missing_branches"]

    @property
    def percent(self) -> float:
        """Per cent of statements and branches together that ran."""
        total = self.statements + self.branches
        missed = self.missed_statements + self.missed_branches
        return 100.0 * (total - missed) / total if total else 100.0

    def line(self, name: str) -> str:
        """Return the room's line of the table."""
        floor = FLOORS.get(name)
        ran = self.statements - self.missed_statements, self.branches - self.missed_branches
        shown = f"{ran[0]:5}/{self.statements:<5} {ran[1]:5}/{self.branches:<5} {self.percent:6.1f}"
        return f"{name:<28} {shown}{'' if floor is None else f'  ≥ {floor}'}"


def room_of(file: str) -> str:
    """Return the room of a file: `arc_agent/guard`, `arc_agent`, or a file with a floor."""
    package, *rest = Path(file).parts
    return file if file in FLOORS else f"{package}/{rest[0]}" if len(rest) > 1 else package


def measure(arguments: list[str]) -> int:
    """Run the tests under coverage, and return pytest's exit code."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    run = [sys.executable, "-m", "coverage", "run", "-m", "pytest", *arguments]
    return subprocess.run(run, cwd=ROOT, check=False).returncode


def read_rooms() -> dict[str, Room]:
    """Combine the data of all processes, and return the rooms by name."""
    report = DATA / "coverage.json"
    for command in (["combine", "--quiet"], ["json", "--quiet", "-o", str(report)]):
        subprocess.run([sys.executable, "-m", "coverage", *command], cwd=ROOT, check=True)
    rooms: dict[str, Room] = {}
    for file, measured in json.loads(report.read_text())["files"].items():
        rooms.setdefault(room_of(file), Room()).add(measured["summary"])
    return dict(sorted(rooms.items()))


def main() -> int:
    """Measure, print the table, and return the exit code."""
    arguments = [word for word in sys.argv[1:] if word != "--floors-only"]
    ended = measure(arguments)
    rooms = read_rooms()
    print(f"\n{'room':<28} {'statements':>11} {'branches':>11} {'percent':>8}")
    for name, room in rooms.items():
        print(room.line(name))
    below = [
        name for name, floor in FLOORS.items() if name not in rooms or rooms[name].percent < floor
    ]
    if below:
        print(f"\nbelow the floor: {', '.join(below)}")
    if "--floors-only" in sys.argv:
        ended = 0
    return ended or bool(below)


if __name__ == "__main__":
    sys.exit(main())
