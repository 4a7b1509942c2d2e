"""Public clients of both generations work unchanged against the server."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.public_clients import (
    DAEMON,
    FETCH,
    JSON,
    REQWEST,
    Poller,
    PublicClient,
    PublicSender,
    Receiver,
)
from tests.support.waiting import wait_until

ARC_SERVER = str(Path(sys.executable).with_name("arc-server"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ARC_")}
SUCCESS: Any = {"status": "success", "response": {"mode": "inline", "inlineBase64": "e30="}}
FAILURE: Any = {"status": "error", "code": "HANDLER_ERROR", "message": "vault sealed"}


@dataclass(frozen=True)
class Server:
    """A running server and a token for it."""

    url: str
    token: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server for all tests here; each has a deployment of its own."""
    directory = tmp_path_factory.mktemp("public-clients")
    data, log = directory / "data", directory / "log"
    made = subprocess.run(
        [ARC_SERVER, "token", "create", "--scope", "admin", "--init", "--data-dir", str(data)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=ENVIRONMENT,
    )
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [ARC_SERVER, "serve", "--data-dir", str(data), "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=ENVIRONMENT,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("READY "), log.read_text()
            yield Server(line.removeprefix("READY ").strip(), made.stdout.strip())
        finally:
            process.terminate()
        assert process.wait(timeout=30) == 0
    assert "Traceback" not in log.read_text()


class Deployment:
    """Clients of one deployment, which no other test uses."""

    numbers = itertools.count(1)

    def __init__(self, server: Server) -> None:
        self.server = server
        self.deployment_id = f"dep_k{next(self.numbers)}"
        self._clients: list[PublicClient] = []

    def make(self, kind: type[Any], library: dict[str, str], **more: str) -> Any:
        """A client of that kind, on that HTTP library."""
        client = kind(self.server.url, self.server.token, self.deployment_id, {**library, **more})
        self._clients.append(client)
        return client

    def sender(self) -> PublicSender:
        """A TypeScript sender of either generation."""
        return self.make(PublicSender, FETCH)

    def poller(self) -> Poller:
        """The poller of the 1.x runtime."""
        return self.make(Poller, REQWEST)

    def agent(self) -> Poller:
        """The 1.x agent, which names itself."""
        return self.make(Poller, REQWEST, **{"user-agent": "alien-agent/1.3.1"})

    def receiver(self, resource: Any = DAEMON) -> Receiver:
        """A 3.x receiver for a target."""
        receiver: Receiver = self.make(Receiver, FETCH)
        receiver.resource = resource
        return receiver

    def close(self) -> None:
        """Hang up everywhere."""
        for client in self._clients:
            client.wire.close()


@pytest.fixture
def deployment(server: Server) -> Iterator[Deployment]:
    deployment = Deployment(server)
    yield deployment
    deployment.close()


def from_now(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def to_rfc3339(moment: datetime) -> str:
    """As chrono's `to_rfc3339()`: nanoseconds and +00:00."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "789+00:00"


def to_iso_string(moment: datetime) -> str:
    """As JavaScript's `toISOString()`: milliseconds and Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# 1.x


def test_a_1_x_typescript_sender_and_the_1_x_poller_do_their_job(deployment: Deployment) -> None:
    sender, poller = deployment.sender(), deployment.poller()
    assert poller.lease() == []

    created = sender.create(
        "rotate-keys",
        b'{"region":"eu"}',
        deadline=to_iso_string(from_now(600)),
        idempotencyKey="rotate-2026-03",
    )
    assert (created["state"], created["next"]) == ("PENDING", "poll")
    assert sender.look(created["commandId"])["state"] == "PENDING"

    (lease,) = poller.lease()
    envelope = lease["envelope"]
    assert envelope["command"] == "rotate-keys"
    assert envelope["commandId"] == created["commandId"]
    assert poller.params(envelope) == b'{"region":"eu"}'
    assert sender.look(created["commandId"])["state"] == "DISPATCHED"
    assert poller.lease() == []

    submitted = poller.succeed(envelope, b'{"keys":3}')
    assert (submitted.status, submitted.body) == (200, b"")
    status = sender.look(created["commandId"])
    assert (status["state"], status["attempt"]) == ("SUCCEEDED", 1)
    assert sender.result(status) == b'{"keys":3}'


@pytest.mark.parametrize(
    "params",
    [
        pytest.param('{"name":"Müller"}'.encode("latin-1"), id="Latin-1"),
        pytest.param(b"hello", id="a string as it is"),
        pytest.param(b"undefined", id="undefined"),
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(range(256)), id="bytes"),
    ],
)
def test_params_of_a_1_x_sender_arrive_byte_for_byte_whatever_they_are(
    deployment: Deployment, params: bytes
) -> None:
    created = deployment.sender().create("c", params)
    poller = deployment.poller()

    (lease,) = poller.lease()

    assert poller.params(lease["envelope"]) == params
    assert poller.submit(lease["envelope"], SUCCESS).status == 200
    assert deployment.sender().look(created["commandId"])["state"] == "SUCCEEDED"


def test_a_rust_sender_writes_nanoseconds_with_an_offset_and_a_colon_in_the_name(
    deployment: Deployment,
) -> None:
    sender = deployment.make(PublicSender, REQWEST)

    created = sender.create("db:vacuum", b"{}", deadline=to_rfc3339(from_now(600)))

    (lease,) = deployment.receiver().lease()
    assert lease["envelope"]["command"] == "db:vacuum"
    assert lease["envelope"]["deadline"].endswith("Z")
    assert sender.look(created["commandId"])["state"] == "DISPATCHED"


@pytest.mark.parametrize(
    "target",
    ["/v1//commands/leases", "/v1/commands/leases", "//v1/commands/leases", "/commands/leases"],
)
def test_the_1_x_poller_may_double_a_slash_or_leave_the_prefix_out(
    deployment: Deployment, target: str
) -> None:
    created = deployment.sender().create("c", b"{}")
    poller = deployment.poller()
    poller.target = target

    (lease,) = poller.lease()

    assert poller.succeed(lease["envelope"], b"{}").status == 200
    assert deployment.sender().look(created["commandId"])["state"] == "SUCCEEDED"


def test_the_1_x_agent_gets_one_lease_that_outlives_its_longest_command(
    deployment: Deployment,
) -> None:
    sender = deployment.sender()
    created = [sender.create("c", b"{}")["commandId"] for _ in range(3)]
    agent = deployment.agent()

    given = [agent.lease() for _ in range(4)]

    assert [[lease["commandId"] for lease in leases] for leases in given] == [
        [created[0]],
        [created[1]],
        [created[2]],
        [],
    ]
    for (lease,) in given[:3]:
        assert datetime.fromisoformat(lease["leaseExpiresAt"]) > from_now(325)


def test_the_1_x_poller_gets_all_that_it_asks_for_oldest_first(deployment: Deployment) -> None:
    sender = deployment.sender()
    created = [sender.create("c", str(number).encode())["commandId"] for number in range(12)]
    poller = deployment.poller()

    first, second = poller.lease(), poller.lease()

    assert [lease["commandId"] for lease in first + second] == created
    assert len(first) == 10
    for number, lease in enumerate(first + second):
        assert poller.params(lease["envelope"]) == str(number).encode()
        assert datetime.fromisoformat(lease["leaseExpiresAt"]) < from_now(65)


def test_a_large_result_of_a_1_x_poller_goes_by_storage_without_a_token(
    deployment: Deployment,
) -> None:
    sender, poller = deployment.sender(), deployment.poller()
    created = sender.create("c", b"{}")
    (lease,) = poller.lease()
    data = bytes(range(256)) * 2_000

    assert poller.succeed(lease["envelope"], data).status == 200

    status = sender.look(created["commandId"])
    assert status["response"]["response"]["size"] == len(data)
    assert sender.result(status) == data
    assert sender.result(sender.look(created["commandId"])) == data


@pytest.mark.parametrize("size", [149_999, 150_000, 150_001, 1_500_000])
def test_params_are_always_sent_inline_and_come_back_whole_at_any_size(
    deployment: Deployment, size: int
) -> None:
    sender, poller = deployment.sender(), deployment.poller()
    params = bytes(size)

    created = sender.create("c", params)
    (lease,) = poller.lease()

    assert created["next"] == "poll"
    assert (lease["envelope"]["params"]["mode"] == "inline") == (size <= 150_000)
    assert poller.params(lease["envelope"]) == params
    assert poller.succeed(lease["envelope"], params).status == 200
    assert sender.result(sender.look(created["commandId"])) == params


def test_a_1_x_consumer_reads_absolute_urls_of_the_host_that_it_called(
    deployment: Deployment,
) -> None:
    deployment.sender().create("c", bytes(200_000))
    poller = deployment.poller()
    poller.wire.host = "arc.example:8443"

    (lease,) = poller.lease()

    handling = lease["envelope"]["responseHandling"]
    for url in (
        handling["submitResponseUrl"],
        handling["storageUploadRequest"]["backend"]["url"],
        lease["envelope"]["params"]["storageGetRequest"]["backend"]["url"],
    ):
        assert url.startswith("http://arc.example:8443/v1/")


def test_a_1_x_consumer_of_a_deployment_with_several_targets_gets_nothing_and_no_error(
    deployment: Deployment,
) -> None:
    for name in ("api", "vault"):
        assert deployment.receiver({"resourceId": name, "resourceType": "container"}).lease() == []
    deployment.sender().create("c", b"{}", targetResourceId="api")

    assert deployment.poller().lease() == []
    assert deployment.agent().lease() == []


# 3.x


def test_a_3_x_sender_and_a_3_x_receiver_do_their_job(deployment: Deployment) -> None:
    vault = {"resourceId": "vault-agent", "resourceType": "daemon"}
    sender, receiver = deployment.sender(), deployment.receiver(vault)
    assert receiver.lease() == []

    created = sender.create("rotate-keys", b'{"region":"eu"}', targetResourceId="vault-agent")
    (lease,) = receiver.lease()

    assert lease["envelope"]["target"] == vault
    assert receiver.params(lease["envelope"]) == b'{"region":"eu"}'
    assert receiver.succeed(lease["envelope"], b'{"keys":3}').status == 200
    status = sender.look(created["commandId"])
    assert (status["state"], status["target"]) == ("SUCCEEDED", vault)
    assert sender.result(status) == b'{"keys":3}'


def test_a_failure_of_a_handler_reaches_the_sender_word_for_word(deployment: Deployment) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = sender.create("c", b"{}")
    (lease,) = receiver.lease()
    failure = {**FAILURE, "code": "größe", "details": "line 1\nline 2"}

    assert receiver.submit(lease["envelope"], failure).status == 200

    status = sender.look(created["commandId"])
    assert (status["state"], status["response"]) == ("FAILED", failure)


@pytest.mark.parametrize("details", [None, "text"])
def test_null_and_absent_details_are_the_same(deployment: Deployment, details: str | None) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = sender.create("c", b"{}", deadline=None, idempotencyKey=None, targetResourceId=None)
    (lease,) = receiver.lease()

    assert receiver.submit(lease["envelope"], {**FAILURE, "details": details}).status == 200

    response = sender.look(created["commandId"])["response"]
    assert response.get("details", None) == details


def test_a_receiver_gets_no_more_than_its_free_places_and_no_command_twice(
    deployment: Deployment,
) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = {sender.create("c", b"{}")["commandId"] for _ in range(5)}

    given = [receiver.lease(maximum) for maximum in (2, 1, 5)]

    assert [len(leases) for leases in given] == [2, 1, 2]
    assert {lease["commandId"] for leases in given for lease in leases} == created


@pytest.mark.parametrize("with_body", [True, False])
def test_a_release_gives_the_command_back_at_once_and_counts(
    deployment: Deployment, with_body: bool
) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = sender.create("c", b"{}")
    (lease,) = receiver.lease()
    target = f"/v1/commands/leases/{lease['leaseId']}/release"

    released = (
        receiver.release(lease["leaseId"])
        if with_body
        else receiver.wire.send("POST", target, receiver.bearer)
    )

    assert (released.status, released.body) == (200, b"")
    status = sender.look(created["commandId"])
    assert (status["state"], status["attempt"]) == ("PENDING", 2)
    (again,) = receiver.lease()
    assert again["attempt"] == 2
    unknown = receiver.release(lease["leaseId"])
    assert (unknown.status, unknown.json()["code"]) == (404, "LEASE_NOT_FOUND")


def test_a_command_that_is_released_each_time_ends_with_an_error_to_show(
    deployment: Deployment,
) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = sender.create("c", b"{}")

    for attempt in range(1, 6):
        (lease,) = receiver.lease()
        assert lease["attempt"] == attempt
        receiver.release(lease["leaseId"])

    status = sender.look(created["commandId"])
    assert status["state"] == "FAILED"
    assert status["response"]["code"] == "MAX_ATTEMPTS_EXCEEDED"
    assert receiver.lease() == []


def test_a_result_that_comes_after_its_lease_was_released_is_kept(deployment: Deployment) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = sender.create("c", b"{}")
    (lease,) = receiver.lease()
    receiver.release(lease["leaseId"])

    assert receiver.succeed(lease["envelope"], b"late").status == 200

    assert sender.result(sender.look(created["commandId"])) == b"late"
    assert receiver.lease() == []


def test_a_result_of_a_lease_that_was_given_again_is_refused_as_done(
    deployment: Deployment,
) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = sender.create("c", b"{}")
    (old,) = receiver.lease(seconds=1)
    (new,) = wait_until(receiver.lease)
    assert new["attempt"] == 2

    stale = receiver.succeed(old["envelope"], b"old")

    assert (stale.status, stale.json()["code"]) == (409, "LEASE_LOST")
    assert receiver.succeed(new["envelope"], b"new").status == 200
    again = receiver.succeed(old["envelope"], b"old")
    assert (again.status, again.json()["code"]) == (409, "LEASE_LOST")  # also after the end
    assert sender.result(sender.look(created["commandId"])) == b"new"


def test_a_second_response_is_taken_and_changes_nothing(deployment: Deployment) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = sender.create("c", b"{}")
    (lease,) = receiver.lease()

    for response in (SUCCESS, SUCCESS, FAILURE):
        submitted = receiver.submit(lease["envelope"], response)
        assert (submitted.status, submitted.body) == (200, b"")

    assert sender.look(created["commandId"])["response"] == SUCCESS


def test_a_bare_response_with_a_token_is_judged_by_the_state_alone(deployment: Deployment) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = sender.create("c", b"{}")
    target = f"/v1/commands/{created['commandId']}/response"
    headers, body = {**receiver.bearer, **JSON}, json.dumps(SUCCESS).encode()

    early = receiver.wire.send("PUT", target, headers, body)
    receiver.lease()
    in_time = receiver.wire.send("PUT", target, headers, body)

    assert (early.status, early.json()["code"]) == (400, "INVALID_STATE_TRANSITION")
    assert in_time.status == 200
    assert sender.look(created["commandId"])["state"] == "SUCCEEDED"


def test_a_bearer_token_on_a_response_decides_alone(deployment: Deployment) -> None:
    deployment.sender().create("c", b"{}")
    receiver = deployment.receiver()
    (lease,) = receiver.lease()
    url = receiver.url(lease["envelope"]["responseHandling"]["submitResponseUrl"])
    body = json.dumps(SUCCESS).encode()

    wrong = receiver.wire.send("PUT", url, {"authorization": "Bearer wrong", **JSON}, body)
    unsigned = receiver.wire.send("PUT", url.partition("?")[0], JSON, body)
    forged = receiver.wire.send(
        "PUT", url.replace("response_token=", "response_token=0"), JSON, body
    )

    for refused in (wrong, unsigned, forged):
        assert (refused.status, refused.json()["code"]) == (401, "UNAUTHORIZED")
    assert receiver.wire.send("PUT", url, JSON, body).status == 200


@pytest.mark.parametrize("timeout", [3_600, 7_200, 604_800])
def test_a_receiver_asks_for_the_time_out_of_its_worker_and_a_minute(
    deployment: Deployment, timeout: int
) -> None:
    deployment.sender().create("long", b"{}")

    (lease,) = deployment.receiver().lease(maximum=5_000, seconds=timeout + 60)

    left = datetime.fromisoformat(lease["leaseExpiresAt"]) - datetime.now(UTC)
    assert left > timedelta(seconds=min(timeout, 86_000))


def test_a_receiver_nobody_knows_is_answered_with_nothing_to_do(deployment: Deployment) -> None:
    deployment.sender().create("c", b"{}", targetResourceId="api")

    for resource in (
        {"resourceId": "unheard-of", "resourceType": "container"},
        {"resourceId": "api", "resourceType": "worker"},
    ):
        assert deployment.receiver(resource).lease() == []


def test_the_first_receiver_takes_over_what_was_sent_before_it_came(deployment: Deployment) -> None:
    sender = deployment.sender()
    created = sender.create("c", b"{}")
    assert sender.look(created["commandId"])["target"] == DAEMON
    api = {"resourceId": "api", "resourceType": "container"}

    (lease,) = deployment.receiver(api).lease()

    assert lease["commandId"] == created["commandId"]
    assert lease["envelope"]["target"] == api
    assert sender.look(created["commandId"])["target"] == api


def test_a_command_without_target_is_ambiguous_where_several_are(deployment: Deployment) -> None:
    for name in ("api", "vault"):
        deployment.receiver({"resourceId": name, "resourceType": "container"}).lease()
    request = {
        "deploymentId": deployment.deployment_id,
        "command": "c",
        "params": {"mode": "inline", "inlineBase64": "e30="},
    }
    sender = deployment.sender()

    for changes, status, code in (
        ({}, 409, "COMMAND_TARGET_AMBIGUOUS"),
        ({"targetResourceId": ""}, 404, "COMMAND_TARGET_NOT_FOUND"),
        ({"targetResourceId": "a:b"}, 400, "COMMAND_TARGET_ID_INVALID"),
    ):
        refused = sender.post("/v1/commands", {**request, **changes})
        assert (refused.status, refused.json()["code"]) == (status, code)


def test_a_misspelled_target_is_not_found_and_changes_nothing(deployment: Deployment) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    operator = deployment.receiver({"resourceId": "operator", "resourceType": "daemon"})
    assert receiver.lease() == []
    assert operator.lease() == []
    request = {
        "deploymentId": deployment.deployment_id,
        "command": "c",
        "params": {"mode": "inline", "inlineBase64": "e30="},
    }

    refused = sender.post("/v1/commands", {**request, "targetResourceId": "defualt"})

    assert (refused.status, refused.json()["code"]) == (404, "COMMAND_TARGET_NOT_FOUND")
    created = sender.create("c", b"{}")
    assert sender.look(created["commandId"])["target"] == DAEMON
    for_operator = sender.create("postgres/health", b"{}", targetResourceId="operator")
    assert [lease["commandId"] for lease in operator.lease(9)] == [for_operator["commandId"]]
    assert [lease["commandId"] for lease in receiver.lease(9)] == [created["commandId"]]


# Senders of both


def test_a_contract_for_the_result_is_refused_by_name_and_never_dropped(
    deployment: Deployment,
) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    name = f"operation/v1/{'0123456789abcdef' * 4}"
    request = {
        "deploymentId": deployment.deployment_id,
        "command": name,
        "params": {"mode": "inline", "inlineBase64": "e30="},
    }

    for contract in ({"version": 1, "redact": ["/secret"]}, {}):
        refused = sender.post("/v1/commands", {**request, "operationResultContract": contract})
        assert (refused.status, refused.json()["code"]) == (400, "INVALID_COMMAND")
        assert refused.json()["context"] == {"field": "operationResultContract"}
    assert receiver.lease() == []

    created = sender.create(name, b"{}", operationResultContract=None, idempotencyKey="k")
    (lease,) = receiver.lease()
    assert (lease["commandId"], lease["envelope"]["command"]) == (created["commandId"], name)


def test_a_repeat_with_the_same_key_is_the_same_command(deployment: Deployment) -> None:
    sender = deployment.sender()
    soon = to_iso_string(from_now(1.5))

    first = sender.create("c", b"{}", idempotencyKey="k", deadline=soon)
    repeat = sender.create("c", b"{}", idempotencyKey="k", deadline=soon)
    wait_until(lambda: sender.look(first["commandId"])["state"] == "EXPIRED")
    late = sender.create("c", b"{}", idempotencyKey="k", deadline=soon)
    other = sender.create("d", b"{}", idempotencyKey="k")

    assert first["commandId"] == repeat["commandId"] == late["commandId"] != other["commandId"]
    assert [answer["state"] for answer in (repeat, late)] == ["PENDING", "EXPIRED"]
    assert {answer["next"] for answer in (repeat, late)} == {"poll"}
    assert (first["created"], repeat["created"], late["created"]) == (True, False, False)
    assert other["created"]


def test_a_deadline_that_has_passed_is_refused_and_nothing_is_stored(
    deployment: Deployment,
) -> None:
    sender = deployment.sender()
    request = {
        "deploymentId": deployment.deployment_id,
        "command": "c",
        "params": {"mode": "inline", "inlineBase64": "e30="},
        "deadline": to_iso_string(from_now(-1)),
    }

    refused = sender.post("/v1/commands", request)

    assert (refused.status, refused.json()["code"]) == (400, "INVALID_COMMAND")
    assert deployment.receiver().lease() == []


def test_the_query_of_a_senders_base_url_does_no_harm(deployment: Deployment) -> None:
    sender = deployment.sender()

    created = sender.create("c", b"{}", query="?tenant=a%20b&x")

    target = f"/v1/commands/{created['commandId']}?tenant=a%20b&x"
    assert sender.wire.send("GET", target, sender.bearer).json()["state"] == "PENDING"


def test_an_unknown_command_is_a_404_with_a_code(deployment: Deployment) -> None:
    sender = deployment.sender()

    for target in ("/v1/commands/cmd_none", "/v1/commands/cmd_none/payload"):
        unknown = sender.wire.send("GET", target, sender.bearer)
        error = unknown.json()
        assert unknown.status == error["httpStatusCode"] == 404
        assert (error["code"], error["retryable"]) == ("COMMAND_NOT_FOUND", False)
        assert error["message"]


def test_a_sender_that_uploads_gets_a_url_and_the_command_waits_for_the_bytes(
    deployment: Deployment,
) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    request = {"deploymentId": deployment.deployment_id, "command": "import"}

    for size in (412_000, 10):
        params = {"mode": "storage", "size": size}
        created = sender.post("/v1/commands", {**request, "params": params}).json()
        assert (created["state"], created["next"]) == ("PENDING_UPLOAD", "upload")
        assert receiver.lease() == []
        backend = created["storageUpload"]["putRequest"]["backend"]
        data = bytes(range(250)) * (size // 250) + b"x" * (size % 250)
        put = sender.wire.send(backend["method"], backend["url"], backend["headers"], data)
        assert 200 <= put.status < 300
        target = f"/v1/commands/{created['commandId']}/upload-complete"
        assert sender.post(target, {"size": size}).json() == {
            "commandId": created["commandId"],
            "state": "PENDING",
        }
        again = sender.post(target, {"size": size})
        assert (again.status, again.json()["code"]) == (400, "INVALID_STATE_TRANSITION")
        (lease,) = receiver.lease()
        assert receiver.params(lease["envelope"]) == data


def test_the_payload_of_a_command_can_be_read_whole(deployment: Deployment) -> None:
    sender, receiver = deployment.sender(), deployment.receiver()
    created = sender.create("c", b'{"a":1}')
    (lease,) = receiver.lease()
    receiver.submit(lease["envelope"], FAILURE)

    payload = sender.wire.send("GET", f"/v1/commands/{created['commandId']}/payload", sender.bearer)

    assert payload.json() == {
        "commandId": created["commandId"],
        "params": {"mode": "inline", "inlineBase64": "eyJhIjoxfQ=="},
        "response": FAILURE,
    }


def test_without_a_token_nothing_is_answered(deployment: Deployment) -> None:
    sender = deployment.sender()
    created = sender.create("c", b"{}")
    body = json.dumps({"deploymentId": deployment.deployment_id}).encode()

    for method, target, sent in (
        ("POST", "/v1/commands", body),
        ("GET", f"/v1/commands/{created['commandId']}", None),
        ("POST", "/v1/commands/leases", body),
        ("POST", "/v1//commands/leases", body),
    ):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Digest x"}):
            refused = sender.wire.send(method, target, {**headers, **JSON}, sent)
            assert (refused.status, refused.json()["code"]) == (401, "UNAUTHORIZED")
