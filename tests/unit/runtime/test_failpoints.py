import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from arc_runtime import failpoints

ROOT = Path(__file__).parents[3]
PASS_AND_SAY = "from arc_runtime.failpoints import hit; hit('store.after_commit'); print('alive')"


def passing(armed: str, code: str = PASS_AND_SAY) -> subprocess.CompletedProcess[str]:
    """A process that passes failpoints with ARC_FAILPOINT set to `armed`."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ARC_FAILPOINT": armed},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_an_unarmed_process_passes_every_point() -> None:
    for name in failpoints.NAMES:
        failpoints.hit(name)


def test_a_killed_process_dies_by_sigkill_at_the_point() -> None:
    done = passing("store.after_commit=kill")

    assert done.returncode == -9
    assert done.stdout == ""


def test_exit_ends_the_process_with_the_code_and_no_cleaning_up() -> None:
    code = f"import atexit; atexit.register(print, 'cleaned'); {PASS_AND_SAY}"

    done = passing("store.after_commit=exit(7)", code)

    assert done.returncode == 7
    assert done.stdout == ""


def test_another_point_than_the_armed_one_does_nothing() -> None:
    assert passing("store.before_begin=kill").stdout == "alive\n"


def test_several_points_can_be_armed() -> None:
    done = passing("store.before_begin=raise; store.after_commit=exit(4);")

    assert done.returncode == 4


def test_an_ordinal_acts_that_time_only() -> None:
    code = """
from arc_runtime.failpoints import hit
for time in range(1, 6):
    try:
        hit("blob.after_rename")
    except OSError:
        print("failed", time)
"""

    done = passing("blob.after_rename=raise@3", code)

    assert done.stdout == "failed 3\n"


def test_raise_is_an_input_output_error() -> None:
    act = failpoints.parse("agent.after_spool=raise")["agent.after_spool"]

    with pytest.raises(OSError, match=r"agent\.after_spool") as raised:
        act()

    assert raised.value.errno == errno.EIO


def test_sleep_waits_for_that_long() -> None:
    code = (
        "import time; from arc_runtime.failpoints import hit; before = time.monotonic();"
        "hit('agent.before_handler'); print(time.monotonic() - before >= 0.25)"
    )

    assert passing("agent.before_handler=sleep(0.25)", code).stdout == "True\n"


@pytest.mark.parametrize(
    "armed",
    [
        "store.after_comit=kill",
        "store.after_commit",
        "store.after_commit=",
        "store.after_commit=die",
        "store.after_commit=kill(9)",
        "store.after_commit=exit",
        "store.after_commit=sleep(x)",
        "store.after_commit=kill@",
        "store.after_commit=kill@3+",
        "store.after_commit=kill;store.after_commit=raise",
    ],
)
def test_a_wrong_failpoint_ends_the_process_with_code_2_and_says_what_is_wrong(armed: str) -> None:
    done = passing(armed)

    assert done.returncode == 2
    assert done.stderr.startswith("ARC_FAILPOINT: ")
    assert "store.after_com" in done.stderr
    assert done.stdout == ""


def test_every_failpoint_is_passed_somewhere_and_there_are_no_fewer_than_before() -> None:
    packages = ("arc_protocol", "arc_runtime", "arc_server", "arc_agent", "arc_client")
    passed = {
        name
        for package in packages
        for file in (ROOT / package).rglob("*.py")
        for name in re.findall(r"\bhit\(\s*\"([^\"]+)\"\s*\)", file.read_text())
    }

    print(*sorted(passed), sep="\n")
    assert passed == failpoints.NAMES
    assert len(passed) >= 12
