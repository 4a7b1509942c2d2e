"""A profile names the functions to which the main thread's CPU time goes.

It reads the stacks of benchmarks/sampling.py, one a line with its number of samples.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

LOOP: Final = "asyncio.events:Handle._run"
"""Below it stands what the event loop was running: a step of a task, or a callback."""
OURS: Final = "arc_"
_ENTRY: Final = ("arc_agent.cli", "arc_agent.__main__")


def report(samples: str, most: int) -> str:
    """Return three tables: by task, by the innermost function of ARC's own, by function."""
    tasks: Counter[str] = Counter()
    owners: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in samples.splitlines():
        text, _, number = line.rpartition(" ")
        stack, count = text.split(";"), int(number)
        tasks[_task(stack)] += count
        owners[_owner(stack)] += count
        for function in set(stack[_below_loop(stack) :]):
            functions[function] += count
    total = sum(tasks.values())
    return "\n".join(
        f"  {title} ({total} samples)\n" + _table(counts, total, most)
        for title, counts in (
            ("task or callback of the event loop", tasks),
            ("innermost function of ARC's own, with the libraries that it calls", owners),
            ("function, with all that it calls", functions),
        )
    )


def _table(counts: Counter[str], total: int, most: int) -> str:
    return "\n".join(
        f"    {count / total:6.1%}  {name}" for name, count in counts.most_common(most)
    )


def _below_loop(stack: list[str]) -> int:
    return stack.index(LOOP) + 1 if LOOP in stack else len(stack) - 1


def _task(stack: list[str]) -> str:
    place = _below_loop(stack)
    return stack[place] if place < len(stack) and LOOP in stack else f"the loop: {stack[-1]}"


def _owner(stack: list[str]) -> str:
    own = (name for name in reversed(stack) if name.startswith(OURS))
    found = next((name for name in own if not name.startswith(_ENTRY)), None)
    return found or f"the loop: {stack[-1]}"
