"""The packages' prose: how docstrings begin, which words are refused, where citations lead."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("arc_protocol", "arc_runtime", "arc_server", "arc_agent", "arc_client")
PAGES = (*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md")

DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

REFUSED_ANYWHERE = re.compile(r"(Whether|What|Who|Which|How|It|Its|The same|As above|See)\b")
"""A docstring that opens with one of these names neither its subject nor what it does."""

NO_VERBS = re.compile(
    r"(An?|All|And|Any|As|At|Because|Before|Both|But|By|Each|Every|Everything|For|From|Here|If|In|"
    r"Into|Its|Neither|Never|No|None|Not|Nothing|Of|On|Once|One|Only|Or|Ours|So|Some|Such|That|The|"
    r"Their|Then|There|These|They|This|Those|To|True|Unless|Until|Up|When|Where|While|Why|With|"
    r"Without)\b"
)
"""Words with which no sentence begins that says what a function does."""

NAMELESS = re.compile(r"\b(anybody|everybody|somebody|nobody|whoever|whatever)\b", re.IGNORECASE)
"""Words that hide who acts: agent, server, sender, operator, handler, holder, thread or caller."""

NAMES = frozenset({"nobody"})
"""String literals that are names, not prose: the user without rights."""

CITATION = re.compile(
    r"(?<![\w/*{….-])((?:[\w.-]+/)*[\w-]+\.md)\b(?!\]\()(#[\w-]+)?(?:, (?=([A-Z]\w.{0,80})))?"
)


class Docstring(NamedTuple):
    """The docstring of a module, class or function, and where its owner begins."""

    place: str
    owner: DOCUMENTED
    text: str


def sources(*folders: str) -> Iterator[Path]:
    """Yield every module below some folders of the repository."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def place(file: Path, line: int) -> str:
    """Return where a finding is, as an editor opens it."""
    return f"{file.relative_to(ROOT)}:{line}"


def docstrings() -> Iterator[Docstring]:
    """Yield every docstring of the packages."""
    for file in sources(*PACKAGES):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                yield Docstring(place(file, getattr(node, "lineno", 1)), node, text)


def field_docstrings() -> Iterator[tuple[str, str]]:
    """Yield the place and text of every string that stands behind a field or constant."""
    for file in sources(*PACKAGES):
        for node in ast.walk(ast.parse(file.read_text())):
            body = getattr(node, "body", None)
            for before, after in pairwise(body if isinstance(body, list) else []):
                if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                    value = after.value
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield place(file, after.lineno), value.value


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Yield every comment and every string of a module with its line: docstrings and messages."""
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        is_string = token.type in (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
        if token.type == tokenize.COMMENT or (is_string and token.string.strip("\"'") not in NAMES):
            for number, line in enumerate(token.string.splitlines()):
                yield token.start[0] + number, line


@cache
def headings(page: Path) -> frozenset[str]:
    """Return the titles of a page's sections, without the numbers before them."""
    found = re.findall(r"^#+ (?:\d+\. )?(.+)$", page.read_text(), re.MULTILINE)
    return frozenset(title.strip() for title in found)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the names to which a link into a page can lead: of its headings, and explicit ones."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    from_titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in found}
    return frozenset(from_titles | set(re.findall(r'<a id="([\w-]+)">', page.read_text())))


def cited_page(file: Path, name: str, around: str) -> Path | None:
    """Return the page that a citation means; None if it is not in the repository.

    Pages cite each other by their place beside each other, all else by the place in the
    repository. In code, a whole string is a part of a path below docs/, and so is a link's target.
    """
    candidates = [ROOT / name]
    if file.suffix == ".md":
        candidates.append(file.parent / name)
    elif around in ('""', "()"):
        candidates.append(ROOT / "docs" / name)
    return next((path for path in candidates if path.is_file()), None)


def wrong_citations(file: Path) -> Iterator[str]:
    """Yield each citation of a file that leads to no page, or to no section of its page."""
    lines = [line.strip().removeprefix("# ") for line in file.read_text().splitlines()]
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    text = " ".join(lines)  # a citation may run on into the next line
    for found in CITATION.finditer(text):
        name, anchor, section = found.groups()
        where = place(file, bisect_right(starts, found.start()))
        page = cited_page(file, name, text[found.start() - 1] + text[found.end() : found.end() + 1])
        if page is None:
            yield f"{where}: {name} is no page of the repository"
        elif anchor and anchor[1:] not in anchors(page):
            yield f"{where}: {name} has no anchor {anchor}"
        elif section and not any(section.startswith(title) for title in headings(page)):
            yield f"{where}: {name} has no section {section!r}"


def test_a_docstring_opens_with_its_subject_or_with_a_verb() -> None:
    wrong = [
        f"{where}: {text.splitlines()[0]}"
        for where, _, text in docstrings()
        if REFUSED_ANYWHERE.match(text)
    ]

    assert not wrong, "\n".join(wrong)


def test_the_docstring_of_a_field_opens_with_its_subject() -> None:
    wrong = [
        f"{where}: {text.splitlines()[0]}"
        for where, text in field_docstrings()
        if REFUSED_ANYWHERE.match(text)
    ]

    assert not wrong, "\n".join(wrong)


def test_the_docstring_of_a_test_module_opens_with_its_subject() -> None:
    wrong = [
        place(file, 1)
        for file in sources("tests")
        if REFUSED_ANYWHERE.match(ast.get_docstring(ast.parse(file.read_text())) or "")
    ]

    assert not wrong, "\n".join(wrong)


def test_a_functions_docstring_opens_with_a_verb() -> None:
    wrong = [
        f"{where}: {text.splitlines()[0]}"
        for where, owner, text in docstrings()
        if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef)
        and (not re.match(r"([A-Z][a-z-]+|GET|PUT)\b", text) or NO_VERBS.match(text))
    ]

    assert not wrong, "\n".join(wrong)


def test_prose_names_who_acts() -> None:
    wrong = [
        f"{place(file, number)}: {line.strip()}"
        for file in sources(*PACKAGES)
        for number, line in prose(file)
        if NAMELESS.search(line)
    ]

    assert not wrong, "\n".join(wrong)


CITING = {
    "packages": lambda: sources(*PACKAGES),
    "tests": lambda: sources("tests"),
    "scripts": lambda: sources("scripts", "benchmarks", "examples"),
    "pages": lambda: iter(PAGES),
    "settings": lambda: iter([ROOT / "Makefile", *ROOT.glob("config/*"), *ROOT.glob("systemd/*")]),
}


@pytest.mark.parametrize("where", CITING)
def test_a_citation_leads_to_a_page_and_its_section(where: str) -> None:
    wrong = [each for file in CITING[where]() for each in wrong_citations(file)]

    assert not wrong, "\n".join(wrong)
