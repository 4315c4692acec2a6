"""What the store says of one key: what was charged, what there is, and when it ends."""

from math import inf

import pytest

from starlette_realtime.ratelimit import Rate
from starlette_realtime.ratelimit.counting import EDGE, Ask, Counting, Quota
from starlette_realtime.ratelimit.limit import Strategy
from starlette_realtime.store import MemoryStore
from tests.ratelimit.support import Hand

STRATEGIES: list[Strategy] = ["moving-window", "fixed-window", "sliding-window-counter"]


def counting(strategy: Strategy, cost: float = 1) -> tuple[Hand, Counting, Ask]:
    """Ten in ten seconds, of which nobody has taken any; Unix time is at the beginning of a sliding window."""
    clock = Hand(now=1_000.0, time=1_800_000_000.0)
    return clock, Counting(MemoryStore(clock=clock), clock), Ask(Quota("things", Rate(10, 10), strategy), "ada", cost)


async def test_a_fixed_window_charges_what_is_left_and_who_begins_it_hears_when_it_ends() -> None:
    clock, store, ask = counting("fixed-window")
    assert await store.charge(ask, 4) == (4, 1_010.0)
    clock.move(3.0)
    assert await store.charge(ask, 4) == (4, None), "it was begun already"
    assert await store.charge(ask, 4) == (2, None)
    assert await store.charge(ask, 4) == (0, None)
    clock.move(7.0)
    assert await store.charge(ask, 4) == (4, 1_020.0)


@pytest.mark.parametrize("strategy", ["moving-window", "sliding-window-counter"])
async def test_other_windows_charge_all_or_nothing(strategy: Strategy) -> None:
    _, store, ask = counting(strategy)
    assert await store.charge(ask, 8) == (8, None)
    assert await store.charge(ask, 4) == (0, None)
    assert await store.charge(ask, 2) == (2, None)


@pytest.mark.parametrize(
    ("strategy", "rooms"),
    [
        ("moving-window", [10, 2, 2, 10, 10]),
        ("fixed-window", [10, 2, 2, 10, 10]),
        ("sliding-window-counter", [10, 2, 2, 4, 8]),
    ],
)
async def test_there_is_room_as_the_strategy_sees_it(strategy: Strategy, rooms: list[int]) -> None:
    clock, store, ask = counting(strategy)
    assert await store.room(ask) == rooms[0]
    clock.move(1.0)
    assert await store.charge(ask, 8) == (8, 1_011.0 if strategy == "fixed-window" else None)
    told = [await store.room(ask)]
    for pause in (8.0, 3.0, 5.0):  # 12 and 17 seconds: eight and three tenths of the window before
        clock.move(pause)
        told.append(await store.room(ask))
    assert told == rooms[1:]


async def test_there_may_be_less_than_no_room_where_refusals_are_counted() -> None:
    _, store, ask = counting("fixed-window")
    await store.charge(ask, 8)
    await store.charge(ask, 8)
    assert await store.room(ask) == -6


async def test_when_a_window_ends_is_told_by_the_clock_that_lasts_are_measured_by() -> None:
    clock, store, ask = counting("fixed-window")
    assert await store.ends(ask) == 1_000.0, "there is none"
    await store.charge(ask, 1)
    clock.move(4.0)
    assert await store.ends(ask) == 1_010.0
    clock.move(7.0)
    assert await store.ends(ask) == 1_011.0, "it has ended"


async def test_a_sliding_window_ends_when_the_next_one_begins() -> None:
    clock, store, ask = counting("sliding-window-counter")
    clock.move(4.0)
    await store.charge(ask, 1)
    assert await store.ends(ask) == pytest.approx(1_010.0)
    clock.move(3.0)
    assert await store.ends(ask) == pytest.approx(1_010.0)


async def test_a_moving_window_never_ends() -> None:
    _, store, ask = counting("moving-window")
    await store.charge(ask, 1)
    assert await store.ends(ask) == inf


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_an_allowance_has_nothing_to_wait_for(strategy: Strategy) -> None:
    _, store, ask = counting(strategy)
    await store.charge(ask, 10)
    told = await store.figures(ask, allowed=True)
    assert (told.allowed, told.retry_after, told.remaining, told.limit) == (True, 0.0, 0, 10)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_refusal_of_what_there_is_room_for_has_ended_this_very_moment(strategy: Strategy) -> None:
    _, store, ask = counting(strategy, cost=3)
    await store.charge(ask, 7)
    told = await store.figures(ask, allowed=False)
    assert (told.allowed, told.remaining) == (False, 3)
    assert told.retry_after == EDGE


async def test_all_is_there_again_when_the_window_before_counts_no_more() -> None:
    clock, store, ask = counting("sliding-window-counter", cost=8)
    await store.charge(ask, 10)
    clock.move(14.5)
    told = await store.figures(ask, allowed=False)
    assert told.remaining == 5
    assert told.reset == pytest.approx(5.5)
    assert told.retry_after == pytest.approx(2.5, abs=0.01), "at less than three tenths of it"
    await store.charge(ask, 1)
    told = await store.figures(ask, allowed=False)
    assert told.remaining == 4
    assert told.reset == pytest.approx(15.5)
