"""Uninstalling leaves nothing on a host, and neither does a dry run of installing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.arc_host import BOOTSTRAP, DEPLOYMENT, URL, ArcHost
from tests.support.booted_root import BootedRoot, difference

pytestmark = pytest.mark.systemd


@pytest.fixture(scope="module")
def bare(root: BootedRoot) -> dict[str, str]:
    """The files of the host before our program came there."""
    root.run("apt-get", "install", "--yes", "--no-install-recommends", "python3-venv")
    return root.files()


@pytest.fixture(scope="module")
def bootstrapped(root: BootedRoot, bare: dict[str, str], wheel: Path) -> ArcHost:
    """The host with the program that installs, and nothing installed."""
    host = ArcHost(root)
    host.bootstrap(wheel)
    return host


def test_a_dry_run_touches_nothing(bootstrapped: ArcHost) -> None:
    root = bootstrapped.root
    before = root.files()

    printed = root.run(
        f"{BOOTSTRAP}/bin/arc-agent", "install", "--dry-run", "--server", URL, "--deployment",
        DEPLOYMENT,
    )  # fmt: skip

    assert "run    systemctl daemon-reload" in printed
    assert difference(before, root.files()) == []


def test_an_installation_leaves_the_host_as_it_was(
    bootstrapped: ArcHost, bare: dict[str, str], wheel: Path
) -> None:
    root = bootstrapped.root

    bootstrapped.install()
    root.type(f"rm -r {BOOTSTRAP} {wheel.name}")
    assert bootstrapped.invoke("arc.ping")["pong"] is True
    assert "arc-agent" in root.run("cat", "/etc/passwd")

    root.run("arc-agent", "uninstall", "--purge")
    root.run("arc-server", "uninstall", "--purge")
    root.type("rm sender.token")

    assert difference(bare, root.files()) == []
    assert "arc" not in root.run("systemctl", "list-units", "--no-legend", "arc-*")
