"""Fixtures of the chaos tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import shim
from .nursery import Nursery
from .scratch import in_memory


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory that is gone afterwards, in memory if there is such a place."""
    with in_memory(tmp_path) as directory:
        yield directory


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    """Children that die at statements."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def shimmed_nursery(tmp_path: Path) -> Iterator[Nursery]:
    """Children whose disk is watched, and fails when asked to."""
    nursery = Nursery(env={shim.SHIM_VARIABLE: str(shim.build(tmp_path))})
    yield nursery
    nursery.close()
