"""`arc-agent doctor`: what is right is ok, what is wrong is named, and nothing is taken."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import arc_agent
from arc_agent.cli.doctor.host import judge_unit
from arc_agent.cli.main import main
from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer

TOKEN = "agent-token-4711-secret"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A host as it should be; the configuration is written by `config`."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "agent" / "audit").mkdir(parents=True)
    return tmp_path


def config(place: Path, url: str, **more: Any) -> Path:
    file = place / "doctor.yaml"
    settings: dict[str, Any] = {
        "server": {"url": url, "token_file": str(place / "token")},
        "deployment": "dep-1",
        "data_dir": str(place / "agent"),
        "spool": {"min_free_bytes": 0},
    }
    file.write_text(json.dumps(settings | more))
    return file


async def look(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    """The exit code, and each finding as `state: text` by its name."""
    code = await asyncio.to_thread(main, ["doctor", "--config", str(file), "--json"])
    shown = capsys.readouterr().out
    assert TOKEN not in shown
    found = json.loads(shown[shown.index("[\n") :])
    return code, {each["name"]: f"{each['state']}: {each['text']}" for each in found}


async def test_a_host_as_it_should_be_is_ok_and_nothing_is_leased(
    server: ScriptedServer, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.send("arc.ping")

    code, found = await look(config(place, server.url), capsys)

    bad = {name: text for name, text in found.items() if text.startswith("bad")}
    assert bad == {}
    assert code == 0
    for name in ("config", "dns", "proxy", "server", "tls", "clock", "token", "disk", "audit",
                 "handlers", "policy"):  # fmt: skip
        assert found[name].startswith("ok: "), (name, found[name])
    assert found["agent"].startswith("untested: it does not run")
    assert "run-once" in found["long poll"]
    assert all(request.json().get("maxLeases") == 0 for request in server.seen("leases"))
    assert list((place / "agent").glob(".doctor*")) == []


async def test_a_policy_that_only_the_running_agent_has_is_told(
    server: ScriptedServer,
    start: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    logged: Any,
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{name: x, action: allow, commands: ['*']}]")
    agent = await start(server, policy={"file": str(policy)})
    await server.until(lambda: bool(server.seen("leases")))
    file = agent.directory.parent / "agent.yaml"
    settings = yaml.safe_load(file.read_text())
    del settings["policy"]
    file.write_text(json.dumps(settings))

    _, found = await look(file, capsys)

    assert found["policy"].startswith(f"untested: the running agent has {policy}, 1 rules; ")


async def test_beside_a_running_agent_its_long_poll_is_told(
    server: ScriptedServer, start: Start, capsys: pytest.CaptureFixture[str], logged: Any
) -> None:
    agent = await start(server, poll={"wait_seconds": 1.2})
    await server.until(lambda: len(server.seen("leases")) >= 3)

    code, found = await look(agent.directory.parent / "agent.yaml", capsys)

    assert code == 0
    assert found["agent"].startswith("ok: runs, pid ")
    assert found["long poll"].startswith("ok: the agent's last poll was held 1.")


async def test_no_server_a_broken_handler_and_a_bad_policy_are_each_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "broken.py").write_text("raise RuntimeError('no licence')")
    (place / "policy.yaml").write_text("rules: {}")
    file = config(
        place,
        "http://127.0.0.1:9",
        handlers={"modules": [str(place / "broken.py")]},
        policy={"file": str(place / "policy.yaml")},
        spool={"min_free_bytes": 1 << 60},
    )

    code, found = await look(file, capsys)

    assert code == 1
    assert found["server"].startswith("bad: cannot connect to 127.0.0.1:9: Connection refused")
    assert "no licence" in found["handlers"]
    assert found["policy"].startswith("bad: rules: ")
    assert "below spool.min_free_bytes" in found["disk"]


async def test_a_token_file_that_is_not_there_is_said(
    server: ScriptedServer, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "token").unlink()

    code, found = await look(config(place, server.url), capsys)

    assert code == 1
    assert "cannot be read: No such file or directory: look at server.token_file" in found["token"]
    assert "access" not in found


async def test_a_name_without_an_address_is_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = await look(config(place, "https://nowhere.invalid"), capsys)

    assert code == 1
    assert found["dns"].startswith("bad: nowhere.invalid: ")


async def test_a_proxy_that_does_not_listen_is_said_without_its_password(
    server: ScriptedServer, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = {"url": f"http://me:{TOKEN}@127.0.0.1:9"}

    code, found = await look(config(place, "https://arc.example", proxy=proxy), capsys)

    assert code == 1
    assert found["proxy"].startswith("bad: 127.0.0.1:9: ")


def test_people_get_a_line_for_each_and_a_bad_configuration_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("deployment: d\nserver: {url: 'http://127.0.0.1:9', wait: 3}")

    assert main(["doctor", "--config", str(file)]) == 2

    assert "server.wait: unknown key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("properties", "shown"),
    [
        ({"LoadState": "not-found"}, "-    unit       arc-agent.service is not installed"),
        ({"LoadState": "loaded", "NeedDaemonReload": "yes"}, "BAD  unit"),
        (
            {"LoadState": "loaded", "ActiveState": "failed"},
            "BAD  unit       arc-agent.service is",
        ),
        (
            {"LoadState": "loaded", "ActiveState": "active", "FragmentPath": "OTHER"},
            "BAD  unit       arc-agent.service runs, but",
        ),
        (
            {"LoadState": "loaded", "ActiveState": "active", "FragmentPath": "OURS"},
            "ok   unit       arc-agent.service runs, ",
        ),
    ],
)
def test_what_systemd_says_of_the_unit_is_judged(
    tmp_path: Path, properties: dict[str, str], shown: str
) -> None:
    other = tmp_path / "arc-agent.service"
    other.write_text("[Service]\n")
    ours = Path(arc_agent.__file__).with_name("units") / "arc-agent.service"
    places = {"OTHER": str(other), "OURS": str(ours)}
    found = {name: places.get(value, value) for name, value in properties.items()}

    line = judge_unit("arc-agent.service", found).line()

    assert line.startswith(shown)
