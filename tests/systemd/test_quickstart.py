"""The quick start, typed from its page into fresh hosts, without a step that it does not name."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.booted_root import BootedRoot
from tests.support.debian_root import PROJECT
from tests.support.typed_page import Reader, sections

pytestmark = pytest.mark.systemd

PAGE = sections(PROJECT / "docs/quickstart.md")
HERE = [title for title in PAGE if "another host" not in title]
THERE = [title for title in PAGE if "another host" in title]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree, with what is not committed yet, as a repository that can be cloned."""
    place = tmp_path_factory.mktemp("repository") / "arc-source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT, text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, place / name, follow_symlinks=False)
    git = ["git", "-C", str(place), "-c", "user.name=ARC", "-c", "user.email=arc@arc.invalid"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "ARC"]):
        subprocess.run([*git, *words], check=True)
    return place


@pytest.fixture(scope="module")
def reader(root: BootedRoot, repository: Path) -> Iterator[Reader]:
    """A reader at a fresh host that can reach the repository."""
    source = root.copy_in(repository, "/srv")
    reader = Reader(root, {"git clone …": f"git clone --quiet {source}"})
    yield reader
    reader.close()


def test_the_first_sections_work_on_a_fresh_host(reader: Reader) -> None:
    printed: list[str] = []

    for title in HERE:
        for block in PAGE[title]:
            if block.text.startswith(". .venv/bin/activate"):
                reader.in_each_terminal = block.text
            printed.append(reader.type(block))

    screen = "".join(printed)
    assert '"rows":1204' in screen.replace(" ", "")
    assert "1204 rows" in screen
    assert "acme-eu-1" in screen


def test_the_agent_moves_to_another_fresh_host(wheel: Path) -> None:
    with BootedRoot("another-host") as there:
        there.write("/root/agent.token", "a-token-of-the-server\n", 0o600)
        there.copy_in(wheel)
        reader = Reader(there, {"make wheel": "true"})  # it was built on the first host
        try:
            screen = "".join(reader.type(block) for title in THERE for block in PAGE[title])
        finally:
            reader.close()

        assert "Active: active (running)" in screen
        assert "no contact with https://arc.example.com since" in there.show(
            "arc-agent.service", "StatusText"
        )
