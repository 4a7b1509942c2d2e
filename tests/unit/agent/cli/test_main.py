"""Arguments that `arc-agent` refuses, and its messages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arc_agent.cli.arguments import parser
from arc_agent.cli.install import front
from arc_agent.cli.main import main
from arc_runtime.config.arguments import duration

REFUSALS = {
    "no server": ([], "server.url: is required"),
    "unknown key": (["--config", "unknown.yaml"], "max_concurrents: unknown key"),
    "module with an error": (["--handlers", "broken"], "ZeroDivisionError"),
    "module that exits": (["--handlers", "exits.py"], "SystemExit"),
    "module without handlers": (["--handlers", "json"], "has no handlers"),
    "no such module": (["--handlers", "nowhere"], "nowhere is not installed or in handlers.path"),
    "no such file": (["--handlers", "twic.py"], "twic.py. Did you mean twice.py?"),
    "duplicate": (["--handlers", "twice.py"], "two handlers for 'arc.ping'"),
    "no token file": (["--token-file", "nowhere"], "cannot be read: No such file"),
    "empty token file": (["--token-file", "empty"], "is empty"),
    "directory that is a file": (["--data-dir", "empty"], "cannot be used: it is no directory"),
    "damaged spool": (["--data-dir", "damaged"], "spool.db cannot be used: file is not a database"),
    "newer spool": (["--data-dir", "newer"], "was made by a newer agent (version 99)"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with things that are wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    monkeypatch.setenv("ARC_AGENT_DATA_DIR", str(tmp_path / "agent"))
    (tmp_path / "unknown.yaml").write_text("max_concurrents: 3\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "twice.py").write_text(
        "from arc_agent import handler\n@handler('arc.ping')\ndef ping(): pass\n"
    )
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "spool.db").write_bytes(b"not a database" * 100)
    (tmp_path / "newer").mkdir()
    import sqlite3

    db = sqlite3.connect(tmp_path / "newer" / "spool.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    return tmp_path


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_what_is_wrong_at_the_start_is_one_clear_line_and_exit_2(
    place: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = REFUSALS[case]
    if case != "no server":
        arguments = [*arguments, "--server", "http://127.0.0.1:9", "--deployment", "dep-1"]

    code = main(["run", *arguments])

    out, err = capfd.readouterr()
    assert code == 2
    assert expected in err
    assert err.splitlines()[-1].startswith("error: ")
    assert ("Traceback" in err) is (case in ("module with an error", "module that exits"))
    assert "importlib" not in err  # nor the frames of ARC, which are no fault of the module
    assert out == ""


def test_a_damaged_spool_is_left_as_it_is(place: Path) -> None:
    before = (place / "damaged" / "spool.db").read_bytes()

    main(["run", "--server", "http://x", "--deployment", "d", "--data-dir", "damaged"])

    assert (place / "damaged" / "spool.db").read_bytes() == before


def test_a_good_configuration_is_checked_without_running_anything(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "good.yaml").write_text(
        "server: {url: 'https://arc.example.com'}\ndeployment: dep-1\n"
        "handlers: {exec: {disk.usage: {argv: [df, -h]}}}\n"
    )

    assert main(["check-config", "good.yaml"]) == 0
    assert "disk.usage" in capfd.readouterr().err
    assert not (place / "agent").exists()


def test_the_configuration_in_the_repository_is_good() -> None:
    file = Path(__file__).parents[4] / "config" / "agent.yaml"

    assert main(["check-config", str(file)]) == 0


def test_a_bad_configuration_is_refused_with_the_path_of_the_key(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "bad.yaml").write_text(
        "server: {url: 'https://x'}\ndeployment: d\n"
        "handlers: {exec: {a: {argv: [x], outputs: 1}}}\n"
    )

    assert main(["check-config", "bad.yaml"]) == 2
    err = capfd.readouterr().err
    assert "handlers.exec" in err
    assert "outputs" in err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run", "--nonsense"], ["check-config"]])
def test_wrong_usage_is_exit_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    err = capfd.readouterr().err
    if arguments:
        assert err.startswith("error: ")
        assert err.endswith(" --help\n")
    else:
        assert err.startswith("Usage: arc-agent [OPTIONS] COMMAND")


def test_a_time_limit_is_a_duration() -> None:
    given = parser().parse_args(["test-handler", "x", "--timeout", "1m30s"])

    assert given.timeout == 90


def options_of(made: Any) -> Iterator[Any]:
    """All options of a parser and of those below it."""
    for action in made._actions:
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                yield from options_of(below)
        else:
            yield action


def test_every_option_that_takes_a_time_takes_the_one_form_of_durations() -> None:
    parsers = [parser(), front()._parser()]  # pyright: ignore[reportPrivateUsage]
    options = [option for made in parsers for option in options_of(made)]

    durations = {name for each in options if each.type is duration for name in each.option_strings}

    assert durations == {"--wait", "--for", "--since", "--timeout", "--ready-within"}
    assert [each.dest for each in options if each.type is float] == []
    assert all((each.metavar == "DURATION") == (each.type is duration) for each in options)
