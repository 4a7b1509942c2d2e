"""While systemd holds the socket, a restart of the server refuses, fails and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

import pytest

from tests.support.arc_host import BOOTSTRAP, DEPLOYMENT, SERVER, ArcHost
from tests.support.booted_root import BootedRoot
from tests.support.waiting import wait_until

pytestmark = pytest.mark.systemd

SOCKET: Final = "arc-server.socket"
RESTARTS: Final = 5
SENDERS: Final = 4
CREATED_BETWEEN: Final = 50
"""So many commands show that the senders are at work again before the next restart."""
SENDING: Final = '''\
"""Senders create one command after the other until the input ends, and repeat no request.

Then the ids of all stored commands are read, in the order of their creation.
"""
import json, sys, threading
from http.client import HTTPConnection

deployment, token_file, senders = sys.argv[1:]
token = open(token_file).read().strip()
is_over = threading.Event()

def ask(method, path, body=None):
    """The status and the answer to a request on a connection of its own."""
    connection = HTTPConnection("127.0.0.1", 8484, timeout=60)
    try:
        connection.request(method, "/v1/commands" + path, body and json.dumps(body), {
            "Authorization": f"Bearer {token}", "Content-Type": "application/json",
        })
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()

def send(sender):
    while not is_over.wait(0.01):
        try:
            status, said = ask("POST", "", {
                "deploymentId": deployment, "command": "count",
                "params": {"mode": "inline", "inlineBase64": "e30="},
            })
            answer = {"sender": sender, "status": status, "id": said.get("commandId")}
        except Exception as error:
            answer = {"sender": sender, "status": repr(error)}
        print(json.dumps(answer), flush=True)

threads = [threading.Thread(target=send, args=(each,)) for each in range(int(senders))]
for thread in threads:
    thread.start()
sys.stdin.read()
is_over.set()
for thread in threads:
    thread.join()
stored, more = [], ""
while more is not None:
    _, page = ask("GET", "?limit=1000" + more)
    stored += [command["commandId"] for command in page["commands"]]
    more = f"&cursor={page['cursor']}" if page.get("cursor") else None
print(json.dumps({"stored": stored[::-1]}), flush=True)
'''


class Senders:
    """Senders inside the root, and what they were answered."""

    def __init__(self, host: ArcHost) -> None:
        host.root.write("/root/sending.py", SENDING)
        self._answers = host.root.path / "root/answers.jsonl"
        self._answers.unlink(missing_ok=True)
        words = f"sending.py {DEPLOYMENT} {host.sender_token()} {SENDERS}"
        self._program: Popen[str] = host.root.shell(f"exec python3 {words} >answers.jsonl")

    def answers(self) -> list[dict[str, Any]]:
        """What they were answered so far, in order."""
        text = self._answers.read_text() if self._answers.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def stop(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Let them come to an end; all answers, and the ids of all commands that are stored."""
        printed, _ = self._program.communicate(timeout=120)
        assert self._program.returncode == 0, printed
        *answers, last = self.answers()
        return answers, last["stored"]

    def until_more(self) -> None:
        """Wait until each of them has created many more commands."""
        before = len(self.answers())
        wait_until(lambda: self._fewest_since(before) >= CREATED_BETWEEN, 120)

    def _fewest_since(self, before: int) -> int:
        senders = [answer["sender"] for answer in self.answers()[before:]]
        return min(senders.count(each) for each in range(SENDERS))

    def close(self) -> None:
        """End the program, however far it is."""
        self._program.kill()
        self._program.communicate()


@pytest.fixture(scope="module")
def server(root: BootedRoot, wheel: Path) -> ArcHost:
    """The root with a server whose socket systemd holds."""
    host = ArcHost(root)
    host.bootstrap(wheel)
    root.run(f"{BOOTSTRAP}/bin/arc-server", "install", "--socket")
    return host


@pytest.fixture
def senders(server: ArcHost) -> Iterator[Senders]:
    """Senders at work."""
    found = Senders(server)
    yield found
    found.close()


def test_restarts_refuse_no_connection_and_lose_no_command(
    server: ArcHost, senders: Senders
) -> None:
    senders.until_more()
    pids = {server.root.pid(SERVER)}

    for _ in range(RESTARTS):
        server.root.run("systemctl", "restart", SERVER)
        pids.add(server.root.pid(SERVER))
        senders.until_more()

    answers, stored = senders.stop()
    assert len(pids) == RESTARTS + 1
    assert [answer for answer in answers if answer["status"] != 200] == []
    for sender in range(SENDERS):
        created = [answer["id"] for answer in answers if answer["sender"] == sender]
        ours = set(created)
        assert [each for each in stored if each in ours] == created
    assert len(stored) == len(answers)


def test_a_connection_starts_a_server_that_was_stopped(server: ArcHost, senders: Senders) -> None:
    server.root.run("systemctl", "stop", SERVER)

    senders.until_more()

    answers, _ = senders.stop()
    assert server.root.show(SERVER, "ActiveState") == "active"
    assert {answer["status"] for answer in answers} == {200}


def test_uninstalling_takes_the_socket_along(server: ArcHost) -> None:
    server.root.run("arc-server", "uninstall", "--purge")

    assert "arc-server" not in server.root.run("systemctl", "list-units", "--all", "--no-legend")
    assert not list(server.root.path.glob("etc/systemd/system/**/arc-server*"))
