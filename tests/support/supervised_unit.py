"""Stands in for systemd where it is not process 1: runs what a unit file says, and listens to it.

Of the unit: ExecStart, LoadCredential from the credential store, State- and RuntimeDirectory,
Type=notify, the watchdog, and Restart. No sandbox: that is the kernel's work, not ours.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until

START_SECONDS = 30.0
STOP_SECONDS = 20.0


def directives(file: Path) -> dict[str, list[str]]:
    """Each key of a unit file with its values."""
    found: dict[str, list[str]] = {}
    for line in file.read_text().splitlines():
        key, is_assignment, value = line.partition("=")
        if is_assignment and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


class Unit:
    """One unit below a root. Use as a context: nothing of it is left at the end."""

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        file: Path | None = None,
        watchdog_seconds: float | None = None,
        restart_seconds: float = 0.0,
        argv: list[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.name = name
        template = f"{name.partition('@')[0]}@.service" if "@" in name else name
        self.file = file or root / "etc/systemd/system" / template
        self.messages: list[tuple[float, str]] = []
        """What it has told, line by line, and when."""
        self.starts = 0
        self.ended_by: list[int] = []
        """How each of its processes ended: minus the signal."""
        self.log = Path(tempfile.mkdtemp(prefix="unit-")) / "log"
        self._watchdog_seconds = watchdog_seconds
        self._restart_seconds = restart_seconds
        self._argv = argv
        self._environ = environ or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = False
        self._lock = threading.RLock()
        self._fed_at = math.inf
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.log.parent / "notify"))
        self._is_open = True
        self._threads = [threading.Thread(target=each) for each in (self._listen, self._watch)]

    def __enter__(self) -> Unit:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.kill()
        self._is_open = False
        for thread in self._threads:
            thread.join()
        self._socket.close()
        shutil.rmtree(self.log.parent)

    # what systemctl does

    def start(self, within_seconds: float = START_SECONDS) -> bool:
        """Start it; whether it was ready in time. A process that ends first was not."""
        with self._lock:
            self._is_wanted = True
            told = len(self.messages)
            process = self._launch()
        until = time.monotonic() + within_seconds
        while time.monotonic() < until and process.poll() is None:
            if any(text == "READY=1" for _, text in self.messages[told:]):
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help in time."""
        with self._lock:
            self._is_wanted = False
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._put_away()

    def kill(self) -> None:
        """SIGKILL, and no restart."""
        with self._lock:
            self._is_wanted = False
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
        self._put_away()

    def signal(self, number: signal.Signals) -> None:
        """Send one to its process."""
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_active(self) -> bool:
        """Return True if it runs."""
        return self._process is not None and self._process.poll() is None

    def told(self, start: str) -> list[str]:
        """The lines that it has told that begin so."""
        return [text for _, text in self.messages if text.startswith(start)]

    def tail(self) -> str:
        """Return what to read when something is not as it should be."""
        said = [text for _, text in self.messages[-20:]]
        return f"{self.name}: ended {self.ended_by}, said {said}\n{self.log.read_text()[-4000:]}"

    def until(self, holds: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
        """Wait until a condition holds; return what it came to. A failure shows the unit's log."""
        try:
            return wait_until(holds, seconds)
        except TimeoutError:
            raise AssertionError(f"not within {seconds} s\n{self.tail()}") from None

    # inside

    def _launch(self) -> subprocess.Popen[bytes]:
        """A process as the unit file says."""
        says = directives(self.file)
        base = self.name.removesuffix(".service")
        instance = base.partition("@")[2]
        argv = [part.replace("%i", instance) for part in shlex.split(says["ExecStart"][0])]
        argv = self._argv or [
            str(self.root / part[1:]) if part.startswith("/") else part for part in argv
        ]
        if self._argv is None:  # scripts name the interpreter of the real root
            program = Path(argv[0]).parent.parent.resolve() / "bin"
            argv[0:1] = [str(program / "python"), str(program / Path(argv[0]).name)]
        state = says["StateDirectory"][0].replace("%i", instance)
        environ = {
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": str(self.log.parent / "notify"),
            "STATE_DIRECTORY": str(self.root / "var/lib" / state),
            "CREDENTIALS_DIRECTORY": str(self._credentials(says, instance)),
            **self._environ,
        }
        if self._watchdog_seconds is not None:
            environ["WATCHDOG_USEC"] = str(round(self._watchdog_seconds * 1e6))
        Path(environ["STATE_DIRECTORY"]).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fed_at = math.inf  # the watchdog is on from READY on
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                argv, env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.starts += 1
        return self._process

    def _credentials(self, says: Mapping[str, list[str]], instance: str) -> Path:
        """The unit's credentials, as far as they are there."""
        directory = self.log.parent / "credentials"
        directory.mkdir(mode=0o700, exist_ok=True)
        for value in says.get("LoadCredential", []):
            name, _, source = value.replace("%i", instance).partition(":")
            found = self.root / "etc/credstore" / source
            if found.exists():
                shutil.copyfile(found, directory / name)
        return directory

    def _listen(self) -> None:
        """Take down what it tells."""
        self._socket.settimeout(0.05)
        while self._is_open:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            now = time.monotonic()
            for line in data.decode().splitlines():
                if line in ("WATCHDOG=1", "READY=1"):
                    self._fed_at = now
                self.messages.append((now, line))

    def _watch(self) -> None:
        """End it when its watchdog starves, and start it again when it ends unasked."""
        while self._is_open:
            time.sleep(0.02)
            with self._lock:
                process = self._process
                if process is None or not self._is_wanted:
                    continue
                if process.poll() is not None:
                    self.ended_by.append(process.returncode)
                    time.sleep(self._restart_seconds)
                    self._launch()
                elif time.monotonic() - self._fed_at > (self._watchdog_seconds or math.inf):
                    process.send_signal(signal.SIGABRT)
                    process.send_signal(signal.SIGCONT)
                    process.wait()

    def _put_away(self) -> None:
        """Take the exit of a process that was told to end."""
        if self._process is not None:
            self.ended_by.append(self._process.wait())
            self._process = None
        shutil.rmtree(self.log.parent / "credentials", ignore_errors=True)
