"""This benchmark measures whole commands, from invoke to result: server, agent and library.

Each case is measured beside the trivial route of the same server in the same second: CPU time is
quoted in requests of that route, rates as a share of its rate. With several `--programs` all cases
are measured in turns, so that before and after see the same machine.

    python benchmarks/end_to_end.py [--seconds 3] [--rounds 1] [--json FILE]
    python benchmarks/end_to_end.py --handlers async --at-once 64 --waiting --profile
    python benchmarks/end_to_end.py --programs before=DIR --programs after=DIR --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import stacks, trivial, waiting
from benchmarks.programs import Programs, Trio, trio

HANDLERS: Final = ("async", "sync", "exec")
REST: Final = 0
"""The `--at-once` that means one at a time, with pauses."""
REST_COMMANDS_PER_SECOND: Final = 30
"""How many commands at rest stand for one of `--seconds`: enough for a p99 in a few seconds."""
REST_PAUSE_SECONDS: Final = 0.02
"""Longer than what an agent does after it has responded."""
MAX_CONCURRENT: Final = 64
"""Slots of the agent. The default of 4 is for handlers that work; these only measure the rest."""
WAITING_AT_ONCE: Final = 64
WARM_UP_SECONDS: Final = 0.5
TRIVIAL_SECONDS: Final = 1.0
GOAL_UNIT_MICROS: Final = 1e6 / 12_400
"""The trivial route's CPU time in the measurement that the goals come from: 12,400 a second on a
core of its own, by benchmarks/lifecycle.py."""
QUIET_SHARE: Final = 0.1
QUIET_LOOK_SECONDS: Final = 0.5
QUIET_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Case:
    """A case is a handler, how many run at once, and how much waits in the spool meanwhile."""

    handler: str
    at_once: int
    waiting: int | None = None

    @property
    def name(self) -> str:
        """Return the name of the case in the report."""
        load = "at rest" if self.at_once == REST else f"{self.at_once} at once"
        wait = "" if self.waiting is None else f", {self.waiting:,} in the spool"
        return f"{self.handler}, {load}{wait}"


@dataclass(frozen=True)
class Row:
    """A row is one measurement. CPU times are microseconds for one command."""

    programs: str
    case: str
    turn: int
    commands: int
    per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu: float
    agent_cpu: float
    agent_main_cpu: float
    """Of `agent_cpu`, that of its main thread."""
    sender_cpu: float
    started_cpu: float
    """Of the programs that the agent started."""
    trivial_per_second: float
    trivial_cpu: float
    load_average: float

    @property
    def share(self) -> float:
        """Return the rate as a share of the trivial route's."""
        return self.per_second / self.trivial_per_second


@dataclass(frozen=True)
class Memory:
    """Memory of an agent at rest, before its first command and after the last."""

    programs: str
    before_mib: float
    after_mib: float


@dataclass
class Results:
    """Results of a whole run."""

    rows: list[Row]
    memory: list[Memory]

    def add(self, row: Row) -> None:
        """Keep a row, and show on standard error that it is there."""
        self.rows.append(row)
        print(
            f"{row.programs}: {row.case}: {row.per_second:.0f}/s, load {row.load_average:.1f}",
            file=sys.stderr,
        )


async def measure(at: Trio, case: Case, turn: int, options: argparse.Namespace) -> Row:
    """Measure one case, and the trivial route just before."""
    command = f"bench.{case.handler}"
    warm_up_seconds = min(WARM_UP_SECONDS, options.seconds)
    await at.send(command=command, at_once=case.at_once or 1, seconds=warm_up_seconds)
    unit = await trivial.measure(
        at.url, at.server, min(TRIVIAL_SECONDS, options.seconds), options.trivial_at_once
    )
    at.forget_samples()
    meters: tuple[Callable[[], float], ...] = (
        lambda: at.server.cpu_seconds,
        lambda: at.agent.cpu_seconds,
        lambda: at.agent.main_thread_cpu_seconds,
        lambda: at.sender.cpu_seconds,
        lambda: at.agent.children_cpu_seconds,
    )
    before = [meter() for meter in meters]
    if case.at_once == REST:
        count = max(10, int(options.seconds * REST_COMMANDS_PER_SECOND))
        answer = await at.send(command=command, at_once=1, count=count, pause=REST_PAUSE_SECONDS)
    else:
        answer = await at.send(command=command, at_once=case.at_once, seconds=options.seconds)
    used = [meter() - first for meter, first in zip(meters, before, strict=True)]
    latencies = sorted(answer["latencies"])
    count = len(latencies)
    if options.profile:
        print(f"{at.programs.name}: {case.name}\n{stacks.report(await at.samples(), options.top)}")
    return Row(
        at.programs.name,
        case.name,
        turn,
        count,
        count / answer["took"],
        latencies[count // 2] * 1000,
        latencies[min(count - 1, int(0.99 * count))] * 1000,
        *(seconds / count * 1e6 for seconds in used),
        unit.per_second,
        unit.cpu_micros,
        os.getloadavg()[0],
    )


async def quiet(at: Trio) -> None:
    """Wait until the agent has nothing to do."""
    async with asyncio.timeout(QUIET_SECONDS):
        share = 1.0
        while share > QUIET_SHARE:
            used = at.agent.cpu_seconds
            await asyncio.sleep(QUIET_LOOK_SECONDS)
            share = (at.agent.cpu_seconds - used) / QUIET_LOOK_SECONDS


async def under_load(scratch: Path, results: Results, options: argparse.Namespace) -> None:
    """Measure all cases, each with one programs after the other."""
    cases = [Case(handler, at_once) for handler in options.handlers for at_once in options.at_once]
    before: list[float] = []
    async with AsyncExitStack() as stack:
        trios = [
            await stack.enter_async_context(
                trio(
                    programs,
                    scratch / f"load-{number}",
                    max_concurrent=options.max_concurrent,
                    sampled=options.profile,
                )
            )
            for number, programs in enumerate(options.programs)
        ]
        for at in trios:
            await quiet(at)
            before.append(at.agent.resident_bytes / 2**20)
        for turn in range(options.rounds):
            for case in cases:
                for at in trios:
                    results.add(await measure(at, case, turn, options))
        results.memory += [
            Memory(at.programs.name, mib, at.agent.resident_bytes / 2**20)
            for at, mib in zip(trios, before, strict=True)
        ]


async def with_waiting(scratch: Path, results: Results, options: argparse.Namespace) -> None:
    """Measure agents in whose spools responses wait that cannot be delivered."""
    async with AsyncExitStack() as stack:
        store_url = await stack.enter_async_context(waiting.store_that_hangs())
        trios = [
            (
                count,
                await stack.enter_async_context(
                    trio(
                        programs,
                        scratch / f"waiting-{count}-{number}",
                        max_concurrent=options.max_concurrent,
                        sampled=options.profile,
                    )
                ),
            )
            for count in options.waiting
            for number, programs in enumerate(options.programs)
        ]
        async with asyncio.TaskGroup() as starting:  # each tries to deliver first, for a while
            for count, at in trios:
                starting.create_task(start_again(at, count, store_url))
        for turn in range(options.rounds):
            for count, at in trios:
                case = Case("async", WAITING_AT_ONCE, count)
                results.add(await measure(at, case, turn, options))
                if waiting.count(at.agent_directory) < count:
                    raise SystemExit("responses that were to wait were delivered")


async def start_again(at: Trio, count: int, store_url: str) -> None:
    """Stop the agent, put responses into its spool, and start it again."""
    await at.agent.stop()
    waiting.fill(at.agent_directory, count, store_url)
    await at.start_agent()
    await quiet(at)


@dataclass(frozen=True)
class Summary:
    """A summary joins the rounds of one case with one programs: the median of each figure."""

    rows: list[Row]

    def median(self, figure: Callable[[Row], float]) -> float:
        """Return the median of a figure."""
        return statistics.median(map(figure, self.rows))

    def units(self, figure: Callable[[Row], float]) -> float:
        """Return the median of a CPU time, in requests of the trivial route."""
        return self.median(lambda row: figure(row) / row.trivial_cpu)

    def goal_units(self, figure: Callable[[Row], float]) -> float:
        """Return the median of a CPU time, in the unit in which the goals were set."""
        return self.median(figure) / GOAL_UNIT_MICROS

    def goal_line(self) -> str:
        """Return the line of the second table: the goals' unit."""
        return (
            f"{self.rows[0].case:40} {self.rows[0].programs:10}"
            f" {self.median(lambda row: row.per_second) * GOAL_UNIT_MICROS / 1e6:7.3f}"
            f" {self.goal_units(lambda row: row.agent_cpu):7.1f}"
            f" {self.goal_units(lambda row: row.agent_main_cpu):7.1f}"
            f" {self.goal_units(lambda row: row.server_cpu):7.1f}"
            f" {self.goal_units(lambda row: row.sender_cpu):7.1f}"
        )

    def line(self) -> str:
        """Return the line of the table."""
        return (
            f"{self.rows[0].case:40} {self.rows[0].programs:10}"
            f" {self.median(lambda row: row.per_second):7.0f}"
            f" {self.median(lambda row: row.share):7.3f}"
            f" {self.median(lambda row: row.p50_ms):7.1f}"
            f" {self.median(lambda row: row.p99_ms):7.1f}"
            f" {self.units(lambda row: row.agent_cpu):7.1f}"
            f" {self.units(lambda row: row.agent_main_cpu):7.1f}"
            f" {self.units(lambda row: row.server_cpu):7.1f}"
            f" {self.units(lambda row: row.sender_cpu):7.1f}"
            f" {self.units(lambda row: row.started_cpu):7.1f}"
        )


def summaries(rows: list[Row]) -> Iterator[Summary]:
    """Join the rows of each case and programs, in the order of the first round."""
    together: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        together.setdefault((row.case, row.programs), []).append(row)
    yield from map(Summary, together.values())


def report(results: Results, options: argparse.Namespace) -> None:
    """Print the tables."""
    unit = Summary(results.rows)
    print(
        f"trivial route: {unit.median(lambda row: row.trivial_per_second):.0f} a second,"
        f" {unit.median(lambda row: row.trivial_cpu):.1f} µs of the server's CPU each: the unit of"
        f" the CPU columns; medians of {options.rounds} rounds;"
        f" the agent has {options.max_concurrent} slots"
    )
    columns = ("per s", "share", "p50 ms", "p99 ms", "agent", "(main)", "server", "sender", "child")
    print(f"{'what':40} {'programs':10}" + "".join(f" {column:>7}" for column in columns))
    for summary in summaries(results.rows):
        print(summary.line())
    print(f"the same in requests of {GOAL_UNIT_MICROS:.0f} µs, the unit of the goals:")
    goal_columns = ("share", "agent", "(main)", "server", "sender")
    print(f"{'what':40} {'programs':10}" + "".join(f" {column:>7}" for column in goal_columns))
    for summary in summaries(results.rows):
        print(summary.goal_line())
    compare_waiting(results.rows)
    for memory in results.memory:
        print(
            f"{memory.programs}: the agent at rest has {memory.before_mib:.1f} MiB in memory,"
            f" {memory.after_mib:.1f} MiB after all that"
        )


def compare_waiting(rows: list[Row]) -> None:
    """Print what a command costs the agent with much in the spool, against little."""
    waited: dict[str, list[Summary]] = {}
    for summary in summaries([row for row in rows if "in the spool" in row.case]):
        waited.setdefault(summary.rows[0].programs, []).append(summary)
    for programs, (least, *more) in waited.items():
        for summary in more:
            ratio = summary.units(lambda row: row.agent_cpu) / least.units(
                lambda row: row.agent_cpu
            )
            print(
                f"{programs}: {summary.rows[0].case}: a command costs the agent {ratio:.2f} x"
                f" that of {least.rows[0].case}"
            )


async def run(results: Results, options: argparse.Namespace) -> None:
    """Measure everything that was asked for."""
    with tempfile.TemporaryDirectory(prefix="arc-bench-") as scratch:
        if options.handlers and options.at_once:
            await under_load(Path(scratch), results, options)
        if options.waiting:
            await with_waiting(Path(scratch), results, options)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(sys.executable).parent
    parser.add_argument(
        "--programs",
        type=Programs.parse,
        action="append",
        metavar="[NAME=]DIR",
        help="the bin directory of a virtual environment; repeat to compare (default: this one's)",
    )
    parser.add_argument("--handlers", nargs="*", choices=HANDLERS, default=list(HANDLERS))
    parser.add_argument(
        "--at-once",
        type=int,
        nargs="*",
        default=[REST, 1, 16, 64, 256],
        help="how many commands go on at once; 0: one at a time, with pauses",
    )
    parser.add_argument(
        "--waiting",
        type=int,
        nargs="*",
        default=[1, 10_000],
        help="how many responses wait in the spool; without a number that part is left out",
    )
    parser.add_argument("--seconds", type=float, default=3, help="how long each case takes")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--trivial-at-once",
        type=int,
        default=trivial.CONNECTIONS,
        metavar="CONNECTIONS",
        help="how many connections drive the trivial route",
    )
    parser.add_argument("--max-concurrent", type=int, default=MAX_CONCURRENT, metavar="SLOTS")
    parser.add_argument(
        "--profile",
        nargs="?",
        choices=("arc-agent", "arc-server"),
        const="arc-agent",
        help="show where the main thread of a program spends its CPU time (default: the agent)",
    )
    parser.add_argument("--top", type=int, default=25, help="how long the profile's tables are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    options = parser.parse_args()
    options.programs = options.programs or [Programs("here", here)]
    return options


def main() -> None:
    """Parse, run, print."""
    options = parse()
    try:
        import uvloop

        runner: Callable[..., None] = uvloop.run
    except ImportError:
        runner = asyncio.run
    results = Results([], [])
    try:
        runner(run(results, options))
    finally:  # what was measured before an interrupt or a failure is worth having
        if results.rows:
            report(results, options)
            if options.json is not None:
                options.json.write_text(json.dumps(asdict(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
