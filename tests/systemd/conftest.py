"""Each module boots a Debian root of its own, in which systemd is PID 1 (`make test-systemd`)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import debian_root
from tests.support.arc_host import ArcHost
from tests.support.booted_root import BootedRoot


@pytest.fixture(scope="module")
def root(request: pytest.FixtureRequest) -> Iterator[BootedRoot]:
    """A root that has just been booted, for all tests of a module."""
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    with BootedRoot(name[:20]) as booted:
        yield booted


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, as `make wheel` builds it."""
    place = tmp_path_factory.mktemp("dist")
    make = ["make", "--silent", "wheel", f"DIST={place}"]
    subprocess.run(make, cwd=debian_root.PROJECT, check=True)
    return next(place.glob("arc_commands-*.whl"))


@pytest.fixture(scope="module")
def host(root: BootedRoot, wheel: Path) -> ArcHost:
    """The root with a server and an enrolled agent at work."""
    found = ArcHost(root)
    found.bootstrap(wheel)
    found.install()
    return found
