"""Notifications of agent and server to systemd, and restarts when they stay away."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arc_agent import agent as agent_module
from arc_agent.agent import Agent
from arc_agent.host import pulse
from arc_agent.work import poller
from arc_agent.work.lease_intake import LeaseIntake
from arc_agent.work.live_config import LiveConfig, Source
from arc_agent.work.poller import Poller
from arc_runtime.control_socket import ask
from arc_server.cli.serve import _watch
from tests.support.installed_server import BIN, UNITS, InstalledServer, server
from tests.support.scripted_server import DEPLOYMENT, Fault, ScriptedServer
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
        unit.until(lambda: len(unit.told("STATUS=")) >= 3)

        at = [when for when, text in unit.messages if text.startswith("STATUS=")]
        assert at[2] - at[0] > 4.5  # the one between came with READY=1
        unit.until(lambda: len(unit.told("WATCHDOG=1")) > 2)


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


def test_an_agent_without_a_server_starts_all_the_same_and_says_so(
    place: Path, installed: InstalledServer
) -> None:
    away = InstalledServer(installed.root, "http://127.0.0.1:1")
    with agent(place, away) as unit:
        assert unit.start(), unit.tail()

        said = [text.partition(" since ")[0] for text in unit.told("STATUS=")]
        assert "STATUS=0 running, 0 done, no contact with http://127.0.0.1:1" in said


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
        """Return how often it was told since the last look."""
        return self.lines().count(line)

    def lines(self) -> list[str]:
        """All that it was told since the last look."""
        lines: list[str] = []
        while True:
            try:
                lines += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return lines

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Listener(tmp_path / "notify", monkeypatch)
    yield found
    found.close()


def agent_in_process(place: Path, url: str, more: Mapping[str, str] | None = None) -> Agent:
    """An agent that this process runs itself."""
    settings = {"server.url": url, "deployment": DEPLOYMENT, "data_dir": str(place / "agent")}
    return Agent(LiveConfig(Source(file=None, environ={}, overrides=settings | dict(more or {}))))


@asynccontextmanager
async def living(agent: Agent) -> AsyncIterator[None]:
    """Let an agent live, and stop it at the end."""
    life = asyncio.create_task(agent.run(handles_signals=False))
    yield
    agent.stop()
    assert await life == 0


async def test_an_agent_is_ready_when_its_first_poll_is_answered(
    tmp_path: Path, listener: Listener
) -> None:
    async with ScriptedServer() as server:
        server.always["leases"] = "hold"
        agent = agent_in_process(tmp_path, server.url)
        async with living(agent):
            await server.until(lambda: bool(server.seen("leases")))
            agent.reload()  # what a reload sends would end the start
            assert "READY=1" not in listener.lines()

            server.let_go()

            await until(lambda: listener.heard("READY=1"))


async def test_the_first_poll_is_not_held_by_the_server(tmp_path: Path, listener: Listener) -> None:
    async with ScriptedServer() as server, living(agent_in_process(tmp_path, server.url)):
        await server.until(lambda: len(server.seen("leases")) >= 2)

        first, second = (each.json() for each in server.seen("leases")[:2])
        assert first.get("waitSeconds") is None
        assert second["waitSeconds"] > 0


@pytest.mark.parametrize("fault", [503, "drop", "page"])
async def test_an_answer_that_is_no_answer_does_not_make_an_agent_ready(
    tmp_path: Path, listener: Listener, fault: Fault
) -> None:
    async with ScriptedServer() as server:
        server.always["leases"] = fault
        async with living(agent_in_process(tmp_path, server.url)):
            await server.until(lambda: len(server.seen("leases")) >= 2)
            assert "READY=1" not in listener.lines()

            del server.always["leases"]

            await until(lambda: listener.heard("READY=1"))


async def test_a_paused_agent_is_ready_although_it_does_not_poll(
    tmp_path: Path, listener: Listener
) -> None:
    async with ScriptedServer() as server:
        agent = agent_in_process(tmp_path, server.url)
        async with living(agent):
            await until(lambda: listener.heard("READY=1"))
            order = {"do": "pause", "why": "maintenance"}
            await asyncio.to_thread(ask, tmp_path / "agent/control.sock", order)
        polls = len(server.seen("leases"))

        async with living(agent_in_process(tmp_path, server.url)):
            await until(lambda: listener.heard("READY=1"))
            assert len(server.seen("leases")) == polls


@pytest.mark.parametrize(("fault", "says"), [("drop", "no contact with"), (401, "refused by")])
async def test_a_start_without_contact_ends_after_a_while_and_says_so(
    tmp_path: Path,
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    says: str,
) -> None:
    monkeypatch.setattr(agent_module, "_CONTACT_SECONDS", 0.5)
    async with ScriptedServer() as server:
        server.always["leases"] = fault
        async with living(agent_in_process(tmp_path, server.url)):
            lines: list[str] = []
            await until(lambda: lines.extend(listener.lines()) or "READY=1" in lines)

            status = lines[lines.index("READY=1") + 1]
            assert status.startswith(f"STATUS=0 running, 0 done, {says} {server.url} since ")


async def silent(listener: Listener, seconds: float) -> bool:
    """Return True if no process feeds the watchdog for so long."""
    listener.heard("WATCHDOG=1")
    until = time.monotonic() + seconds
    fed = 0
    while time.monotonic() < until:
        await asyncio.sleep(0.05)
        fed += listener.heard("WATCHDOG=1")
    return fed == 0


async def starved(listener: Listener, seconds: float = 15) -> None:
    """Wait until no process feeds the watchdog any more."""
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
    agent = agent_in_process(
        tmp_path,
        installed.url,
        {
            "server.token_file": str(tmp_path / "token"),
            "server.request_timeout_seconds": "0.5",
            "deployment": "acme",
            "poll.wait_seconds": "0.2",
        },
    )
    life = asyncio.create_task(agent.run(handles_signals=False))
    await until(lambda: listener.heard("WATCHDOG=1") > 0)
    assert not await silent(listener, 1.5), "it moves, and the watchdog is not fed"

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
