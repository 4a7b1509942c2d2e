"""docs/policy.md as it stands, and policies, signals and orders with a real agent process."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from pathlib import Path

import pytest

from arc_agent.cli.main import main
from arc_agent.host.logins import own_login
from tests.support import warm_programs
from tests.support.agent_process import Process, agent
from tests.support.scripted_server import ScriptedServer
from tests.support.waiting import until

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text()
FILES = dict(re.findall(r"```yaml file=(\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMAND = Path(sys.executable).parent / "arc-agent"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return the directory that handlers write to."""
    return tmp_path / "runs"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files, saved, in the working directory."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace("/etc/arc", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_configuration_of_the_page_is_good(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-config", "agent.yaml"]) == 0

    (place / "policy.yaml").write_text("rules: [{name: x, action: allow, hour: 3}]")

    assert main(["check-config", "agent.yaml"]) == 2
    assert "rules[0].hour: unknown key; did you mean hours?" in capsys.readouterr().err


async def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    """`arc-agent` as a process: exit code and what it printed."""
    ended = await asyncio.to_thread(
        warm_programs.run, "arc-agent", arguments, seconds=20, directory=cwd
    )
    return ended.returncode, ended.stdout, ended.stderr


async def test_a_bad_policy_ends_an_agent_at_its_start(
    server: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text("rules: {}")
    async with agent(
        server, tmp_path, ARC_AGENT_POLICY_FILE=str(tmp_path / "policy.yaml")
    ) as process:
        assert await process.ended() == 2
        assert process.log.read_text().startswith(
            "error: rules: Expected list of mappings, not a mapping"
        )


async def test_sighup_takes_a_changed_policy_and_refuses_a_bad_one(
    server: ScriptedServer, tmp_path: Path, runs: Path
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules: []")
    async with agent(
        server, tmp_path, "--handlers", "my_handlers", ARC_AGENT_POLICY_FILE=str(file)
    ) as process:
        await process.until_logged("ready")
        server.send("once")
        assert (await server.response())["code"] == "DENIED_BY_POLICY"
        file.write_text("rules: [{name: x}]")
        process.process.send_signal(signal.SIGHUP)
        refusal = await process.until_logged("reload.refused")
        assert "rules[0].action: is required" in refusal["reason"]
        server.send("once")
        assert (await server.response(2))["code"] == "DENIED_BY_POLICY"

        file.write_text("rules: [{name: x, action: allow}]")
        process.process.send_signal(signal.SIGHUP)
        await process.until_logged("reload.done")
        server.send("once")
        assert (await server.response(3))["status"] == "success"
    assert runs.read_text() == "run\n"


async def test_an_operator_approves_pauses_and_stops_from_the_shell(
    server: ScriptedServer, tmp_path: Path, runs: Path
) -> None:
    (tmp_path / "policy.yaml").write_text(
        "rules: [{name: ask, commands: [once], action: approve}, {name: rest, action: allow}]"
    )
    place = ("--data-dir", str(tmp_path / "agent"))
    environ = {"ARC_AGENT_POLICY_FILE": str(tmp_path / "policy.yaml")}
    server.send("once", {"a": 1}, command_id="cmd_approve")
    async with agent(server, tmp_path, "--handlers", "my_handlers", **environ) as process:
        await process.until_logged("approval.waiting")
        code, out, _ = await run("approvals", *place, cwd=tmp_path)
        assert code == 0
        assert out.splitlines()[1].startswith("cmd_approve  once     unknown (not signed)  ask ")
        assert (await run("approve", "cmd_b", *place, cwd=tmp_path))[0] == 1
        assert (await run("approve", "cmd_appr", *place, cwd=tmp_path))[:2] == (
            0,
            "cmd_approve (once) is approved\n",
        )
        await server.response()
        assert runs.read_text() == "run\n"

        code, out, _ = await run("pause", "--for", "1h", "--note", "disk", *place, cwd=tmp_path)
        assert (code, out) == (0, "paused for 1h\n")
        assert (await run("resume", *place, cwd=tmp_path))[0] == 0

        server.send("stubborn", command_id="cmd_c")
        await server.until(lambda: len(server.seen("leases")) >= 2)
        await until(lambda: runs.read_text() == "running")
        code, out, _ = await run("stop-all", *place, cwd=tmp_path)
        assert (code, out.split(";")[0]) == (0, "stopping 1 command")
        assert (await server.response(2))["code"] == "STOPPED_BY_HOST"
        assert await asyncio.to_thread(stopped_cleanly, tmp_path)

    code, _, err = await run("approvals", *place, cwd=tmp_path)
    assert code == 3
    assert err.startswith("error: no agent answers at ")
    code, out, _ = await run("audit", "verify", *place, cwd=tmp_path)
    assert code == 0
    assert "ok, " in out
    code, out, _ = await run("audit", "show", "--event", "paused", "--json", *place, cwd=tmp_path)
    (line,) = [json.loads(line) for line in out.splitlines()]
    assert (line["by"], line["by_uid"], line["note"]) == (own_login(), os.getuid(), "disk")


async def on_a_terminal(answer: str, *arguments: str, cwd: Path) -> tuple[int, str]:
    """`arc-agent` on a terminal where a person types an answer: exit code and what it showed."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    async with asyncio.timeout(20):
        await process.wait()
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert process.returncode is not None
    return process.returncode, shown


async def test_without_an_id_a_person_at_a_terminal_is_asked_about_the_only_one_that_waits(
    server: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text("rules: [{name: ask, action: approve}]")
    place = ("--data-dir", str(tmp_path / "agent"))
    environ = {"ARC_AGENT_POLICY_FILE": str(tmp_path / "policy.yaml")}
    async with agent(server, tmp_path, "--handlers", "my_handlers", **environ) as process:
        await process.until_logged("ready")
        code, _, err = await run("approve", *place, cwd=tmp_path)
        assert (code, err) == (1, "error: no command waits for approval\n")

        server.send("once", {"a": 1}, command_id="cmd_first")
        await process.until_logged("approval.waiting")
        code, _, err = await run("approve", *place, cwd=tmp_path)
        assert (code, err) == (2, "error: name the command: cmd_first waits\n")
        code, shown = await on_a_terminal("", "approve", *place, cwd=tmp_path)
        assert code == 1
        assert '{"a": 1}' in shown
        assert "Approve it? [y/N]" in shown
        assert (await on_a_terminal("y", "approve", *place, cwd=tmp_path))[0] == 0
        assert (await server.response())["status"] == "success"

        for name in ("cmd_second", "cmd_secret"):
            server.send("once", command_id=name)
        await until(lambda: len(both_waiting(process)) == 3)
        code, _, err = await run("deny", *place, cwd=tmp_path)
        assert code == 2
        assert err.startswith("error: 2 commands wait; name one of them:\n  cmd_sec")
        code, _, err = await run("deny", "cmd_sec", *place, cwd=tmp_path)
        assert code == 1
        assert "is the beginning of 2 waiting commands" in err
        assert (await run("deny", "cmd_secr", *place, cwd=tmp_path))[0] == 0


def both_waiting(process: Process) -> list[object]:
    """All lines about commands that began to wait."""
    return [line for line in process.events() if line["event"] == "approval.waiting"]


def stopped_cleanly(tmp_path: Path) -> bool:
    """Return True if the order is on the disk."""
    return b'"stopped"' in (tmp_path / "agent" / "pause.json").read_bytes()


async def test_after_a_kill_the_log_of_the_next_process_goes_on(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.send("once", command_id="cmd_a")
    async with agent(
        server, tmp_path, "--handlers", "my_handlers", ARC_FAILPOINT="agent.before_handler=kill"
    ) as first:
        assert await first.ended() == -signal.SIGKILL
    code, out, _ = await run("audit", "show", "--data-dir", "agent", cwd=tmp_path)
    assert code == 0
    assert " started    command=once command_id=cmd_a" in out

    server.send("once", command_id="cmd_a")
    async with agent(server, tmp_path, "--handlers", "my_handlers") as second:
        await server.response()
        second.process.terminate()
        assert await second.ended() == 0

    assert (await run("audit", "verify", "--data-dir", "agent", cwd=tmp_path))[0] == 0
