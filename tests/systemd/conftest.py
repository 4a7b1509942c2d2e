"""Each module boots a Debian root of its own, in which systemd is PID 1 (`make test-systemd`)."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import arc_releases, debian_root
from tests.support.arc_host import AGENT, ArcHost
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
    """The root with a server and an enrolled agent at work, which soon finds a server again."""
    found = ArcHost(root)
    found.bootstrap(wheel)
    found.install()
    found.drop_in(AGENT, "back-off", "Environment=ARC_AGENT_SERVER_MAX_BACK_OFF_SECONDS=1")
    return found


@pytest.fixture(scope="module")
def put_release(tmp_path_factory: pytest.TempPathFactory, host: ArcHost) -> arc_releases.PutRelease:
    """Put the wheel of a release on the host; its path there."""
    place = tmp_path_factory.mktemp("releases")

    @functools.cache
    def put(name: str) -> str:
        return host.root.copy_in(arc_releases.build(name, place / name))

    return put
