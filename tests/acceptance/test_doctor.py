"""`arc-agent doctor` on a host, against a real server."""

from __future__ import annotations

import json

from tests.support.processes import Process
from tests.support.raw_sender import DEPLOYMENT
from tests.support.world import World


async def doctor(world: World, deployment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """`arc-agent doctor`: its exit code and findings."""
    file = world.directory / "doctor.yaml"
    settings = {
        "server": {"url": world.url, "token_file": str(world.tokens["agent"])},
        "deployment": deployment,
        "data_dir": str(world.directory / "doctor"),
    }
    file.write_text(json.dumps(settings))
    process = await Process.start("doctor", "arc-agent", "doctor", "--config", str(file), "--json")
    code = await process.ended()
    found = json.loads("\n".join(process.printed))
    return code, {each["name"]: each for each in found}


async def test_the_doctor_finds_a_server_of_ours_in_order_and_takes_no_command(world: World):
    await world.server()
    command_id = await world.sender.create("note")

    code, found = await doctor(world, DEPLOYMENT)

    assert code == 0, found
    for name in ("access", "blob GET", "blob PUT", "clock", "token"):
        assert found[name]["state"] == "ok", found[name]
    status = await world.sender.status(command_id)
    assert (status["state"], status["attempt"]) == ("PENDING", 1)


async def test_the_doctor_leaves_nothing_on_a_server_that_takes_anybody(world: World):
    await world.server({"auth": {"disabled": True}})

    code, found = await doctor(world, DEPLOYMENT)

    assert code == 0, found
    assert found["blob GET"]["state"] == "ok"
    assert found["blob PUT"]["state"] == "untested"
    blobs = world.directory / "server" / "blobs"
    assert [each for each in blobs.rglob("*") if each.is_file()] == []


async def test_the_doctor_says_that_a_token_is_for_another_deployment(world: World):
    await world.server()

    code, found = await doctor(world, "somebody-elses")

    assert code == 1
    assert found["access"]["state"] == "bad"
    assert "bound to another deployment: look at" in found["access"]["text"]
    assert "'somebody-elses'" in found["access"]["text"]
