"""Scrapes of a server's figures, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "arc_server_"

Labels = frozenset[tuple[str, str]]


class Scrape:
    """One answer of GET /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples: dict[tuple[str, Labels], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    @property
    def names(self) -> set[str]:
        """The names of all samples, and of families without one."""
        return {name for name, _ in self._samples} | set(self.families)

    def value(self, name: str, **labels: str) -> float:
        """One sample; `name` without the server's prefix."""
        return self._samples[f"{PREFIX}{name}", frozenset(labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples with these labels, and with any others."""
        wanted = frozenset(labels.items())
        return sum(
            value
            for (found, given), value in self._samples.items()
            if found == f"{PREFIX}{name}" and wanted <= given
        )

    def labels(self) -> Mapping[str, set[str]]:
        """Every value of each label but the bounds of buckets."""
        found: dict[str, set[str]] = {}
        for _, given in self._samples:
            for label, value in given:
                if label != "le":
                    found.setdefault(label, set()).add(value)
        return found


async def get(url: str, path: str = "/metrics") -> tuple[int, str]:
    """Ask the endpoint; status and text."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(url.removesuffix("/metrics") + path) as answer,
    ):
        return answer.status, await answer.text()


async def get_over(place: Path, path: str = "/metrics") -> tuple[int, str]:
    """Ask an endpoint on a Unix socket; status and text."""
    connector = aiohttp.UnixConnector(str(place))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://localhost{path}") as answer,
    ):
        return answer.status, await answer.text()


async def scrape(url: str) -> Scrape:
    """Read every figure."""
    status, text = await get(url)
    assert status == 200, text
    return Scrape(text)
