"""The words in which commands of the agent refuse what was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_agent.cli.main import main

POLICY = "rules: [{name: all, action: allow}]\n"

REFUSALS = {
    "a time": (
        ["policy", "test", "policy.yaml", "--command", "c", "--at", "yesterday"],
        "--at: 'yesterday' is no time such as 2026-05-04T09:00+02:00",
    ),
    "params": (
        ["policy", "test", "policy.yaml", "--command", "c", "--params", "{"],
        "--params: the params are not JSON",
    ),
    "a file": (
        ["policy", "test", "policy.yaml", "--command", "c", "--params", "@gone"],
        "gone: No such file or directory",
    ),
    "a directory": (["audit", "verify", "gone"], "gone: No such file or directory"),
    "a file for a handler": (
        ["test-handler", "policy.yaml"],
        "policy.yaml is a file: name a handler, and the file by --handlers",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_what_is_wrong_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    arguments, said = REFUSALS[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(POLICY)

    code = main(arguments)

    assert code == 2
    assert capfd.readouterr().err.splitlines()[0] == f"error: {said}"


def test_an_agent_that_does_not_answer_is_told_how_to_be_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--socket", str(tmp_path / "gone.sock")]) == 3

    err = capfd.readouterr().err
    assert err.startswith("error: no agent answers at ")
    assert err.endswith("  Is it running? Name it by --config, --data-dir or --socket\n")
