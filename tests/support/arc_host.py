"""A booted root with our programs on it: server and agent as units, and a sender."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from tests.support.booted_root import BootedRoot

AGENT: Final = "arc-agent.service"
SERVER: Final = "arc-server.service"
DEPLOYMENT: Final = "acme-eu-1"
URL: Final = "http://127.0.0.1:8484"
BOOTSTRAP: Final = "/opt/bootstrap"


class ArcHost:
    """Our programs on a booted root."""

    def __init__(self, root: BootedRoot) -> None:
        self.root = root

    def bootstrap(self, wheel: Path) -> None:
        """Get the program there, as docs/install.md says."""
        name = self.root.copy_in(wheel)
        self.root.type(
            "apt-get install --yes --no-install-recommends python3-venv\n"
            f"/usr/bin/python3 -m venv {BOOTSTRAP}\n"
            f"{BOOTSTRAP}/bin/pip install '{name}[server]'"
        )

    def install(self) -> None:
        """Install a server, and an agent that has enrolled with it."""
        self.root.run(f"{BOOTSTRAP}/bin/arc-server", "install")
        self.root.run(
            f"{BOOTSTRAP}/bin/arc-agent", "install", "--server", URL, "--deployment", DEPLOYMENT,
            "--no-start",
        )  # fmt: skip
        self.enrol()
        self.root.run("systemctl", "restart", AGENT)

    def enrol(self) -> None:
        """Give the agent an identity of its own."""
        self.root.type(
            f"arc-server enrol-token create --deployment {DEPLOYMENT}"
            " --config /etc/arc-server/server.yaml > enrol.token\n"
            "arc-agent enrol --config /etc/arc/agent.yaml --enrol-token-file enrol.token\n"
            "rm enrol.token"
        )

    def invoke(self, command: str, **options: str) -> Any:
        """Send a command and wait for its result."""
        code, printed = self._send(command, **options)
        assert code == 0, printed
        return json.loads(printed)

    def refused(self, command: str, **options: str) -> str:
        """Send a command that fails; what `arc` says then."""
        code, printed = self._send(command, **options)
        assert code == 1, printed
        return printed

    def _send(
        self, command: str, *, deployment: str = DEPLOYMENT, token: str | None = None
    ) -> tuple[int, str]:
        return self.root.try_run(
            "/opt/arc/current/bin/arc", "invoke", deployment, command,
            "--server", URL, "--token-file", f"/root/{token or self.sender_token()}",
        )  # fmt: skip

    def sender_token(self) -> str:
        """The file in root's home with the token of a sender; created at the first call."""
        name = "sender.token"
        if not (self.root.path / "root" / name).exists():
            self.root.type(
                f"umask 077; arc-server token create --scope sender --deployment {DEPLOYMENT}"
                f" --config /etc/arc-server/server.yaml > {name}"
            )
        return name

    def upgrade(self, *arguments: str) -> str:
        """Upgrade the agent; what was printed."""
        return self.root.run("arc-agent", "upgrade", *arguments)

    def current(self) -> str:
        """The place of the agent's current version."""
        return os.readlink(self.root.path / "opt/arc/current")

    def release(self) -> str:
        """The release that the agent's current version holds."""
        return self.root.run(
            "/opt/arc/current/bin/python",
            "-c", "import importlib.metadata as m; print(m.version('arc-commands'))",
        ).strip()  # fmt: skip

    def logged(self, unit: str, event: str) -> list[dict[str, Any]]:
        """The journal's entries of the events of one name."""
        return [each for each in self.root.journal(unit) if each.get("ARC_EVENT") == event]

    def until_logged(self, unit: str, event: str) -> list[dict[str, Any]]:
        """Wait until a unit has logged an event; the journal's entries of all of them."""
        return self.root.until(unit, lambda: self.logged(unit, event))

    def drop_in(self, unit: str, name: str, *lines: str) -> None:
        """Put lines of [Service] beside a unit, as `systemctl edit` does, and restart it."""
        self.root.write(
            f"/etc/systemd/system/{unit}.d/{name}.conf", "\n".join(["[Service]", *lines, ""])
        )
        self.root.run("systemctl", "daemon-reload")
        self.root.run("systemctl", "restart", unit)

    def without_drop_in(self, unit: str, name: str) -> None:
        """Take it away again."""
        directory = self.root.path / f"etc/systemd/system/{unit}.d"
        (directory / f"{name}.conf").unlink()
        if not any(directory.iterdir()):
            directory.rmdir()
        self.root.run("systemctl", "daemon-reload")
        self.root.run("systemctl", "restart", unit)

    def until_restarted(self, unit: str, old_pid: int) -> int:
        """Wait until systemd has started a unit again; the new process."""

        def new_pid() -> int:
            active = self.root.show(unit, "ActiveState") == "active"
            pid = self.root.pid(unit)
            return pid if active and pid not in (0, old_pid) else 0

        return self.root.until(unit, new_pid)
