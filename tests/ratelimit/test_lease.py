"""What a process holds in advance is little, lapses in time, and is asked for only as fast as it is spent."""

from math import inf

import pytest

from starlette_realtime.ratelimit import Rate
from starlette_realtime.ratelimit.counting import Quota
from starlette_realtime.ratelimit.leases import Lease
from starlette_realtime.ratelimit.limit import Strategy


def lease(amount: float, seconds: float = 1.0, strategy: Strategy = "moving-window") -> Lease:
    """What is held of such a quota."""
    return Lease(Quota("things", Rate(amount, seconds), strategy))


@pytest.mark.parametrize(
    ("amount", "seconds", "most"),
    [
        (3, 1, 0),
        (4, 1, 1),
        (7, 1, 1),
        (10, 1, 2),
        (100, 1, 25),
        (100, 3_600, 0),
        (600, 60, 10),
        (50, 10, 5),
        (59, 10, 5),
    ],
)
def test_at_most_a_quarter_is_held_and_what_a_second_gives_in_whole_units(
    amount: float, seconds: float, most: int
) -> None:
    held = lease(amount, seconds)
    assert (held.most, type(held.most)) == (most, int)
    held.put(int(amount), 2.0, 1.0)
    assert held.left(1.0) == most


def test_units_are_spent_until_they_lapse_and_not_at_that_moment() -> None:
    held = lease(40)
    held.put(5, 2.0, 1.0)
    assert held.spend(2, 1.9) == 2.0
    assert held.left(1.999) == 3
    assert held.spend(4, 1.999) is None
    assert held.left(1.999) == 3
    assert held.left(2.0) == 0
    assert held.spend(1, 2.0) is None


def test_of_units_that_are_put_together_none_lasts_longer_than_it_may() -> None:
    for first, second in ((2.0, 2.5), (2.5, 2.0)):
        held = lease(40)
        held.put(2, first, 1.0)
        held.put(3, second, 1.5)
        assert held.left(1.999) == 5
        assert held.left(2.0) == 0
        held.put(4, 3.0, 2.1)  # those before don't shorten what comes after them
        assert held.left(2.999) == 4


@pytest.mark.parametrize(("units", "until"), [(0, 1.2), (-1, 1.2), (3, 1.0), (3, 0.5)])
def test_nothing_or_what_has_lapsed_leaves_what_is_held_as_it_was(units: int, until: float) -> None:
    held = lease(40)
    held.put(5, 2.0, 1.0)
    held.put(units, until, 1.0)
    assert held.left(1.999) == 5


def test_units_are_kept_for_a_second_and_not_beyond_the_windows_end() -> None:
    held = lease(40, 10, "fixed-window")
    assert held.lasts(5.0) == -inf, "of a window that another process has begun nothing is known"
    held.ends = 10.0
    assert held.lasts(5.0) == 1.0
    assert held.lasts(9.75) == 0.25
    assert held.lasts(10.5) == -0.5
    assert lease(40, 10, "sliding-window-counter").lasts(5.0) == -inf
    assert lease(40, 10).lasts(5.0) == 1.0


def asked(held: Lease, at: float, spent: int, extra: int) -> Lease:
    """Have the store been asked then, and so much spent since."""
    held.asked, held.spent, held.extra = at, spent, extra
    return held


def test_no_more_is_asked_for_in_advance_than_is_spent_in_half_of_the_time_that_it_lasts() -> None:
    assert asked(lease(400), 0.0, 40, 64).advance(1, 0.5) == 40, "80 a second, for half a second"
    assert asked(lease(400), 0.0, 40, 64).advance(1, 0.25) == 80
    assert asked(lease(400), 0.0, 900, 64).advance(1, 0.25) == 100, "a quarter"
    ending = asked(lease(400, 1, "fixed-window"), 0.25, 40, 64)
    ending.ends = 0.75
    assert ending.advance(1, 0.45) == 30, "200 a second, and the window has 0.3 seconds left"
    assert asked(lease(400), 0.0, -3, 64).advance(1, 0.5) == 0, "more was put back than spent"


def test_after_a_pause_or_the_windows_end_nothing_is_asked_for_in_advance() -> None:
    for held in (lease(400), asked(lease(400), 0.0, 40, 64), asked(lease(3), 4.9, 40, 0)):
        assert held.advance(1, 5.0) == 0
        assert held.extra == 0
    ended = asked(lease(400, 10, "fixed-window"), 9.9, 40, 64)
    ended.ends = 10.0
    assert ended.advance(1, 10.0) == 0


def test_what_is_asked_for_in_advance_pays_for_a_whole_number_of_the_same() -> None:
    for cost in (1, 3, 7, 30):
        held, charged = lease(100), list[int]()
        for step in range(10):
            charged.append(asked(held, step / 100, 1_000, held.extra).advance(cost, (step + 1) / 100))
        assert all(type(units) is int and units % cost == 0 for units in charged)
        assert charged[-1] == 25 // cost * cost
        assert charged[0] == (cost if cost <= 25 else 0)


def test_a_lease_is_forgotten_when_nothing_is_held_and_the_last_question_was_long_ago() -> None:
    held = asked(lease(40), 0.0, 1, 0)
    assert not held.idle(0.99)
    assert held.idle(1.01)
    held.put(1, 2.0, 1.1)
    assert not held.idle(1.5)
    assert held.idle(2.0)
    held.used = 2.0  # by who is about to ask
    assert not held.idle(2.5)
    assert held.idle(3.0)


def test_the_windows_end_is_worth_a_question_to_who_sends_a_dozen_in_it() -> None:
    assert asked(lease(40, 10, "fixed-window"), 0.0, 2, 0).worth(0.9)
    assert not asked(lease(40, 10, "fixed-window"), 0.0, 1, 0).worth(0.9)
    assert not asked(lease(40, 10, "fixed-window"), 0.0, 20, 0).worth(1.5), "a pause"
    assert not asked(lease(30, 100, "fixed-window"), 0.0, 20, 0).worth(0.9), "nothing is held in advance of it"
