"""Retries, by a clock that the test moves."""

from __future__ import annotations

import math

import pytest

from arc_client.errors import ServerUnreachable, UnexpectedAnswer
from arc_client.wire.retry import Intervals, is_transient, retried
from arc_protocol.errors import ArcError, CommandNotFound, RateLimited, Unavailable
from tests.support.clocks import SenderClock


class Failing:
    """Fails as told, then returns 7."""

    def __init__(self, *errors: ArcError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> int:
        """One try."""
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


async def test_what_fails_in_passing_is_tried_until_it_succeeds(clock: SenderClock) -> None:
    work = Failing(ServerUnreachable("down"), Unavailable("busy", status=503))

    assert await retried(work, clock=clock, until=clock.now + 30) == 7

    assert work.calls == 3
    assert len(clock.slept) == 2


async def test_what_fails_for_good_is_tried_once(clock: SenderClock) -> None:
    work = Failing(CommandNotFound("no", status=404))

    with pytest.raises(CommandNotFound):
        await retried(work, clock=clock, until=math.inf)

    assert work.calls == 1
    assert clock.slept == []


async def test_the_last_error_is_raised_when_the_next_try_would_come_too_late(
    clock: SenderClock,
) -> None:
    begun = clock.now
    work = Failing(*[ServerUnreachable(str(n)) for n in range(1000)])

    with pytest.raises(ServerUnreachable) as raised:
        await retried(work, clock=clock, until=begun + 30)

    assert raised.value.message == str(work.calls - 1)
    assert begun + 20 < clock.now <= begun + 30


async def test_backing_off_grows_to_a_cap_and_never_past_it(clock: SenderClock) -> None:
    work = Failing(*[ServerUnreachable("down") for _ in range(50)])

    await retried(work, clock=clock, until=math.inf)

    for number, seconds in enumerate(clock.slept):
        assert 0 <= seconds <= min(5.0, 0.2 * 2**number)


async def test_a_retry_after_is_waited_for(clock: SenderClock) -> None:
    work = Failing(RateLimited("slow", status=429, retry_after=9.0))

    await retried(work, clock=clock, until=clock.now + 30)

    assert clock.slept == [9.0]


async def test_a_retry_after_beyond_the_patience_ends_at_once(clock: SenderClock) -> None:
    work = Failing(RateLimited("slow", status=429, retry_after=3600.0))

    with pytest.raises(RateLimited):
        await retried(work, clock=clock, until=clock.now + 30)

    assert clock.slept == []


async def test_the_number_of_tries_can_be_bounded_too(clock: SenderClock) -> None:
    work = Failing(*[ServerUnreachable("down") for _ in range(50)])

    with pytest.raises(ServerUnreachable):
        await retried(work, clock=clock, until=math.inf, tries=4)

    assert work.calls == 4


def test_looking_again_slows_down_as_the_public_senders_do() -> None:
    intervals = Intervals()

    seen = [intervals.next() for _ in range(8)]

    assert seen == [0.5, 0.75, 1.125, 1.6875, 2.53125, 3.796875, 5.0, 5.0]
    intervals.reset()
    assert intervals.next() == 0.5


@pytest.mark.parametrize(
    ("statuses", "may_pass"),
    [
        ((408, 429, 500, 502, 503, 504), True),
        ((302, 400, 401, 403, 404, 409, 413, 501), False),
    ],
)
def test_which_statuses_may_pass(statuses: tuple[int, ...], may_pass: bool) -> None:
    for status in statuses:
        assert is_transient(UnexpectedAnswer("x", status=status)) == may_pass


def test_what_is_no_answer_may_pass_and_a_bug_may_not() -> None:
    assert is_transient(ServerUnreachable("x"))
    assert not is_transient(ValueError("x"))
