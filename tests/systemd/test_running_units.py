"""Agent and server at work as units of a real systemd, on a Debian without procps."""

from __future__ import annotations

import re

import pytest

from tests.support.arc_host import AGENT, DEPLOYMENT, SERVER, URL, ArcHost
from tests.support.waiting import wait_until

BOTH = [AGENT, SERVER]
CONFIGS = {AGENT: "/etc/arc/agent.yaml", SERVER: "/etc/arc-server/server.yaml"}
READY = {AGENT: "ready", SERVER: "server.ready"}
RELOADED = {AGENT: "reload.done", SERVER: "server.reloaded"}
pytestmark = pytest.mark.systemd


def test_an_enrolled_agent_runs_a_command(host: ArcHost) -> None:
    assert host.invoke("arc.ping")["pong"] is True


@pytest.mark.parametrize("unit", BOTH)
def test_a_start_logs_events_and_nothing_else(host: ArcHost, unit: str) -> None:
    entries = host.root.journal(unit)

    ours = [each for each in entries if each.get("SYSLOG_IDENTIFIER") != "systemd"]
    plain = [each["MESSAGE"] for each in ours if "ARC_EVENT" not in each]
    assert plain == ([f"READY {URL}"] if unit == SERVER else [])
    warnings = [each["MESSAGE"] for each in ours if int(each["PRIORITY"]) < 6]
    assert warnings == []


@pytest.mark.parametrize("unit", BOTH)
def test_an_event_is_an_entry_of_the_journal_with_fields_of_its_own(
    host: ArcHost, unit: str
) -> None:
    [ready, *_] = host.logged(unit, READY[unit])

    assert ready["_TRANSPORT"] == "journal"
    assert ready["_SYSTEMD_UNIT"] == unit
    assert ready["SYSLOG_IDENTIFIER"] == unit.removesuffix(".service")
    assert ready["PRIORITY"] == "6"
    assert ready["ARC_SERVER" if unit == AGENT else "ARC_URL"] == URL


def test_the_events_of_one_command_are_found_by_its_id(host: ArcHost) -> None:
    host.invoke("arc.ping")
    [*_, ended] = host.until_logged(AGENT, "command.ended")

    found = host.root.run("journalctl", "--output=cat", f"ARC_COMMAND_ID={ended['ARC_COMMAND_ID']}")

    assert "command.ended" in found
    assert ended["ARC_COMMAND"] == "arc.ping"
    assert ended["ARC_OUTCOME"] == "succeeded"


@pytest.mark.parametrize(
    ("unit", "says"),
    [(AGENT, r"\d+ running, \d+ done, last contact \d+ s ago"), (SERVER, f"serving on {URL}")],
)
def test_systemctl_status_says_how_it_goes(host: ArcHost, unit: str, says: str) -> None:
    screen = host.root.run("systemctl", "status", "--lines=0", unit)

    assert re.search(rf'Status: "{says}"', screen), screen
    assert "Active: active (running)" in screen


@pytest.mark.parametrize("unit", BOTH)
def test_a_reload_needs_no_program_that_a_minimal_debian_lacks(host: ArcHost, unit: str) -> None:
    pid = host.root.pid(unit)
    before = len(host.logged(unit, RELOADED[unit]))
    assert not (host.root.path / "bin/kill").exists()

    host.root.run("systemctl", "reload", unit)

    wait_until(lambda: len(host.logged(unit, RELOADED[unit])) > before)
    assert host.root.pid(unit) == pid
    assert host.root.show(unit, "ActiveState") == "active"


@pytest.mark.parametrize("unit", BOTH)
def test_a_process_that_is_killed_is_started_again(host: ArcHost, unit: str) -> None:
    pid = host.root.pid(unit)

    host.root.run("systemctl", "kill", "--signal=SIGKILL", "--kill-who=main", unit)

    host.until_restarted(unit, pid)
    assert host.invoke("arc.ping")["pong"] is True


@pytest.mark.parametrize("unit", BOTH)
def test_the_watchdog_restarts_a_process_that_stands_still(host: ArcHost, unit: str) -> None:
    host.drop_in(unit, "watchdog", "WatchdogSec=3")
    pid = host.root.pid(unit)

    host.root.run("systemctl", "kill", "--signal=SIGSTOP", "--kill-who=main", unit)

    host.until_restarted(unit, pid)
    assert any("Watchdog timeout" in str(each["MESSAGE"]) for each in host.root.journal(unit))
    host.without_drop_in(unit, "watchdog")
    assert host.invoke("arc.ping")["pong"] is True


def test_a_wrong_configuration_is_not_tried_again(host: ArcHost) -> None:
    good = (host.root.path / CONFIGS[AGENT][1:]).read_text()
    host.root.write(CONFIGS[AGENT], good + "no_such_key: 1\n")

    code, _ = host.root.try_run("systemctl", "restart", AGENT)

    assert code != 0
    assert host.root.show(AGENT, "ActiveState") == "failed"
    assert host.root.show(AGENT, "ExecMainStatus") == "2"
    host.root.write(CONFIGS[AGENT], good)
    host.root.run("systemctl", "restart", AGENT)


def test_an_agent_starts_without_a_server_and_says_since_when(host: ArcHost) -> None:
    host.root.run("systemctl", "stop", SERVER)

    host.root.run("systemctl", "restart", AGENT)

    assert f"no contact with {URL} since 2" in host.root.show(AGENT, "StatusText")
    host.root.run("systemctl", "start", SERVER)
    host.root.until_status(AGENT, "last contact")


# The sandbox, as the kernel keeps it

PROGRAMS = """
handlers:
  exec:
    write: {argv: [/bin/sh, -c, "echo x > /etc/written"], stdin: none}
    home: {argv: [/bin/ls, /root], stdin: none}
    become: {argv: [/bin/chown, root, /tmp], stdin: none}
    devices: {argv: [/bin/ls, /dev], stdin: none, output: text}
"""


@pytest.fixture(scope="module")
def with_programs(host: ArcHost) -> ArcHost:
    """The host with exec handlers."""
    good = (host.root.path / CONFIGS[AGENT][1:]).read_text()
    host.root.write(CONFIGS[AGENT], good + PROGRAMS)
    host.root.run("systemctl", "restart", AGENT)
    return host


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        ("write", "Read-only file system"),
        ("home", "Permission denied"),
        ("become", "Operation not permitted"),
    ],
)
def test_a_program_cannot_leave_the_sandbox(
    with_programs: ArcHost, command: str, refusal: str
) -> None:
    assert refusal in with_programs.refused(command)


def test_a_program_sees_no_disks(with_programs: ArcHost) -> None:
    devices = with_programs.invoke("devices").split()

    assert "null" in devices
    assert not [each for each in devices if each.startswith(("sd", "vd", "nvme", "loop", "mem"))]


@pytest.mark.parametrize("unit", BOTH)
def test_systemd_rates_the_unit_at_next_to_nothing(host: ArcHost, unit: str) -> None:
    said = host.root.run("systemd-analyze", "security", "--no-pager", unit)

    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None
    assert float(found[1]) <= 1.2


def test_the_server_has_bounds(host: ArcHost) -> None:
    assert host.root.show(SERVER, "MemoryMax") == str(1024**3)
    assert host.root.show(SERVER, "LimitNOFILE") == "65536"
    assert int(host.root.show(SERVER, "TasksMax")) == 128
    status = host.root.run("cat", f"/proc/{host.root.pid(SERVER)}/status")
    assert int(re.findall(r"Threads:\s+(\d+)", status)[0]) <= 32  # a quarter of TasksMax


# Scopes need an agent that systemd obeys

SCOPES = """
handlers:
  exec:
    where: {argv: [/bin/cat, /proc/self/cgroup], stdin: none, output: text, isolation: scope,
            limits: {processes: 9}}
    outlive: {argv: [/bin/sh, -c, "setsid sleep 600 & sleep 600"], stdin: none, isolation: scope,
              limits: {processes: 9}, timeout_seconds: 1}
"""


@pytest.fixture(scope="module")
def as_root(host: ArcHost) -> ArcHost:
    """The host with a second agent, which runs as root and has exec handlers in scopes."""
    host.root.write(
        "/root/scopes.yaml",
        f"server: {{url: '{URL}', token_file: /root/scopes.token}}\n"
        f"deployment: {DEPLOYMENT}-scopes\n" + SCOPES,
    )
    host.root.type(
        f"umask 077; arc-server token create --scope agent --deployment {DEPLOYMENT}-scopes"
        f" --config {CONFIGS[SERVER]} > /root/scopes.token\n"
        f"arc-server token create --scope sender --deployment {DEPLOYMENT}-scopes"
        f" --config {CONFIGS[SERVER]} > /root/scopes.sender.token"
    )
    host.root.run(
        "systemd-run", "--unit=scopes.service", "--property=Type=notify",
        "--property=StateDirectory=scopes", "/opt/arc/current/bin/arc-agent", "run", "--config",
        "/root/scopes.yaml",
    )  # fmt: skip
    return host


def test_a_program_in_a_scope_has_a_control_group_of_its_own(as_root: ArcHost) -> None:
    printed = as_root.invoke(
        "where", deployment=f"{DEPLOYMENT}-scopes", token="scopes.sender.token"
    )

    assert re.search(r"/arc-exec-cmd-\S+-1-[0-9a-f]{8}\.scope$", printed, re.MULTILINE)
    assert "arc-exec" not in as_root.root.run("systemctl", "list-units", "--no-legend", "*.scope")


def test_a_scope_takes_processes_along_that_left_their_group(as_root: ArcHost) -> None:
    said = as_root.refused(
        "outlive", deployment=f"{DEPLOYMENT}-scopes", token="scopes.sender.token"
    )

    assert "TIMEOUT" in said
    wait_until(
        lambda: "sleep 600" not in as_root.root.type("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    )
