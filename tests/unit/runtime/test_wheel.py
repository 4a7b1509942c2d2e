"""The wheel: the packages and nothing else, and console scripts that lead to a function."""

from __future__ import annotations

import tomllib
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build the wheel of this tree; return the names of its files."""
    builder = WheelBuilder(str(ROOT))
    [built] = builder.build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return zipfile.ZipFile(built).namelist()


def test_the_wheel_holds_the_packages_and_no_test_code(wheel: list[str]) -> None:
    folders = {name.split("/")[0] for name in wheel}

    metadata = {folder for folder in folders if folder.endswith(".dist-info")}
    assert len(metadata) == 1
    assert folders - metadata == PACKAGES
    assert not [name for name in wheel if Path(name).name.startswith(("test_", "conftest"))]


def test_the_wheel_holds_every_file_of_the_packages(wheel: list[str]) -> None:
    files = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }

    assert files <= set(wheel)


@pytest.mark.parametrize("name", PROJECT["project"]["scripts"])
def test_a_console_script_leads_to_a_function_of_the_wheel(name: str, wheel: list[str]) -> None:
    script = EntryPoint(name, PROJECT["project"]["scripts"][name], "console_scripts")

    assert callable(script.load())
    assert script.module.replace(".", "/") + ".py" in wheel
