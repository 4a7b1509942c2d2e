"""The unit files: their exposure, and that agent and server live with what they forbid."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installed_server import BIN, UNITS, InstalledServer, run
from tests.support.supervised_unit import Unit
from tests.support.unit_sandbox import allowed, values

EVERY = ["arc-agent.service", "arc-agent@.service", "arc-server.service"]
EXPOSURE_AT_MOST = 1.2
PAGE = (UNITS.parent / "docs/hardening.md").read_text()

HANDLERS = """
import asyncio, errno, mmap, os, resource, socket, threading
from arc_agent import handler

def refusal(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"

@handler("limits")
def limits() -> str:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    return refusal(os.open, "/dev/null", os.O_RDONLY)

@handler("refused")
async def refused() -> dict:
    writable = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    return {
        "priority": refusal(os.setpriority, os.PRIO_PROCESS, 0, 5),
        "netlink": refusal(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW),
        "mount": refusal(os.chroot, "/"),
        "code in memory": refusal(lambda: mmap.mmap(-1, 4096, prot=writable)),
    }

@handler("large")
async def large() -> bytes:
    found = []
    thread = threading.Thread(target=lambda: found.append(b"x" * 1_000_000))
    thread.start()
    await asyncio.to_thread(thread.join)
    return found[0]
"""
CONFIG = """
handlers:
  exec:
    shell: {argv: [/bin/sh, -c, "cat; df -h / | wc -l"], output: text}
    slow: {argv: [/bin/sh, -c, "sleep 60 & sleep 60"], stdin: none, timeout_seconds: 0.5}
"""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


def has_seccomp() -> bool:
    """Return True if libseccomp, by which systemd filters, is installed."""
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    return True


def refuses_code_in_memory() -> bool:
    """Return True if the kernel can forbid what MemoryDenyWriteExecute forbids (6.3 and newer)."""
    return tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 3)


needs_seccomp = pytest.mark.skipif(not has_seccomp(), reason="libseccomp is not installed")


@pytest.mark.parametrize("name", EVERY)
def test_a_service_that_ends_by_itself_is_started_again(name: str) -> None:
    assert values(UNITS / name, "Restart") == ["always"]


@pytest.mark.parametrize("name", EVERY)
def test_a_reload_needs_no_program_but_the_shell(name: str) -> None:
    [reload] = values(UNITS / name, "ExecReload")

    assert reload == "/bin/sh -c 'kill -HUP $MAINPID'"  # kill is a part of the shell


@pytest.mark.parametrize("bound", ["LimitNOFILE", "MemoryMax", "TasksMax"])
def test_the_server_has_bounds_with_their_reasons_on_the_page(bound: str) -> None:
    [value] = values(UNITS / "arc-server.service", bound)

    assert f"| `{bound}={value}` |" in PAGE


@needs_systemd
@pytest.mark.parametrize("name", EVERY)
def test_the_exposure_of_a_unit_is_next_to_nothing(name: str) -> None:
    said = run("systemd-analyze", "security", "--offline=yes", "--no-pager", UNITS / name)

    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None
    assert float(found[1]) <= EXPOSURE_AT_MOST


@needs_systemd
@pytest.mark.parametrize("name", EVERY)
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, tmp_path: Path) -> None:
    text = (UNITS / name).read_text()
    # verify wants the program to be there: any will do
    text = re.sub(r"ExecStart=/\S+", f"ExecStart={shutil.which('true')}", text)
    (tmp_path / name).write_text(text)

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / name],
        text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr + done.stdout) == (0, "")


@needs_systemd
def test_the_socket_of_the_server_is_one_that_systemd_takes(tmp_path: Path) -> None:
    service = (UNITS / "arc-server.service").read_text()
    service = re.sub(r"ExecStart=/\S+", f"ExecStart={shutil.which('true')}", service)
    (tmp_path / "arc-server.service").write_text(service)
    shutil.copy(UNITS / "arc-server.socket", tmp_path)

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "arc-server.socket"],
        text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr + done.stdout) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", EVERY)
def test_what_a_unit_leaves_open_has_its_reason_on_the_page(name: str) -> None:
    said = run("systemd-analyze", "security", "--offline=yes", "--no-pager", UNITS / name)
    open_ones = re.findall(r"^✗ (\S+?)=", said, re.MULTILINE)

    assert open_ones
    for directive in open_ones:
        assert f"`{directive}=" in PAGE, f"{directive} is left out without a reason"


@pytest.mark.parametrize("name", EVERY)
def test_agent_and_server_have_one_sandbox(name: str) -> None:
    def sandbox(file: Path) -> str:
        return file.read_text().partition("UMask=")[2]

    assert sandbox(UNITS / name) == sandbox(UNITS / "arc-agent.service")


def test_every_drop_in_of_the_page_is_a_good_one() -> None:
    drop_ins = re.findall(r"```ini\n# (\S+\.conf)[^\n]*\n(.*?)```", PAGE, re.DOTALL)

    assert len(drop_ins) >= 8
    for name, text in drop_ins:
        assert text.startswith("[Service]\n"), name
        for line in text.splitlines()[1:]:
            assert re.fullmatch(r"#.*|[A-Z][A-Za-z]+=.*", line), (name, line)


@needs_systemd
def test_systemd_knows_every_drop_in_of_the_page(tmp_path: Path) -> None:
    for name, text in re.findall(r"```ini\n# (\S+\.conf)[^\n]*\n(.*?)```", PAGE, re.DOTALL):
        unit = (UNITS / "arc-agent.service").read_text()
        unit = re.sub(r"ExecStart=/\S+", f"ExecStart={shutil.which('true')}", unit)
        place = tmp_path / name
        (place / "arc-agent.service.d").mkdir(parents=True)
        (place / "arc-agent.service").write_text(unit)
        known = "\n".join(
            line
            for line in text.splitlines()
            if not line.startswith("Restart")  # ≥ 254
        )
        (place / "arc-agent.service.d" / name).write_text(known)

        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", place / "arc-agent.service"],
            text=True, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr + done.stdout) == (0, ""), name


@needs_systemd
@needs_seccomp
def test_an_agent_lives_under_its_units_filter_with_its_real_handlers(
    tmp_path: Path, installed: InstalledServer
) -> None:
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    (tmp_path / "agent.yaml").write_text(CONFIG)
    (tmp_path / "etc/credstore").mkdir(parents=True)
    (tmp_path / "etc/credstore/arc-agent.token").write_text(installed.token("agent"))
    file = UNITS / "arc-agent.service"
    agent = [
        str(BIN / "arc-agent"), "run", "--server", installed.url, "--deployment", "acme",
        "--config", str(tmp_path / "agent.yaml"), "--handlers", str(tmp_path / "my_handlers.py"),
    ]  # fmt: skip
    sandbox = [sys.executable, "-m", "tests.support.unit_sandbox", str(file)]
    with Unit(tmp_path, "arc-agent.service", file=file, argv=[*sandbox, *agent]) as unit:
        assert unit.start(), unit.tail()

        assert json.loads(installed.invoke("arc.system-info"))["cpus"] > 0
        assert json.loads(installed.invoke("shell", "--params", '"hello "')) == '"hello "2\n'
        assert len(installed.invoke("large")) >= 1_000_000
        refused = json.loads(installed.invoke("refused"))
        in_memory = refused.pop("code in memory")
        assert in_memory == ("EACCES" if refuses_code_in_memory() else "allowed")
        assert refused == {"priority": "EPERM", "netlink": "EPERM", "mount": "EPERM"}
        with pytest.raises(AssertionError, match="TIMEOUT"):
            installed.invoke("slow")
        assert json.loads(installed.invoke("limits")) == "allowed"

        unit.stop()
        assert unit.ended_by == [0]


@needs_systemd
def test_the_filter_takes_away_what_it_says() -> None:
    left = allowed(UNITS / "arc-agent.service")

    assert {"read", "execve", "prlimit64", "clone3", "fsync"} <= left
    assert not {"setpriority", "mount", "setuid", "chown", "ptrace", "reboot", "bpf"} & left
    assert values(UNITS / "arc-agent.service", "SystemCallErrorNumber") == ["EPERM"]
