"""HandlerRun: a handler is called within its time, stopped, and abandoned."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from arc_agent import Context, Retry, handler
from arc_agent.handlers.calling import Raised, Returned
from arc_agent.handlers.context import ParamsSource
from arc_agent.host.clock import boot_seconds
from arc_agent.host.data_dir import DataDir
from arc_agent.host.process_state import ProcessState
from arc_agent.jobs.lease_table import End, HeldLease
from arc_agent.jobs.outcome import Succeeded
from arc_agent.jobs.result_files import BodyWriter, StoredBody
from arc_agent.jobs.spool import Spool
from arc_agent.net.server_state import ServerState
from arc_agent.work.handler_run import Finished, HandlerRun, Stopped, result_of, timeout_of
from arc_agent.work.run_time import RunTime
from tests.support.leases import held, job, live_config, source, source_file
from tests.support.spools import opened_spool


class Runs:
    """Runs handlers in a spool of their own."""

    def __init__(self, tmp_path: Path, spool: Spool) -> None:
        self._tmp_path = tmp_path
        self.spool = spool
        self.held: HeldLease
        self.context: Context

    def prepare(self, function: Any, params: ParamsSource | None = None, **settings: Any) -> Any:
        """A call that is not begun; `settings` are of the section `handlers`."""
        live = live_config(self._tmp_path, function, handlers={"grace_seconds": 0.01, **settings})
        (found,) = [each for each in live.registry if each.origin.startswith("test")]
        clock = boot_seconds
        of = job(found.name)
        self.held = held(of)
        self.context = Context(
            command_id="cmd_1",
            command=found.name,
            attempt=1,
            deployment_id="dep-1",
            target=None,
            trace_context=None,
            deadline=None,
            params=params or source(),
            remaining=lambda: 1.0,
            is_stopped=lambda: self.held.is_stopped,
            make_directory=lambda: self._tmp_path,
            announce_restart=lambda _: None,
        )
        return HandlerRun(
            job=of,
            held=self.held,
            handler=found,
            source=params or source(),
            context=self.context,
            time=RunTime(of, self.held, clock, ServerState(clock)),
            live=live,
            spool=self.spool,
            process=ProcessState(),
        )

    async def run(
        self, function: Any, params: ParamsSource | None = None, **settings: Any
    ) -> Finished | Stopped:
        """A call, to its end."""
        return await self.prepare(function, params, **settings).run()

    @property
    def files(self) -> list[Path]:
        """The bodies that are in the spool's directory."""
        return list(self.spool.data_dir.bodies.iterdir())


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[Runs]:
    live = live_config(tmp_path)
    with DataDir(tmp_path / "data") as data_dir:
        async with opened_spool(data_dir, live.config.spool) as spool:
            yield Runs(tmp_path, spool)


async def test_a_handler_s_value_is_finished(runs: Runs) -> None:
    @handler("adds")
    async def adds(params: dict[str, int]) -> int:
        return params["a"] + 1

    assert await runs.run(adds, source(b'{"a": 1}')) == Finished(Returned(2))
    assert runs.held.has_result


async def test_params_in_a_file_are_read_and_large_ones_in_a_thread(
    runs: Runs, tmp_path: Path
) -> None:
    @handler("counts")
    def counts(params: list[str]) -> int:
        return len(params)

    data = b'["' + b"x" * 100_000 + b'"]'

    assert await runs.run(counts, source_file(tmp_path / "p", data)) == Finished(Returned(1))


async def test_params_that_do_not_fit_are_what_the_handler_raised(runs: Runs) -> None:
    @handler("adds")
    async def adds(params: int) -> int:
        raise AssertionError("never called")

    end = await runs.run(adds, source(b'"text"'))

    assert isinstance(end, Finished)
    assert isinstance(end.value, Raised)


async def test_what_a_handler_raises_is_finished_too(runs: Runs) -> None:
    @handler("exits")
    async def exits() -> None:
        raise SystemExit(3)

    end = await runs.run(exits)

    assert isinstance(end, Finished)
    assert isinstance(end.value, Raised)
    assert isinstance(end.value.error, SystemExit)


async def test_a_retry_leaves_the_lease_as_it_is(runs: Runs) -> None:
    @handler("later")
    async def later() -> None:
        raise Retry("not yet", after=5)

    end = await runs.run(later)

    assert isinstance(end, Finished)
    assert not runs.held.has_result


async def test_a_handler_that_is_told_to_stop_is_cancelled(runs: Runs) -> None:
    ended: list[str] = []

    @handler("waits")
    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    running = asyncio.create_task(runs.run(waits))
    while not hasattr(runs, "held") or runs.held.handler_task is None:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    runs.held.stop(End.CANCELLED)

    assert await running == Stopped(End.CANCELLED)
    assert runs.context.cancelled.is_set()
    assert ended == ["cancelled"]


async def test_a_handler_that_takes_too_long_is_stopped(runs: Runs) -> None:
    @handler("waits", timeout_seconds=60)
    async def waits() -> None:
        await asyncio.Event().wait()

    assert await runs.run(waits, timeout_seconds=0.01) == Stopped(End.TIMEOUT)


async def test_the_shorter_time_out_counts(tmp_path: Path) -> None:
    @handler("quick", timeout_seconds=5)
    async def quick() -> None: ...

    live = live_config(tmp_path, quick)
    found = live.registry.get("quick")
    assert found is not None
    assert timeout_of(found, live) == 5


async def test_a_result_that_comes_too_late_is_thrown_away(runs: Runs) -> None:
    @handler("streams")
    async def streams(ctx: Context) -> AsyncIterator[bytes]:
        runs.held.stop(End.LOST)
        try:
            while True:
                yield b"x" * 2000
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            pass

    end = await runs.run(streams, grace_seconds=10)

    assert end == Stopped(End.LOST)
    assert runs.files == []


async def test_a_stream_goes_into_the_spool_s_directory(runs: Runs) -> None:
    @handler("streams")
    async def streams() -> AsyncIterator[bytes]:
        yield b"x" * 2000

    end = await runs.run(streams)

    assert isinstance(end, Finished)
    assert isinstance(end.value, Returned)
    assert isinstance(end.value.value, Succeeded)
    assert isinstance(end.value.value.body, StoredBody)
    assert len(runs.files) == 1


async def test_a_handler_that_ignores_its_end_is_abandoned_and_its_file_removed(
    runs: Runs,
) -> None:
    go_on = threading.Event()

    @handler("ignores")
    def ignores() -> Any:
        runs.held.stop(End.DRAIN)
        go_on.wait(20)
        return iter([b"x" * 2000])

    with structlog.testing.capture_logs() as events:
        end = await runs.run(ignores)
        assert isinstance(end, Stopped)
        assert end.abandoned is not None
        go_on.set()
        await asyncio.wait({end.abandoned})
        await asyncio.sleep(0)

    assert end.end is End.DRAIN
    assert "handler.abandoned" in [event["event"] for event in events]
    assert runs.files == []


async def test_a_task_without_a_result_has_none() -> None:
    async def fails() -> Returned:
        raise ValueError

    failed: asyncio.Task[Any] = asyncio.create_task(fails())
    cancelled: asyncio.Task[Any] = asyncio.create_task(fails())
    cancelled.cancel()
    await asyncio.wait({failed, cancelled})

    assert result_of(failed) is None
    assert result_of(cancelled) is None


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_small_parts_of_a_result_are_collected_before_they_are_written(
    runs: Runs, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b"line %d\n" % number for number in range(20_000)]
    threads: set[threading.Thread] = set()
    written: list[bytes] = []
    write = BodyWriter.write

    def count(writer: BodyWriter, chunk: bytes) -> None:
        written.append(chunk)
        write(writer, chunk)

    monkeypatch.setattr(BodyWriter, "write", count)

    @handler("plain")
    def plain() -> Iterator[bytes]:
        for line in lines:
            threads.add(threading.current_thread())
            yield line

    @handler("async")
    async def in_loop() -> AsyncIterator[bytes]:
        for line in lines:
            yield line

    end = await runs.run(plain if kind == "plain" else in_loop)

    assert isinstance(end, Finished)
    assert b"".join(written) == b"".join(lines)
    assert len(written) < 20
    assert len(threads) < 2_000  # a busy machine ends turns early


async def test_an_iterator_that_yields_little_and_for_ever_can_be_stopped(runs: Runs) -> None:
    @handler("trickles")
    def trickles() -> Iterator[bytes]:
        runs.held.stop(End.CANCELLED)
        pause = threading.Event()
        while True:
            yield b"x"
            pause.wait(0.001)

    assert await runs.run(trickles, grace_seconds=10) == Stopped(End.CANCELLED)
    assert runs.files == []
