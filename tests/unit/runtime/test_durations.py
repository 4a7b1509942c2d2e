import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_runtime.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("5m", 300.0),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("2h", 7200.0),
        ("7d", 604800.0),
        ("1h30m", 5400.0),
        ("1d1ms", 86400.001),
        (" 30 ", 30.0),
        ("0", 0.0),
        ("0.5", 0.5),
        (30, 30.0),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_read(written: str | float, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    [
        *("", " ", "s", "5 m", "-5s", "+5s", "5x", "5M", "1e3", "inf", "nan", "5m5m", "1s1m"),
        *("5m30", ".5s", "5.s", "٥s", "1_000", "5m\0", "9" * 400, "9" * 30 + "d", "36501d"),
        *(-1, float("inf"), float("nan"), True, False),
    ],
)
def test_anything_else_is_refused_with_a_message(written: str | float) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (0.0004, "0s"),
        (0.25, "250ms"),
        (1.5, "1.5s"),
        (59.9996, "1m"),
        (60, "1m"),
        (5400, "1h30m"),
        (86400, "1d"),
        (90061.001, "1d1h1m1.001s"),
    ],
)
def test_a_duration_is_written(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize("seconds", [-0.001, float("inf"), float("nan")])
def test_what_is_no_duration_is_not_written(seconds: float) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        format_duration(seconds)


@given(st.floats(min_value=0, max_value=3_000_000_000))
def test_what_was_written_is_read_back_to_the_millisecond(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=0.00051)
