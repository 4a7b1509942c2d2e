"""The output of the commands: results on standard output, errors on standard error, exit codes.

docs/operating.md, Exit codes, lists what each code means.
"""

from __future__ import annotations

import sys
from typing import Final

from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.text import json_for_terminal, printable
from arc_runtime.terminal.wrapping import wrapped

DONE: Final = 0
NO: Final = 1
"""The command failed, or its answer is no."""
UNUSABLE: Final = 2
"""The command line or the configuration is wrong: systemd does not start the unit again."""
NOT_THERE: Final = 3
NOT_ALLOWED: Final = 4


def begin_log() -> None:
    """Log in the log's own format, until the configuration says more. Call it before handlers load.

    structlog's own default shows the local variables of every frame, which may be secrets.
    """
    from arc_runtime.startup.light_imports import import_structlog

    import_structlog()  # before all modules that import it: the light way saves memory
    from arc_runtime.logs import setup

    setup.configure()


def show(text: str) -> None:
    """Write a line of the result, with its control characters escaped."""
    sys.stdout.write(f"{printable(text)}\n")


def show_sentence(text: str, *, indent: int = 2) -> None:
    """Write a line of the result that a terminal wraps, further lines indented by `indent`."""
    sys.stdout.write(f"{wrapped(printable(text), sys.stdout, indent=indent)}\n")


def show_json(text: str) -> None:
    """Write JSON as a line of the result, or as several."""
    show(json_for_terminal(text))


def log_line(text: str) -> None:
    """Write a line to standard error, or several."""
    sys.stderr.write(f"{printable(text)}\n")


def note(text: str) -> None:
    """Write a sentence to standard error, which a terminal wraps."""
    log_line(wrapped(text, sys.stderr))


def fail(code: int, error: str | Exception) -> int:
    """Write an error in the house's form, and return the exit code."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without `[Errno 2]`
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print_error(text)
    return code
