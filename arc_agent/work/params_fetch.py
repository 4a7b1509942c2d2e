"""ParamsFetch gets the params of a command: from its envelope, or from the store that has them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from arc_agent.handlers.context import ParamsSource
from arc_agent.handlers.no_descriptors import PUT_OFF_SECONDS, lacks_descriptors
from arc_agent.jobs.job import Job, resolved
from arc_agent.jobs.outcome import Ended, Failed, GivenBack
from arc_agent.jobs.responses import STORAGE_FAILED
from arc_agent.jobs.spool import Spool
from arc_agent.net.bodies import NoRoom, TransferRefused
from arc_agent.net.transfer import Transfer
from arc_agent.work.live_config import LiveConfig
from arc_agent.work.run_time import RunTime
from arc_protocol.errors import InvalidEnvelope
from arc_protocol.messages.bodies import InlineBody, StorageBody
from arc_runtime.network.allowed_hosts import HostRefused

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class ParamsFetch:
    """Gets params. Bodies that are not inline go to a file: memory does not grow with them."""

    def __init__(self, *, live: LiveConfig, transfer: Transfer, spool: Spool) -> None:
        """Ask the spool whether the disk has room."""
        self._live = live
        self._transfer = transfer
        self._spool = spool

    async def fetch(self, job: Job, time: RunTime) -> ParamsSource:
        """Return the params. Raises Ended when there are none, InvalidEnvelope."""
        params = job.lease.envelope.params
        if isinstance(params, InlineBody):
            try:
                data = params.data()
            except ValueError as error:
                raise InvalidEnvelope(f"params.inlineBase64: {error}") from None
            return ParamsSource(data=data, size=len(data))
        # A store that is out of reach is no answer to the sender: another agent may reach it.
        return await time.run(
            self._download(job, params),
            self._live.config.transfer.give_up_seconds,
            late="params_unavailable",
        )

    async def _download(self, job: Job, params: StorageBody) -> ParamsSource:
        """Fetch the params into a file of the run. Raises Ended, InvalidEnvelope."""
        if params.storage_get_request is None:
            raise InvalidEnvelope("params.storageGetRequest: missing")
        path = job.directory / "params"
        try:
            request = resolved(job.lease_url, params.storage_get_request)
            await asyncio.to_thread(_make, job.directory)
            fetched = await self._transfer.fetch(
                request, path, expected=params.size, has_room=self._spool.has_room
            )
        except (InvalidEnvelope, HostRefused) as error:
            raise InvalidEnvelope(f"params: {error}") from None
        except TransferRefused as error:
            raise Ended(Failed(STORAGE_FAILED, f"params: {error.reason}")) from None
        except (NoRoom, OSError) as error:
            log.error("params.no_room", command_id=job.lease.command_id, reason=str(error))
            raise Ended(GivenBack("no_room", _later(error))) from None
        return ParamsSource(file=path, size=fetched.size, sha256=fetched.sha256)


def _later(error: Exception) -> float:
    """Return when the command may come again: without descriptors not at once."""
    return PUT_OFF_SECONDS if lacks_descriptors(error) else 0.0


def _make(directory: Path) -> None:
    """Make the directory of a run. Blocks. Raises OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
