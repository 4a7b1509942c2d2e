"""The control socket, and what it orders: pause, stop-all, resume."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from arc_runtime.control_socket import (
    Control,
    ControlError,
    ControlRefused,
    ControlRequest,
    NotListening,
    Peer,
    ask,
)

Told = list[tuple[dict[str, Any], Peer]]


@pytest.fixture
def told() -> Told:
    """Return what was asked, and by whom."""
    return []


@pytest.fixture
async def control(tmp_path: Path, told: Told) -> AsyncIterator[Control]:
    async def echo(request: ControlRequest, peer: Peer) -> Mapping[str, Any]:
        told.append((dict(request), peer))
        return {"said": request.get("text")}

    async def refuse(_request: ControlRequest, _peer: Peer) -> Mapping[str, Any]:
        raise ControlRefused("not today")

    async def break_(_request: ControlRequest, _peer: Peer) -> Mapping[str, Any]:
        raise RuntimeError("a bug")

    opened = Control(tmp_path / "control.sock")
    for name, verb in {"echo": echo, "refuse": refuse, "break": break_}.items():
        opened.verb(name, verb)
    await opened.open()
    yield opened
    await opened.close()


async def asked(control: Control, **request: Any) -> dict[str, Any]:
    return await asyncio.to_thread(ask, control.path, request)


async def test_a_verb_answers_and_knows_who_asks(control: Control, told: Told) -> None:
    answer = await asked(control, do="echo", text="hä")

    assert answer == {"said": "hä"}
    assert told[0][1] == Peer(os.getpid(), os.getuid())


async def test_a_refusal_comes_with_its_reason(control: Control) -> None:
    with pytest.raises(ControlRefused, match="not today"):
        await asked(control, do="refuse")


async def test_a_verb_that_breaks_ends_nothing(control: Control) -> None:
    with pytest.raises(ControlRefused, match="the agent failed"):
        await asked(control, do="break")
    assert await asked(control, do="echo", text="still there") == {"said": "still there"}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"\xff\n", "not JSON"),
        (b"[" * 10_000 + b"\n", "not JSON"),
        (b"[]\n", "unknown verb; known are break, echo, refuse"),
        (b'{"do": ["echo"]}\n', "unknown verb"),
        (b'{"do": "reboot"}\n', "unknown verb"),
        (b"x" * 70_000 + b"\n", "a line of more than"),
    ],
)
async def test_what_makes_no_sense_is_answered(control: Control, line: bytes, error: str) -> None:
    reader, writer = await asyncio.open_unix_connection(control.path)
    writer.write(line)

    answer = json.loads(await reader.readline())

    assert answer["ok"] is False
    assert error in answer["error"]
    writer.close()


async def test_several_requests_go_over_one_connection(control: Control) -> None:
    reader, writer = await asyncio.open_unix_connection(control.path)

    for text in ("one", "two"):
        writer.write(json.dumps({"do": "echo", "text": text}).encode() + b"\n")
        assert json.loads(await reader.readline()) == {"ok": True, "said": text}
    writer.close()


async def test_half_a_line_and_gone_does_no_harm(control: Control, told: Told) -> None:
    _, writer = await asyncio.open_unix_connection(control.path)
    writer.write(b'{"do": "echo"')
    writer.close()
    await writer.wait_closed()

    assert await asked(control, do="echo", text="next") == {"said": "next"}
    assert len(told) == 1


async def test_more_connections_than_enough_are_turned_away(control: Control) -> None:
    held = [await asyncio.open_unix_connection(control.path) for _ in range(16)]
    for reader, writer in held:
        writer.write(b'{"do": "echo"}\n')
        assert await reader.readline()

    with pytest.raises((NotListening, ConnectionError)):
        await asked(control, do="echo")
    for _, writer in held:
        writer.close()


async def test_the_socket_is_for_its_owner_and_group(control: Control) -> None:
    found = control.path.stat()

    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660


async def test_the_socket_goes_with_the_agent(tmp_path: Path) -> None:
    control = Control(tmp_path / "control.sock")
    await control.open()
    await control.close()

    assert not control.path.exists()
    with pytest.raises(NotListening):
        ask(control.path, {"do": "echo"})


async def test_a_socket_that_a_dead_agent_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    control = Control(tmp_path / "control.sock")

    await control.open()

    with pytest.raises(ControlRefused, match="unknown verb"):
        await asked(control, do="anything")
    await control.close()


async def test_the_socket_of_a_living_agent_is_left_alone(control: Control) -> None:
    with pytest.raises(ControlError, match="another agent listens"):
        await Control(control.path).open()

    assert await asked(control, do="echo", text="mine") == {"said": "mine"}


async def test_a_path_may_be_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    control = Control(tmp_path / ("d" * 120) / "control.sock")
    await control.open()

    with pytest.raises(ControlRefused, match="unknown verb"):
        await asked(control, do="anything")
    await control.close()
    assert list(control.path.parent.iterdir()) == []
