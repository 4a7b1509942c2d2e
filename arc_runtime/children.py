"""Children of a program: the processes that it forks, among them those of `multiprocessing`.

A forked child shares its parent's wake-up descriptor and has its signal handlers. Without these
rules a SIGTERM for the child wakes the parent's event loop, which takes the signal for its own.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any, Final, NoReturn

_OWN_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""The signals that the programs handle in their event loops."""
_PASSED_ON: Final = _OWN_SIGNALS | {signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_OFF: Final = -1
_STDIN: Final = 0
_SIGNALLED: Final = 128
"""The number that a shell adds to that of the signal that ended a process."""


@cache
def keep_signals_apart() -> None:
    """Let no signal for a forked child reach this process. Call it once the loop has its handlers.

    In children SIGTERM, SIGINT and SIGHUP are at their defaults.
    """
    forks = _Forks()
    os.register_at_fork(
        before=forks.before, after_in_parent=forks.after, after_in_child=forks.after_in_child
    )


def keep_exit_statuses() -> None:
    """Have the kernel keep the exit statuses of children, even if SIGCHLD was inherited ignored."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def go_on_under_init() -> None:
    """Go on in a child; this process stays as its init, which reaps orphans and passes signals on.

    For PID 1 of a container: the kernel gives it every orphan. It ends with the child's status. The
    program itself cannot reap them: it would take the statuses that handlers wait for.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD, signal.SIGTTOU})
    child = os.fork()
    if child:
        _be_init(child)
    os.setpgid(0, 0)  # or the child would get Ctrl-C from the terminal and from its init
    with suppress(OSError):  # no terminal
        os.tcsetpgrp(_STDIN, os.getpgrp())
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _be_init(child: int) -> NoReturn:
    """Reap all processes and pass signals on to the child until it ends."""
    keep_exit_statuses()
    while True:
        number = signal.sigwait(_PASSED_ON | {signal.SIGCHLD})
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    code = os.waitstatus_to_exitcode(ended[1])
                    os._exit(code if code >= 0 else _SIGNALLED - code)


class _Forks(threading.local):
    """Forks hold signals back until the child has its own handlers. Each thread has its state."""

    def __init__(self) -> None:
        self._mask: Iterable[Any] = ()

    def before(self) -> None:
        """Hold the signals of this thread back: the child starts with the parent's handlers."""
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OWN_SIGNALS)

    def after(self) -> None:
        """Let signals through again."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def after_in_child(self) -> None:
        """Cut the child off from the parent's event loop, then let signals through again."""
        signal.set_wakeup_fd(_OFF)
        for number in _OWN_SIGNALS:
            # SIGINT too: a KeyboardInterrupt would unwind the parent's code in the child.
            signal.signal(number, signal.SIG_DFL)
        self.after()
