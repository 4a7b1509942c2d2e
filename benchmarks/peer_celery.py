"""Celery on Redis is a peer of ARC. This program runs in the peers' environment.

PEER_REDIS=redis://127.0.0.1:6379/0 python benchmarks/peer_celery.py
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from celery import Celery

ANSWER_SECONDS: Final = 60
URL: Final = os.environ["PEER_REDIS"]

app = Celery("peer_celery", broker=URL, backend=URL)
app.conf.task_acks_late = True  # a task is not lost with its worker, as an ARC command is not
app.conf.worker_prefetch_multiplier = 16
app.conf.result_expires = 600


@app.task
def answer(params: dict[str, Any]) -> dict[str, Any]:
    """Do the least that a task can do."""
    return {"rows": params["rows"]}


def invoke(until: float) -> list[float]:
    """Send tasks and wait for their results, one after the other; return the latencies."""
    latencies: list[float] = []
    while (began := time.perf_counter()) < until:
        answer.delay({"rows": 1204}).get(timeout=ANSWER_SECONDS)
        latencies.append(time.perf_counter() - began)
    return latencies


def main() -> None:
    """Do the jobs that come in, a line each, as benchmarks/sender.py does."""
    answer.delay({"rows": 1}).get(timeout=ANSWER_SECONDS)  # the worker is there
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    for line in sys.stdin:
        job = json.loads(line)
        begun = time.perf_counter()
        until = begun + job["seconds"]
        with ThreadPoolExecutor(job["at_once"]) as threads:
            runs = [threads.submit(invoke, until) for _ in range(job["at_once"])]
            latencies = [latency for run in runs for latency in run.result()]
        took = time.perf_counter() - begun
        sys.stdout.write(json.dumps({"took": took, "latencies": latencies}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
