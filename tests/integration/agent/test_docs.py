"""docs/handlers.md as it stands: its code is loaded, its commands are run, its tests pass."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.running_agent import running
from tests.support.scripted_server import ScriptedServer, inline

PAGE = (Path(__file__).parents[3] / "docs" / "handlers.md").read_text()
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL))
EXAMPLES = re.findall(
    r"\$ arc invoke acme (\S+) --params '(.*?)'\n(.*?)(?=\n\$|\n```)", PAGE, re.DOTALL
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The page's files, saved."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "params", "shown"), EXAMPLES, ids=[f"{c} {p}" for c, p, _ in EXAMPLES]
)
async def test_a_command_of_the_page_answers_what_the_page_says(
    server: ScriptedServer, place: Path, command: str, params: str, shown: str
) -> None:
    modules = [str(place / name) for name in FILES if name.endswith(".py") and "test" not in name]
    exec_sections = yaml.safe_load(FILES["agent.yaml"])["handlers"]["exec"]
    server.send(command, raw=params.encode())
    settings = {"handlers": {"modules": modules, "exec": exec_sections}}
    async with running(server.url, place, (), settings):
        response = await server.response()

    if response["status"] == "error":
        assert f"{response['code']}: {response['message']}" == shown
    else:
        assert inline(response).decode().rstrip("\n") == shown


async def test_the_file_of_the_page_is_handed_over(server: ScriptedServer, place: Path) -> None:
    import gzip

    server.send("logs.collect")
    settings = {"handlers": {"modules": [str(place / "exports.py")]}}
    async with running(server.url, place, (), settings):
        await server.response()

    assert gzip.decompress(server.blobs["response-cmd_1"]).startswith(b"line 0\nline 1\n")


def test_the_configuration_of_the_page_is_good(place: Path) -> None:
    checked = _run(
        place, "-c", "from arc_agent.cli.main import main; main(['check-config', 'agent.yaml'])"
    )

    assert "agent.yaml: ok; 6 handlers" in checked.stderr


def test_the_tests_of_the_page_pass(place: Path) -> None:
    _run(place, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_reports.py")


def _run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python there; it has to end well."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
