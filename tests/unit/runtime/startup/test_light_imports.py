"""Heavy modules that are imported without the parts which ARC does not use."""

from __future__ import annotations

import subprocess
import sys

import structlog.dev

SMALL = """
import sys
from arc_runtime.startup.light_imports import import_small_aiohttp
import_small_aiohttp()
assert not {"idna", "frozenlist._frozenlist"} & set(sys.modules), "loaded"
from yarl import URL
assert URL("http://bücher.example/").raw_host == "xn--bcher-kva.example"
assert "idna.core" in sys.modules
from aiohttp.tracing import TraceConfig
config = TraceConfig()
config.freeze()
import frozenlist._frozenlist
"""


def test_a_small_aiohttp_loads_the_tables_of_host_names_with_the_first_that_needs_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_the_suite_renders_exceptions_as_the_programs_do() -> None:
    formatter = structlog.dev.default_exception_formatter

    assert formatter is structlog.dev.plain_traceback, "with local variables, bodies and all"
