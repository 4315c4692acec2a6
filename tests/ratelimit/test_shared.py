"""Shared quotas hold over all processes, cost the store little, and are kept within bounds while it is away."""

import asyncio
import logging
from math import floor
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from limits import RateLimitItemPerSecond
from limits.aio.strategies import STRATEGIES as THEIRS
from limits.errors import StorageError

from starlette_realtime.errors import StoreError
from starlette_realtime.ratelimit import Gate, Limit, Limits, RateLimiter
from starlette_realtime.ratelimit.buckets import MAX_KEYS
from starlette_realtime.ratelimit.counting import sliding_wait
from starlette_realtime.store import MemoryStore
from starlette_realtime.store.quotas import MemoryQuotas
from starlette_realtime.testing import FakeClock, settle
from tests.ratelimit.support import Gone, RemoteStore, subject

STRATEGIES = ["moving-window", "fixed-window", "sliding-window-counter"]
FIVE = Limit("5/10seconds", by="user", shared=True)
ADA = subject("ada")


async def take(gate: Gate, count: int, what: object = None) -> int:
    """How many of so many pass."""
    return [(await gate.take(ADA, {}, what)).allowed for _ in range(count)].count(True)


def processes(store: RemoteStore, limits: Limits, count: int = 2) -> list[Gate]:
    """The same gate in several processes, one of which has that store."""
    stores: list[MemoryStore] = [store, *(store.sibling() for _ in range(count - 1))]
    return [RateLimiter(store=each).gate("things", limits) for each in stores]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_processes_count_together(strategy: Any) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    one, other = processes(store, Limit("5/10seconds", by="user", shared=True, strategy=strategy))
    assert (await take(one, 3), await take(other, 9), await take(one, 9)) == (3, 2, 0)
    assert (await one.take(subject("bob"), {})).allowed
    await clock.advance(20.0)
    assert (await take(one, 3), await take(other, 3)) == (3, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_whoever_waits_as_told_is_let_through_and_not_much_earlier(strategy: Any) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    one, other = processes(store, Limit("5/10seconds", by="user", shared=True, strategy=strategy))
    for pause in (0.0, 3.1, 0.4, 7.0, 2.2, 11.0, 0.0, 4.9):
        await clock.advance(pause)
        await take(one, 2)
        await take(other, 9)
        refused = await one.take(ADA, {})
        assert not refused.allowed
        assert refused.retry_after is not None
        assert 0 < refused.retry_after <= 20.01
        await clock.advance(refused.retry_after - 0.01)
        assert not (await one.take(ADA, {})).allowed
        await clock.advance(0.01)
        assert (await one.take(ADA, {})).allowed


async def test_who_is_over_the_limit_does_not_ask_the_store_again_before_its_time() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    one, other = processes(store, FIVE)
    assert await take(one, 100) == 5
    assert store.remote.asked == 5  # the bucket in front of it knew
    assert await take(other, 5) == 0
    store.remote.asked = 0
    busy = RateLimiter(store=store).gate("things", FIVE)
    assert await take(busy, 100) == 0
    assert store.remote.asked == 2  # one refusal, and when to come back
    await clock.advance(9.0)
    assert await take(busy, 100) == 0
    assert store.remote.asked == 2
    await clock.advance(1.1)
    assert await take(busy, 5) == 5


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_the_bucket_in_front_refuses_nothing_that_the_strategy_allows(strategy: Any) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    gate = RateLimiter(store=store).gate("things", Limit("5/10seconds", by="user", shared=True, strategy=strategy))
    alone = RemoteStore(clock=clock)
    model = THEIRS[strategy](alone.backend.limits)  # type: ignore[abstract]
    for pause in (0.0, 9.9, 0.2, 5.0, 4.95, 0.1, 0.1, 9.7, 0.3, 30.0, 9.99, 0.02):
        await clock.advance(pause)
        for _ in range(4):
            expected = await model.test(RateLimitItemPerSecond(5, 10), "ada")
            expected = expected and await model.hit(RateLimitItemPerSecond(5, 10), "ada")
            assert (await gate.take(ADA, {})).allowed is expected


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_what_remains_is_told_of_the_amount_and_costs_no_further_question(strategy: Any) -> None:
    store = RemoteStore(clock=FakeClock())
    (gate,) = processes(store, Limit("5/10seconds", by="user", shared=True, strategy=strategy), 1)
    told = [await gate.take(ADA, {}) for _ in range(2)]
    assert {each.limit for each in told} == {5}
    assert [each.remaining for each in told] == [4, 3]
    assert store.remote.asked == 2
    assert gate.policies == (("things", 5, 10.0),), "also where two windows may follow each other"


@given(
    before=st.integers(0, 9),
    count=st.integers(0, 9),
    amount=st.integers(1, 9),
    cost=st.integers(1, 9),
    offset=st.floats(0.0, 9.9),
)
def test_a_sliding_window_lets_in_when_it_says(before: int, count: int, amount: int, cost: int, offset: float) -> None:
    assume(cost <= amount)

    class Hand(FakeClock):
        def move(self, seconds: float) -> None:
            self._now += seconds

    async def check() -> None:
        clock = Hand(now=0.0, time=1_800_000_000.0)
        quotas = MemoryQuotas(clock)
        for hits in (before, count):
            for _ in range(hits):
                await quotas.acquire_sliding_window_entry("k", 100, 10)
            clock.move(10.0)
        clock.move(offset - 10.0)
        window = await quotas.get_sliding_window("k", 10)
        if floor(window[0] * window[1] / 10 + window[2]) + cost <= amount:
            return
        wait = sliding_wait(amount - cost + 1, 10, *window)
        clock.move(wait - 0.01)
        if wait > 0.02:
            assert not await quotas.acquire_sliding_window_entry("k", amount, 10, cost)
        clock.move(0.01)
        assert await quotas.acquire_sliding_window_entry("k", amount, 10, cost)

    asyncio.run(check())


async def test_exact_figures_weigh_the_window_before() -> None:
    store = RemoteStore(clock=(clock := FakeClock(time=1_800_000_000.0)))
    limit = Limit("8/10seconds", by="user", shared=True, strategy="sliding-window-counter")
    one, other = processes(store, limit)
    assert await take(other, 6) == 6
    await clock.advance(15.0)
    told = await one.take(ADA, {}, exact=True)
    assert (told.remaining, told.limit) == (4, 8)  # half of six, and this one
    assert told.reset == pytest.approx(15.0)  # until it counts no more
    assert await take(other, 9) == 4
    refused = await one.take(ADA, {})
    assert (refused.allowed, refused.remaining) == (False, 0)


async def test_what_refuses_at_the_last_moment_leaves_the_rest_uncharged() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    limits = [Limit(rate, by="user", shared=True) for rate in ("1/10seconds", "5/hour")]
    one, other = processes(store, limits)
    assert await take(one, 1) == 1
    await clock.advance(10.0)  # the very end of the window, which a question takes for free, and a hit doesn't
    assert await take(other, 1) == 0
    await clock.advance(0.1)
    assert await take(other, 1) == 1
    names = [key for key in store.remote.quotas._logs.found if "3600" in key]
    assert [store.remote.quotas._logs.found[name].total for name in names] == [2]


async def test_a_burst_bounds_what_one_process_lets_through_at_once() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    (gate,) = processes(store, Limit("60/minute", by="user", shared=True, burst=3), 1)
    assert await take(gate, 10) == 3
    await clock.advance(2.0)
    assert await take(gate, 10) == 2
    assert gate.policies == (("things", 3, 60.0),)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_cost_is_counted_in_the_store(strategy: Any) -> None:
    store = RemoteStore(clock=FakeClock())
    one, other = processes(store, Limit("10/minute", by="user", shared=True, strategy=strategy, cost=lambda what: what))
    assert await take(one, 1, 7) == 1
    assert await take(other, 1, 4) == 0
    assert await take(other, 1, 2.5) == 1  # three: the store counts whole things
    assert await take(other, 1, 1) == 0
    assert await take(one, 1, 0) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_none_of_several_is_charged_when_one_refuses(strategy: Any) -> None:
    store = RemoteStore(clock=FakeClock())
    limits = [Limit(rate, by="user", shared=True, strategy=strategy) for rate in ("100/hour", "3/minute")]
    one, other = processes(store, limits)
    assert (await take(one, 2), await take(other, 20)) == (2, 1)
    decision = await RateLimiter(store=store).gate("things", limits).take(ADA, {}, exact=True)
    assert (decision.policy, decision.remaining) == ("things-2", 0)
    # The same hour in the store, alone: the three that passed were charged, and this one.
    hour = await RateLimiter(store=store).gate("things", limits[0]).take(ADA, {}, exact=True)
    assert (hour.limit, hour.remaining) == (100, 96)


async def test_a_local_limit_beside_a_shared_one_is_not_charged_when_the_store_refuses() -> None:
    store = RemoteStore(clock=FakeClock())
    limits = [Limit("3/minute", by="user", shared=True), Limit("4/minute", by="user")]
    one, other = processes(store, limits)
    assert (await take(one, 1), await take(other, 9)) == (1, 2)
    assert await take(one, 9) == 0
    local = next(count for count in one._counts if count.quota is None)
    assert local.keyed.get("user:ada", store.clock).remaining == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_exact_figures_are_those_of_the_store(strategy: Any) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    one, other = processes(store, Limit("5/10seconds", by="user", shared=True, strategy=strategy))
    assert await take(other, 3) == 3
    await clock.advance(4.0)
    told = await one.take(ADA, {}, exact=True)
    assert (told.allowed, told.remaining, told.limit, told.policy) == (True, 1, 5, "things")
    assert 0 < told.reset <= 20


async def test_strange_names_are_counted_apart() -> None:
    store = RemoteStore(clock=FakeClock())
    (gate,) = processes(store, Limit("1/minute", by="user", shared=True), 1)
    names = ["a", "a/b", "a%2Fb", "a b", "ä", "\ud800", "x" * 500, "x" * 501, "rt/things:1/user:a"]
    assert [(await gate.take(subject(name), {})).allowed for name in names] == [True] * len(names)
    fresh = RateLimiter(store=store).gate("things", Limit("1/minute", by="user", shared=True))
    assert [(await fresh.take(subject(name), {})).allowed for name in names] == [False] * len(names)
    quotas = store.remote.quotas
    assert all(len(key) < 3 * 160 and " " not in key and key.count("/") == 5 for key in quotas._logs.found)


async def test_a_memory_store_is_asked_without_a_link() -> None:
    gate = RateLimiter(clock=FakeClock()).gate("things", FIVE)
    assert await take(gate, 9) == 5


# --- the store is away ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreError("away"), Gone(), StorageError(Gone()), OSError(), TimeoutError()])
async def test_while_the_store_is_away_each_process_has_its_share(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    others = [store.sibling() for _ in range(2)]
    async with store, others[0], others[1]:
        gate = RateLimiter(store=store).gate("things", Limit("12/10seconds", by="user", shared=True))
        assert await take(gate, 1) == 1  # and so it knows of three processes
        store.remote.error = error
        with caplog.at_level(logging.INFO, "starlette_realtime.ratelimit"):
            assert await take(gate, 20) == 4
            refused = await gate.take(ADA, {})
            assert refused.retry_after == pytest.approx(2.5)
            assert not refused.allowed
            await clock.advance(2.5)
            assert await take(gate, 20) == 1
            (warning,) = caplog.records
            assert "the store is away: limits are counted in this process alone, divided by 3" in warning.message
            store.remote.error = None
            await clock.advance(10.0)
            assert await take(gate, 20) == 12
            assert caplog.messages[1:] == ["the store is back: limits are counted there again"]


async def test_who_was_refused_a_share_is_let_in_as_soon_as_the_store_is_back() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    (gate,) = processes(store, Limit("5/hour", by="user", shared=True, strategy="fixed-window"), 1)
    store.remote.error = Gone()
    assert await take(gate, 6) == 5
    store.remote.error = None
    await clock.advance(1.0)
    assert await take(gate, 1) == 0
    await settle()
    assert await take(gate, 9) == 5


async def test_the_share_is_at_least_one_and_costs_may_take_all_of_it() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    others = [store.sibling() for _ in range(4)]
    async with store, others[0], others[1], others[2], others[3]:
        limiter = RateLimiter(store=store)
        rare = limiter.gate("rare", Limit("2/10seconds", by="user", shared=True, cost=lambda what: what))
        assert await take(rare, 1, 1) == 1
        store.remote.error = Gone()
        await clock.advance(10.1)
        assert await take(rare, 3, 2) == 1
        await clock.advance(10.0)
        assert await take(rare, 3, 1) == 1


async def test_a_store_that_does_not_answer_is_not_waited_for_again_and_again() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    (gate,) = processes(store, FIVE, 1)
    store.remote.hangs = True
    asked = asyncio.ensure_future(gate.take(ADA, {}))
    await clock.advance(0.49)
    assert not asked.done()
    await clock.advance(0.01)
    assert (await asked).allowed
    assert await take(gate, 9) == 4  # at once, and without a question
    assert store.remote.asked == 1
    store.remote.hangs = False
    await clock.advance(10.0)
    assert await take(gate, 9) == 5


async def test_an_error_that_is_no_outage_is_not_hidden() -> None:
    store = RemoteStore(clock=FakeClock())
    (gate,) = processes(store, FIVE, 1)
    store.remote.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await gate.take(ADA, {})


async def test_an_unknown_number_of_processes_stays_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    limiter = RateLimiter(store=store)
    gate = limiter.gate("things", FIVE)
    async with store, store.sibling():
        await take(gate, 1)
        await clock.advance(0.0)
        assert limiter.quotas.nodes == 2
        await clock.advance(10.0)
        store.faults.stall()
        asked = asyncio.ensure_future(take(gate, 1))
        await clock.advance(2.0)
        assert await asked == 1
        assert limiter.quotas.nodes == 2
        store.faults.resume()


async def test_a_share_is_counted_anew_when_processes_come(caplog: pytest.LogCaptureFixture) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    limiter = RateLimiter(store=store)
    gate = limiter.gate("things", Limit("12/hour", by="user", shared=True))
    async with store:
        await take(gate, 1)
        await clock.advance(0.0)
        store.remote.error = Gone()
        async with store.sibling():
            assert await take(gate, 20) == 11  # what the bucket in front still has
            store.remote.error = None
            await clock.advance(3_600.0)
            assert await take(gate, 1) == 1
            await clock.advance(11.0)
            assert await take(gate, 1) == 1
            assert limiter.quotas.nodes == 2
            store.remote.error = Gone()
            assert await take(gate, 20) == 6


async def test_keys_in_a_process_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_KEYS == 100_000
    gate = RateLimiter(clock=FakeClock()).gate("things", Limit("2/hour", by="user"))
    for count in gate._counts:
        monkeypatch.setattr(count.keyed, "_max", 500)
    for n in range(2_000):
        await gate.take(subject(f"{n}"), {})
    assert gate.kept == 500
