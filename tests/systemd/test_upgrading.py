"""Upgrades on a host with a real systemd: good ones, broken ones, and ones without a server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.arc_host import AGENT, SERVER, ArcHost, build_release
from tests.support.booted_root import CommandEnded

pytestmark = pytest.mark.systemd

BROKEN = 'raise RuntimeError("a broken release")\n'
DEAF = """
from arc_agent.net.connection import NoAnswer as _NoAnswer
from arc_agent.work import poller as _poller

async def _ask(*_args, **_options):
    raise _NoAnswer("this release cannot connect")

_poller.ask = _ask
"""
PLUGIN = """
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
HANDLERS = """
from arc_agent import handler

@handler("ours")
async def ours() -> str:
    return "from the plug-in"
"""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory, host: ArcHost) -> dict[str, str]:
    """Wheels on the host, by what is special about them."""
    place = tmp_path_factory.mktemp("releases")
    (place / "plugin").mkdir()
    (place / "plugin/pyproject.toml").write_text(PLUGIN)
    (place / "plugin/our_handlers.py").write_text(HANDLERS)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", place, place / "plugin"],
        check=True,
    )  # fmt: skip
    built = {
        "good": build_release(place / "good", "0.1.7"),
        "broken": build_release(place / "broken", "0.1.8", BROKEN),
        "deaf": build_release(place / "deaf", "0.1.9", DEAF),
        "plugin": next(place.glob("*.whl")),
    }
    return {name: host.root.copy_in(file) for name, file in built.items()}


@pytest.fixture(autouse=True)
def _same_version_afterwards(host: ArcHost) -> Iterator[None]:
    """Every test begins and ends with the first release, at work."""
    yield
    host.root.run("systemctl", "start", SERVER)
    host.root.until_status(AGENT, "last contact")


def release(host: ArcHost) -> str:
    """The release that the current version holds."""
    return host.root.run(
        "/opt/arc/current/bin/python",
        "-c", "import importlib.metadata as m; print(m.version('arc-commands'))",
    ).strip()  # fmt: skip


def upgrade(host: ArcHost, *arguments: str) -> str:
    """Upgrade, and say what was printed."""
    return host.root.run("arc-agent", "upgrade", *arguments)


def current(host: ArcHost) -> str:
    """The current version's place."""
    return os.readlink(host.root.path / "opt/arc/current")


def test_a_good_release_takes_over_and_the_one_before_comes_back_on_request(
    host: ArcHost, releases: dict[str, str]
) -> None:
    pid = host.root.pid(AGENT)

    upgrade(host, "--from", releases["good"])

    assert release(host) == "0.1.7"
    assert host.root.pid(AGENT) != pid
    assert host.invoke("arc.ping")["pong"] is True

    upgrade(host, "--back")

    assert release(host) == "0.1.0"
    assert host.invoke("arc.ping")["pong"] is True


@pytest.mark.parametrize(
    ("name", "fault"),
    [("broken", "was not ready"), ("deaf", "had no contact with the server")],
)
def test_a_release_that_does_not_work_is_taken_back(
    host: ArcHost, releases: dict[str, str], name: str, fault: str
) -> None:
    version = current(host)

    with pytest.raises(CommandEnded) as ended:
        upgrade(host, "--from", releases[name], "--ready-within", "15s")

    assert ended.value.code == 1
    assert f"{fault} within 15 s; version {version[9:]} is back" in ended.value.printed
    assert (current(host), release(host)) == (version, "0.1.0")
    assert host.invoke("arc.ping")["pong"] is True


def test_an_upgrade_while_the_server_is_away_is_not_taken_back(
    host: ArcHost, releases: dict[str, str]
) -> None:
    host.root.run("systemctl", "stop", SERVER)
    host.root.until_status(AGENT, "no contact with")

    upgrade(host, "--from", releases["good"], "--ready-within", "15s")

    assert release(host) == "0.1.7"
    assert "no contact with" in host.root.show(AGENT, "StatusText")
    upgrade(host, "--back")


def test_a_plug_in_comes_by_an_upgrade_and_outlives_the_next(
    host: ArcHost, releases: dict[str, str]
) -> None:
    upgrade(host, "--from", releases["plugin"])
    assert host.invoke("ours") == "from the plug-in"

    upgrade(host, "--from", releases["good"])
    assert host.invoke("ours") == "from the plug-in"

    upgrade(host, "--back")
    assert release(host) == "0.1.0"


def test_the_server_is_upgraded_and_taken_back_like_an_agent(
    host: ArcHost, releases: dict[str, str]
) -> None:
    pid = host.root.pid(SERVER)

    host.root.run("arc-server", "upgrade", "--from", releases["good"])

    assert host.root.pid(SERVER) != pid
    assert host.invoke("arc.ping")["pong"] is True
    host.root.run("arc-server", "upgrade", "--back")


@pytest.mark.parametrize("home", ["/opt/arc", "/opt/arc-server"])
def test_an_installed_version_holds_no_tools_that_build_or_install(
    host: ArcHost, home: str
) -> None:
    version = host.root.path / home[1:] / os.readlink(host.root.path / home[1:] / "current")
    [site] = version.glob("lib/python3*/site-packages")
    names = [path.name for path in (*site.iterdir(), *(version / "bin").iterdir())]

    tools = ("pip", "setuptools", "wheel", "hatchling", "editables", "pkg_resources", "_distutils")
    assert [name for name in names if name.startswith(tools)] == []
    assert "msgspec" in names
