"""The Debian package: built, installed below a root, run, removed, purged (make test-deb)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installed_server import ACCOUNTS, InstalledServer, run
from tests.support.supervised_unit import Unit

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.big,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed"),
]


@pytest.fixture(scope="module", params=["arc-agent", "arc-server"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deb")
    run_long(
        sys.executable, ROOT / "scripts/build_deb.py",
        "--out", out, "--compression", "gzip", request.param,
    )  # fmt: skip
    return next(out.glob("*.deb"))


def run_long(*argv: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in argv], text=True, capture_output=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def files(root: Path) -> set[str]:
    """All but what dpkg keeps for itself."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if not str(path.relative_to(root)).startswith("var/lib/dpkg")
    }


def test_a_package_is_installed_runs_is_removed_and_purged(
    package: Path, tmp_path: Path, installed: InstalledServer
) -> None:
    root = tmp_path / "root"
    for directory in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / directory).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    (root / "var/log").mkdir()
    (root / "etc").mkdir()
    for name in ACCOUNTS:
        shutil.copy(f"/etc/{name}", root / "etc")
        (root / f"etc/{name}-").touch()
    (root / "etc/.pwd.lock").touch()
    before = files(root)
    dpkg = (
        "dpkg", f"--root={root}", "--log=/dev/null",
        "--force-script-chrootless,depends,not-root,bad-path",
    )  # fmt: skip
    name = package.name.partition("_")[0]

    run_long(*dpkg, "--install", package)
    assert f"{name}:" in (root / "etc/passwd").read_text()
    if name == "arc-agent":
        (root / "etc/credstore").mkdir()
        (root / "etc/credstore/arc-agent.token").write_text(installed.token("agent"))
        environ = {"ARC_AGENT_SERVER_URL": installed.url, "ARC_AGENT_DEPLOYMENT": "acme"}
        file = root / "lib/systemd/system/arc-agent.service"
        with Unit(root, "arc-agent.service", file=file, environ=environ) as unit:
            assert unit.start(), unit.tail()
            assert '"pong":true' in installed.invoke("arc.ping")
            unit.stop()
    else:
        program = root / "opt/arc-server/current/bin"
        assert "good" in run(
            program / "python", program / name, "check-config", root / "etc/arc-server/server.yaml"
        )

    run_long(*dpkg, "--remove", name)
    left = files(root) - before
    config = f"etc/{'arc/agent' if name == 'arc-agent' else 'arc-server/server'}.yaml"
    assert config in left
    assert not any(each.startswith("opt/") for each in left)

    run_long(*dpkg, "--purge", name)
    shutil.rmtree(root / "etc/credstore", ignore_errors=True)
    ours = {each for each in files(root) - before if "arc" in each}
    assert ours == set()
    assert f"{name}:" not in (root / "etc/passwd").read_text()
    run("dpkg-deb", "--info", package)
