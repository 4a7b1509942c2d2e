"""Fixtures of the chaos tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import disk_shim as shim
from tests.chaos.forked_children import ForkedChildren
from tests.chaos.scratch import in_memory


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory that is gone afterwards, in memory if there is such a place."""
    with in_memory(tmp_path) as directory:
        yield directory


@pytest.fixture
def children() -> Iterator[ForkedChildren]:
    """Children that die at statements."""
    children = ForkedChildren()
    yield children
    children.close()


@pytest.fixture
def shimmed_children(tmp_path: Path) -> Iterator[ForkedChildren]:
    """Children whose disk is watched, and fails when asked to."""
    children = ForkedChildren(env={shim.SHIM_VARIABLE: str(shim.build(tmp_path))})
    yield children
    children.close()
