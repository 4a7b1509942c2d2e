"""The sampler shows where the main thread of a program spends its CPU time.

It runs an ARC program in its own process and takes the stack of the main thread by a timer that
counts this thread's CPU time alone. A thread that samples would see the main thread only where it
lets go of the interpreter, and cProfile makes small functions look large. SIGUSR1 forgets what was
seen so far; SIGUSR2 writes the stacks to a file, one a line with its number of samples.

    DIR/python benchmarks/sampling.py FILE arc-agent run --config agent.yaml
"""

from __future__ import annotations

import atexit
import ctypes
import signal
import sys
import threading
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Final

INTERVAL_SECONDS: Final = 0.001
"""The interval to ask for. The kernel counts in its own ticks, of 1 to 10 ms."""
_CLOCK_THREAD_CPUTIME_ID: Final = 3
_SIGEV_THREAD_ID: Final = 4


class _Sigevent(ctypes.Structure):
    """`struct sigevent` of Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread_id", ctypes.c_int),
        ("padding", ctypes.c_char * 44),
    )


class _Itimerspec(ctypes.Structure):
    """`struct itimerspec` of Linux."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("first_seconds", ctypes.c_long),
        ("first_nanoseconds", ctypes.c_long),
    )


class Sampler:
    """The sampler counts how often each stack of the main thread is seen."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._samples: Counter[tuple[str, ...]] = Counter()

    def start(self) -> None:
        """Take samples from now on. Call in the main thread. Raises OSError."""
        signal.signal(signal.SIGPROF, self._take)
        signal.signal(signal.SIGUSR1, lambda *_: self._samples.clear())
        signal.signal(signal.SIGUSR2, lambda *_: self._write())
        # The interpreter gives its handlers up before the timer ends, and SIGPROF kills by default.
        atexit.register(signal.signal, signal.SIGPROF, signal.SIG_IGN)
        libc = ctypes.CDLL(None, use_errno=True)
        event = _Sigevent(
            signo=signal.SIGPROF, notify=_SIGEV_THREAD_ID, thread_id=threading.get_native_id()
        )
        timer = ctypes.c_void_p()
        nanoseconds = int(INTERVAL_SECONDS * 1e9)
        setting = _Itimerspec(0, nanoseconds, 0, nanoseconds)
        if libc.timer_create(
            _CLOCK_THREAD_CPUTIME_ID, ctypes.byref(event), ctypes.byref(timer)
        ) or libc.timer_settime(timer, 0, ctypes.byref(setting), None):
            raise OSError(ctypes.get_errno(), "no timer of a thread's CPU time")

    def _take(self, _: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None:
            code = frame.f_code
            stack.append(f"{frame.f_globals.get('__name__', '?')}:{code.co_qualname}")
            frame = frame.f_back
        self._samples[tuple(reversed(stack))] += 1

    def _write(self) -> None:
        seen = list(self._samples.items())  # in one step: the next sample is taken meanwhile
        lines = (f"{';'.join(stack)} {count}\n" for stack, count in seen)
        part = self._file.with_suffix(".part")
        part.write_text("".join(lines))
        part.rename(self._file)  # whole or not at all: the benchmark waits for it


def main() -> None:
    """Run the program that is named after the file, with the arguments that follow."""
    _, file, name, *arguments = sys.argv
    [program] = entry_points(group="console_scripts", name=name)
    run = program.load()
    sys.argv = [name, *arguments]
    Sampler(Path(file)).start()
    run()


if __name__ == "__main__":
    main()
