"""The world of one test: a server, agents and a sender, real processes on a fresh directory."""

from __future__ import annotations

import json
import random
import shutil
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.lossy_proxy import Proxy
from tests.support.processes import BIN, Process, run_once
from tests.support.push_worker_server import PushWorker
from tests.support.raw_sender import DEPLOYMENT, Sender
from tests.support.waiting import until

HANDLERS = Path(__file__).parent / "handlers_for_tests.py"
SECRET_SCOPES = {"admin": (), "agent": ("--deployment", DEPLOYMENT)}


async def make_template(directory: Path) -> None:
    """A data directory with the tokens that every test needs, made once by the real commands."""
    for scope, bound in SECRET_SCOPES.items():
        data = directory / "data"
        printed = await run_once(
            "arc-server",
            "token",
            "create",
            "--scope",
            scope,
            *bound,
            *("--init", "--data-dir", str(data)),
        )
        assert len(printed) == 1, printed
        token = directory / f"{scope}.token"
        token.touch(0o600)
        token.write_text(printed[0] + "\n")


def free_port() -> int:
    """A port that a server can come back to after a kill.

    It lies below the range that outgoing connections take theirs from, so that none of them sits
    on it meanwhile.
    """
    while True:
        port = random.randint(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class World:
    """The processes and files of one test. `close` stops and removes all of them."""

    def __init__(self, directory: Path, template: Path, session: aiohttp.ClientSession) -> None:
        self.directory = directory
        self._session = session
        self._data = directory / "server"
        shutil.copytree(template / "data", self._data)
        self.tokens = {scope: template / f"{scope}.token" for scope in SECRET_SCOPES}
        self._notes = directory / "notes"
        self._notes.mkdir()
        self._read: list[dict[str, Any]] = []
        self._read_bytes = 0
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.sender = Sender(session, self.url, self.tokens["admin"].read_text().strip())
        self.processes: list[Process] = []
        self._proxies: list[Proxy] = []
        self._workers: list[PushWorker] = []
        self._servers = 0

    # processes

    async def server(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        listener: socket.socket | None = None,
    ) -> Process:
        """Start the server, or start it again: same port, same data. Ready when this returns.

        A `listener` at that port is handed over as systemd does.
        """
        self._servers += 1
        file = self.directory / f"server-{self._servers}.yaml"
        file.write_text(yaml.safe_dump(dict(config or {})))
        process = await self._start(
            f"server-{self._servers}",
            "arc-server",
            *("serve", "--config", str(file), "--data-dir", str(self._data)),
            *("--listen", f"127.0.0.1:{self.port}"),
            env=env,
            listener=listener,
        )
        assert await process.url() == self.url
        return process

    async def agent(
        self,
        name: str,
        *,
        lease_seconds: int = 2,
        url: str | None = None,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        is_awaited: bool = True,
        program: tuple[str, ...] = (),
    ) -> Process:
        """Start an agent, or start it again under its name (same spool). It polls by then.

        `program` is what runs it: it has to end by becoming what stands behind it.
        """
        settings: dict[str, Any] = {
            "server": {"url": url or self.url, "token_file": str(self.tokens["agent"])},
            "deployment": DEPLOYMENT,
            "name": name,
            "data_dir": str(self.directory / name),
            "lease": {"seconds": lease_seconds},
            "handlers": {"modules": [HANDLERS.stem], "path": [str(HANDLERS.parent)]},
        }
        for section, value in (config or {}).items():
            known = settings.get(section)
            settings[section] = {**known, **value} if isinstance(known, dict) else value
        file = self.directory / f"{name}.yaml"
        file.write_text(yaml.safe_dump(settings))
        process = await self._start(
            name,
            *(program or ()),
            str(BIN / "arc-agent") if program else "arc-agent",
            *("run", "--config", str(file)),
            env={"TEST_NOTES": str(self._notes), "TEST_AGENT": name, **(env or {})},
        )
        if is_awaited:
            await process.logged("ready", 30)
        return process

    async def _start(
        self,
        name: str,
        program: str,
        *arguments: str,
        env: Mapping[str, str] | None,
        listener: socket.socket | None = None,
    ) -> Process:
        process = await Process.start(name, program, *arguments, env=env, listener=listener)
        self.processes.append(process)
        return process

    async def proxy(self) -> Proxy:
        """Start a network of its own between the users of its URL and the server."""
        proxy = Proxy("127.0.0.1", self.port)
        await proxy.start()
        self._proxies.append(proxy)
        return proxy

    async def push_worker(self) -> PushWorker:
        """A worker that commands are pushed to."""
        worker = PushWorker(self._session)
        await worker.start()
        self._workers.append(worker)
        return worker

    # what handlers leave behind

    def runs(self, command_id: str | None = None, *, what: str = "started") -> list[dict[str, Any]]:
        """Return what handlers have noted (`started`, `finished`, `cancelled`), oldest first."""
        self._read_on()
        return [
            note
            for note in self._read
            if note["what"] == what and command_id in (None, note["command_id"])
        ]

    def _read_on(self) -> None:
        """Take in what handlers have noted since: each line is read once."""
        file = self._notes / "runs"
        if not file.exists():
            return
        with file.open("rb") as notes:
            notes.seek(self._read_bytes)
            whole, newline, _ = notes.read().rpartition(b"\n")  # the last may be on its way
        self._read_bytes += len(whole) + len(newline)
        self._read += [json.loads(line) for line in whole.splitlines()]

    async def noted(
        self, command_id: str, *, what: str = "started", times: int = 1, seconds: float = 20
    ) -> dict[str, Any]:
        """Wait until a handler has noted that; the note."""

        def enough() -> bool:
            return len(self.runs(command_id, what=what)) >= times

        await until(enough, seconds)
        return self.runs(command_id, what=what)[times - 1]

    def count_finished(self) -> int:
        """Return how many runs of handlers have finished so far."""
        return len(self.runs(what="finished"))

    def open_gate(self, name: str, *, agent: str | None = None) -> None:
        """Let handlers that wait at this gate go on; those of one agent only, if it is named."""
        (self._notes / (f"gate-{name}" if agent is None else f"gate-{name}-{agent}")).touch()

    def spooled(self, agent: str) -> list[str]:
        """The commands whose responses wait on an agent's disk."""
        file = self.directory / agent / "spool.db"
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT command_id FROM responses ORDER BY seq")
            return [command_id for (command_id,) in rows]

    # the end

    async def close(self) -> None:
        """Put everything away. What the processes logged is shown when the test has failed."""
        for worker in self._workers:
            await worker.stop()
        for process in self.processes:
            await process.put_away()
            print(process.tail(200))
        for proxy in self._proxies:
            await proxy.stop()

    def tracebacks(self) -> list[str]:
        """Return log lines that no test provokes: unexpected exceptions."""
        return [
            f"{process.name}: {event}"
            for process in self.processes
            for event in process.log
            if "exception" in event or str(event["event"]).startswith("Traceback")
        ]
