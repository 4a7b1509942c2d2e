"""ParamsFetch: params from the envelope, from a store, or none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arc_agent.host.data_dir import DataDir
from arc_agent.jobs.job import Job
from arc_agent.jobs.outcome import Ended, Failed, GivenBack, Outcome
from arc_agent.jobs.spool import Spool
from arc_agent.net.server_state import ServerState
from arc_agent.net.transfer import Transfer
from arc_agent.work.params_fetch import ParamsFetch
from arc_agent.work.run_time import RunTime
from arc_protocol.errors import InvalidEnvelope
from tests.support.clocks import AgentClock
from tests.support.leases import held, job, live_config
from tests.support.spools import opened_spool


class Fetching:
    """A fetch with a local store that is switched on: files stand for objects."""

    def __init__(self, tmp_path: Path, spool: Spool) -> None:
        self.store = tmp_path / "store"
        self.store.mkdir()
        live = live_config(
            tmp_path, transfer={"local_dir": str(self.store), "give_up_seconds": 0.2}
        )
        transfer = Transfer(live.config.transfer, live.config.server, live.network)
        self.fetch = ParamsFetch(live=live, transfer=transfer, spool=spool)
        self.directory = tmp_path / "run"

    def job(self, params: dict[str, Any] | bytes) -> Job:
        return job(params=params, directory=self.directory)

    def stored(self, name: str, size: int | None, **backend: Any) -> dict[str, Any]:
        """Params in the store, as an envelope has them."""
        return {
            "mode": "storage",
            "size": size,
            "storageGetRequest": {
                "backend": {
                    "type": "local",
                    "filePath": str(self.store / name),
                    "operation": "get",
                    **backend,
                },
                "expiration": "2027-11-24T10:00:00Z",
                "operation": "get",
                "path": name,
            },
        }

    async def bytes_of(self, params: dict[str, Any] | bytes) -> bytes:
        return (await self._source(params)).read()

    async def end_of(self, params: dict[str, Any]) -> Outcome:
        with pytest.raises(Ended) as caught:
            await self._source(params)
        return caught.value.outcome

    async def _source(self, params: dict[str, Any] | bytes) -> Any:
        clock = AgentClock()
        made = self.job(params)
        time = RunTime(made, held(made), clock, ServerState(clock))
        return await self.fetch.fetch(made, time)


@pytest.fixture
async def fetching(tmp_path: Path) -> AsyncIterator[Fetching]:
    live = live_config(tmp_path)
    with DataDir(tmp_path / "data") as data_dir:
        async with opened_spool(data_dir, live.config.spool) as spool:
            yield Fetching(tmp_path, spool)


async def test_inline_params_are_there_at_once(fetching: Fetching) -> None:
    assert await fetching.bytes_of(b"[1]") == b"[1]"


async def test_inline_params_that_are_no_base64_are_an_invalid_envelope(
    fetching: Fetching,
) -> None:
    with pytest.raises(InvalidEnvelope, match="inlineBase64"):
        await fetching.bytes_of({"mode": "inline", "inlineBase64": "***"})


async def test_stored_params_come_into_a_file_of_the_run(fetching: Fetching) -> None:
    (fetching.store / "p").write_bytes(b"x" * 200_000)

    assert await fetching.bytes_of(fetching.stored("p", 200_000)) == b"x" * 200_000
    assert (fetching.directory / "params").stat().st_size == 200_000


async def test_params_of_another_size_are_a_storage_failure(fetching: Fetching) -> None:
    (fetching.store / "p").write_bytes(b"short")

    outcome = await fetching.end_of(fetching.stored("p", 200_000))

    assert isinstance(outcome, Failed)
    assert outcome.code == "STORAGE_OPERATION_FAILED"


async def test_params_without_a_request_are_an_invalid_envelope(fetching: Fetching) -> None:
    with pytest.raises(InvalidEnvelope, match="storageGetRequest: missing"):
        await fetching.bytes_of({"mode": "storage", "size": 3})


async def test_a_request_to_a_forbidden_host_is_an_invalid_envelope(fetching: Fetching) -> None:
    request = fetching.stored("p", 3)
    request["storageGetRequest"]["backend"] = {
        "type": "http",
        "url": "http://169.254.169.254/latest",
        "method": "GET",
        "headers": {},
    }

    with pytest.raises(InvalidEnvelope, match="params: "):
        await fetching.bytes_of(request)


async def test_a_directory_that_cannot_be_made_gives_the_command_back(fetching: Fetching) -> None:
    fetching.directory = fetching.directory / "missing" / "run"

    assert await fetching.end_of(fetching.stored("p", 3)) == GivenBack("no_room")


def test_the_job_that_tests_use_is_one_that_servers_send() -> None:
    assert msgspec.json.encode(job().lease.envelope)
