"""Plans: carried out, repeated, interrupted anywhere, and taken back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from arc_agent.cli.install import PRODUCT
from arc_runtime.install import plan, product
from arc_runtime.install.host import Host, InstallError
from arc_runtime.install.manifest import Manifest
from arc_runtime.install.plan import (
    AnyStep,
    Directory,
    File,
    Link,
    Owned,
    SystemUser,
    carry_out,
    preview,
)
from arc_runtime.install.product import Request, install, refuse_from_within, upgrade_product
from arc_runtime.install.program import InstalledProgram, check_interpreter
from arc_runtime.install.removal import remove_entry
from arc_runtime.install.upgrade import switch_to, upgrade

STEPS: Sequence[AnyStep] = (
    Directory(path="/etc/arc", mode=0o750),
    File(path="/etc/arc/agent.yaml", content=b"a: 1\n", is_edited=True),
    File(path="/etc/arc/token", content=b"secret\n", mode=0o600, is_secret=True),
    File(path="/etc/arc/unit", content=b"[Unit]\n"),
    Link(path="/etc/arc/wanted", target="unit"),
    Owned(path="/var/lib/arc", kept=("spool.db", "audit")),
)


class Scratch:
    """A root, what was said and run, and a manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.said: list[str] = []
        self.ran: list[Sequence[str]] = []
        self.host = Host(root, self.ran.append, self.said.append)
        (root / "etc").mkdir(parents=True)
        (root / "var/lib").mkdir(parents=True)
        self.reopen()

    def reopen(self) -> None:
        """Read the manifest again, as the next process does."""
        self.manifest = Manifest(self.root, "/manifest.json")

    def carry_out(self, steps: Sequence[AnyStep] = STEPS, *others: Manifest) -> list[str]:
        """All steps; what each came to."""
        return [carry_out(step, self.host, self.manifest, others) for step in steps]

    def take_back(self, *, purge: bool = False) -> None:
        """All that is noted."""
        for entry in reversed(list(self.manifest.entries)):
            remove_entry(entry, self.host, self.manifest, purge=purge)

    def files(self) -> set[str]:
        """All that there is."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "root")


def test_a_plan_is_carried_out_once_and_taken_back_whole(scratch: Scratch) -> None:
    before = scratch.files()

    assert scratch.carry_out() == ["made"] * len(STEPS)
    assert (scratch.root / "etc/arc/token").stat().st_mode & 0o777 == 0o600
    assert (scratch.root / "etc/arc").stat().st_mode & 0o777 == 0o750
    scratch.reopen()
    assert scratch.carry_out() == ["unchanged"] * len(STEPS)
    assert not any(preview(step, scratch.host) for step in STEPS)

    scratch.take_back()
    assert scratch.files() == before


@pytest.mark.parametrize("reached", range(5))
@pytest.mark.parametrize("is_noted", [True, False])
def test_what_was_interrupted_anywhere_can_be_taken_back_and_repeated(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch, reached: int, is_noted: bool
) -> None:
    before = scratch.files()
    scratch.carry_out(STEPS[:reached])

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if is_noted:
            patch.setattr(plan, "write_link", die)
            patch.setattr(Path, "mkdir", die)
            patch.setattr(plan, "write_file", die)
        else:
            patch.setattr(Manifest, "record", die)
        with pytest.raises(KeyboardInterrupt):
            scratch.carry_out(STEPS[reached:])
    scratch.reopen()

    scratch.carry_out()
    assert (scratch.root / "etc/arc/wanted").read_text() == "[Unit]\n"
    scratch.take_back()
    assert scratch.files() == before


@pytest.mark.parametrize("step", [STEPS[3], STEPS[4]])
def test_what_is_not_from_here_is_never_replaced(scratch: Scratch, step: AnyStep) -> None:
    (scratch.root / "etc/arc").mkdir()
    (scratch.root / step.path[1:]).write_text("another owner's")

    with pytest.raises(InstallError, match="not installed by this program"):
        scratch.carry_out([step])

    assert (scratch.root / step.path[1:]).read_text() == "another owner's"


def test_a_file_that_people_edit_stays_as_they_made_it(scratch: Scratch) -> None:
    scratch.carry_out()
    (scratch.root / "etc/arc/agent.yaml").write_text("a: 2\n")

    done = scratch.carry_out([File(path="/etc/arc/agent.yaml", content=b"a: 3\n", is_edited=True)])

    assert done == ["kept"]
    assert (scratch.root / "etc/arc/agent.yaml").read_text() == "a: 2\n"
    assert {"       | -a: 2", "       | +a: 3"} <= set(scratch.said)
    scratch.take_back()
    assert any("removed although it was edited" in line for line in scratch.said)


def test_a_file_that_nobody_has_edited_is_renewed(scratch: Scratch) -> None:
    scratch.carry_out()

    assert (
        scratch.carry_out(
            [
                File(path="/etc/arc/agent.yaml", content=b"a: 3\n", is_edited=True),
                File(path="/etc/arc/unit", content=b"[Service]\n"),
                Link(path="/etc/arc/wanted", target="agent.yaml"),
            ]
        )
        == ["changed"] * 3
    )
    assert (scratch.root / "etc/arc/wanted").read_text() == "a: 3\n"


def test_a_secret_is_not_shown(scratch: Scratch) -> None:
    (scratch.root / "etc/arc").mkdir()

    assert "secret\n" not in "".join(preview(STEPS[2], scratch.host))


def test_of_a_state_directory_only_what_is_kept_stays(scratch: Scratch) -> None:
    scratch.carry_out()
    state = scratch.root / "var/lib/arc"
    (state / "audit").mkdir(parents=True)
    (state / "tmp").mkdir()
    for name in ("spool.db", "spool.db-wal", "spool.dbx", "lock", "audit/1", "tmp/x"):
        (state / name).touch()

    scratch.take_back()

    left = {str(path.relative_to(state)) for path in state.rglob("*")}
    assert left == {"spool.db", "spool.db-wal", "audit", "audit/1"}

    scratch.carry_out()
    scratch.take_back(purge=True)
    assert not state.exists()


def test_a_directory_in_which_others_have_put_something_stays(scratch: Scratch) -> None:
    scratch.carry_out()
    (scratch.root / "etc/arc/handlers.py").touch()

    scratch.take_back()

    assert "etc/arc/handlers.py" in scratch.files()
    assert any("holds other files" in line for line in scratch.said)


def test_a_user_is_made_where_there_is_none_and_only_that_one_is_removed(scratch: Scratch) -> None:
    step = SystemUser(path="/etc/sysusers.d/arc.conf", name="arc")
    accounts = scratch.root / "etc/passwd"
    accounts.write_text("arc:x:990:990::/:/usr/sbin/nologin\n")
    assert scratch.carry_out([step]) == ["unchanged"]
    accounts.write_text("arcade:x:991:991::/:/usr/sbin/nologin\n")

    assert scratch.carry_out([step]) == ["made"]

    accounts.write_text("arc:x:990:990::/:/usr/sbin/nologin\n")
    scratch.take_back()
    root = str(scratch.root)
    assert scratch.ran == [
        ["systemd-sysusers", f"--root={root}", f"{root}/etc/sysusers.d/arc.conf"],
        ["userdel", "--prefix", root, "arc"],
    ]


# Versions


class Services:
    """Units that are ready, or not, by the version that is the current one."""

    def __init__(self, program: InstalledProgram, ready: Callable[[str, str], bool]) -> None:
        self._program = program
        self._ready = ready
        self.starts: list[tuple[str, str]] = []

    def reload(self) -> None:
        pass

    def is_active(self, unit: str) -> bool:
        return unit != "stopped"

    def restart(self, unit: str, within_seconds: float) -> bool:
        current = self._program.current()
        assert current is not None
        self.starts.append((unit, current.name))
        return self._ready(unit, current.name)

    def stop(self, unit: str) -> None:
        pass


@pytest.fixture
def program(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> InstalledProgram:
    """Version 2 is the current one, 1 the one before; a build makes an empty directory."""
    found = InstalledProgram(scratch.host, "/opt/arc")
    for name in ("1", "2"):
        (found.versions / name).mkdir(parents=True)
        found.switch(found.versions / name)

    def build(base: Path, source: str | None) -> Path:
        version = found.versions / "3"
        version.mkdir()
        return version

    monkeypatch.setattr(found, "build", build)
    return found


def names(program: InstalledProgram) -> tuple[str, str, set[str]]:
    """The current version, the one before, and all."""
    current, previous = program.current(), program.previous()
    assert current is not None
    assert previous is not None
    return current.name, previous.name, {path.name for path in program.versions.iterdir()}


def go(
    program: InstalledProgram,
    scratch: Scratch,
    services: Services,
    *units: str,
    check: Any = None,
    has_contact: Callable[[str], bool] = lambda _: True,
    within_seconds: float = 5,
) -> None:
    upgrade(
        program,
        scratch.host,
        services,
        source="x",
        units=units,
        check=check or (lambda _: None),
        has_contact=has_contact,
        within_seconds=within_seconds,
    )


def test_an_upgrade_keeps_the_version_before_and_no_older(
    program: InstalledProgram, scratch: Scratch
) -> None:
    services = Services(program, lambda *_: True)

    go(program, scratch, services, "one", "stopped")

    assert services.starts == [("one", "3")]
    assert names(program) == ("3", "2", {"2", "3"})
    assert "stopped was not running, and was not started" in scratch.said


def test_a_unit_that_is_not_ready_in_time_brings_the_old_version_back_for_all(
    program: InstalledProgram, scratch: Scratch
) -> None:
    services = Services(program, lambda unit, version: (unit, version) != ("two", "3"))

    with pytest.raises(InstallError, match="version 2 is back"):
        go(program, scratch, services, "one", "two")

    assert services.starts == [("one", "3"), ("two", "3"), ("one", "2"), ("two", "2")]
    assert names(program) == ("2", "1", {"1", "2"})


def test_a_version_that_loses_the_contact_which_the_old_one_had_is_taken_back(
    program: InstalledProgram, scratch: Scratch
) -> None:
    services = Services(program, lambda *_: True)

    def has_contact(_: str) -> bool:
        return names(program)[0] == "2"

    with pytest.raises(InstallError, match="had no contact with the server within 0 s; version 2"):
        go(program, scratch, services, "one", has_contact=has_contact, within_seconds=0)

    assert services.starts == [("one", "3"), ("one", "2")]
    assert names(program) == ("2", "1", {"1", "2"})


def test_a_version_gets_its_time_to_get_contact(
    program: InstalledProgram, scratch: Scratch
) -> None:
    services = Services(program, lambda *_: True)
    answers = iter([True, False, False, True])

    go(program, scratch, services, "one", has_contact=lambda _: next(answers))

    assert names(program)[0] == "3"


def test_no_contact_is_asked_of_a_version_when_the_old_one_had_none(
    program: InstalledProgram, scratch: Scratch
) -> None:
    services = Services(program, lambda *_: True)

    go(program, scratch, services, "one", has_contact=lambda _: False, within_seconds=0)

    assert services.starts == [("one", "3")]


def test_a_configuration_that_the_new_version_refuses_stops_nothing(
    program: InstalledProgram, scratch: Scratch
) -> None:
    services = Services(program, lambda *_: True)

    def refuse(_: Path) -> None:
        raise InstallError("unknown key")

    with pytest.raises(InstallError, match="unknown key"):
        go(program, scratch, services, "one", check=refuse)

    assert services.starts == []
    assert names(program) == ("2", "1", {"1", "2"})


def test_when_the_old_version_is_not_ready_either_it_is_said(
    program: InstalledProgram, scratch: Scratch
) -> None:
    services = Services(program, lambda *_: False)

    with pytest.raises(InstallError, match="not ready either: one"):
        switch_to(
            program,
            scratch.host,
            services,
            program.versions / "1",
            units=["one"],
            has_contact=lambda _: True,
            within_seconds=5,
        )

    assert names(program)[:2] == ("2", "1")


def test_nothing_restarts_the_unit_that_it_runs_in(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    cgroup.write_text("0::/system.slice/arc-agent.service\n")

    with pytest.raises(InstallError, match="systemd-run"):
        refuse_from_within(["arc-agent.service"], cgroup)
    refuse_from_within(["arc-agent@north.service"], cgroup)


def test_an_interpreter_that_the_sandbox_hides_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    check_interpreter(Path("/"))
    monkeypatch.setattr(sys, "executable", "/home/ada/.pyenv/bin/python3")

    with pytest.raises(InstallError, match="sandboxed unit cannot see"):
        check_interpreter(Path("/"))
    check_interpreter(tmp_path)


def test_what_dpkg_has_installed_is_left_to_it(scratch: Scratch) -> None:
    (scratch.root / "var/lib/dpkg/info").mkdir(parents=True)
    (scratch.root / "var/lib/dpkg/info/arc-agent.list").touch()
    services = Services(InstalledProgram(scratch.host, "/opt/arc"), lambda *_: True)

    with pytest.raises(InstallError, match="apt manages it"):
        install(PRODUCT, Request(config=b""), scratch.host, services)
    with pytest.raises(InstallError, match="apt manages it"):
        upgrade_product(PRODUCT, "x", scratch.host, services, 1, lambda *_: True)


@pytest.mark.parametrize(
    ("version", "drop_ins"),
    [
        (0, set()),
        (252, set()),
        (253, {"10-reload.conf"}),
        (257, {"10-reload.conf", "10-delay.conf"}),
    ],
)
def test_a_newer_systemd_gets_the_drop_ins_that_it_knows(
    monkeypatch: pytest.MonkeyPatch, version: int, drop_ins: set[str]
) -> None:
    monkeypatch.setattr(product, "systemd_version", lambda: version)

    steps = product.plan(PRODUCT, Request(config=b""))

    found = {Path(step.path).name for step in steps if "service.d/" in step.path}
    assert found == drop_ins
