"""A profile names the functions to which the main thread's CPU time goes.

It reads the stacks of benchmarks/sampling.py, one a line with its number of samples.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

LOOPS: Final = ("asyncio.events:Handle._run", "asyncio.runners:Runner.run")
"""Below one of them stands what the event loop was running: a step of a task, or a callback. uvloop
has no frames of its own, so the second stands for it."""
OURS: Final = "arc_"


def report(samples: str, most: int) -> str:
    """Return three tables: by task, by the innermost function of ARC's own, by function."""
    tasks: Counter[str] = Counter()
    owners: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in samples.splitlines():
        text, _, number = line.rpartition(" ")
        stack, count = _below_loop(text.split(";")), int(number)
        own = [function for function in stack if function.startswith(OURS)]
        tasks[stack[0]] += count
        owners[own[-1] if own else stack[0]] += count
        for function in set(stack):
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


def _below_loop(stack: list[str]) -> list[str]:
    for loop in LOOPS:
        if loop in stack[:-1]:
            below = stack[stack.index(loop) + 1 :]
            is_loop = below[0].startswith("asyncio.base_events:")
            return [f"the loop: {below[-1]}"] if is_loop else below
    return [f"the loop: {stack[-1]}"]
