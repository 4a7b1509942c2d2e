"""Declared commands within an agent: time, policy, settings and reloads hold for them too."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support.running_agent import Start
from tests.support.scripted_server import ScriptedServer, inline

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
WORD = {"enum": ["a", "b"]}


@pytest.fixture
def db(tmp_path: Path) -> str:
    file = tmp_path / "app.db"
    sqlite3.connect(file).close()
    return str(file)


@pytest.fixture
def silent() -> Any:
    """A service that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def test_a_query_over_its_time_is_a_time_out(
    server: ScriptedServer, start: Start, db: str
) -> None:
    section = {"sqlite": db, "statement": ENDLESS, "timeout_seconds": 0.3}
    agent = await start(server, handlers={"sql": {"x": section}})
    server.send("x")
    response = await server.response()
    await agent.stop()

    assert response["code"] == "HANDLER_TIMEOUT"
    assert not agent.agent.has_abandoned


async def test_a_service_over_its_time_is_a_time_out(
    server: ScriptedServer, start: Start, silent: str
) -> None:
    await start(server, handlers={"http": {"x": {"url": silent, "timeout_seconds": 0.3}}})
    server.send("x")

    assert (await server.response())["code"] == "HANDLER_TIMEOUT"


async def test_the_policy_narrows_what_the_declaration_allows(
    server: ScriptedServer, start: Start, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        json.dumps(
            {
                "rules": [
                    {
                        "name": "only-a",
                        "commands": ["x"],
                        "params": {"type": "object", "properties": {"w": {"enum": ["a"]}}},
                        "action": "allow",
                    }
                ]
            }
        )
    )
    section = {"argv": ["/bin/echo", "{params.w}"], "params": {"w": WORD}, "output": "text"}
    await start(server, handlers={"exec": {"x": section}}, policy={"file": str(policy)})
    server.send("x", {"w": "b"})
    denied = await server.response()

    assert denied["code"] == "DENIED_BY_POLICY"


async def test_what_may_not_run_twice_is_not_run_twice_unless_the_host_says_so(
    server: ScriptedServer, start: Start, db: str
) -> None:
    section = {"sqlite": db, "statement": "SELECT 1 AS a", "write": True}
    await start(
        server,
        handlers={
            "sql": {"x": section, "y": section},
            "settings": {"y": {"idempotent": True}},
        },
    )

    def again(lease: dict[str, Any]) -> None:
        lease["attempt"] = lease["envelope"]["attempt"] = 2

    server.send("x", change=again)
    refused = await server.response()
    server.send("y", change=again)
    ran = await server.response(2)

    assert refused["code"] == "MAYBE_EXECUTED"
    assert inline(ran) == b'[{"a":1}]'


async def test_a_reload_takes_declared_commands_in_and_out(
    server: ScriptedServer, start: Start, db: str, tmp_path: Path
) -> None:
    one = {"sqlite": db, "statement": "SELECT 1 AS a"}
    agent = await start(server, handlers={"sql": {"x": one}, "http": {"gone": {"url": "http://x"}}})
    file = tmp_path / "agent.yaml"
    config = json.loads(file.read_text())
    config["handlers"] |= {"sql": {"x": {**one, "statement": "SELECT 2 AS a"}}, "http": {}}
    file.write_text(json.dumps(config))
    agent.agent.reload()
    server.send("x")
    changed = await server.response()
    server.send("gone")
    gone = await server.response(2)

    assert inline(changed) == b'[{"a":2}]'
    assert gone["code"] == "UNKNOWN_COMMAND"


async def test_a_reload_with_a_user_that_is_not_there_is_refused_and_the_old_stays(
    server: ScriptedServer, start: Start, tmp_path: Path, logged: Any
) -> None:
    section = {"argv": ["/bin/echo", "1"]}
    agent = await start(server, handlers={"exec": {"x": section}})
    file = tmp_path / "agent.yaml"
    config = json.loads(file.read_text())
    config["handlers"]["exec"]["x"]["user"] = "no-such-user"
    file.write_text(json.dumps(config))
    agent.agent.reload()
    server.send("x")

    assert inline(await server.response()) == b"1"
    (refused,) = [each for each in logged if each["event"] == "reload.refused"]
    assert "handlers.exec.x.user" in refused["reason"]
