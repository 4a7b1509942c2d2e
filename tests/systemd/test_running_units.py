"""Agent and server at work as units of a real systemd, on a Debian without procps."""

from __future__ import annotations

import json

import pytest

from tests.support.arc_host import AGENT, SERVER, ArcHost

BOTH = [AGENT, SERVER]
pytestmark = pytest.mark.systemd


def test_an_enrolled_agent_runs_a_command(host: ArcHost) -> None:
    assert host.invoke("arc.ping")["pong"] is True


@pytest.mark.parametrize("unit", BOTH)
def test_a_reload_needs_no_program_that_a_minimal_debian_lacks(host: ArcHost, unit: str) -> None:
    name = unit.removesuffix(".service")
    file = "/etc/arc/agent.yaml" if unit == AGENT else "/etc/arc-server/server.yaml"
    pid = host.root.pid(unit)
    before = (host.root.path / file[1:]).read_text()
    assert not (host.root.path / "bin/kill").exists()

    host.root.write(file, before + "log: {level: debug}\n")
    host.root.run("systemctl", "reload", name)

    reloaded = "config.reloaded" if unit == AGENT else "server.reloaded"
    host.root.until(unit, lambda: host.root.logged(unit, reloaded))
    assert host.root.pid(unit) == pid
    host.root.write(file, before)
    host.root.run("systemctl", "reload", name)


@pytest.mark.parametrize("unit", BOTH)
def test_a_process_that_is_killed_is_started_again(host: ArcHost, unit: str) -> None:
    pid = host.root.pid(unit)

    host.root.run("systemctl", "kill", "--signal=SIGKILL", unit)

    host.until_restarted(unit, pid)
    assert host.invoke("arc.ping")["pong"] is True


@pytest.mark.parametrize("unit", BOTH)
def test_the_watchdog_restarts_a_process_that_stands_still(host: ArcHost, unit: str) -> None:
    host.drop_in(unit, "watchdog", "WatchdogSec=3")
    pid = host.root.pid(unit)

    host.root.run("systemctl", "kill", "--signal=SIGSTOP", "--kill-who=main", unit)

    host.until_restarted(unit, pid)
    said = [str(each["MESSAGE"]) for each in host.root.journal(unit)]
    assert any("Watchdog timeout" in line for line in said)
    host.without_drop_in(unit, "watchdog")
    assert host.invoke("arc.ping")["pong"] is True


@pytest.mark.parametrize("unit", BOTH)
def test_the_journal_has_one_entry_an_event_with_the_units_fields(host: ArcHost, unit: str) -> None:
    name = unit.removesuffix(".service")

    entries = [each for each in host.root.journal(unit) if str(each["MESSAGE"]).startswith("{")]

    assert entries
    for each in entries:
        assert each["_SYSTEMD_UNIT"] == unit
        assert each["SYSLOG_IDENTIFIER"] == name
        event = json.loads(each["MESSAGE"])
        assert {"event", "level", "timestamp"} <= event.keys()
