"""Debian packages are built, installed, at work and purged, and leave nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import debian_root
from tests.support.arc_host import AGENT, DEPLOYMENT, SERVER, URL, ArcHost
from tests.support.booted_root import BootedRoot, difference

pytestmark = pytest.mark.systemd


def test_packages_are_installed_work_and_leave_nothing(root: BootedRoot, wheel: Path) -> None:
    root.run("apt-get", "install", "--yes", "--no-install-recommends", "python3-venv")
    before = root.files()
    packages = built_packages(root, wheel)
    host = ArcHost(root)

    root.type(f"dpkg --install {packages}/arc-server_*.deb {packages}/arc-agent_*.deb")
    root.write("/etc/arc/agent.yaml", f"server: {{url: '{URL}'}}\ndeployment: {DEPLOYMENT}\n")
    root.run("systemctl", "enable", "--now", "arc-server")
    host.enrol()
    root.run("systemctl", "enable", "--now", "arc-agent")
    assert host.invoke("arc.ping")["pong"] is True

    for unit in (AGENT, SERVER):
        pid = root.pid(unit)
        root.run("systemctl", "reload", unit)
        assert root.pid(unit) == pid
    root.type("dpkg --purge arc-agent arc-server")
    root.type(f"rm -r {packages} sender.token")

    # dpkg keeps its own lists, and removes an empty /opt, which no package of Debian's owns
    left = difference(before, root.files())
    assert [each for each in left if not each.startswith(("var/lib/dpkg/", "opt: "))] == []


def built_packages(root: BootedRoot, wheel: Path) -> str:
    """Build the packages inside, with the release's own Python; return their directory."""
    project = debian_root.PROJECT
    root.write("/root/build/README.md", "")
    for name in (*(each.name for each in project.glob("arc_*")), "config", "docs", "scripts",
                 "systemd", "LICENSE", "pyproject.toml", "requirements.lock"):  # fmt: skip
        root.copy_in(project / name, "/root/build")
    root.type(
        "cd build && python3 -m venv .venv\n"
        ".venv/bin/pip install --quiet --require-hashes -r requirements.lock\n"
        ".venv/bin/pip install --quiet --no-build-isolation --no-deps -e .\n"
        ".venv/bin/python scripts/build_deb.py --compression none --out /root/dist\n"
        "cd .. && rm -r build",
        seconds=1000,
    )
    return "/root/dist"
