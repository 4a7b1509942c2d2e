"""Notifications of agent and server to systemd, and restarts when they stay away."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arc_agent.agent import Agent
from arc_agent.host import pulse
from arc_agent.work import poller
from arc_agent.work.lease_intake import LeaseIntake
from arc_agent.work.live_config import LiveConfig, Source
from arc_agent.work.poller import Poller
from arc_server.cli.serve import _watch
from tests.support.installed_server import BIN, UNITS, InstalledServer, server
from tests.support.supervised_unit import Unit
from tests.support.waiting import until

HANDLERS = """
import asyncio, time
from arc_agent import handler

@handler("block")
async def block() -> None:
    time.sleep(60)

@handler("wait")
async def wait() -> str:
    await asyncio.sleep(3)
    return "waited"
"""


@pytest.fixture
def place(tmp_path: Path, installed: InstalledServer) -> Path:
    """A root with an agent's handlers, and its token in the credential store."""
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    (tmp_path / "etc/credstore").mkdir(parents=True)
    (tmp_path / "etc/credstore/arc-agent.token").write_text(installed.token("agent"))
    return tmp_path


def agent(place: Path, installed: InstalledServer, **options: float) -> Unit:
    """An agent's unit, run from this environment. It is given no token but its credential."""
    return Unit(
        place,
        "arc-agent.service",
        file=UNITS / "arc-agent.service",
        argv=[
            str(BIN / "arc-agent"), "run", "--server", installed.url, "--deployment", "acme",
            "--handlers", str(place / "my_handlers.py"),
        ],
        environ={"ARC_AGENT_MAX_CONCURRENT": "1", "ARC_AGENT_DRAIN_SECONDS": "3"},
        **options,
    )  # fmt: skip


def test_an_agent_tells_its_whole_life(place: Path, installed: InstalledServer) -> None:
    with agent(place, installed) as unit:
        assert unit.start(), unit.tail()
        installed.invoke("arc.ping")
        unit.until(
            lambda: any(
                re.fullmatch(r"STATUS=0 running, 1 done, last contact \d+ s ago", text)
                for text in unit.told("STATUS=")
            )
        )
        unit.signal(signal.SIGHUP)
        unit.until(lambda: len(unit.told("READY=1")) == 2)
        unit.stop()

        life = [text for _, text in unit.messages if not text.startswith(("STATUS", "MONO"))]
        assert life == [
            "READY=1", "RELOADING=1", "READY=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=48000000"
        ]  # fmt: skip
        assert unit.ended_by == [0]


def test_the_status_changes_every_few_seconds_at_most(
    place: Path, installed: InstalledServer
) -> None:
    with agent(place, installed, watchdog_seconds=4) as unit:
        assert unit.start(), unit.tail()
        installed.invoke("arc.ping")
        unit.until(lambda: len(unit.told("STATUS=")) >= 2)

        at = [when for when, text in unit.messages if text.startswith("STATUS=")]
        assert at[1] - at[0] > 4.5
        assert len(unit.told("WATCHDOG=1")) > 2


def test_a_handler_that_blocks_the_event_loop_trips_the_watchdog(
    place: Path, installed: InstalledServer
) -> None:
    with agent(place, installed, watchdog_seconds=3) as unit:
        assert unit.start(), unit.tail()
        installed.invoke("block", "--no-wait")
        unit.until(lambda: unit.ended_by)

        assert unit.ended_by == [-signal.SIGABRT]
        unit.until(lambda: len(unit.told("READY=1")) == 2)
        assert unit.starts == 2


def test_an_agent_that_has_no_free_slot_is_not_stuck(
    place: Path, installed: InstalledServer
) -> None:
    with agent(place, installed, watchdog_seconds=4) as unit:
        assert unit.start(), unit.tail()
        before = len(unit.told("WATCHDOG=1"))

        assert installed.invoke("wait") == '"waited"\n'
        assert len(unit.told("WATCHDOG=1")) > before
        assert unit.ended_by == []


def test_a_frozen_server_is_restarted(tmp_path: Path) -> None:
    with server(tmp_path, watchdog_seconds=3) as unit:
        assert unit.start(), unit.tail()
        unit.until(lambda: len(unit.told("WATCHDOG=1")) > 3)
        unit.signal(signal.SIGSTOP)
        unit.until(lambda: len(unit.told("READY=1")) == 2)

        assert unit.ended_by == [-signal.SIGABRT]


def test_a_server_tells_its_whole_life(tmp_path: Path) -> None:
    with server(tmp_path) as unit:
        assert unit.start(), unit.tail()
        unit.until(lambda: unit.told("STATUS=serving on http://127.0.0.1:"))
        unit.signal(signal.SIGHUP)
        unit.until(lambda: len(unit.told("READY=1")) == 2)
        unit.stop()

        life = [text for _, text in unit.messages if not text.startswith(("STATUS", "MONO"))]
        assert life == [
            "READY=1", "RELOADING=1", "READY=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=45000000"
        ]  # fmt: skip


# In this process: what no process does by itself


class Listener:
    """A notify socket of this process."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")

    def heard(self, line: str) -> int:
        """How often it was told since the last look."""
        lines: list[str] = []
        while True:
            try:
                lines += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return lines.count(line)

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Listener(tmp_path / "notify", monkeypatch)
    yield found
    found.close()


async def silent(listener: Listener, seconds: float) -> bool:
    """Whether nobody feeds the watchdog for so long."""
    listener.heard("WATCHDOG=1")
    until = time.monotonic() + seconds
    fed = 0
    while time.monotonic() < until:
        await asyncio.sleep(0.05)
        fed += listener.heard("WATCHDOG=1")
    return fed == 0


async def starved(listener: Listener, seconds: float = 15) -> None:
    """Wait until nobody feeds the watchdog any more."""
    async with asyncio.timeout(seconds):
        while not await silent(listener, 1.0):
            pass


@pytest.mark.parametrize(
    ("owner", "name"), [(poller, "ask"), (LeaseIntake, "take"), (Poller, "_may_ask")]
)
async def test_a_poller_that_hangs_starves_the_watchdog(
    tmp_path: Path,
    listener: Listener,
    installed: InstalledServer,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
) -> None:
    monkeypatch.setattr(pulse, "LATE_SECONDS", 0.3)
    (tmp_path / "token").write_text(installed.token("agent"))
    settings = {
        "server.url": installed.url,
        "server.token_file": str(tmp_path / "token"),
        "server.request_timeout_seconds": "0.5",
        "deployment": "acme",
        "data_dir": str(tmp_path / "agent"),
        "poll.wait_seconds": "0.2",
    }
    agent = Agent(LiveConfig(Source(file=None, environ={}, overrides=settings)))
    life = asyncio.create_task(agent.run(handles_signals=False))
    await until(lambda: listener.heard("WATCHDOG=1") > 0)
    assert not await silent(listener, 1.5), "it moves, and yet nobody feeds"

    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(owner, name, hang)

    await starved(listener)
    life.cancel()
    await asyncio.wait({life})


async def test_a_database_that_takes_no_writes_starves_the_servers_watchdog(
    listener: Listener,
) -> None:
    steps = 0

    async def check() -> None:
        pass

    stand_in: Any = SimpleNamespace(
        steps=lambda: steps,
        url="http://localhost",
        parts=SimpleNamespace(store=SimpleNamespace(check=check)),
    )
    watching = asyncio.create_task(_watch(stand_in, 0.5))
    await until(lambda: listener.heard("WATCHDOG=1") > 0)

    await starved(listener)
    steps += 1
    await until(lambda: listener.heard("WATCHDOG=1") > 0)
    watching.cancel()


async def test_a_check_that_does_not_come_back_starves_it_too(listener: Listener) -> None:
    async def check() -> None:
        await asyncio.Event().wait()

    stand_in: Any = SimpleNamespace(
        steps=lambda: 0, url="", parts=SimpleNamespace(store=SimpleNamespace(check=check))
    )
    watching = asyncio.create_task(_watch(stand_in, 60))

    assert await silent(listener, 0.5)
    watching.cancel()
