"""Programs with params among their arguments, with limits, and as another user."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from arc_agent.config.declared_handlers import ExecSection, LimitsSection
from arc_agent.handlers.context import CommandFailed
from arc_agent.handlers.declared import isolation
from arc_agent.handlers.declared.programs import exec_handler
from arc_agent.handlers.registry import HandlerError
from tests.support.declared_runs import Run
from tests.support.waiting import until

MIB = 1024 * 1024
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


def python(code: str, *more: str) -> list[str]:
    return ["/usr/bin/python3", "-SIEc", code, *more]


def section(argv: list[str], **more: Any) -> ExecSection:
    if "limits" in more:
        more["limits"] = LimitsSection(**more["limits"])
    return ExecSection(argv=argv, **more)


async def run(tmp_path: Path, section: ExecSection, params: Any = None) -> Any:
    return await Run(exec_handler("x", section), tmp_path / "run", params)()


async def test_params_are_whole_arguments_whatever_they_hold(tmp_path: Path) -> None:
    text = {"type": "string", "maxLength": 99, "pattern": "^.*$"}
    declared = section(
        python(
            "import sys,json; print(json.dumps(sys.argv[1:] + [sys.stdin.read()]))", "{params.a}"
        ),
        params={"a": text},
    )

    assert json.loads(await run(tmp_path, declared, {"a": "$(id) ; 'x' \"y\" *"})) == [
        "$(id) ; 'x' \"y\" *",
        "",
    ]


async def test_params_that_do_not_fit_start_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    declared = section(["/usr/bin/touch", str(mark), "{params.a}"], params={"a": {"enum": ["x"]}})

    with pytest.raises(CommandFailed, match=r"params\.a: is none of the allowed values"):
        await run(tmp_path, declared, {"a": "y"})

    assert not mark.exists()


@pytest.mark.parametrize(
    ("limits", "code", "seen"),
    [
        ({"memory_bytes": 300 * MIB}, "bytearray(400 * 2**20)", "MemoryError"),
        ({"file_bytes": 1000}, "f = open('big', 'wb'); f.write(b'x' * 99_999)", "File too large"),
        ({"open_files": 16}, "[open('/dev/null') for _ in range(20)]", "Too many open files"),
    ],
)
async def test_a_program_that_takes_more_than_its_limit_fails(
    tmp_path: Path, limits: dict[str, int], code: str, seen: str
) -> None:
    code = f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {code}"
    with pytest.raises(CommandFailed) as failed:
        await run(tmp_path, section(python(code), limits=limits, isolation="rlimits"))

    assert failed.value.message == "the program exited with status 1"
    assert seen in (failed.value.details or "")


async def test_cpu_time_is_bounded(tmp_path: Path) -> None:
    declared = section(python("while True: pass"), limits={"cpu_seconds": 1}, isolation="rlimits")

    with pytest.raises(CommandFailed, match=r"ended by SIG(XCPU|KILL)"):
        await run(tmp_path, declared)


@needs_root
async def test_processes_of_another_user_are_bounded(tmp_path: Path) -> None:
    code = "import os\nfor _ in range(9):\n  if not os.fork(): os._exit(0)"
    declared = section(
        python(code), user="nobody", limits={"processes": 1}, isolation="rlimits", output="text"
    )

    with pytest.raises(CommandFailed) as failed:
        await run(tmp_path, declared)

    seen = f"{failed.value.message} {failed.value.details}"  # others of this user count too
    assert "Resource temporarily unavailable" in seen


@needs_root
async def test_a_program_runs_as_another_user_with_its_params_and_a_place_of_its_own(
    tmp_path: Path,
) -> None:
    code = (
        "import os,sys,json; open('own','w').write('x');"
        "print(json.dumps([os.getuid(), os.geteuid(), os.getgid(), os.getgroups(),"
        " os.environ['HOME'], os.environ['USER'], open(sys.argv[1]).read(), sys.argv[2]]))"
    )
    nobody = pwd.getpwnam("nobody")
    declared = section(
        python(code, "{params_file}", "{params.n}"),
        user="nobody",
        params={"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    )
    seen = json.loads(await run(tmp_path, declared, {"n": 3}))

    assert seen[:3] == [nobody.pw_uid, nobody.pw_uid, nobody.pw_gid]
    assert 0 not in seen[3]
    assert seen[4:] == [nobody.pw_dir, "nobody", '{"n":3}', "3"]


@needs_root
async def test_another_user_cannot_get_back(tmp_path: Path) -> None:
    declared = section(python("import os; os.setuid(0)"), user="nobody")

    with pytest.raises(CommandFailed) as failed:
        await run(tmp_path, declared)

    assert "PermissionError" in (failed.value.details or "")


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv")
@pytest.mark.parametrize("user", [[1, 1, [1]], None], ids=["another user", "the same user"])
def test_capabilities_of_the_agent_do_not_reach_the_program(user: list[Any] | None) -> None:
    powers = "+setuid,+setgid,+kill"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [
                *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
                *(f"--inh-caps={powers}", f"--ambient-caps={powers}", "/usr/bin/python3", "-SIEc"),
                *(isolation._LAUNCHER.read_text(), str(theirs.fileno())),
                *("/bin/grep", "-E", "^(Uid|Cap(Prm|Eff|Amb))", "/proc/self/status"),
            ],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        ours.sendall(json.dumps({"rlimits": {}, "user": user, "env": {}}).encode())
        ours.shutdown(socket.SHUT_WR)
        seen, _ = process.communicate(timeout=20)
        answer = ours.recv(64)

    assert answer == b"+"
    rows = dict(line.split(":\t") for line in seen.splitlines())
    assert {int(rows[f"Cap{each}"], 16) for each in ("Prm", "Eff", "Amb")} == {0}
    assert rows["Uid"].split()[0] == ("1" if user else str(pwd.getpwnam("nobody").pw_uid))


@needs_root
async def test_a_time_out_ends_the_program_of_another_user(tmp_path: Path) -> None:
    handler = exec_handler(
        "x",
        section(
            python("import os,time; open('pid','w').write(str(os.getpid())); time.sleep(60)"),
            user="nobody",
            kill_after_seconds=0.1,
        ),
    )
    task = asyncio.create_task(Run(handler, tmp_path / "run")())
    file = tmp_path / "run" / "work" / "pid"
    await until(lambda: file.exists() and file.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not Path(f"/proc/{file.read_text()}").exists()


async def test_a_program_that_is_not_there_is_told_from_one_that_fails(tmp_path: Path) -> None:
    declared = section(["/nowhere/x"], limits={"cpu_seconds": 9}, isolation="rlimits")

    with pytest.raises(CommandFailed) as failed:
        await run(tmp_path, declared)

    assert failed.value.message == "/nowhere/x cannot be started: No such file or directory"


async def test_a_secret_of_the_configuration_is_in_no_command_line(tmp_path: Path) -> None:
    code = "import os; print(os.environ['KEY'] + open('/proc/self/cmdline').read())"
    declared = section(
        python(code), env={"KEY": "s3cret"}, limits={"cpu_seconds": 9}, output="text"
    )
    spec = isolation.wrapped(declared.argv, declared, "rlimits", unit="", channel=9)

    assert (await run(tmp_path, declared)).startswith("s3cret/usr/bin/python3")
    assert "s3cret" not in " ".join(spec)


def test_a_user_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(HandlerError, match=r"^handlers\.exec\.x\.user: this host has no user"):
        isolation.check({"x": section(["true"], user="no-such-user")})


def test_an_agent_that_may_not_become_another_user_says_so_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(isolation, "_CAPABILITIES", {"CAP_SETUID": 63})  # which no process has

    with pytest.raises(HandlerError, match=r"^handlers\.exec\.x\.user: .*it needs CAP_SETUID"):
        isolation.check({"x": section(["true"], user="nobody")})


# Scopes: what systemd-run is asked for, by one that writes it down


FAKE = """#!{python} -SIE
import json, os, sys
argv = sys.argv[1:]
with open({record!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *argv]) + "\\n")
if {fails!r}:
    sys.exit("Failed to connect to bus")
if "--" in argv:
    command = argv[argv.index("--") + 1:]
    os.execv(command[0], command)
"""


def fake(directory: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> Path:
    """systemd-run and systemctl on PATH; the file that says how they were called."""
    record = directory / "record"
    record.touch()
    for name in ("systemd-run", "systemctl"):
        file = directory / name
        text = FAKE.format(python=sys.executable, record=str(record), fails=fails)
        file.write_text(text)
        file.chmod(0o755)
    (directory / "systemd" / "private").mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(isolation, "_SYSTEMD", directory)
    return record


def calls(record: Path) -> list[list[str]]:
    return [json.loads(line) for line in record.read_text().splitlines()]


async def test_a_scope_bounds_what_the_limits_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fake(tmp_path, monkeypatch)
    declared = section(
        python("import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE)[0])"),
        limits={
            "memory_bytes": 64 * MIB,
            "cpu_percent": 50,
            "processes": 8,
            "open_files": 32,
        },
    )

    assert await run(tmp_path, declared) == b"32"
    started, ended = calls(record)
    manager = [] if os.geteuid() == 0 else ["--user"]
    unit = next(part for part in started if part.startswith("--unit="))
    assert started[: started.index("--")] == [
        "systemd-run",
        *manager,
        "--scope",
        "--quiet",
        "--collect",
        unit,
        f"--property=MemoryMax={64 * MIB}",
        "--property=MemorySwapMax=0",
        "--property=CPUQuota=50%",
        "--property=TasksMax=8",
    ]
    assert unit.startswith("--unit=arc-exec-cmd-1-1-")
    assert ended == [
        "systemctl",
        *manager,
        "kill",
        "--signal=SIGKILL",
        unit.removeprefix("--unit="),
    ]


async def test_a_time_out_ends_the_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = fake(tmp_path, monkeypatch)
    mark = tmp_path / "mark"
    handler = exec_handler(
        "x",
        section(
            python(f"import time; open({str(mark)!r}, 'w'); time.sleep(60)"),
            limits={"processes": 8},
            kill_after_seconds=0.1,
        ),
    )
    task = asyncio.create_task(Run(handler, tmp_path / "run")())
    await until(mark.exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [each[0] for each in calls(record)] == ["systemd-run", "systemctl"]


async def test_where_systemd_refuses_there_are_limits_of_the_process_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fake(tmp_path, monkeypatch, fails=True)
    code = "import resource as r; print(r.getrlimit(r.RLIMIT_AS)[0])"
    handler = exec_handler("x", section(python(code), limits={"memory_bytes": 300 * MIB}))
    with structlog.testing.capture_logs() as logged:
        results = [await Run(handler, tmp_path / "run")() for _ in range(2)]

    assert results == [str(300 * MIB).encode()] * 2
    assert len(calls(record)) == 1
    (event,) = [each for each in logged if each["event"] == "exec.no_scope"]
    assert "Failed to connect to bus" in event["reason"]


async def test_who_insists_on_a_scope_gets_no_run_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, fails=True)
    mark = tmp_path / "mark"
    declared = section(
        ["/usr/bin/touch", str(mark)], limits={"processes": 9}, isolation="scope", output="text"
    )

    with pytest.raises(CommandFailed) as failed:
        await run(tmp_path, declared)

    assert failed.value.message == "the program cannot be confined"
    assert "Failed to connect to bus" in (failed.value.details or "")
    assert not mark.exists()


def test_what_is_chosen_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch)
    limits = {"cpu_percent": 50}
    with structlog.testing.capture_logs() as logged:
        isolation.check({"a": section(["true"], limits=limits), "b": section(["true"])})
        monkeypatch.setattr(isolation, "_SYSTEMD", tmp_path / "none")
        isolation.check({"a": section(["true"], limits=limits)})

    assert [(each["event"], each.get("isolation")) for each in logged] == [
        ("exec.isolation", "scope"),
        ("exec.not_limited", None),
        ("exec.isolation", "rlimits"),
    ]


def test_a_scope_that_cannot_be_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_SYSTEMD", tmp_path / "none")

    with pytest.raises(HandlerError, match=r"x\.isolation: no scope here: systemd does not run"):
        isolation.check({"x": section(["true"], limits={"processes": 9}, isolation="scope")})
