"""The memory quotas decide as the storage of `limits` does, in the same time with many keys as with one."""

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

import limits
import limits.aio.storage
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits.aio.strategies import STRATEGIES, RateLimiter

from starlette_realtime.clock import Clock
from starlette_realtime.store import MemoryStore
from starlette_realtime.store.quotas import MemoryQuotas

START = 1_800_000_000.0


class Hand(Clock):
    """A clock that the test moves: Unix time, from which `limits` reads too."""

    at = START

    def time(self) -> float:
        return self.at


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    """The one time of both storages."""
    hand = Hand()
    monkeypatch.setattr(time, "time", lambda: hand.at)
    yield hand
    monkeypatch.undo()


async def original() -> limits.aio.storage.MemoryStorage:
    """
    The storage of `limits`, without its task that clears expired hits away.

    The task runs some time after each hit, so that a hit at the very end of a window, which still counts, is there or
    isn't, by chance.
    """
    storage = limits.aio.storage.MemoryStorage()
    storage.timer = asyncio.ensure_future(asyncio.Event().wait())  # type: ignore[arg-type]
    return storage


items = st.builds(limits.RateLimitItemPerSecond, st.integers(1, 6), st.sampled_from([1, 2, 7]))
pauses = st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.5, 1.0, 1.999, 2.0, 3.3, 7.0]) | st.floats(0, 20)
steps = st.lists(
    st.tuples(
        pauses,
        st.sampled_from(["hit", "hit", "hit", "test", "stats", "clear"]),
        st.sampled_from(["a", "b", "a/1"]),
        st.integers(1, 4),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_decides_as_with_the_original(name: str, hand: Hand) -> None:
    @given(st.lists(items, min_size=1, max_size=2), st.floats(0, 10), steps)
    def check(items: list[limits.RateLimitItem], offset: float, steps: list[tuple[float, str, str, int]]) -> None:
        hand.at = START + offset
        asyncio.run(compare(items, steps))

    async def compare(items: list[limits.RateLimitItem], steps: list[tuple[float, str, str, int]]) -> None:
        theirs = await original()
        ours: RateLimiter = STRATEGIES[name](MemoryQuotas(hand))  # type: ignore[abstract]
        expected: RateLimiter = STRATEGIES[name](theirs)  # type: ignore[abstract]
        for pause, action, who, cost in steps:
            hand.at += pause
            for item in items:
                if action == "hit":
                    assert await ours.hit(item, who, cost=cost) == await expected.hit(item, who, cost=cost)
                elif action == "test":
                    assert await ours.test(item, who, cost=cost) == await expected.test(item, who, cost=cost)
                elif action == "clear":
                    await ours.clear(item, who)
                    await expected.clear(item, who)
                else:
                    ours_now = await ours.get_window_stats(item, who)
                    theirs_now = await expected.get_window_stats(item, who)
                    assert ours_now.remaining == theirs_now.remaining
                    if name == "moving-window" and ours_now.remaining == item.amount:
                        # Theirs names the oldest hit that nobody has cleared away yet; there is none that counts.
                        assert ours_now.reset_time == hand.at + item.get_expiry()
                    else:
                        assert ours_now.reset_time == theirs_now.reset_time
                key = item.key_for(who)
                assert await ours.storage.get(key) == await theirs.get(key)
                assert await ours.storage.get_expiry(key) == await theirs.get_expiry(key)
        assert theirs.timer is not None
        theirs.timer.cancel()

    check()


calls = st.lists(
    st.tuples(pauses, st.sampled_from(["incr", "incr", "decr", "get", "get_expiry", "clear"]), st.integers(1, 3)),
    max_size=40,
)


def test_counters_go_up_down_and_away_as_the_originals(hand: Hand) -> None:
    @given(calls, st.integers(1, 5))
    def check(calls: list[tuple[float, str, int]], window: int) -> None:
        hand.at = START
        asyncio.run(compare(calls, window))

    async def compare(calls: list[tuple[float, str, int]], window: int) -> None:
        theirs, ours = await original(), MemoryQuotas(hand)
        for pause, action, amount in calls:
            hand.at += pause
            if action == "incr":
                assert await ours.incr("k", window, amount) == await theirs.incr("k", window, amount)
            elif action == "decr":
                assert await ours.decr("k", amount) == await theirs.decr("k", amount)
            elif action == "clear":
                await ours.clear("k")
                await theirs.clear("k")
            assert await ours.get("k") == await theirs.get("k")
            assert await ours.get_expiry("k") == await theirs.get_expiry("k")
        assert await ours.check()
        assert theirs.timer is not None
        theirs.timer.cancel()

    check()


def lines(of: Callable[[], object]) -> int:
    """How many lines of Python and calls into C a call takes."""
    count = 0

    def observe(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += 1

    gc.disable()  # what it calls back would count
    sys.setprofile(observe)
    try:
        of()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def run(quotas: MemoryQuotas, name: str, who: str) -> bool:
    """One hit, which never waits for anything."""
    strategy: RateLimiter = STRATEGIES[name](quotas)  # type: ignore[abstract]
    hit = strategy.hit(limits.RateLimitItemPerMinute(5), who)
    try:
        hit.send(None)
    except StopIteration as done:
        return bool(done.value)
    raise AssertionError("a hit waited")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_hit_costs_the_same_with_many_keys_as_with_few(name: str) -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand)
    for n in range(10):
        run(quotas, name, f"{n}")
    few = [lines(lambda: run(quotas, name, "3")), lines(lambda: run(quotas, name, "new"))]
    for n in range(10, 20_000):
        run(quotas, name, f"{n}")
    many = [lines(lambda: run(quotas, name, "3")), lines(lambda: run(quotas, name, "newer"))]
    assert many == few
    hand.at += 3_600.0
    # Also when all of them have ended at once.
    assert lines(lambda: run(quotas, name, "newest")) < 2 * max(few)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_has_ended_is_forgotten_as_new_keys_come(name: str) -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand)
    for n in range(5_000):
        run(quotas, name, f"{n}")
        hand.at += 1.0
    assert len(quotas) <= 2 * 120 + 2  # those of two minutes, which is the longest that one counts


async def test_keys_of_a_window_that_is_no_longer_asked_for_are_forgotten() -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand)
    for n in range(100):
        await quotas.incr(f"short {n}", 1)
        await quotas.acquire_entry(f"log {n}", 5, 1)
    hand.at += 5.0
    for n in range(200):
        await quotas.incr(f"long {n}", 3_600)
    assert len(quotas) == 200


async def test_at_the_bound_what_ends_first_goes() -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand, max_keys=3)
    await quotas.incr("an hour", 3_600)
    await quotas.acquire_entry("a minute", 5, 60)
    await quotas.incr("a second", 1)
    await quotas.incr("a day", 86_400)
    assert (await quotas.get("a second"), len(quotas)) == (0, 3)
    await quotas.incr("another day", 86_400)
    assert (await quotas.get_moving_window("a minute", 5, 60), len(quotas)) == ((hand.at, 0), 3)
    await quotas.acquire_entry("a week", 5, 7 * 86_400)
    assert (await quotas.get("an hour"), len(quotas)) == (0, 3)


async def test_the_times_of_hits_are_bounded_too() -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand, max_hits=1_000)
    for n in range(50):
        for _ in range(100):
            hand.at += 0.001
            assert await quotas.acquire_entry(f"{n}", 100, 60)
        assert quotas.hits <= 1_000
    assert (await quotas.get_moving_window("49", 100, 60))[1] == 100
    assert (await quotas.get_moving_window("0", 100, 60))[1] == 0
    await quotas.clear("49")
    assert quotas.hits == 900
    assert await quotas.reset() == 9
    assert (len(quotas), quotas.hits) == (0, 0)


async def test_a_key_may_change_its_window() -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand)
    await quotas.incr("k", 1)
    await quotas.decr("k")
    assert await quotas.incr("k", 60) == 1
    assert await quotas.get_expiry("k") == hand.at + 60
    assert await quotas.acquire_entry("k", 2, 60)
    assert await quotas.acquire_entry("k", 2, 30)
    assert not await quotas.acquire_entry("k", 2, 30)
    assert len(quotas) == 2
    hand.at += 100.0
    for n in range(4):
        await quotas.incr(f"{n}", 60)
        await quotas.acquire_entry(f"{n}", 2, 30)
    assert len(quotas) == 8


async def test_at_the_very_end_of_a_window_a_hit_is_refused_for_and_no_longer_shown() -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand)
    assert await quotas.acquire_entry("k", 2, 10)
    hand.at += 4.0
    assert await quotas.acquire_entry("k", 2, 10)
    hand.at += 6.0
    assert not await quotas.acquire_entry("k", 2, 10)
    assert await quotas.get_moving_window("k", 2, 10) == (START + 4.0, 1)
    hand.at += 4.0
    assert await quotas.get_moving_window("k", 2, 10) == (hand.at, 0)
    assert not await quotas.acquire_entry("k", 2, 10, 2)
    assert await quotas.acquire_entry("k", 2, 10)


async def test_a_clock_that_is_set_back_lets_nobody_in_early() -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand)
    assert await quotas.acquire_entry("k", 2, 10)
    hand.at -= 5.0
    assert await quotas.acquire_entry("k", 2, 10)
    assert not await quotas.acquire_entry("k", 2, 10)
    hand.at += 15.1
    assert await quotas.acquire_entry("k", 2, 10)


def test_it_has_no_address_in_the_registry_of_limits() -> None:
    from limits.storage import storage_from_string

    MemoryQuotas()
    assert isinstance(storage_from_string("async+memory://"), limits.aio.storage.MemoryStorage)


async def test_what_is_no_error_of_the_storage_is_not_wrapped() -> None:
    assert MemoryQuotas().base_exceptions == ()
    with pytest.raises(ZeroDivisionError):
        await MemoryQuotas().get_sliding_window("k", 0)


async def test_the_stores_of_one_backend_count_together() -> None:
    store = MemoryStore(clock=Hand())
    assert isinstance(store.limits, MemoryQuotas)
    assert store.sibling().limits is store.limits
    assert isinstance(MemoryQuotas().base_exceptions, tuple)


async def test_hits_that_have_ended_leave_room_for_others() -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand, max_hits=100)
    assert await quotas.acquire_entry("kept", 10, 1_000, 10)
    for _ in range(50):
        hand.at += 10.0
        assert await quotas.acquire_entry("busy", 20, 5, 20)
        assert quotas.hits == 30
    assert (await quotas.get_moving_window("kept", 10, 1_000))[1] == 10


async def test_the_bound_on_keys_holds_for_times_of_hits_alone() -> None:
    hand = Hand()
    quotas = MemoryQuotas(hand, max_keys=2)
    for key in ("first", "second", "third"):
        hand.at += 1.0
        assert await quotas.acquire_entry(key, 1, 60)
    assert len(quotas) == 2
    assert (await quotas.get_moving_window("first", 1, 60))[1] == 0
    assert (await quotas.get_moving_window("third", 1, 60))[1] == 1
