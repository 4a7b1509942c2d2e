"""The pause: orders of operators and troubles of parts, and which of them survive a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from arc_agent.guard.pause import Order, Pause

NOW = 1_800_000_000.0


class Wall:
    """A clock on the wall."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def test_work_is_welcome_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    pause = Pause(tmp_path)

    assert not pause.is_on
    assert pause.status() is None


def test_a_pause_ends_by_itself_also_after_a_restart(tmp_path: Path) -> None:
    wall = Wall()
    Pause(tmp_path, wall).apply(Order(state="paused", note="new disk", until=NOW + 60))

    pause = Pause(tmp_path, wall)
    changes: list[bool] = []
    pause.on_change(lambda: changes.append(pause.is_on))
    status = pause.status()
    assert status is not None
    assert (status.state, status.note) == ("paused", "new disk")
    assert status.until is not None
    assert status.until.timestamp() == NOW + 60
    wall.now = NOW + 59.5
    assert pause.wait_seconds() == pytest.approx(0.5)
    wall.now = NOW + 60

    assert not pause.is_on
    assert pause.status() is None
    assert changes == [False]
    assert list(tmp_path.iterdir()) == []


def test_stop_all_survives_a_restart_until_resume(tmp_path: Path) -> None:
    Pause(tmp_path).apply(Order(state="stopped", note="incident"))

    pause = Pause(tmp_path)
    assert pause.is_on
    assert pause.resume()

    assert not pause.is_on
    assert not Pause(tmp_path).is_on


def test_an_order_that_cannot_be_read_means_stop(tmp_path: Path) -> None:
    (tmp_path / "pause.json").write_text("{")

    status = Pause(tmp_path).status()

    assert status is not None
    assert status.state == "stopped"


def test_an_order_that_cannot_be_kept_counts_all_the_same(tmp_path: Path) -> None:
    pause = Pause(tmp_path / "gone")

    assert pause.apply(Order(state="stopped")) == "No such file or directory"
    assert pause.is_on


def test_trouble_of_a_part_stops_work_and_ends_with_it(tmp_path: Path) -> None:
    pause = Pause(tmp_path)
    changes: list[bool] = []
    pause.on_change(lambda: changes.append(pause.is_on))

    pause.set_trouble("audit", "No space left on device")
    status = pause.status()
    pause.set_trouble("audit", None)

    assert status is not None
    assert (status.state, status.note) == ("degraded", "audit")
    assert changes == [True, False]


def test_a_pause_whose_file_cannot_be_removed_is_over_all_the_same(tmp_path: Path) -> None:
    wall = Wall()
    pause = Pause(tmp_path, wall)
    pause.apply(Order(state="paused", until=NOW + 1))
    (tmp_path / "pause.json").unlink()
    (tmp_path / "pause.json").mkdir()  # unlink fails
    wall.now = NOW + 2

    assert not pause.is_on


def test_troubles_are_listed_and_resume_without_an_order_changes_nothing(tmp_path: Path) -> None:
    pause = Pause(tmp_path)
    pause.set_trouble("disk", "full")

    assert pause.troubles == {"disk": "full"}
    assert not pause.resume()
    assert pause.is_on
