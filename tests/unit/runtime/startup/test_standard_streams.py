"""Programs that are started with closed standard streams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from arc_runtime.startup.standard_streams import open_standard_streams
open_standard_streams()
print("out")
print("err", file=sys.stderr)
assert sys.stdin.read() == ""
links = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
open(sys.argv[1], "w").write(" ".join(links))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_leads_to_dev_null(tmp_path: Path, closed: str) -> None:
    subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", PROGRAM, tmp_path / "links"],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )

    links = (tmp_path / "links").read_text().split()
    for number, sign in enumerate(("<&-", " >&-", "2>&-")):
        if sign in f" {closed}":
            assert links[number] == "/dev/null"
    assert "/dev/null" in links
