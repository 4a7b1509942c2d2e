"""The figures as Prometheus reads them: names, texts and labels. docs/operating-a-server.md lists
them.

No label has an end that a client sets: neither deployments nor ids, names of commands, addresses or
tokens are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from arc_runtime.startup.late_module import late_module
from arc_server.metrics.gauges import Gauges
from arc_server.metrics.histogram import Histogram
from arc_server.metrics.meter import CountingMeter, RouteCounts

if TYPE_CHECKING:
    from prometheus_client import core
else:
    core = late_module("prometheus_client.core")  # 3.6 MiB

PREFIX: Final = "arc_server"
GAUGES: Final[Mapping[str, str]] = {
    "agents": "Registered agents, those that are gone included.",
    "certificate_expiry_timestamp_seconds": "When the TLS certificate in force ends.",
    "connections": "Open connections of clients.",
    "database_bytes": "Size of the database's file.",
    "disk_free_bytes": "Room on the disk of the data directory.",
    "disk_level": "0: there is room; 1 soft, 2 hard, 3 critical: more and more is refused.",
    "disk_size_bytes": "Size of the disk of the data directory.",
    "handshakes": "TLS handshakes in progress.",
    "last_backup_timestamp_seconds": "When the last backup of the data directory was taken.",
    "loop_lag_max_seconds": "The longest time that the event loop was late since the last scrape.",
    "oldest_pending_age_seconds": "Age of the oldest command that is ready; 0 if there is none.",
    "push_circuits_open": "Deployments whose push URL does not answer.",
    "pushes_sending": "Commands that are being sent to push URLs.",
    "read_queue_age_seconds": "How long the oldest read has waited for the database.",
    "read_queue_operations": "Reads that wait for the database.",
    "stored_bytes": "Bodies and registrations that are kept, as quotas count them.",
    "waiting_polls": "Polls of agents that wait for work.",
    "waiting_results": "Requests of senders that wait for a command.",
    "wal_bytes": "Size of the database's log (WAL).",
    "write_queue_age_seconds": "How long the oldest write has waited for the database.",
    "write_queue_operations": "Writes that wait for the database.",
}
_STATUS_CLASSES: Final = ("", "1xx", "2xx", "3xx", "4xx", "5xx")
_SUCCESS: Final = 2
"""Index of the class that is shown from the first scrape on."""

Labels = Sequence[str]


def families(
    meter: CountingMeter, gauges: Gauges, facts: Mapping[str, Mapping[str, str]]
) -> Iterator[core.Metric]:
    """Yield every figure. `facts` are constant labels by the name of their figure."""
    for name, labels in facts.items():
        fact = core.GaugeMetricFamily(f"{PREFIX}_{name}", "Constant.", labels=list(labels))
        fact.add_metric(list(labels.values()), 1)
        yield fact
    for name, text in GAUGES.items():
        if name in gauges:
            yield core.GaugeMetricFamily(f"{PREFIX}_{name}", text, gauges[name])
    yield from _of_commands(meter)
    yield from _of_requests(meter)
    yield from _of_the_database(meter)
    yield _counter(
        "pushes", "Commands sent to push URLs, by what came of it.", ("outcome",),
        {(outcome,): count for outcome, count in meter.pushes.copy().items()},
    )  # fmt: skip
    purged = meter.purged.copy()
    blob_bytes = purged.pop("blob_bytes", 0)
    yield _counter(
        "purged", "Records and files that retention has removed.", ("kind",),
        {(kind,): count for kind, count in purged.items()},
    )  # fmt: skip
    yield _counter("purged_blob_bytes", "Bytes of those blobs.", (), {(): blob_bytes})


def _of_commands(meter: CountingMeter) -> Iterator[core.Metric]:
    live = core.GaugeMetricFamily(
        f"{PREFIX}_commands", "Commands that have not ended, by state.", labels=["state"]
    )
    for state, count in meter.live().items():
        live.add_metric([state.value.lower()], count)
    yield live
    moves = meter.moves()
    yield _counter(
        "command_transitions", "Commands that went from one state to another.", ("from", "to"),
        {
            ("none" if was is None else was.value.lower(), state.value.lower()): count
            for (was, state), count in moves.items()
        },
    )  # fmt: skip
    yield _histogram(
        "lease_wait_seconds", "Time from when a command is ready until it is leased.", (),
        {(): meter.lease_seconds},
    )  # fmt: skip
    yield _histogram(
        "command_seconds", "Time from the creation of a command to its end.", ("state",),
        {(state.value.lower(),): each for state, each in meter.command_seconds().items()},
    )  # fmt: skip


def _of_requests(meter: CountingMeter) -> Iterator[core.Metric]:
    routes = meter.routes.copy()
    yield _counter(
        "requests", "Answered requests.", ("route", "method", "status"),
        {
            (*key, _STATUS_CLASSES[number]): count
            for key, counts in routes.items()
            for number, count in enumerate(counts.by_class)
            if count or number == _SUCCESS
        },
    )  # fmt: skip
    yield _histogram(
        "request_seconds", "Time to answer, without the time that a request waits on purpose.",
        ("route", "method"), {key: counts.seconds for key, counts in routes.items()},
    )  # fmt: skip
    yield _histogram(
        "wakeup_seconds", "Time from the wake-up of a request that waits until its answer.",
        ("route", "method"),
        {
            key: counts.wakeup_seconds
            for key, counts in routes.items()
            if counts.wakeup_seconds is not None
        },
    )  # fmt: skip
    for name, text, read in _BYTES:
        yield _counter(
            name, text, ("route", "method"), {key: read(counts) for key, counts in routes.items()}
        )
    yield _counter(
        "refusals", "Requests and connections that were refused, by reason.", ("reason",),
        {(reason,): count for reason, count in meter.refusals.copy().items()},
    )  # fmt: skip


def _of_the_database(meter: CountingMeter) -> Iterator[core.Metric]:
    yield _histogram(
        "commit_operations", "Writes that shared a commit.", (), {(): meter.commit_operations}
    )
    yield _histogram("commit_seconds", "Time of a COMMIT.", (), {(): meter.commit_seconds})
    yield _counter(
        "writer_busy_seconds", "Time that the thread which writes was at work.", (),
        {(): meter.busy_seconds},
    )  # fmt: skip


_BYTES: Final[Sequence[tuple[str, str, Callable[[RouteCounts], int]]]] = (
    ("request_body_bytes", "Bytes of the bodies of requests.", lambda each: each.received_bytes),
    ("response_body_bytes", "Bytes of the bodies of answers.", lambda each: each.sent_bytes),
)


def _counter(
    name: str, text: str, labels: Labels, values: Mapping[tuple[str, ...], float]
) -> core.Metric:
    family = core.CounterMetricFamily(f"{PREFIX}_{name}", text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _histogram(
    name: str, text: str, labels: Labels, values: Mapping[tuple[str, ...], Histogram]
) -> core.Metric:
    family = core.HistogramMetricFamily(f"{PREFIX}_{name}", text, labels=list(labels))
    for key, histogram in values.items():
        buckets, total = histogram.read()
        family.add_metric(list(key), buckets, total)
    return family
