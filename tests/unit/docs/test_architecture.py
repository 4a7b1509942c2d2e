"""The pages about the code name files that exist, and links in all pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = ("docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md")
LINKED = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md")],
)
TOP = {path.name for path in ROOT.iterdir()}


def named(text: str) -> set[str]:
    """Return the paths of the repository that a page names, in backticks or in its diagram."""
    words = set(re.findall(r"`([^`\s]+)`", text)) | set(re.findall(r"\barc_\w+/[\w/.]+", text))
    return {word for word in words if word.partition("/")[0] in TOP}


def in_diagram(text: str) -> set[str]:
    """Return the paths of the walk; one without its package is beside the one before it."""
    found: set[str] = set()
    for line in re.findall(r"^ │ .*\.py$", text, re.MULTILINE):
        package = ""
        for path in re.findall(r"[\w/]+\.py", line):
            package = path.partition("/")[0] if path.startswith("arc_") else package
            found.add(path if path.startswith("arc_") else f"{package}/{path}")
    return found


def anchors(page: Path) -> set[str]:
    """Return the fragments that a link to a page may have."""
    text = page.read_text()
    slugs = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    return slugs | set(re.findall(r'<a id="([\w-]+)">', text))


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_the_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    paths = named(text) | in_diagram(text)

    assert paths, "the page names no file"
    assert [path for path in sorted(paths) if not list(ROOT.glob(path.rstrip("/")))] == []


def test_a_newcomer_finds_the_files_of_at_least_twenty_questions() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("## Where is …?")[2].partition("\n## ")[0]

    assert len(re.findall(r"^\| .+\? \| `", table, re.MULTILINE)) >= 20


def test_contributors_learn_of_every_target_that_checks_or_measures() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text()))

    assert named == targets - {"help", "demo", "wheel", "deb", "lock", "clean"}


@pytest.mark.parametrize("page", LINKED, ids=[str(page.relative_to(ROOT)) for page in LINKED])
def test_every_link_of_the_page_leads_to_a_place_that_exists(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, fragment = target.partition("#")
        place = page.parent / name if name else page
        assert place.exists(), target
        assert not fragment or fragment in anchors(place), target
