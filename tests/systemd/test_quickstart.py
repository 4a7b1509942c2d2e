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


@pytest.fixture(scope="module")
def screen(reader: Reader) -> str:
    """What the first host shows while all sections but that of another host are typed."""
    printed: list[str] = []
    for title in HERE:
        for block in PAGE[title]:
            if block.text.startswith(". .venv/bin/activate"):
                reader.in_each_terminal = block.text
            printed.append(reader.type(block))
    return "".join(printed)


def test_the_first_sections_work_on_a_fresh_host(screen: str) -> None:
    assert '"rows":1204' in screen.replace(" ", "")
    assert "1204 rows" in screen
    assert "acme-eu-1" in screen


@pytest.mark.usefixtures("screen")
def test_the_agent_moves_to_another_fresh_host(root: BootedRoot, reader: Reader) -> None:
    make_wheel, *others = [block for title in THERE for block in PAGE[title]]
    reader.type(make_wheel)

    with BootedRoot("another-host") as there:
        [wheel] = root.path.glob("root/arc/dist/*.whl")
        for brought in (wheel, root.path / "root/arc/agent.token"):
            there.copy_in(brought)
        reader_there = Reader(there, {})
        try:
            shown = "".join(reader_there.type(block) for block in others)
        finally:
            reader_there.close()

        assert "Active: active (running)" in shown
        assert "no contact with https://arc.example.com since" in there.show(
            "arc-agent.service", "StatusText"
        )
