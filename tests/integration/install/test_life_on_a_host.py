"""Install, run, upgrade, a failed upgrade, uninstall: in a scratch root, with a real agent."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arc_agent.cli.install import front
from tests.support.installed_server import ACCOUNTS, InstalledServer, run
from tests.support.supervised_unit import Unit

SOURCE = Path(__file__).parents[3]
pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]  # it builds virtual environments


class StandIn:
    """The units of a root, run by our stand-in for systemd."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.units: dict[str, Unit] = {}
        self.reloads = 0

    def unit(self, name: str) -> Unit:
        """One unit, known from its first start on."""
        if name not in self.units:
            self.units[name] = Unit(self._root, name).__enter__()
        return self.units[name]

    def reload(self) -> None:
        self.reloads += 1

    def is_active(self, unit: str) -> bool:
        return unit in self.units and self.units[unit].is_active

    def restart(self, unit: str, within_seconds: float) -> bool:
        self.unit(unit).stop()
        return self.unit(unit).start(within_seconds)

    def stop(self, unit: str) -> None:
        if unit in self.units:
            self.units[unit].stop()

    def close(self) -> None:
        """Leave nothing running."""
        for unit in self.units.values():
            unit.__exit__()


class Place:
    """A scratch root that looks like a host's, and our command line on it."""

    def __init__(self, root: Path, installed: InstalledServer) -> None:
        self.root = root
        self.services = StandIn(root)
        self._house = installed
        (root / "etc").mkdir(parents=True)
        for name in ACCOUNTS:
            (root / "etc" / name).write_text(Path("/etc", name).read_text())
            (root / "etc" / f"{name}-").touch()
        (root / "etc/.pwd.lock").touch()
        for directory in ("opt", "var/lib", "usr/local/bin", "etc/systemd/system"):
            (root / directory).mkdir(parents=True)
        (root.parent / "agent.token").write_text(installed.token("agent"))

    def agent(self, verb: str, *arguments: str | Path) -> int:
        """One of our commands; its exit code."""
        words = [verb, "--root", str(self.root), *(str(each) for each in arguments)]
        return front(lambda _: self.services).main(words)

    def install(self, *more: str | Path) -> int:
        """The usual installation."""
        return self.agent(
            "install", "--server", self._house.url, "--deployment", "acme",
            "--token-file", self.root.parent / "agent.token", *more,
        )  # fmt: skip

    def version(self) -> str:
        """Return what the running agent says that it runs from."""
        return os.readlink(self.root / "opt/arc/current")

    def files(self) -> dict[str, str]:
        """All that there is: kind, mode and content; of account files' backups, only that."""
        found: dict[str, str] = {}
        for path in sorted(self.root.rglob("*")):
            status = path.lstat()
            content = ""
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file() and not path.name.endswith("-"):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(self.root))] = f"{status.st_mode:o} {content}"
        return found


@pytest.fixture
def place(tmp_path: Path, installed: InstalledServer) -> Iterator[Place]:
    found = Place(tmp_path / "root", installed)
    yield found
    found.services.close()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A release that is good, and one that passes its check and never runs."""
    place = tmp_path_factory.mktemp("releases")
    return {
        "good": _wheel(place / "good", "0.1.7"),
        "bad": _wheel(place / "bad", "0.1.8", 'raise RuntimeError("a broken release")\n'),
    }


def _wheel(place: Path, version: str, in_the_agent: str = "") -> Path:
    """A wheel of this tree with another version number, and a line of its own."""
    place.mkdir()
    for package in SOURCE.glob("arc_*"):
        shutil.copytree(package, place / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(SOURCE / name, place)
    project = (SOURCE / "pyproject.toml").read_text()
    (place / "pyproject.toml").write_text(
        project.replace('version = "0.1.0"', f'version = "{version}"', 1)
    )
    with (place / "arc_agent/agent.py").open("a") as opened:
        opened.write(in_the_agent)
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", place, place,
    )  # fmt: skip
    return next(place.glob("*.whl"))


def release_of(place: Place) -> str:
    """The release that the current version holds."""
    python = place.root / "opt/arc/current/bin/python"
    return run(python, "-c", "import importlib.metadata as m; print(m.version('arc-commands'))")


def test_an_agent_lives_on_a_host_and_leaves_it_as_it_was(
    place: Place,
    installed: InstalledServer,
    wheels: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = place.files()

    # it is installed, and works
    assert place.install() == 0
    unit = place.services.unit("arc-agent.service")
    assert '"pong":true' in installed.invoke("arc.ping")
    assert (place.root / "etc/credstore/arc-agent.token").stat().st_mode & 0o777 == 0o600
    assert (place.root / "etc/arc/agent.yaml").stat().st_mode & 0o777 == 0o644
    assert "arc-agent:" in (place.root / "etc/passwd").read_text()

    # twice changes nothing
    installed, pid = place.files(), unit.pid
    assert place.install() == 0
    assert (place.files(), unit.pid) == (installed, pid)
    assert "nothing to change" in capsys.readouterr().err

    # another release
    assert place.agent("upgrade", "--from", wheels["good"]) == 0
    assert (place.version(), release_of(place)) == ("versions/2", "0.1.7\n")
    assert unit.is_active
    assert unit.pid != pid
    assert unit.ended_by == [0]
    installed.invoke("arc.ping")

    # one that does not come up
    upgraded = place.files()
    assert place.agent("upgrade", "--from", wheels["bad"], "--ready-within", "30") == 1
    assert "version 2 is back" in capsys.readouterr().err
    assert all("var/lib/" in name for name in place.files().keys() ^ upgraded.keys())
    assert (place.version(), release_of(place)) == ("versions/2", "0.1.7\n")
    assert unit.is_active
    installed.invoke("arc.ping")

    # one that pip makes nothing of
    (place.root.parent / "no.whl").write_text("not a wheel")
    pid = unit.pid
    assert place.agent("upgrade", "--from", place.root.parent / "no.whl") == 1
    assert (place.version(), unit.pid) == ("versions/2", pid)

    # and back to the first
    assert place.agent("upgrade", "--back") == 0
    assert (place.version(), release_of(place)) == ("versions/1", "0.1.0\n")
    installed.invoke("arc.ping")

    # it goes, and leaves its spool and its audit log
    assert place.agent("uninstall") == 0
    left = place.files().keys() - before.keys()
    assert "var/lib/arc-agent/spool.db" in left
    kept = ("var/lib/arc-agent/spool.db", "var/lib/arc-agent/audit", "var/lib/arc-agent/bodies")
    assert all(name == "var/lib/arc-agent" or name.startswith(kept) for name in left)


def test_a_dry_run_prints_all_that_is_then_done_and_an_edited_configuration_stays(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.files()

    assert place.install("--dry-run") == 0

    assert place.files() == before
    printed = capsys.readouterr().out
    assert (place.root.parent / "agent.token").read_text().strip() not in printed
    promised = {
        line.split()[1]
        for line in printed.splitlines()
        if line.startswith(("write", "mkdir", "link"))
    }
    assert place.install("--no-start") == 0
    made = {str(place.root / name) for name in place.files().keys() - before.keys()}
    program = str(place.root / "opt/arc/versions")
    assert {each for each in made if not each.startswith(program)} - promised == {
        str(place.root / "opt/arc"), str(place.root / "opt/arc/installed")
    }  # fmt: skip
    assert promised <= made

    capsys.readouterr()
    assert place.agent("uninstall", "--dry-run") == 0
    removed = {
        line.split()[1].rstrip(";")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("remove", "rmdir", "clear"))
    }
    assert {each for each in made if not each.startswith(f"{program}/")} - removed == set()

    config = place.root / "etc/arc/agent.yaml"
    edited = config.read_text() + "max_concurrent: 9\n"
    config.write_text(edited)
    assert place.install("--no-start") == 0
    assert config.read_text() == edited
    assert "-max_concurrent: 9" in capsys.readouterr().err

    assert place.agent("uninstall", "--purge") == 0
    assert place.files() == before


def test_two_instances_share_the_program_until_the_last_one_goes(
    place: Place, installed: InstalledServer
) -> None:
    before = place.files()

    assert place.install("--instance", "north") == 0
    assert place.install("--instance", "south") == 0
    north, south = (place.services.unit(f"arc-agent@{name}.service") for name in ("north", "south"))
    accounts = (place.root / "etc/passwd").read_text()
    assert "arc-agent-north:" in accounts
    assert "arc-agent-south:" in accounts

    assert place.agent("uninstall", "--instance", "north", "--purge") == 0
    assert (north.is_active, south.is_active) == (False, True)
    assert '"pong":true' in installed.invoke("arc.ping")
    assert place.agent("uninstall", "--instance", "south", "--purge") == 0
    assert place.files() == before


def test_what_is_wrong_is_said_before_anything_is_touched(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.files()

    for dry in ([], ["--dry-run"]):
        assert place.agent("install", *dry) == 1
        assert "give --server and --deployment" in capsys.readouterr().err
        assert place.agent("install", "--server", "ftp://x", "--deployment", "acme", *dry) == 2
        assert "server.url" in capsys.readouterr().err
        assert place.install("--token-file", place.root / "missing", *dry) == 2
        assert "token" in capsys.readouterr().err
        assert place.install("--instance", "Not_A_User", *dry) == 1
    assert place.agent("uninstall") == 1
    assert place.agent("upgrade", "--from", "x.whl") == 1
    assert "not installed" in capsys.readouterr().err
    assert place.files() == before


def test_root_only_installs_on_the_running_system() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m",
         "arc_agent", "install", "--server", "https://x", "--deployment", "d"],
        capture_output=True, text=True, check=False, cwd=SOURCE,
    )  # fmt: skip

    assert done.returncode == 4
    assert "root" in done.stderr
