"""Children of a program get their own signals, and the program gets none of them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

FORKING = """
import asyncio, os, signal, sys, threading
from arc_runtime.children import keep_signals_apart

async def main():
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        loop.add_signal_handler(number, lambda n=number: (print("parent", n.name), seen.set()))
    keep_signals_apart()
    number = getattr(signal, sys.argv[2])

    def fork():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(0)
        print("child", os.WTERMSIG(os.waitpid(child, 0)[1]))

    if sys.argv[3] == "thread":
        await asyncio.to_thread(fork)
    else:
        fork()
    os.kill(os.getpid(), signal.SIGUSR1)
    await seen.wait()
    seen.clear()
    os.kill(os.getpid(), number)
    await seen.wait()

if sys.argv[1] == "uvloop":
    import uvloop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("where", ["loop", "thread"])
def test_a_signal_for_a_forked_child_ends_the_child_and_stays_unseen_by_its_parent(
    loop: str, name: str, where: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    done = subprocess.run(
        [sys.executable, "-c", FORKING, loop, name, where],
        capture_output=True,
        text=True,
        check=True,
    )

    number = getattr(signal, name).value
    assert done.stdout.split("\n")[:-1] == [f"child {number}", "parent SIGUSR1", f"parent {name}"]


INIT = """
import ctypes, os, signal, subprocess, sys, time
from arc_runtime.children import go_on_under_init

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0  # orphans come to it
go_on_under_init()
print(*[signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, *signal.pthread_sigmask(0, [])])
orphan = int(subprocess.check_output(["sh", "-c", "sleep 0.05 >&- & echo $!"]))
while os.path.exists(f"/proc/{orphan}"):
    time.sleep(0.01)
print("reaped", flush=True)
if sys.argv[1] == "exit":
    sys.exit(3)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans go to a subreaper on Linux")
@pytest.mark.parametrize(("ends", "code"), [("exit", 3), ("signal", 128 + signal.SIGTERM)])
def test_an_init_reaps_orphans_passes_signals_on_and_ends_as_its_child(
    ends: str, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INIT, ends], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "True\n"
            assert process.stdout.readline() == "reaped\n"
            if ends == "signal":
                process.terminate()
            assert process.wait(15) == code
        finally:
            process.kill()
