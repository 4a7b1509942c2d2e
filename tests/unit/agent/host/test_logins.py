"""The login behind a process, as this host's kernel and sudo's variable tell it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arc_agent.host.logins import Login, login_of

_ME = pwd.getpwuid(os.getuid()).pw_name
_OF_LOGIN = """
import sys
with open("/proc/self/loginuid", "w") as file: file.write(sys.argv[1])
print("ready", flush=True); sys.stdin.read()
"""
_WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"


@contextmanager
def process(program: str, *arguments: str, **environ: str) -> Generator[int]:
    """A process that waits; its id."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
    ) as started:
        assert started.stdout is not None
        if started.stdout.readline() != b"ready\n":
            pytest.skip("this kernel sets no login here")
        yield started.pid


@pytest.fixture
def no_login() -> None:
    if Path("/proc/self/loginuid").read_text() != str(2**32 - 1):
        pytest.skip("these tests run in a login, and so do all processes that they start")


@pytest.mark.usefixtures("no_login")
def test_the_kernels_login_counts_before_all_that_a_process_says() -> None:
    with process(_OF_LOGIN, str(os.getuid()), SUDO_USER="alice") as pid:
        assert login_of(pid, 0, "bob") == Login(_ME, "loginuid")


@pytest.mark.usefixtures("no_login")
def test_under_sudo_it_is_the_caller() -> None:
    with process(_WAITS, SUDO_USER="alice") as pid:
        assert login_of(pid, 0, "bob") == Login("alice", "sudo")


def test_a_process_that_cannot_be_seen_speaks_for_itself() -> None:
    assert login_of(2**30, 0, "bob") == Login("bob", "client")


@pytest.mark.parametrize("claim", [None, "", "bob\nevent=approved", "bob by=alice", "b" * 65])
def test_without_a_login_it_is_the_user(claim: str | None) -> None:
    assert login_of(2**30, os.getuid(), claim) == Login(_ME, "uid")


def test_a_user_without_a_name_is_a_number() -> None:
    assert login_of(2**30, 4_000_000) == Login("4000000", "uid")
