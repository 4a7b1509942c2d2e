"""The terminal of a server or an agent is closed while the program runs in it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import BIN, NO_BALLAST
from tests.support.waiting import wait_until

SERVE = (str(BIN / "arc-server"), "serve", "--listen", "127.0.0.1:0", "--no-auth", "--data-dir")
RUN = (
    str(BIN / "arc-agent"), "run", "--server", "http://127.0.0.1:9", "--deployment", "d",
    "--data-dir",
)  # fmt: skip
HAS_SIGNALS = {SERVE: "server.ready", RUN: "contact.lost"}
"""The event that a program logs once it handles signals."""
STOPPED = {SERVE: "server.stopped", RUN: "stopped"}
RELOADED = {SERVE: "server.reloaded", RUN: "reload.done"}

both = pytest.mark.parametrize("program", [SERVE, RUN], ids=["server", "agent"])


class Window:
    """A terminal, and the program that runs in it, which logs to a file."""

    def __init__(self, log: Path, *command: str | Path) -> None:
        self.log = log
        self._master, terminal = pty.openpty()
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                ["env", "--default-signal=HUP", "setsid", "--ctty", *command],
                stdin=terminal,
                stdout=terminal,
                stderr=errors,
                env=os.environ | NO_BALLAST,
            )
        os.close(terminal)

    def close(self) -> None:
        os.close(self._master)

    def wait_for(self, event: str) -> None:
        wait_until(lambda: f'"event": "{event}"' in self.log.read_text())


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[Window]]:
    windows: list[Window] = []
    yield windows
    for each in windows:
        each.process.kill()
        each.process.wait()


@both
def test_a_program_ends_with_its_terminal(
    opened: list[Window], tmp_path: Path, program: tuple[str, ...]
) -> None:
    opened.append(window := Window(tmp_path / "log", *program, tmp_path / "data"))
    window.wait_for(HAS_SIGNALS[program])

    window.close()

    assert window.process.wait(30) == 0
    window.wait_for(STOPPED[program])


@both
def test_a_program_that_ignores_hang_ups_outlives_its_terminal_and_is_still_reloaded(
    opened: list[Window], tmp_path: Path, program: tuple[str, ...]
) -> None:
    ignoring = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")  # as nohup does
    opened.append(window := Window(tmp_path / "log", *ignoring, *program, tmp_path / "data"))
    window.wait_for(HAS_SIGNALS[program])

    window.close()

    window.wait_for(RELOADED[program])
    assert window.process.poll() is None


@both
def test_a_program_in_its_terminal_is_reloaded_by_a_signal(
    opened: list[Window], tmp_path: Path, program: tuple[str, ...]
) -> None:
    opened.append(window := Window(tmp_path / "log", *program, tmp_path / "data"))
    window.wait_for(HAS_SIGNALS[program])

    window.process.send_signal(signal.SIGHUP)

    window.wait_for(RELOADED[program])
    window.close()
