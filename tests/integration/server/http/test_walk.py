"""The main job through HTTP, once."""

from base64 import b64decode

from tests.support.running_server import Client, success


async def test_a_command_goes_out_and_its_result_comes_back(client: Client) -> None:
    command_id = await client.create()
    (lease,) = await client.lease()
    url = lease["envelope"]["responseHandling"]["submitResponseUrl"]

    answer = await client.call("PUT", url, success(b'{"rows": 3}'), token="")

    assert (answer.status, answer.body) == (200, b"")
    status = await client.status(command_id)
    assert status["state"] == "SUCCEEDED"
    assert b64decode(status["response"]["response"]["inlineBase64"]) == b'{"rows": 3}'
