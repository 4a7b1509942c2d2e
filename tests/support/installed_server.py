"""A server and an agent as units below a scratch root, run from this very environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.supervised_unit import Unit

ACCOUNTS = ("passwd", "group", "shadow", "gshadow")
BIN = Path(sys.executable).parent


UNITS = Path(__file__).parents[2] / "systemd"


def run(*argv: str | Path) -> str:
    """Run a program to its end; what it printed. It must end with 0."""
    done = subprocess.run(
        [str(part) for part in argv], text=True, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class InstalledServer:
    """A scratch root with a server that has a token for its agent."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.url = url

    def token(self, scope: str) -> str:
        """A new token of the server."""
        data = self.root / "var/lib/arc-server"
        return run(
            BIN / "arc-server", "token", "create", "--scope", scope,
            "--deployment", "acme", "--data-dir", data,
        )  # fmt: skip

    def invoke(self, command: str, *more: str) -> str:
        """Send a command and wait for its result."""
        file = self.root / "sender.token"
        if not file.exists():
            file.write_text(self.token("sender"))
        return run(
            BIN / "arc", "invoke", "acme", command,
            "--server", self.url, "--token-file", file, *more,
        )  # fmt: skip


def server(root: Path, **options: float) -> Unit:
    """A server's unit below a root, on a port of its own choice."""
    return Unit(
        root,
        "arc-server.service",
        file=UNITS / "arc-server.service",
        argv=[str(BIN / "arc-server"), "serve", "--listen", "127.0.0.1:0"],
        environ={"ARC_SERVER_DATA_DIR": str(root / "var/lib/arc-server")},
        **options,
    )
