"""The clock of leases: monotonic, and running while the machine is suspended."""

from __future__ import annotations

import time
from collections.abc import Callable

MonotonicClock = Callable[[], float]
"""Returns seconds since a fixed moment; never goes back."""


def boot_seconds() -> float:
    """Return seconds since boot. Suspended time counts: a lease lapses in it, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
