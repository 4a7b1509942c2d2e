"""The demo shows a server, an agent and a sender at work, as real processes, within a minute."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from arc_runtime.terminal.styles import has_colours

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
DEPLOYMENT = "acme-eu-1"
LEASE_SECONDS = 3
BOLD, DIM, GREEN, RED, OFF = (
    ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m")
    if has_colours(sys.stdout)
    else ("",) * 5
)


def show_title(text: str) -> None:
    """Print a title."""
    print(f"\n{BOLD}{text}{OFF}", flush=True)


def show(text: str) -> None:
    """Print what happened."""
    print(f"  {text}", flush=True)


def show_checked(text: str) -> None:
    """Print what was checked."""
    show(f"{GREEN}✓{OFF} {text}")


def demand(is_true: bool, what: str) -> None:
    """Check, or stop the demo with exit code 1."""
    if not is_true:
        show(f"{RED}✗ {what}{OFF}")
        raise SystemExit(1)
    show_checked(what)


class Demo:
    """A demo has processes and a scratch directory for their files."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.processes: list[subprocess.Popen[str]] = []
        self.url = ""
        self.environ = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT / "examples"),
            "ARC_TOKEN_FILE": str(scratch / "sender.token"),
        }

    def run(self, *command: str, show: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as a person would type it, and show it."""
        print(f"  {DIM}${OFF} {show or shlex.join(command)}", flush=True)
        return subprocess.run(
            command, env=self.environ, text=True, capture_output=True, timeout=60, check=False
        )

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        """Start a daemon; its log goes to a file."""
        print(f"  {DIM}${OFF} {shlex.join(command)} &", flush=True)
        with (self.scratch / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                command,
                env=self.environ,
                text=True,
                stdout=subprocess.PIPE if name == "server" else log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def start_agent(self) -> subprocess.Popen[str]:
        """Start an agent and wait until it polls."""
        log = self.scratch / "agent.log"
        seen = log.read_text().count('"ready"') if log.exists() else 0
        agent = self.start(
            "agent", "arc-agent", "run", "--config", str(self.scratch / "agent.yaml")
        )
        until = time.monotonic() + 15
        while not log.exists() or log.read_text().count('"ready"') <= seen:
            if agent.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the agent did not start:\n{log.read_text()}")
            time.sleep(0.05)
        return agent

    def token(self, scope: str) -> None:
        """Create a token and keep it in a file."""
        made = self.run(
            "arc-server", "token", "create", "--scope", scope, "--deployment", DEPLOYMENT,
            "--init", "--data-dir", str(self.scratch / "server"),
        )  # fmt: skip
        if made.returncode:
            raise SystemExit(made.stderr)
        file = self.scratch / f"{scope}.token"
        file.touch(mode=0o600)
        file.write_text(made.stdout)

    def stop(self) -> None:
        """Kill the processes that still run."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.kill()
                process.wait()


def demo(scratch: Path) -> None:
    """Show all steps, in order."""
    this = Demo(scratch)
    try:
        _set_up(this)
        agent = this.start_agent()
        _small(this)
        _large(this)
        _failing(this)
        agent = _killed(this, agent)
        _stop(this, agent)
    finally:
        this.stop()


def _set_up(this: Demo) -> None:
    show_title("1. A server on SQLite, a token for the sender and one for the agent")
    server = this.start(
        "server", "arc-server", "serve", "--data-dir", str(this.scratch / "server"),
        "--listen", "127.0.0.1:0",
    )  # fmt: skip
    assert server.stdout is not None
    ready = server.stdout.readline().strip()
    if not ready.startswith("READY "):
        raise SystemExit((this.scratch / "server.log").read_text())
    this.url = ready.removeprefix("READY ")
    this.environ["ARC_SERVER_URL"] = this.url
    show(ready)
    this.token("sender")
    this.token("agent")
    show_title("2. An agent: outbound HTTP only, no open port")
    config = {
        "server": {"url": this.url, "token_file": str(this.scratch / "agent.token")},
        "deployment": DEPLOYMENT,
        "data_dir": str(this.scratch / "agent"),
        "lease": {"seconds": LEASE_SECONDS},
        "handlers": {"modules": ["demo_handlers"]},
        "log": {"format": "json"},
    }
    (this.scratch / "agent.yaml").write_text(json.dumps(config, indent=2))


def _small(this: Demo) -> None:
    show_title("3. A small command")
    begun = time.monotonic()
    sent = this.run(
        "arc", "invoke", DEPLOYMENT, "arc.echo", "--params", '{"hello": "world", "n": 42}'
    )
    took = time.monotonic() - begun
    show(sent.stdout.strip() or sent.stderr.strip())
    demand(
        sent.returncode == 0 and json.loads(sent.stdout) == {"hello": "world", "n": 42},
        f"there and back, with the start of the arc program, in {took:.2f} s",
    )


def _large(this: Demo) -> None:
    show_title("4. Large ones: 20 MB of params up, 20 MB of result down, by presigned URLs")
    body = this.scratch / "upload.json"
    body.write_bytes(b'"' + b"0123456789abcdef" * (20 * 1024 * 1024 // 16) + b'"')
    sent = this.run("arc", "invoke", DEPLOYMENT, "demo.checksum", "--params", f"@{body}")
    show(sent.stdout.strip() or sent.stderr.strip())
    digest = hashlib.sha256(body.read_bytes()).hexdigest()
    demand(
        sent.returncode == 0 and json.loads(sent.stdout)["sha256"] == digest,
        "the agent computed the right SHA-256",
    )
    out = this.scratch / "export.csv"
    sent = this.run(
        "arc", "invoke", DEPLOYMENT, "demo.export", "--params", '{"rows": 780000}',
        "--out", str(out),
    )  # fmt: skip
    if sent.returncode:
        show(sent.stderr.strip())
    demand(
        sent.returncode == 0 and out.read_bytes().count(b"\n") == 780_001,
        f"{out.stat().st_size / 1e6:.1f} MB of CSV came back whole",
    )


def _failing(this: Demo) -> None:
    show_title("5. One that fails: the handler's own code and message, exit code 1")
    sent = this.run("arc", "invoke", DEPLOYMENT, "demo.migrate", "--params", '{"table": "users"}')
    show(sent.stderr.strip())
    demand(sent.returncode == 1 and "MIGRATION_REFUSED" in sent.stderr, "exit code 1")


def _killed(this: Demo, agent: subprocess.Popen[str]) -> subprocess.Popen[str]:
    show_title("6. kill -9 the agent in the middle of a command")
    sent = this.run(
        "arc", "invoke", DEPLOYMENT, "demo.slow-report", "--params", '{"seconds": 4}',
        "--no-wait", "--json",
    )  # fmt: skip
    if sent.returncode:
        raise SystemExit(sent.stderr)
    command_id = json.loads(sent.stdout)["commandId"]
    _until_logged(this, command_id, "begun")
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    show(f"agent {agent.pid} is dead; {command_id} is still {_status(this, command_id)['state']}")
    show(f"its lease of {LEASE_SECONDS} s runs out, and the agent that comes back gets it")
    agent = this.start_agent()
    status = _until(this, command_id, "SUCCEEDED")
    shown = this.run("arc", "status", command_id)
    show(shown.stdout.strip().replace("\n", "\n  "))
    demand(status["attempt"] == 2, "it ran again as attempt 2, and has one result")
    events = this.run("arc", "events", command_id)
    show(events.stdout.strip().replace("\n", "\n  "))
    demand("attempt 1: begun" in events.stdout, "the lines of both attempts are there")
    return agent


def _stop(this: Demo, agent: subprocess.Popen[str]) -> None:
    show_title("7. Stop")
    agent.terminate()
    demand(agent.wait(20) == 0, "the agent drained and exited with 0")
    server = this.processes[0]
    server.terminate()
    demand(server.wait(20) == 0, "the server exited with 0")


def _status(this: Demo, command_id: str) -> dict[str, Any]:
    asked = subprocess.run(
        ["arc", "status", command_id, "--json"],
        env=this.environ, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    if asked.returncode > 1:
        raise SystemExit(asked.stderr)
    return json.loads(asked.stdout)


def _until_logged(this: Demo, command_id: str, text: str) -> None:
    until = time.monotonic() + 20
    while True:
        asked = subprocess.run(
            ["arc", "events", command_id],
            env=this.environ, text=True, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        if text in asked.stdout:
            return
        if time.monotonic() > until:
            raise SystemExit(f"{command_id} has not logged {text!r}: {asked.stderr}")


def _until(this: Demo, command_id: str, state: str) -> dict[str, Any]:
    until = time.monotonic() + 20
    while (status := _status(this, command_id))["state"] != state:
        if time.monotonic() > until:
            raise SystemExit(f"{command_id} is {status['state']}, not {state}")
    return status


def main() -> None:
    """Run the demo in a scratch directory, and remove it."""
    begun = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="arc-demo-"))
    try:
        demo(scratch)
    except SystemExit:
        for log in sorted(scratch.glob("*.log")):
            print(f"\n--- {log.name}\n{log.read_text()[-4000:]}", file=sys.stderr)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    show_title(f"Done in {time.monotonic() - begun:.0f} s. Next: docs/quickstart.md")


if __name__ == "__main__":
    main()
