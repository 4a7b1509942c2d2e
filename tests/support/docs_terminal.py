"""A terminal of 80 columns with a shell, into which the examples of a page are typed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

COLUMNS = 80  # what rich takes for a terminal that is dumb
LIMIT_SECONDS = 60.0
"""Reached only by a command that hangs."""
_END = r"printf '\036%d\036' $?"
_LOOP = f"while IFS= read -r -d '' typed <&3; do\n  eval \"$typed\" </dev/null 3<&-; {_END}\ndone"
_ENDED = re.compile("\036(\\d+)\036")


class Screen:
    """A pseudo-terminal that keeps all that programs write to it.

    `TERM=dumb` in their environment leaves colours and moving parts out.
    """

    def __init__(self) -> None:
        self.text = ""
        self._changed = threading.Condition()
        self._ours, self._theirs = pty.openpty()
        self.path = os.ttyname(self._theirs)
        attributes = termios.tcgetattr(self._theirs)
        attributes[1] &= ~termios.OPOST  # a line ends in a line feed alone
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(self._theirs, termios.TCSANOW, attributes)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, pattern: re.Pattern[str], start: int = 0) -> re.Match[str]:
        """Wait until the text after `start` has a match, and return it."""
        with self._changed:
            found = self._changed.wait_for(lambda: pattern.search(self.text, start), LIMIT_SECONDS)
        assert found, f"{pattern.pattern!r} did not come: {self.text[start:]}"
        return found

    def close(self) -> None:
        """Free the terminal. Call once its programs have ended."""
        os.close(self._theirs)
        self._reader.join()
        os.close(self._ours)

    def _read(self) -> None:
        whole = b""
        while True:
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # its last program has ended
                return
            whole += part
            with self._changed:
                self.text = whole.decode("utf-8", "replace")
                self._changed.notify_all()


@dataclass(frozen=True)
class Background:
    """A command in the background: its process group and its screen."""

    group: int
    screen: Screen

    @property
    def text(self) -> str:
        """Return what it has written so far, and its exit code if it has ended."""
        return _ENDED.sub(r"[exit code \1]\n", self.screen.text)


class Shell:
    """A shell that runs one command after the other, some of them in the background."""

    def __init__(self, place: Path, environ: Mapping[str, str]) -> None:
        self.screen = Screen()
        self._screens = [self.screen]
        self._running: list[Background] = []
        commands, self._commands = os.pipe()
        terminal = os.open(self.screen.path, os.O_RDWR | os.O_NOCTTY)
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec 3<&{commands} {commands}<&-\n{_LOOP}"],
            cwd=place,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            pass_fds=(commands,),
            start_new_session=True,
        )
        os.close(commands)
        os.close(terminal)

    def run(self, command: str) -> tuple[str, int]:
        """Run a command to its end; return what it wrote, and its exit code."""
        start = len(self.screen.text)
        os.write(self._commands, command.encode() + b"\0")
        ended = self.screen.until(_ENDED, start)
        return self.screen.text[start : ended.start()], int(ended[1])

    def start(self, command: str, ready: re.Pattern[str]) -> Background:
        """Run a command in the background, on a terminal of its own, and wait until it is ready."""
        screen = Screen()
        self._screens.append(screen)
        place = screen.path
        job = f"{{ {command.strip()}\n{_END}; }} </dev/null >{place} 2>&1 3<&- &"
        text, code = self.run(f"set -m; {job}\nset +m; echo $!")  # a process group of its own
        assert not code, text
        background = Background(int(text), screen)
        self._running.append(background)
        screen.until(re.compile(f"{ready.pattern}|{_ENDED.pattern}", re.MULTILINE))
        return background

    def stop(self, background: Background) -> None:
        """End a command in the background as Ctrl-C would, and wait for its end."""
        self._running.remove(background)
        self.run(f"kill -INT -- -{background.group}; wait {background.group}")

    def close(self) -> None:
        """End the shell and all that it has started."""
        os.close(self._commands)
        for group in (*(each.group for each in self._running), self._process.pid):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self._process.wait()
        for screen in self._screens:
            screen.close()
