"""Wheels of this tree as other releases: one that works, and some that do not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.support.debian_root import PROJECT

PutRelease = Callable[[str], str]
"""Puts the wheel of a release on a host; returns its path there."""

_BROKEN: Final = 'raise RuntimeError("a broken release")\n'
_DEAF: Final = """
from arc_agent.net.connection import NoAnswer as _NoAnswer
from arc_agent.work import poller as _poller

async def _ask(*_args, **_options):
    raise _NoAnswer("this release cannot connect")

_poller.ask = _ask
"""
_PLUGIN: Final = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "our-handlers"
version = "1.0"
dependencies = ["arc-commands"]
[project.entry-points."arc_agent.handlers"]
ours = "our_handlers"
[tool.hatch.build.targets.wheel]
only-include = ["our_handlers.py"]
"""
_HANDLERS: Final = """
from arc_agent import handler

@handler("ours")
async def ours() -> str:
    return "from the plug-in"
"""
_RELEASES: Final[Mapping[str, tuple[str, str]]] = {
    "good": ("0.1.7", ""),
    "broken": ("0.1.8", _BROKEN),
    "deaf": ("0.1.9", _DEAF),
}
"""Version numbers, and lines of their own in the agent."""


def build(name: str, place: Path) -> Path:
    """Build the wheel of a release, or of a plug-in (`plugin`), in a new directory; its path."""
    place.mkdir()
    if name == "plugin":
        (place / "pyproject.toml").write_text(_PLUGIN)
        (place / "our_handlers.py").write_text(_HANDLERS)
    else:
        _write_release(place, *_RELEASES[name])
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", place, place],
        check=True,
    )  # fmt: skip
    return next(place.glob("*.whl"))


def _write_release(place: Path, version: str, in_the_agent: str) -> None:
    """Write this tree with another version number, and lines of its own in the agent."""
    for package in PROJECT.glob("arc_*"):
        shutil.copytree(package, place / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(PROJECT / name, place)
    project = (PROJECT / "pyproject.toml").read_text()
    (place / "pyproject.toml").write_text(
        project.replace('version = "0.1.0"', f'version = "{version}"', 1)
    )
    with (place / "arc_agent/agent.py").open("a") as opened:
        opened.write(in_the_agent)
