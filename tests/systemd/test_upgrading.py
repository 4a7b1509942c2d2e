"""Upgrades on a host with a real systemd: of the agent, of the server, and with a plug-in."""

from __future__ import annotations

import os

import pytest

from tests.support.arc_host import AGENT, SERVER, ArcHost
from tests.support.arc_releases import PutRelease

pytestmark = pytest.mark.systemd


def test_a_good_release_takes_over_and_the_one_before_comes_back_on_request(
    host: ArcHost, put_release: PutRelease
) -> None:
    pid = host.root.pid(AGENT)

    host.upgrade("--from", put_release("good"))

    assert host.release() == "0.1.7"
    assert host.root.pid(AGENT) != pid
    assert host.invoke("arc.ping")["pong"] is True

    host.upgrade("--back")

    assert host.release() == "0.1.0"
    assert host.invoke("arc.ping")["pong"] is True


def test_a_plug_in_comes_by_an_upgrade_and_outlives_the_next(
    host: ArcHost, put_release: PutRelease
) -> None:
    host.upgrade("--from", put_release("plugin"))
    assert host.invoke("ours") == "from the plug-in"

    host.upgrade("--from", put_release("good"))
    assert host.invoke("ours") == "from the plug-in"

    host.upgrade("--back")
    assert host.release() == "0.1.0"


def test_the_server_is_upgraded_and_taken_back_like_an_agent(
    host: ArcHost, put_release: PutRelease
) -> None:
    pid = host.root.pid(SERVER)

    host.root.run("arc-server", "upgrade", "--from", put_release("good"))

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
