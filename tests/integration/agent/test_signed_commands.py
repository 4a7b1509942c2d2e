"""A server that lies, and an agent that runs what was signed and nothing else."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from arc_agent import Context, handler
from arc_agent.guard.audit_reader import entries
from arc_agent.guard.signatures import Signatures
from arc_runtime.control_socket import NotListening, ask
from tests.support.agent_process import agent as process
from tests.support.forgeries import (
    COMMAND,
    EXPIRED,
    FORGERIES,
    INVALID,
    OPS,
    PARAMS,
    REPLAYED,
    REQUIRED,
    STRANGER,
    TARGET,
    carrying,
    claims,
    in_seconds,
    signature,
)
from tests.support.running_agent import RunningAgent, Start, running
from tests.support.scripted_server import ScriptedServer, inline
from tests.support.waiting import until

ONCE = """
from arc_agent import handler

@handler("pay", idempotent=False)
def pay() -> None:
    with open("runs", "a") as file:
        file.write("run")
"""
ran: list[bytes] = []


@handler("pay")
@handler("refund")
async def pay(ctx: Context) -> str:
    ran.append(await ctx.open_params().read())
    return "paid"


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of an agent that knows one key and runs nothing that is not signed."""

    def of(**more: Any) -> dict[str, Any]:
        (tmp_path / "ops.pub").write_text(OPS.public().line + "\n")
        return {
            "signing": {"keys": str(tmp_path / "ops.pub"), "required": True, **more},
            "target": {"resource_id": TARGET},
        }

    return of


class MovedClock:
    """The host's wall clock, as signatures see it: so many seconds ahead."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MovedClock:
    moved = MovedClock()
    monkeypatch.setattr("arc_agent.assembly.Signatures", functools.partial(Signatures, now=moved))
    return moved


async def told(agent: RunningAgent, do: str, **request: Any) -> dict[str, Any]:
    """Return what the agent answers its operator."""
    path = agent.directory / "control.sock"
    return await asyncio.to_thread(ask, path, {"do": do, **request})


async def until_waiting(agent: RunningAgent) -> None:
    """Wait until a command waits for approval."""

    async def is_waiting() -> bool:
        with suppress(NotListening):  # it is only starting
            return bool((await told(agent, "approvals"))["approvals"])
        return False

    await until(is_waiting)


def code_of(response: Any) -> str:
    return str(response.get("code", response["status"]))


def lines_of(agent: RunningAgent, event: str) -> list[Any]:
    return [each for each in entries(agent.directory / "audit") if each["event"] == event]


async def test_no_forgery_runs_and_each_gets_its_code(
    server: ScriptedServer, start: Start, settings: Callable[..., dict[str, Any]]
) -> None:
    agent = await start(server, pay, **settings())
    for number, (_, spoil) in enumerate(FORGERIES.values()):

        def change(lease: Any, spoil: Any = spoil) -> None:
            lease["envelope"]["signature"] = signature()
            spoil(lease)

        server.send(COMMAND, raw=PARAMS, command_id=f"forged-{number}", change=change)
    await server.until(lambda: len(server.responses()) == len(FORGERIES))
    server.send(COMMAND, raw=PARAMS, command_id="good", change=carrying(signature()))
    await server.until(lambda: len(server.responses()) > len(FORGERIES))

    got = {
        name: code_of(server.responses(f"forged-{number}")[0])
        for number, name in enumerate(FORGERIES)
    }
    assert got == {name: code for name, (code, _) in FORGERIES.items()}
    assert inline(server.responses("good")[0]) == b'"paid"'
    assert ran == [PARAMS]
    assert len(FORGERIES) >= 60
    [started] = lines_of(agent, "started")
    assert started["signed_by"] == OPS.name
    refused = lines_of(agent, "signature_refused")
    assert len(refused) == sum(code != "INVALID_ENVELOPE" for code, _ in FORGERIES.values())


async def test_a_signature_is_used_once_also_after_a_restart(
    server: ScriptedServer, tmp_path: Path, settings: Callable[..., dict[str, Any]]
) -> None:
    signed = signature()
    for command_id in ("first", "second"):
        async with running(server.url, tmp_path, (pay,), settings()):
            sent = len(server.responses())
            server.send(COMMAND, raw=PARAMS, command_id=command_id, change=carrying(signed))
            await server.until(lambda sent=sent: len(server.responses()) > sent)

    assert code_of(server.responses("first")[0]) == "success"
    assert code_of(server.responses("second")[0]) == REPLAYED
    assert ran == [PARAMS]


async def test_two_commands_with_one_signature_at_once_run_once(
    server: ScriptedServer, start: Start, settings: Callable[..., dict[str, Any]]
) -> None:
    signed = signature()
    for command_id in ("one", "two", "three"):
        server.send(COMMAND, raw=PARAMS, command_id=command_id, change=carrying(signed))

    await start(server, pay, **settings())
    await server.until(lambda: len(server.responses()) == 3)

    assert sorted(map(code_of, server.responses())) == [REPLAYED, REPLAYED, "success"]
    assert ran == [PARAMS]


async def test_a_command_that_has_ended_here_is_not_run_again_under_its_own_id(
    server: ScriptedServer, start: Start, settings: Callable[..., dict[str, Any]]
) -> None:
    await start(server, pay, **settings())
    signed = signature()
    attempt = 0
    while len(server.responses()) < 2:  # one that comes before the first is through is given back
        attempt += 1

        def again(lease: Any, attempt: int = attempt) -> None:
            lease["attempt"] = lease["envelope"]["attempt"] = attempt
            lease["envelope"]["signature"] = signed

        answered = len(server.responses()) + len(server.seen("release"))
        server.send(COMMAND, raw=PARAMS, command_id="cmd", change=again)
        await server.until(
            lambda before=answered: len(server.responses()) + len(server.seen("release")) > before
        )

    assert [code_of(each) for each in server.responses()] == ["success", REPLAYED]
    assert ran == [PARAMS]


@pytest.mark.parametrize(
    ("point", "answer"),
    [
        ("agent.after_handler", "MAYBE_EXECUTED"),
        pytest.param("agent.after_spool", "success", marks=pytest.mark.chaos),
    ],
)
async def test_what_a_dead_agent_left_is_answered_and_its_signature_used_up(
    server: ScriptedServer,
    tmp_path: Path,
    settings: Callable[..., dict[str, Any]],
    point: str,
    answer: str,
) -> None:
    (tmp_path / "once.py").write_text(ONCE)
    (tmp_path / "a.yaml").write_text(json.dumps(settings()))
    carried = carrying(signature())
    server.send(COMMAND, raw=PARAMS, command_id="cmd", change=carried)
    given = ("-c", "a.yaml", "--handlers", "once")
    async with process(server, tmp_path, *given, ARC_FAILPOINT=f"{point}=kill") as first:
        assert await first.ended() == -signal.SIGKILL
    async with process(server, tmp_path, *given):
        left = await server.response()
        server.send(COMMAND, raw=PARAMS, command_id="cmd", change=carried)  # a lie: it has ended
        replayed = (await server.response(2), server.responses())[1][-1]

    assert (code_of(left), code_of(replayed)) == (answer, REPLAYED)
    assert (tmp_path / "runs").read_text() == "run"


async def test_a_key_that_is_taken_away_while_a_command_waits_starts_nothing(
    server: ScriptedServer, start: Start, settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text("rules: [{name: ask, action: approve}]")
    agent = await start(server, pay, **settings(), policy={"file": str(tmp_path / "policy.yaml")})
    server.send(COMMAND, raw=PARAMS, command_id="cmd", change=carrying(signature()))
    await until_waiting(agent)
    (tmp_path / "ops.pub").write_text(STRANGER.public().line)
    agent.agent.reload()
    await told(agent, "approve", id="cmd")

    assert code_of(await server.response()) == INVALID
    assert ran == []


async def test_a_redelivered_command_is_no_replay(
    server: ScriptedServer, tmp_path: Path, settings: Callable[..., dict[str, Any]]
) -> None:
    began = asyncio.Event()

    @handler("pay")
    async def endless() -> None:
        began.set()
        await asyncio.Event().wait()

    signed = signature()
    async with running(server.url, tmp_path, (endless,), settings()):
        server.send(COMMAND, raw=PARAMS, command_id="cmd", change=carrying(signed))
        await began.wait()
    await server.until(lambda: bool(server.seen("release")))  # the agent stopped, and gave it back
    async with running(server.url, tmp_path, (pay,), settings()):
        server.send(COMMAND, raw=PARAMS, command_id="cmd", change=carrying(signed))
        await server.response()

    assert inline(server.responses("cmd")[0]) == b'"paid"'


async def test_large_params_are_held_against_the_signature_before_the_handler_sees_them(
    server: ScriptedServer, start: Start, settings: Callable[..., dict[str, Any]]
) -> None:
    large = os.urandom(300_000)
    digest = hashlib.sha256(large).hexdigest()
    of_large = claims(paramsSha256=digest, paramsBytes=len(large))
    again = claims(paramsSha256=digest, paramsBytes=len(large))
    server.cut_blob_after.append(100_000)  # fetched in two parts, and hashed as one
    await start(server, pay, **settings())

    server.send(
        COMMAND, raw=large, stored=True, command_id="good", change=carrying(signature(of_large))
    )
    await server.response(1)
    changed = large[:-1] + bytes([large[-1] ^ 1])
    server.send(
        COMMAND, raw=changed, stored=True, command_id="bad", change=carrying(signature(again))
    )
    await server.response(2)

    assert code_of(server.responses("good")[0]) == "success"
    assert code_of(server.responses("bad")[0]) == INVALID
    assert ran == [large]


async def test_a_deadline_that_passes_while_the_command_waits_ends_it(
    server: ScriptedServer,
    start: Start,
    settings: Callable[..., dict[str, Any]],
    tmp_path: Path,
    clock: MovedClock,
) -> None:
    (tmp_path / "policy.yaml").write_text("rules: [{name: ask, action: approve}]")
    agent = await start(
        server, pay, **settings(skew_seconds=0), policy={"file": str(tmp_path / "policy.yaml")}
    )
    deadline = in_seconds(3600)
    of_it = claims(deadline=deadline)

    def with_deadline(lease: Any) -> None:
        lease["envelope"].update(signature=signature(of_it), deadline=deadline)

    server.send(COMMAND, raw=PARAMS, command_id="cmd", change=with_deadline)
    await until_waiting(agent)
    clock.seconds += 7200
    await told(agent, "approve", id="cmd")
    response = await server.response()

    assert code_of(response) == EXPIRED
    assert ran == []


async def test_a_clock_that_is_hours_off_is_named_in_the_refusal(
    server: ScriptedServer, start: Start, settings: Callable[..., dict[str, Any]]
) -> None:
    await start(server, pay, **settings())
    server.send(
        COMMAND, raw=PARAMS, change=carrying(signature(claims(issuedAt=in_seconds(3 * 3600))))
    )

    response = await server.response()

    assert code_of(response) == INVALID
    assert "3:00:00 ahead of this host's clock" in response["message"]


async def test_where_signatures_are_not_required_none_is_fine_and_a_wrong_one_is_not(
    server: ScriptedServer, start: Start, settings: Callable[..., dict[str, Any]]
) -> None:
    await start(server, pay, **settings(required=False))
    server.send(COMMAND, raw=PARAMS, command_id="unsigned")
    server.send(COMMAND, raw=PARAMS, command_id="forged", change=carrying(signature(key=STRANGER)))
    await server.until(lambda: len(server.responses()) == 2)

    assert code_of(server.responses("unsigned")[0]) == "success"
    assert code_of(server.responses("forged")[0]) == INVALID


async def test_an_agent_without_keys_runs_signed_commands_as_any_other(
    server: ScriptedServer, start: Start
) -> None:
    agent = await start(server, pay)
    server.send(COMMAND, raw=PARAMS, change=carrying("what.ever.it"))

    assert inline(await server.response()) == b'"paid"'
    assert not (agent.directory / "nonces.db").exists()


async def test_a_policy_tells_senders_apart_by_the_keys_they_sign_with(
    server: ScriptedServer,
    start: Start,
    settings: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    wanted = settings(required=False)
    (tmp_path / "ops.pub").write_text(f"{OPS.public().line}\n{STRANGER.public().line}\n")
    (tmp_path / "policy.yaml").write_text(
        json.dumps({"rules": [{"name": "ops may pay", "action": "allow", "keys": ["ops-*"]}]})
    )
    await start(server, pay, **wanted, policy={"file": str(tmp_path / "policy.yaml")})

    for name, change in {
        "ops": carrying(signature()),
        "other": carrying(signature(key=STRANGER)),
        "nobody": lambda _: None,
    }.items():
        server.send(COMMAND, raw=PARAMS, command_id=name, change=change)
    await server.until(lambda: len(server.responses()) == 3)

    assert {name: code_of(server.responses(name)[0]) for name in ("ops", "other", "nobody")} == {
        "ops": "success",
        "other": "DENIED_BY_POLICY",
        "nobody": "DENIED_BY_POLICY",
    }


async def test_a_reload_takes_new_keys_and_drops_old_ones(
    server: ScriptedServer,
    start: Start,
    settings: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    agent = await start(server, pay, **settings())
    await server.until(lambda: bool(server.seen("leases")))
    (tmp_path / "ops.pub").write_text(STRANGER.public().line)
    agent.agent.reload()
    server.send(COMMAND, raw=PARAMS, command_id="new", change=carrying(signature(key=STRANGER)))
    server.send(COMMAND, raw=PARAMS, command_id="old", change=carrying(signature()))
    await server.until(lambda: len(server.responses()) == 2)

    assert code_of(server.responses("new")[0]) == "success"
    assert code_of(server.responses("old")[0]) == INVALID


async def test_the_last_key_can_be_taken_away(
    server: ScriptedServer,
    start: Start,
    settings: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    agent = await start(server, pay, **settings())
    await server.until(lambda: bool(server.seen("leases")))
    (tmp_path / "ops.pub").write_text("# nobody\n")
    agent.agent.reload()
    server.send(COMMAND, raw=PARAMS, command_id="signed", change=carrying(signature()))
    server.send(COMMAND, raw=PARAMS, command_id="unsigned")
    await server.until(lambda: len(server.responses()) == 2)

    assert code_of(server.responses("signed")[0]) == INVALID
    assert code_of(server.responses("unsigned")[0]) == REQUIRED
    assert ran == []


async def test_without_a_record_of_what_was_used_nothing_runs(
    server: ScriptedServer, start: Start, settings: Callable[..., dict[str, Any]]
) -> None:
    agent = await start(server, pay, **settings())
    await server.until(lambda: bool(server.seen("leases")))
    with sqlite3.connect(agent.directory / "nonces.db") as db:
        db.execute("DROP TABLE nonces")
    db.close()
    server.send(COMMAND, raw=PARAMS, change=carrying(signature()))

    await server.until(lambda: bool(server.seen("release")))

    assert ran == []
    assert server.responses() == []
