"""The command lines of installations."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_agent.cli.install import front as agent_front
from arc_runtime.install.cli import InstallCli
from arc_server.cli.install import front as server_front


@pytest.mark.parametrize("front", [agent_front(), server_front()])
def test_how_long_a_unit_may_take_is_a_duration(
    front: InstallCli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["upgrade", "--root", str(tmp_path), "--back", "--ready-within"]

    assert front.main([*words, "1m30s"]) == 1  # nothing is installed there
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        front.main([*words, "soon"])

    assert "--ready-within: expected a duration such as" in capsys.readouterr().err
