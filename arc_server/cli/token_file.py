"""The place that a new token is written to, once: standard output, or a file of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer

from arc_server.app import CannotStart

_MODE: Final = 0o600

OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the token to this new file")
]


@contextmanager
def token_output(out: Path | None) -> Generator[Callable[[str], None]]:
    """Yield a function that writes the token, to the file `out` if one is given.

    The file is made first, for its owner alone, so that no token is made that cannot be kept. It
    is removed when the block fails. Raises CannotStart if it exists or cannot be made.
    """
    if out is None:
        yield lambda text: _write(sys.stdout, text)
        return
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    except FileExistsError:
        raise CannotStart(f"--out: {out} exists, and is not overwritten") from None
    except OSError as error:
        raise CannotStart(f"--out: {out}: {error.strerror}") from None
    with open(descriptor, "w") as file:
        try:
            yield lambda text: _write(file, text)
            os.fsync(descriptor)
        except BaseException:
            out.unlink(missing_ok=True)
            raise


def _write(file: TextIO, text: str) -> None:
    """Write a line and flush it. Raises OSError."""
    file.write(f"{text}\n")
    file.flush()
