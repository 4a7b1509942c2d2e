"""The clock that leases are counted on: monotonic, and going on while the machine sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable

MonotonicClock = Callable[[], float]
"""Seconds since some fixed moment; never goes back."""


def boot_seconds() -> float:
    """Seconds since boot, suspended time included: a lease also runs out in a sleeping machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
