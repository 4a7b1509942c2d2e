"""`arc-server` from the command line: how it starts, refuses to start, obeys signals and stops."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arc_server.cli import database
from arc_server.cli.main import main
from arc_server.server_keys import FILE_NAME
from tests.support.running_server import OWN, inline
from tests.support.waiting import wait_until

CREATE = {"deploymentId": OWN, "command": "report", "params": inline(b"{}")}
SERVE = (sys.executable, "-m", "arc_server", "serve")
LOCAL = ("--listen", "127.0.0.1:0")


class Ended(msgspec.Struct):
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `arc-server` to its end, in this process: it starts no second time for nothing."""

    def run_main(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["arc-server", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capfd.readouterr()
        code = exit_.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    return run_main


def assert_one_line(ended: Ended, *words: str) -> None:
    """Exit code 2, nothing on stdout and one clear line on stderr."""
    assert (ended.code, ended.out) == (2, ""), ended
    assert ended.err.count("\n") == 1, ended
    assert ended.err.startswith("error: "), ended
    for word in words:
        assert word in ended.err, ended


class Process:
    """A server that serves."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def call(self, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        """One request: status and what was answered."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def server(
    data_dir: Path, *arguments: str | Path, env: dict[str, str] | None = None
) -> Iterator[Process]:
    """A server process on a free port, killed at the end at the latest."""
    log = data_dir.with_suffix(".log")
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [*SERVE, "--data-dir", data_dir, *LOCAL, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | (env or {}),
        )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("READY http://127.0.0.1:"), log.read_text()
            yield Process(process, line.removeprefix("READY ").strip(), log)
        finally:
            process.kill()


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


# refusals


def corrupt(directory: Path) -> str:
    (directory / "arc.db").write_bytes(b"this is no database at all" * 1000)
    return "arc.db"


def newer(directory: Path) -> str:
    with contextlib.closing(sqlite3.connect(directory / "arc.db")) as database:
        database.execute("PRAGMA user_version = 9999")
        database.execute("CREATE TABLE future (x)")
        database.commit()
    return "arc.db"


def damaged_keys(directory: Path) -> str:
    (directory / "keys").mkdir()
    (directory / "keys" / FILE_NAME).write_text("damaged")
    (directory / "keys" / FILE_NAME).chmod(0o600)
    return FILE_NAME


@pytest.mark.parametrize("spoil", [corrupt, newer, damaged_keys])
def test_a_data_directory_that_cannot_be_used_is_refused_and_left_as_it_is(
    tmp_path: Path, run: Run, spoil: Callable[[Path], str]
) -> None:
    name = spoil(tmp_path)
    before = tree(tmp_path)

    assert_one_line(run("serve", "--data-dir", tmp_path, *LOCAL), "data_dir", name)

    after = tree(tmp_path)
    assert {file: after[file] for file in before} == before


def test_a_data_directory_that_cannot_be_written_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("in the way")

    ended = run("serve", "--data-dir", tmp_path / "file" / "data", *LOCAL)

    assert_one_line(ended, "data_dir", str(tmp_path / "file"))


def test_a_port_in_use_is_refused_before_the_data_directory_is_made(
    tmp_path: Path, run: Run
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        ended = run("serve", "--data-dir", tmp_path / "data", "--listen", address)

    assert_one_line(ended, "listen", address, "in use")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http:\n  max_body: 5\n", ("http.max_body", "unknown key", "max_body_bytes")),
        ("http: {max_body_bytes: -5}\n", ("http.max_body_bytes",)),
        ("http: [\n", ("server.yaml",)),
        ("[]", ("server.yaml",)),
        (None, ("server.yaml",)),
    ],
)
@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_a_configuration_that_cannot_be_used_is_refused_with_the_path_of_its_key(
    tmp_path: Path, run: Run, command: str, text: str | None, words: tuple[str, ...]
) -> None:
    file = tmp_path / "server.yaml"
    if text is not None:
        file.write_text(text)
    data_dir = tmp_path / "data"
    serve = ("serve", "--config", file, "--data-dir", data_dir, *LOCAL)

    ended = run(*(serve if command == "serve" else ("check-config", file)))

    assert_one_line(ended, *words)
    assert not data_dir.exists()


def test_a_configuration_that_can_be_used_is_called_good(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("listen: 127.0.0.1:1\n")

    assert run("check-config", file) == Ended(0, f"{file}: good\n", "")


def test_an_unknown_variable_is_refused(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARC_SERVER_LISTEM", "x")

    ended = run("serve", "--data-dir", tmp_path / "data", *LOCAL)

    assert_one_line(ended, "ARC_SERVER_LISTEM", "ARC_SERVER_LISTEN")


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.1.2.3:80", "example.org:80"])
def test_no_auth_is_refused_off_loopback(tmp_path: Path, run: Run, listen: str) -> None:
    ended = run("serve", "--data-dir", tmp_path / "data", "--no-auth", "--listen", listen)

    assert_one_line(ended, "auth.disabled", "loopback")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scope", "king"),
        ("--scope", "admin", "--deployment", OWN),
        ("--scope", "agent", "--deployment", "a\nb"),
        ("--scope", "agent", "--deployment", ""),
        (),
    ],
)
def test_a_token_that_cannot_be_is_not_made(
    tmp_path: Path, run: Run, arguments: tuple[str, ...]
) -> None:
    ended = run("token", "create", *arguments, "--data-dir", tmp_path / "data")

    assert (ended.code, ended.out) == (2, "")
    assert "invalid value" not in ended.err  # what is wrong says the option's own message
    assert not (tmp_path / "data").exists()


def test_a_data_directory_that_is_a_file_is_called_so(tmp_path: Path, run: Run) -> None:
    (tmp_path / "data").touch()

    ended = run("serve", "--data-dir", tmp_path / "data", *LOCAL)

    assert_one_line(ended, f"data_dir: {tmp_path}/data: Not a directory")


COMMANDS = [
    ("token", "create", "--scope", "admin"),
    ("token", "list"),
    ("token", "revoke", "tok_1"),
    ("enrol-token", "create", "--deployment", OWN),
    ("enrol-token", "list"),
    ("enrol-token", "revoke", "etok_1"),
    ("credential", "list"),
    ("credential", "revoke", "cred_1"),
    ("keys", "rotate"),
    ("keys", "list"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_but_serve_makes_a_database_in_a_place_that_is_named(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    data, config = tmp_path / "data", tmp_path / "server.yaml"
    config.write_text(f"data_dir: {data}\n")

    assert_one_line(run(*command, "--data-dir", data), "no server here", str(data))
    assert_one_line(run(*command, "--config", config), "no server here", str(data))
    monkeypatch.setenv("ARC_SERVER_DATA_DIR", str(data))
    assert_one_line(run(*command), "no server here", str(data))
    assert not data.exists()


def test_the_first_token_may_make_the_database(tmp_path: Path, run: Run) -> None:
    data = tmp_path / "data"

    first = run("token", "create", "--scope", "admin", "--init", "--data-dir", data)
    second = run("enrol-token", "create", "--deployment", OWN, "--init", "--data-dir", data)

    assert (first.code, second.code) == (0, 0)
    assert len(json.loads(run("token", "list", "--json", "--data-dir", data).out)) == 1


@pytest.mark.parametrize(
    "command", [("token", "create", "--scope", "admin"), COMMANDS[3]], ids=["token", "enrol-token"]
)
def test_a_token_goes_to_a_new_file_of_its_owner(
    tmp_path: Path, run: Run, command: tuple[str, ...]
) -> None:
    data, out = tmp_path / "data", tmp_path / "t"
    made = run(*command, "--init", "--out", out, "--data-dir", data)

    assert (made.code, made.out) == (0, "")
    assert out.stat().st_mode & 0o777 == 0o600
    assert out.read_text().startswith("arc_")
    assert len(made.err.splitlines()) == 1

    kept = out.read_text()
    again = run(*command, "--out", out, "--data-dir", data)
    assert_one_line(again, "--out", str(out), "exists")
    assert out.read_text() == kept
    listed = run(command[0], "list", "--json", "--data-dir", data)
    assert len(json.loads(listed.out)) == 1, "no token without a place for it"


def made(run: Run, data: Path, *command: str) -> str:
    """The id of a new token."""
    return run(*command, "--init", "--data-dir", data).err.strip()


@pytest.mark.parametrize(
    "command", [("token", "create", "--scope", "admin"), COMMANDS[3]], ids=["token", "enrol-token"]
)
def test_a_token_is_revoked_by_the_beginning_of_its_id_if_no_other_begins_so(
    tmp_path: Path, run: Run, command: tuple[str, ...]
) -> None:
    data = tmp_path / "data"
    first, second = made(run, data, *command), made(run, data, *command)
    kind = first.partition("_")[0]
    own = next(
        first[:end] for end in range(len(kind) + 5, 99) if not second.startswith(first[:end])
    )

    both = run(command[0], "revoke", f"{kind}_", "--data-dir", data)
    done = run(command[0], "revoke", own, "--data-dir", data)
    unknown = run(command[0], "revoke", "nothing", "--data-dir", data)

    assert both.code == 1
    assert first in both.err
    assert second in both.err
    assert (done.code, done.err) == (0, f"({first} is revoked)\n")
    assert (unknown.code, unknown.err.startswith("error: no such ")) == (1, True)
    listed = json.loads(run(command[0], "list", "--json", "--data-dir", data).out)
    assert {each["id"]: each["revoked"] is not None for each in listed} == {
        first: True,
        second: False,
    }


def test_no_file_is_left_where_no_token_is_made(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "t"
    ended = run("token", "create", "--scope", "admin", "--out", out, "--data-dir", tmp_path / "no")

    assert_one_line(ended, "no server here")
    assert not out.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_where_no_server_is_no_database_is_made(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(database, "INSTALLED_CONFIG", tmp_path / "server.yaml")

    assert_one_line(run(*command), "no server here; name --config or --data-dir")
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_made_for_the_installed_server_if_none_is_named(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(database, "INSTALLED_CONFIG", tmp_path / "server.yaml")
    (tmp_path / "server.yaml").write_text(f"data_dir: {tmp_path / 'data'}\n")
    made = run("token", "create", "--scope", "admin", "--init", "--data-dir", tmp_path / "data")
    assert made.code == 0

    assert run("token", "create", "--scope", "admin").code == 0

    listed = run("token", "list", "--json", "--data-dir", tmp_path / "data")
    assert len(json.loads(listed.out)) == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("command", ["serve", "token", "keys", "check-config"])
def test_every_command_has_help(run: Run, command: str) -> None:
    ended = run(command, "--help")

    assert ended.code == 0
    assert "Usage" in ended.out


# a running server


def test_tokens_and_keys_are_managed_while_the_server_runs(tmp_path: Path, run: Run) -> None:
    data, config = tmp_path / "data", tmp_path / "server.yaml"
    config.write_text("auth: {token_cache_seconds: 0.1}\n")
    with server(data, "--config", config) as running:
        second = run("serve", "--data-dir", data, *LOCAL)
        assert_one_line(second, "data_dir", str(data), "another server")

        made = run("token", "create", "--scope", "sender", "--deployment", OWN, "--data-dir", data)
        assert made.code == 0
        token, token_id = made.out.removesuffix("\n"), made.err.strip()
        assert len(token) == len("arc_sender_") + 12 + 1 + 43 + 6
        assert running.call("GET", "/v1/commands", token=token)[0] == 200

        listed = run("token", "list", "--json", "--data-dir", data)
        (entry,) = msgspec.json.decode(listed.out)
        assert (entry["id"], entry["scope"], entry["deployments"]) == (token_id, "sender", [OWN])
        assert token not in listed.out
        assert token_id in run("token", "list", "--data-dir", data).out

        assert run("token", "revoke", "tok_unknown", "--data-dir", data).code == 1
        assert run("token", "revoke", token_id, "--data-dir", data).code == 0
        wait_until(lambda: running.call("GET", "/v1/commands", token=token)[0] == 401)

        rotated = run("keys", "rotate", "--data-dir", data)
        keys = run("keys", "list", "--json", "--data-dir", data)
        assert [key["id"] for key in msgspec.json.decode(keys.out)][:1] == [rotated.out.strip()]
        assert len(msgspec.json.decode(keys.out)) == 2
        assert "secret" not in keys.out

        push_token = tmp_path / "push"
        push_token.write_text("secret")
        push_token.chmod(0o644)
        pushed = f"{{id: a, push_url: 'http://b', push_token_file: {push_token}}}"
        config.write_text(f"log: {{level: debug}}\ndeployments: [{pushed}]\n")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "server.reloaded" in running.log.read_text())
        assert f"push_token_file: {push_token} is open to every user" in running.log.read_text()
        assert "keys.reloaded" in running.log.read_text()
        config.write_text("log: {level: loud}\n")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "server.reload_failed" in running.log.read_text())

        assert running.end() == 0
        assert running.process.stdout is not None
        assert running.process.stdout.read() == ""
        assert token not in running.log.read_text()


def test_a_killed_server_has_kept_what_it_acknowledged_and_starts_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with server(data, "--no-auth") as running:
        command_id = running.call("POST", "/v1/commands", CREATE)[1]["commandId"]
        assert running.end(signal.SIGKILL) == -signal.SIGKILL

    with server(data, "--no-auth") as running:
        assert running.call("GET", f"/v1/commands/{command_id}")[1]["state"] == "PENDING"
        assert running.end(signal.SIGINT) == 0


def test_a_server_whose_disk_fails_at_a_commit_stops_at_once_and_says_why(
    tmp_path: Path, run: Run
) -> None:
    data = tmp_path / "data"
    run("token", "create", "--scope", "admin", "--init", "--data-dir", data)
    env = {"ARC_FAILPOINT": "store.before_commit=raise"}

    with server(data, "--no-auth", env=env) as running:
        with contextlib.suppress(OSError):  # a sweep may have met the fault before the request
            assert running.call("POST", "/v1/commands", CREATE)[0] == 503

        assert running.process.wait(30) == 1
        assert "server.failed" in running.log.read_text()


def test_a_second_signal_ends_the_server_at_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with server(data, "--no-auth") as running:
        host, _, port = running.url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port))) as upload:
            upload.sendall(
                b"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 5\r\n\r\n"
            )
            wait_until(lambda: running.call("GET", "/healthz")[0] == 200)
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "server.stopping" in running.log.read_text())

            assert running.end() == 128 + signal.SIGTERM


def test_a_server_that_is_started_with_closed_streams_serves(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*probe.getsockname())
    command = [*SERVE, "--data-dir", tmp_path / "data", "--listen", address]
    process = subprocess.Popen(["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *command])

    def answers() -> bool:
        assert process.poll() is None, "it ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/readyz"):
            return True
        return False

    try:
        wait_until(answers)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_server_without_descriptors_logs_it_once_and_serves_again(tmp_path: Path) -> None:
    with server(tmp_path / "data", "--no-auth") as running:
        used = len(os.listdir(f"/proc/{running.process.pid}/fd"))
        _, hard = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (used, hard))

        wait_until(lambda: "server.no_descriptors" in running.log.read_text())
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (hard, hard))

        assert running.call("GET", "/readyz")[0] == 200
        assert running.log.read_text().count("server.no_descriptors") == 1
        assert running.end() == 0


def test_a_flood_of_connections_is_refused_in_one_line_and_leaves_no_trace(tmp_path: Path) -> None:
    poll = json.dumps({"deploymentId": OWN, "waitSeconds": 60})
    head = (
        "POST /v1/commands/leases HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        "Content-Type: application/json\r\n"
    )
    environment = {"ARC_SERVER_HTTP_MAX_CONNECTIONS": "2"}
    with server(tmp_path / "data", "--no-auth", env=environment) as running:
        host, _, port = running.url.removeprefix("http://").rpartition(":")

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=30))

        def answer_of(connection: socket.socket) -> int | None:
            with contextlib.suppress(ConnectionResetError):
                connection.sendall(
                    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                return int(connection.recv(100)[9:12] or 0) or None
            return None

        with contextlib.ExitStack() as stack:
            for _ in range(2):
                busy = connect()
                busy.sendall(f"{head}Content-Length: {len(poll)}\r\n\r\n".encode())
                assert busy.recv(100).startswith(b"HTTP/1.1 100")
                busy.sendall(poll.encode())
            assert {answer_of(connect()) for _ in range(300)} <= {503, None}
        wait_until(lambda: running.call("GET", "/healthz")[0] == 200)

        assert running.end() == 0
        log = running.log.read_text()
        assert log.count("http.connections_refused") == 1
        assert "Traceback" not in log


def test_the_server_opens_as_many_files_as_it_may_and_says_when_they_are_few(
    tmp_path: Path,
) -> None:
    command = [*SERVE, "--data-dir", tmp_path / "data", *LOCAL, "--no-auth"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", 'ulimit -Sn 200; ulimit -Hn 300; exec "$0" "$@"', *command],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("READY")
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (300, 300)
        finally:
            process.kill()
    assert "server.few_descriptors" in (tmp_path / "log").read_text()
