"""Heavy modules are loaded by their first use, and the rule for imports is kept."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from arc_runtime.startup.late_module import late_module

ROOT = Path(__file__).resolve().parents[4]
PACKAGES = ("arc_client", "arc_protocol", "arc_runtime")
TERMINAL = {"cli", "terminal"}
"""Rooms that run once for a person: they load what they need when they need it."""


def imports_in_functions(file: Path) -> list[int]:
    """The lines of a file on which a function imports a module."""
    functions = (
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [
        inner.lineno
        for function in functions
        for inner in ast.walk(function)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]


def test_a_late_module_is_loaded_by_the_first_use_of_a_name() -> None:
    code = """
import sys
from arc_runtime.startup.late_module import late_module
colours = late_module("colorsys")
assert "colorsys" not in sys.modules
assert colours.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)
assert "colorsys" in sys.modules
"""

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_name_that_the_real_module_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        late_module("colorsys").no_such_name  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_only_what_talks_to_a_terminal_imports_inside_functions(package: str) -> None:
    found = {
        str(file.relative_to(ROOT)): lines
        for file in (ROOT / package).rglob("*.py")
        if not TERMINAL & set(file.relative_to(ROOT).parts)
        and (lines := imports_in_functions(file))
    }

    assert found == {}


def test_a_client_that_does_not_sign_never_loads_the_cryptography() -> None:
    code = (
        "import sys, arc_client.client; assert not any(m.startswith('nacl') for m in sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
