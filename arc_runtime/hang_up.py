"""The end of the terminal that a daemon was started in, which comes as a SIGHUP like a reload.

A person who closes the window means the program too. It would go on unseen otherwise, and hold its
port and its data directory.
"""

from __future__ import annotations

import os
import signal


class HangUp:
    """The hang-up of the controlling terminal, as far as the process heeds it.

    Make it before SIGHUP gets a handler: a process under nohup ignores it, and goes on.
    """

    def __init__(self) -> None:
        self._is_heeded = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    def has_come(self) -> bool:
        """Return True if a SIGHUP means that the terminal is gone."""
        return self._is_heeded and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
