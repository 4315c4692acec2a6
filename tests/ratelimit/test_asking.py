"""A store that is far away is asked in time, is believed when it refuses, and is not charged for nothing."""

import asyncio

import pytest

from starlette_realtime.ratelimit import Limit, Rate, RateLimiter
from starlette_realtime.ratelimit.counting import Ask, Counting, Quota
from starlette_realtime.ratelimit.leases import Leases
from starlette_realtime.ratelimit.limit import Strategy
from starlette_realtime.ratelimit.shared import SharedQuotas
from starlette_realtime.testing import FakeClock, settle
from tests.ratelimit.support import Hand, Process, RemoteStore, alone, subject
from tests.support.waiting import until

STRATEGIES: list[Strategy] = ["moving-window", "fixed-window", "sliding-window-counter"]
ADA = subject("ada")


# --- it is believed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("exact", [False, True])
async def test_of_several_limits_one_that_refuses_is_enough(strategy: Strategy, exact: bool) -> None:
    store = RemoteStore(clock=FakeClock())
    limits = [Limit(rate, by="user", shared=True, strategy=strategy) for rate in ("100/hour", "3/minute")]
    gates = [RateLimiter(store=store).gate("things", limits) for _ in range(3)]
    assert [(await gates[0].take(ADA, {}, exact=exact)).allowed for _ in range(3)] == [True] * 3
    charged = store.remote.quotas.hits
    for gate in gates:
        refused = await gate.take(ADA, {}, exact=exact)
        assert (refused.allowed, refused.policy, refused.remaining, refused.limit) == (False, "things-2", 0, 3)
        assert refused.retry_after is not None
        assert 10.0 < refused.retry_after <= 120.0
    assert store.remote.quotas.hits == charged


async def test_units_of_a_window_that_another_process_began_are_not_spent_in_the_next() -> None:
    store = RemoteStore(clock=(clock := Hand()))
    one, other = (Process(store, Rate(40, 2), "fixed-window") for _ in range(2))
    assert await one.take()
    clock.move(1.5)
    assert [await other.take() for _ in range(30)] == [True] * 30
    clock.move(0.5)
    assert await one.take(), "the window has ended, and this begins the next"
    passed = [await process.take() for process in (other, one) for _ in range(60)].count(True)
    assert passed + 1 <= 40


@pytest.mark.parametrize("left", [1, 10])
async def test_whoever_is_refused_among_many_at_once_is_told_the_time_that_it_takes(left: int) -> None:
    _, link, process = alone(Rate(40, 10))
    assert await process.take(40 - left)
    asks = [Ask(process.several[0], "ada", 1)]
    decisions = [each for (each,) in await asyncio.gather(*(process.quotas.take(asks) for _ in range(30)))]
    assert decisions.count(None) == left
    assert link.quotas.hits == 40
    for refused in filter(None, decisions):
        assert not refused.allowed
        assert refused.retry_after is not None
        assert refused.retry_after > 9.0


async def test_who_finds_no_room_twice_is_refused_though_there_seems_to_be_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, link, process = alone(Rate(40, 1))

    async def taken(*_: object, **__: object) -> bool:
        return False  # by another process, each time

    monkeypatch.setattr(link.quotas, "acquire_entry", taken)
    assert await asyncio.gather(*(process.take() for _ in range(3))) == [False] * 3
    assert link.asked < 9


async def test_the_last_of_a_fixed_window_is_for_whom_it_suffices() -> None:
    store = RemoteStore(clock=Hand())
    one, other = (Process(store, Rate(10, 10), "fixed-window") for _ in range(2))
    assert [await one.take(3) for _ in range(2)] == [True, True]
    assert await asyncio.gather(*(other.take(2) for _ in range(5))) == [True, True, False, False, False]
    assert not await other.take(1)
    ask = Ask(one.several[0], "ada", 1)
    assert await store.remote.quotas.get(ask.key) == 10 + 1, "what was refused as too large was not counted"

    one, other = (Process(store, Rate(11, 10), "fixed-window") for _ in range(2))
    assert [await one.take(3) for _ in range(2)] == [True, True]
    assert await asyncio.gather(*(other.take(2) for _ in range(5))) == [True, True, False, False, False]
    assert await other.take(1)
    assert not await other.take(1)

    one, other = (Process(store, Rate(8, 10), "fixed-window") for _ in range(2))
    assert [await one.take(3) for _ in range(2)] == [True, True]
    assert await other.take(2)


# --- in time ----------------------------------------------------------------------------------------------------------


async def forever(*_: object, **__: object) -> None:
    """Never answer."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(("count", "question"), [(1, "acquire_entry"), (2, "get_moving_window"), (2, "acquire_entry")])
async def test_a_store_that_hangs_is_waited_for_half_a_second_whatever_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, count: int, question: str
) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    process = Process(store, Rate(100, 1), "moving-window", count=count)
    monkeypatch.setattr(store.remote, question, forever)
    taking = asyncio.ensure_future(process.take())
    await clock.advance(0.49)
    assert not taking.done()
    await clock.advance(0.02)
    await until(taking.done)
    assert await taking
    assert process.quotas.away
    await process.quotas.close()


async def test_exact_figures_are_waited_for_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    gate = RateLimiter(store=store).gate("things", Limit("100/second", by="user", shared=True))
    monkeypatch.setattr(store.remote, "get_moving_window", forever)
    taking = asyncio.ensure_future(gate.take(ADA, {}, exact=True))
    await clock.advance(0.49)
    assert not taking.done()
    await clock.advance(0.02)
    await until(taking.done)
    decision = await taking
    assert (decision.allowed, decision.limit, decision.remaining) == (True, 100, 99), "as this process knows"


async def test_a_key_that_is_being_asked_for_is_not_forgotten_as_others_come() -> None:
    clock, link, process = alone(Rate(100, 1), count=3)
    taking = [asyncio.ensure_future(process.take(who=f"{n}")) for n in range(20)]
    assert all(await asyncio.gather(*taking))
    assert process.quotas.leased == 60
    for n in range(20):
        assert await process.take(who=f"{n}")
    link.asked = 0
    for n in range(20):
        assert await process.take(who=f"{n}")
    assert link.asked == 0, "all three have something left from the second time"
    clock.move(2.0)
    taking = [asyncio.ensure_future(process.take(who=f"{n}")) for n in range(40)]
    assert all(await asyncio.gather(*taking))
    assert process.quotas.leased == 120
    await process.quotas.close()


# --- whoever goes, or is closed ---------------------------------------------------------------------------------------


async def test_closing_lets_nobody_wait_for_a_question_that_has_not_been_asked_yet() -> None:
    _, link, process = alone(Rate(8, 1))
    taking = asyncio.ensure_future(process.take())
    await asyncio.sleep(0)
    assert not link.asked
    await process.quotas.close()
    await until(taking.done)
    assert await taking, "it is counted here"
    assert not link.asked
    assert await process.take()


async def test_whoever_is_cancelled_while_several_limits_are_asked_leaves_the_units_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, link, process = alone(Rate(100, 1), count=2)
    answers, acquire = asyncio.Event(), link.quotas.acquire_entry

    async def slow(key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        await answers.wait()
        return await acquire(key, limit, expiry, amount)

    monkeypatch.setattr(link.quotas, "acquire_entry", slow)
    taking = asyncio.ensure_future(process.take())
    await until(lambda: link.asked == 4)
    taking.cancel()
    await asyncio.wait((taking,))
    answers.set()
    await settle()
    assert link.quotas.hits == 2
    assert [process.quotas._leases.left(Ask(quota, "ada", 1)) for quota in process.several] == [1, 1]
    assert await process.take()
    assert (link.asked, link.quotas.hits) == (4, 2)


async def test_who_waits_behind_a_question_spends_what_is_put_back_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteStore(clock=(clock := Hand()))
    ample, scarce = (Quota(name, Rate(100, 10), "fixed-window") for name in ("ample", "scarce"))
    quotas, answers, incr = SharedQuotas(store, clock), asyncio.Event(), store.remote.quotas.incr
    asks = [Ask(quota, "ada", 1) for quota in (ample, scarce)]
    for pause in (9.0, 0.0, 0.6):
        assert await quotas.take(asks[:1]) == [None]
        clock.move(pause)
    assert (quotas._leases.left(asks[0]), await store.remote.quotas.get(asks[0].key)) == (1, 4)

    async def slow(key: str, expiry: float, amount: int = 1) -> int:
        await answers.wait()
        return await incr(key, expiry, amount)

    monkeypatch.setattr(store.remote.quotas, "incr", slow)
    asked = store.remote.asked
    both, first = (asyncio.ensure_future(quotas.take(some)) for some in (asks, asks[:1]))
    await until(lambda: store.remote.asked == asked + 2)
    second = asyncio.ensure_future(quotas.take(asks[:1]))
    await settle()
    both.cancel()
    await asyncio.wait((both,))
    answers.set()
    assert (await first, await second) == ([None], [None])
    assert store.remote.asked == asked + 2
    assert await store.remote.quotas.get(asks[0].key) == 5
    await quotas.close()


async def test_what_is_put_back_was_not_spent() -> None:
    store = RemoteStore(clock=(clock := Hand()))
    ample, scarce = Quota("ample", Rate(100, 1), "moving-window"), Quota("scarce", Rate(3, 60), "moving-window")
    one, other = SharedQuotas(store, clock), SharedQuotas(store, clock)
    assert await other.take([Ask(scarce, "ada", 3)]) == [None]
    for _ in range(5):
        assert await one.take([Ask(ample, "ada", 1)]) == [None]
    lease = one._leases._leases[ample, "ada"]
    spent, held = lease.spent, lease.left(clock.now())
    assert held
    for _ in range(9):
        assert not all(
            each is None or each.allowed for each in await one.take([Ask(ample, "ada", 1), Ask(scarce, "ada", 1)])
        )
    assert (lease.spent, lease.left(clock.now())) == (spent, held)


async def test_of_a_key_that_was_forgotten_nothing_is_held() -> None:
    store = RemoteStore(clock=(clock := Hand()))
    leases = Leases(Counting(store, clock), clock, answered=lambda: None, max_keys=1)
    quota = Quota("things", Rate(40, 1), "moving-window")
    for who in ("ada", "ada", "bob", "bob"):
        assert await leases.take([Ask(quota, who, 1)]) == [None]
    assert leases.left(Ask(quota, "ada", 1)) == 0
    assert leases.left(Ask(quota, "bob", 1)) > 0
    assert len(leases) == 1


async def test_the_key_that_was_unused_for_longest_is_forgotten_first() -> None:
    store = RemoteStore(clock=(clock := Hand()))
    leases = Leases(Counting(store, clock), clock, answered=lambda: None, max_keys=2)
    quota = Quota("things", Rate(40, 1), "moving-window")
    for who in ("ada", "bob", "bob", "ada", "eve", "eve"):
        assert await leases.take([Ask(quota, who, 1)]) == [None]
    assert [leases.left(Ask(quota, who, 1)) > 0 for who in ("ada", "bob", "eve")] == [True, False, True]
