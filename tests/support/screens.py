"""Screens of the programs: on terminals of 80 and 120 columns and in a pipe, kept as golden files.

To add a screen, write a test that calls

    check_screens(GOLDEN / "arc-list.txt", [*ARC, "list"], environment(server.url), ids=[...])

(from a test with an event loop of its own: `await asyncio.to_thread(check_screens, ...)`), run it
once with ARC_WRITE_SCREENS=1, and read the new file as a person would. `ids` are all ids that may
be on the screen: none may be cut or wrapped, and each stands in the golden file as another of the
same length. `volatile` replaces other text that differs between runs. Give things ages of minutes:
seconds are not compared, and a table is laid out by what its cells hold.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from difflib import unified_diff
from pathlib import Path

from arc_runtime.terminal.text import width_of
from tests.support.warm_programs import Run, program_of, run, start

WIDTHS = (80, 120)
LIMIT_SECONDS = 60
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_SECONDS = re.compile(r"\b(?:now|\d+s ago)\b *")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d([ T])\d\d:\d\d:\d\d([+]00:00|Z)")
_LEAST_OF_ID = 6
"""So much of an id is an id that must be whole."""


def check_screens(
    golden: Path,
    command: Sequence[str | Path],
    environ: Mapping[str, str],
    *,
    ids: Sequence[str] = (),
    volatile: Mapping[str, str] | None = None,
    fits: bool = True,
) -> None:
    """Run a program on terminals and in a pipe, and compare its screens with a golden file.

    `fits`: no line may be longer than the terminal is wide.
    """
    screens = {f"{width} columns": on_terminal(command, environ, width) for width in WIDTHS}
    screens["a pipe"] = in_pipe(command, environ)
    assert "\x1b" not in screens["a pipe"], "colours in a pipe"
    text = f"$ {_typed(command)}\n"
    for name, shown in screens.items():
        shown = _STYLE.sub("", shown)
        assert "\x1b" not in shown, (name, shown)
        check_whole(shown, ids)
        if fits and name != "a pipe":
            width = int(name.split()[0])
            long = [line for line in shown.splitlines() if width_of(line) > width]
            assert not long, (name, long)
        text += f"\n──── {name}\n{_steady(shown, ids, volatile or {})}"
    if os.environ.get("ARC_WRITE_SCREENS"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert golden.exists(), f"{golden} is missing: ARC_WRITE_SCREENS=1 writes it"
    changes = "\n".join(
        unified_diff(golden.read_text().splitlines(), text.splitlines(), lineterm="")
    )
    assert not changes, f"{golden} differs; ARC_WRITE_SCREENS=1 writes it anew\n{changes}"


def on_terminal(command: Sequence[str | Path], environ: Mapping[str, str], width: int) -> str:
    """Run a program on a terminal of its own; what it shows there, colours and all."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    ours_to_run, given = program_of(command), _environment(environ)
    process: Run | subprocess.Popen[bytes]
    if ours_to_run is not None:
        process = start(*ours_to_run, given, [theirs] * 3)
    else:
        process = subprocess.Popen(
            [*map(str, command)],
            env=given,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
    os.close(theirs)
    shown = b""
    try:
        while data := _read(ours):
            shown += data
        code = process.wait(LIMIT_SECONDS)
    finally:
        process.kill()
        os.close(ours)
    return shown.decode().replace("\r\n", "\n") + _end(code)


def in_pipe(command: Sequence[str | Path], environ: Mapping[str, str]) -> str:
    """Run a program in pipes; what it writes to stdout, then what to stderr."""
    ours_to_run = program_of(command)
    given = _environment(environ) | {"COLUMNS": "40"}  # which makes a difference to help only
    if ours_to_run is not None:
        ended = run(*ours_to_run, given, LIMIT_SECONDS)
    else:
        ended = subprocess.run(
            [*map(str, command)],
            env=given,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=LIMIT_SECONDS,
        )
    shown = f"── stderr\n{ended.stderr}" if ended.stderr else ""
    return ended.stdout + shown + _end(ended.returncode)


def check_whole(shown: str, ids: Sequence[str]) -> None:
    """Assert that every id on a screen is whole."""
    for each in ids:
        start = each[: max(_LEAST_OF_ID, len(each) - 12)]
        others = [other for other in ids if other.startswith(start)]
        for found in re.finditer(re.escape(start), shown):
            rest = shown[found.start() :]
            assert any(rest.startswith(other) for other in others), f"cut: {rest[:60]!r}"


def _steady(shown: str, ids: Sequence[str], volatile: Mapping[str, str]) -> str:
    """Replace what differs between runs by something of the same length."""
    for number, each in enumerate(ids, 1):
        kind = each.rpartition("_")[0]
        kind += "_" * bool(kind)
        shown = shown.replace(each, f"{kind}{number:0{len(each) - len(kind)}}")
    for text, steady in volatile.items():
        shown = shown.replace(text, steady)
    shown = _INSTANT.sub(lambda found: f"2026-01-01{found[1]}00:00:00{found[2]}", shown)
    return _SECONDS.sub(lambda found: "AGE".ljust(len(found[0])), shown)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run: its own terminal, time zone and width."""
    unset = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    kept = {name: value for name, value in environ.items() if name not in unset}
    return kept | {"TERM": "xterm-256color", "TZ": "UTC", "LC_ALL": "C.UTF-8"}


def _typed(command: Sequence[str | Path]) -> str:
    """The command line as a person types it."""
    words = [*map(str, command)]
    if words[:2] == [sys.executable, "-m"]:
        words[:3] = [words[2].replace("_client", "").replace("_", "-")]
    words[0] = Path(words[0]).name
    return " ".join(words)


def _end(code: int) -> str:
    return f"── exit code {code}\n" if code else ""


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # the other end was closed with the process
        return b""
