"""Handlers as packages: made by new-handler, tried by test-handler, installed with pip alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agent_process import agent
from tests.support.scripted_server import ScriptedServer, inline

ARC_AGENT = str(Path(sys.executable).parent / "arc-agent")


def arc_agent(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the console script."""
    environ = {"PATH": os.environ["PATH"]}
    return subprocess.run([ARC_AGENT, *words], input=stdin, capture_output=True, env=environ)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A new package, as it is made."""
    made = arc_agent("new-handler", "acme-greeter", "--dir", str(tmp_path))
    assert made.returncode == 0, made.stderr
    return tmp_path / "acme-greeter"


async def test_a_package_installed_with_pip_alone_adds_a_command(
    server: ScriptedServer, tmp_path: Path, package: Path
) -> None:
    target = tmp_path / "site"
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    installing = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pip", "install", *offline, "--target", target, package)
    )
    assert await installing.wait() == 0
    server.send("acme-greeter.greet", {"name": "Ada"})
    async with agent(server, tmp_path, PYTHONPATH=str(target)):
        response = await server.response()

    assert inline(response) == b'{"said":["Hello, Ada!"]}'
    (registered,) = [each.json() for each in server.seen("agents")][:1]
    (told,) = [h for h in registered["handlers"] if h["name"] == "acme-greeter.greet"]
    assert told["description"] == "Greets a person"
    assert told["idempotent"] is True
    assert told["paramsSchema"]["$defs"]["Greeting"]["required"] == ["name"]


def test_a_new_package_passes_its_own_test(package: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)]
    done = subprocess.run(words, cwd=package, capture_output=True, text=True)

    assert "3 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Acme", "a_b", "../a", "-a", "a" * 65, ""])
def test_a_name_that_no_package_can_have_is_refused(tmp_path: Path, name: str) -> None:
    made = arc_agent("new-handler", "--dir", str(tmp_path), "--", name)

    assert made.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(package: Path) -> None:
    again = arc_agent("new-handler", package.name, "--dir", str(package.parent))

    assert again.returncode == 2
    assert b"exists already" in again.stderr


def test_a_handler_is_tried_without_a_server(package: Path) -> None:
    module = str(package / "acme_greeter" / "handlers.py")
    words = ("test-handler", "acme-greeter.greet", "--handlers", module, "--params")
    good = arc_agent(*words, '{"name": "Ada"}')
    piped = arc_agent(*words, "-", stdin=b'{"name": "Bea"}')
    wrong = arc_agent(*words, '{"name": 3}')
    unknown = arc_agent("test-handler", "nothing")

    assert (good.returncode, json.loads(good.stdout)) == (0, {"said": ["Hello, Ada!"]})
    assert json.loads(piped.stdout) == {"said": ["Hello, Bea!"]}
    assert wrong.returncode == 1
    assert b"INVALID_PARAMS: params.name: Expected `str`, got `int`" in wrong.stderr
    assert unknown.returncode == 2
    assert unknown.stderr.startswith(b"error: no such handler: nothing")


def test_the_hosts_policy_is_asked_first_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "rules: [{name: all, commands: [arc.ping], action: deny}]"
    )
    config = {
        "server": {"url": "http://localhost"},
        "deployment": "d",
        "policy": {"file": str(tmp_path / "policy.yaml")},
    }
    (tmp_path / "agent.yaml").write_text(json.dumps(config))
    words = ("test-handler", "arc.ping", "-c", str(tmp_path / "agent.yaml"))

    denied, forced = arc_agent(*words), arc_agent(*words, "--no-policy")

    assert denied.returncode == 4
    assert b"DENIED_BY_POLICY" in denied.stderr
    assert json.loads(forced.stdout) == {"pong": True, "attempt": 1}


@pytest.mark.parametrize("command", ["check-config", "run", "run-once"])
def test_a_package_that_fails_at_import_shows_its_traceback_and_no_variables(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "broken_plugin.py").write_text(
        "def connect():\n"
        "    password = 's3' + 'cret'\n"
        "    raise RuntimeError('no database')\n"
        "connect()\n"
    )
    metadata = tmp_path / "broken_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[arc_agent.handlers]\nbroken = broken_plugin\n")
    config = tmp_path / "agent.yaml"
    # The audit log has no place there: an agent ends by itself.
    config.write_text(
        "server: {url: 'http://127.0.0.1:9'}\ndeployment: d\ndata_dir: /dev/null/none\n"
    )
    given = [str(config)] if command == "check-config" else ["--config", str(config)]

    done = subprocess.run(
        [ARC_AGENT, command, *given],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
    )

    said = done.stdout + done.stderr
    assert "s3cret" not in said
    assert "─" not in said
    (event,) = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert event["event"] == "handlers.left_out"
    assert event["exception"].endswith("RuntimeError: no database")
