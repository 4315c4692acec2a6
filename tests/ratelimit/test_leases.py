"""Units are charged in advance: few questions to the store, never more than it allows, and nobody pays for nothing."""

import asyncio
from collections.abc import Coroutine
from math import floor
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from starlette_realtime.ratelimit import Rate, RateLimiter
from starlette_realtime.ratelimit.counting import Ask, Counting, Quota
from starlette_realtime.ratelimit.leases import Lease, Leases, Waiter
from starlette_realtime.ratelimit.limit import Limit, Strategy
from starlette_realtime.ratelimit.shared import SharedQuotas
from starlette_realtime.testing import FakeClock, settle
from tests.ratelimit.support import Gone, Hand, Process, RemoteQuotas, RemoteStore, alone, subject
from tests.support.waiting import until

T = TypeVar("T")

STRATEGIES: list[Strategy] = ["moving-window", "fixed-window", "sliding-window-counter"]
ADA = subject("ada")


# --- never more than the strategy allows ------------------------------------------------------------------------------


class Watched(RemoteQuotas):
    """Notes when fixed windows begin."""

    begun: float | None = None

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        count = await super().incr(key, expiry, amount)
        if count == amount:
            self.begun = self.quotas._clock.time()
        return count


class Machine(RuleBasedStateMachine):
    """Several processes spend one quota, as its strategy allows; what is charged in advance is never too much."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.admitted: list[tuple[float, int]] = []  # when, how much
        self.windows: dict[float, int] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.close())
        self.loop.close()

    async def close(self) -> None:
        for process in self.processes:
            await process.quotas.close()

    @initialize(
        rate=st.builds(Rate, st.sampled_from([8, 20, 60]), st.sampled_from([1, 2, 10])),
        strategy=st.sampled_from(STRATEGIES),
        count=st.integers(1, 3),
    )
    def begin(self, rate: Rate, strategy: Strategy, count: int) -> None:
        self.clock = Hand()
        self.store = RemoteStore(clock=self.clock)
        self.store.remote = self.link = Watched(self.store.remote.quotas)
        self.rate, self.strategy = rate, strategy
        self.processes = [Process(self.store, rate, strategy) for _ in range(count)]

    async def burst(self, costs: list[tuple[int, int]]) -> None:
        async def one(process: Process, cost: int) -> None:
            if await process.take(cost):
                self.admitted.append((self.clock.time(), cost))
                if self.link.begun is not None:
                    self.windows[self.link.begun] = self.windows.get(self.link.begun, 0) + cost

        await asyncio.gather(*(one(self.processes[n % len(self.processes)], cost) for n, cost in costs))

    @rule(costs=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=30))
    def at_once(self, costs: list[tuple[int, int]]) -> None:
        self.run(self.burst(costs))

    @rule(
        process=st.integers(0, 2),
        pauses=st.lists(st.sampled_from([0.0, 0.01, 0.03, 0.1, 0.24]), min_size=1, max_size=30),
    )
    def one_after_the_other(self, process: int, pauses: list[float]) -> None:
        for pause in pauses:
            self.clock.move(pause)
            self.run(self.burst([(process, 1)]))

    @rule(seconds=st.sampled_from([0.3, 0.5, 0.9, 0.999, 1.0, 1.001, 2.0, 5.0, 9.999]) | st.floats(0, 11))
    def wait(self, seconds: float) -> None:
        self.clock.move(seconds)

    @invariant()
    def holds(self) -> None:
        if not self.admitted:
            return
        amount, seconds = int(self.rate.amount), self.rate.seconds
        if self.strategy == "fixed-window":
            assert max(self.windows.values()) <= amount
        elif self.strategy == "moving-window":
            ahead = len(self.processes) * Lease(self.processes[0].several[0]).most
            for last, _ in self.admitted:
                assert sum(cost for at, cost in self.admitted if last - seconds < at <= last) <= amount + ahead
        else:
            counts: dict[int, int] = {}
            for at, cost in self.admitted:
                number = int(at / seconds)
                counts[number] = counts.get(number, 0) + cost
                weight = 1 - (at / seconds) % 1
                assert floor(counts.get(number - 1, 0) * weight + counts[number]) <= amount
        for process in self.processes:
            held = [lease.left(self.clock.now()) for lease in process.quotas._leases._leases.values()]
            assert all(units <= amount / 4 for units in held)


def machine(examples: int, *phases: Phase) -> settings:
    """How long to look."""
    return settings(
        max_examples=examples,
        stateful_step_count=12,
        deadline=None,
        phases=phases or settings().phases,
        report_multiple_bugs=False,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_no_more_is_let_through_than_the_strategy_allows() -> None:
    run_state_machine_as_test(Machine, settings=machine(60))


def test_a_process_that_spends_lapsed_units_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "left", lambda self, now: self._units)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=machine(4_000, Phase.generate))


# --- nobody pays for nothing ------------------------------------------------------------------------------------------


@given(
    rate=st.builds(Rate, st.integers(20, 200), st.sampled_from([1, 2, 10])),
    strategy=st.sampled_from(STRATEGIES),
    part=st.floats(0.1, 0.9),
    phase=st.floats(0.0, 10.0),
)
@settings(deadline=None, max_examples=40)
def test_a_steady_sender_below_the_limit_is_never_refused(
    rate: Rate, strategy: Strategy, part: float, phase: float
) -> None:
    async def send() -> None:
        clock, _, process = alone(rate, strategy)
        clock.move(phase)
        for _ in range(min(400, int(4 * rate.amount))):
            assert await process.take()
            clock.move(1 / (part * rate.per_second))
        await process.quotas.close()

    asyncio.run(send())


@pytest.mark.parametrize(
    ("rate", "most"),
    [
        (Rate(100, 1), (0.05, 0.25, 0.3)),
        (Rate(10, 1), (0.4, 0.85, 1.0)),
        (Rate(600, 60), (0.4, 0.4, 0.4)),
        (Rate(1000, 10), (0.05, 0.1, 0.1)),
    ],
)
async def test_a_fast_sender_costs_the_store_little(rate: Rate, most: tuple[float, ...]) -> None:
    for strategy, share in zip(STRATEGIES, most, strict=True):
        clock, link, process = alone(rate, strategy)
        sent = 20 * int(rate.per_second)
        for _ in range(sent):
            assert await process.take()
            clock.move(2 / rate.per_second)
        assert link.asked / sent <= share, strategy
        await process.quotas.close()


async def test_who_sends_now_and_then_is_counted_one_by_one() -> None:
    clock, link, process = alone(Rate(100, 1))
    for _ in range(20):
        assert await process.take()
        clock.move(0.6)
    assert [len(log.times) for log in link.quotas._logs.found.values()] == [2]
    assert link.quotas.hits == 2
    assert process.quotas._leases.left(Ask(process.several[0], "ada", 1)) == 0


async def test_a_small_limit_is_counted_exactly_however_fast_it_is_spent() -> None:
    clock, link, process = alone(Rate(100, 3600))
    for spent in range(1, 50):
        assert await process.take()
        assert link.quotas.hits == spent
        clock.move(0.01)


async def test_what_is_asked_for_in_advance_grows_up_to_a_quarter() -> None:
    _, link, process = alone(Rate(100, 1))
    charged: list[int] = []
    for _ in range(60):
        assert await process.take()
        if not charged or link.quotas.hits != sum(charged):
            charged.append(link.quotas.hits - sum(charged))
    assert charged == [1, 2, 3, 5, 9, 17, 26]


async def test_near_the_limit_no_question_is_asked_in_vain_again_and_again() -> None:
    clock, link, process = alone(Rate(40, 1))
    let_in = 0
    for _ in range(400):
        let_in += await process.take()
        clock.move(1 / 39)
    assert let_in == 400
    assert link.asked < 1.1 * let_in


async def test_it_is_refused_when_the_store_has_not_one_left() -> None:
    store = RemoteStore(clock=Hand())
    one, other = (Process(store, Rate(40, 1), "moving-window") for _ in range(2))
    for _ in range(15):
        assert await one.take()
    passed = [await other.take() for _ in range(40)].count(True)
    held = one.quotas._leases.left(Ask(one.several[0], "ada", 1))
    assert passed + held == 25, "what is left is taken to the last one"
    assert store.remote.quotas.hits == 40
    assert [await one.take() for _ in range(40)].count(True) == held


# --- together ---------------------------------------------------------------------------------------------------------


async def test_who_asks_at_once_shares_a_question() -> None:
    clock, link, process = alone(Rate(40, 1))
    assert all(await asyncio.gather(*(process.take() for _ in range(30))))
    assert link.asked == 1
    assert link.quotas.hits == 30
    clock.move(2.0)
    assert (await asyncio.gather(*(process.take() for _ in range(60)))).count(True) == 40


async def test_who_wants_too_much_is_refused_and_who_wants_less_is_not() -> None:
    _, link, process = alone(Rate(8, 100))
    assert await asyncio.gather(*(process.take(cost) for cost in (5, 6, 2, 4, 1))) == [True, False, True, False, True]
    assert link.quotas.hits == 8


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_whoever_is_cancelled_while_the_store_is_asked_takes_nothing_from_others(strategy: Strategy) -> None:
    _, link, process = alone(Rate(40, 1), strategy)
    link.slow = asyncio.Event()
    first, second = asyncio.ensure_future(process.take()), asyncio.ensure_future(process.take(3))
    await until(lambda: link.asked)
    first.cancel()
    await asyncio.wait((first,))
    link.slow.set()
    assert await second
    assert first.cancelled()
    assert [await process.take() for _ in range(40)].count(True) >= 36


async def test_units_that_came_for_who_was_cancelled_at_that_moment_are_spent_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Watched(Waiter):
        def __init__(self, ask: Ask) -> None:
            super().__init__(ask)
            self.heard.add_done_callback(lambda _: taking.cancel())

    _, link, process = alone(Rate(40, 1))
    with monkeypatch.context() as patch:
        patch.setattr("starlette_realtime.ratelimit.leases.Waiter", Watched)
        taking = asyncio.ensure_future(process.take())
        await asyncio.wait((taking,))
    assert taking.cancelled()
    assert (link.asked, link.quotas.hits) == (1, 1)
    assert await process.take()
    assert link.asked == 1
    await process.quotas.close()


async def test_several_limits_cost_one_question_more_and_burn_nothing() -> None:
    store = RemoteStore(clock=(clock := Hand()))
    ample, scarce = Quota("ample", Rate(100, 1), "moving-window"), Quota("scarce", Rate(3, 60), "moving-window")
    quotas = SharedQuotas(store, clock)
    asks = [Ask(ample, "ada", 1), Ask(scarce, "ada", 1)]
    for spent in (1, 2, 3):
        before = store.remote.asked
        assert await quotas.take(asks) == [None, None]
        assert store.remote.asked - before <= 4  # at most both are looked at, then both are charged
        assert len(next(log for key, log in store.remote.quotas._logs.found.items() if "scarce" in key).times) == 1
        assert store.remote.quotas._logs.found[asks[1].key].total == spent
    charged = store.remote.quotas._logs.found[asks[0].key].total
    refused = await quotas.take(asks)
    assert [decision is None or decision.allowed for decision in refused] == [True, False]
    assert store.remote.quotas._logs.found[asks[0].key].total == charged


async def test_what_one_limit_had_charged_when_another_refused_is_spent_next() -> None:
    store = RemoteStore(clock=(clock := Hand()))
    ample, scarce = Quota("ample", Rate(100, 1), "moving-window"), Quota("scarce", Rate(3, 60), "moving-window")
    one, other = SharedQuotas(store, clock), SharedQuotas(store, clock)
    assert await other.take([Ask(scarce, "ada", 3)]) == [None]
    for _ in range(2):
        assert await one.take([Ask(ample, "ada", 1)]) == [None]
    held = one._leases.left(Ask(ample, "ada", 1))
    assert held
    refused = await one.take([Ask(ample, "ada", 1), Ask(scarce, "ada", 1)])
    assert [decision is None for decision in refused] == [True, False]
    assert one._leases.left(Ask(ample, "ada", 1)) == held


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_exact_figures_count_what_is_held_as_there(strategy: Strategy) -> None:
    store = RemoteStore(clock=FakeClock(time=1_800_000_000.0))
    gate = RateLimiter(store=store).gate("things", Limit("100/second", by="user", shared=True, strategy=strategy))
    told = [await gate.take(ADA, {}, exact=True) for _ in range(50)]
    assert [decision.remaining for decision in told] == list(range(99, 49, -1))
    assert {(decision.allowed, decision.retry_after, decision.limit) for decision in told} == {(True, 0.0, 100)}


# --- its end ----------------------------------------------------------------------------------------------------------


async def test_a_failure_is_heard_by_all_who_wait_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    _, link, process = alone(Rate(8, 1))
    link.error = Gone()
    assert (await asyncio.gather(*(process.take() for _ in range(10)))).count(True) == 8
    assert link.asked == 1
    assert len(caplog.records) == 1


async def test_a_store_that_is_away_is_tried_while_nobody_waits_for_it() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    process = Process(store, Rate(1000, 1), "moving-window")
    store.remote.hangs = True
    first = asyncio.ensure_future(process.take())
    await clock.advance(0.5)
    assert await first
    for attempt in (2, 3, 4):
        await clock.advance(1.0)
        before = clock.now()
        assert all([await process.take(who=f"{n}") for n in range(20)])
        assert clock.now() == before, "all are counted here meanwhile"
        await settle()
        assert store.remote.asked == attempt
    store.remote.hangs = False
    await clock.advance(1.0)
    assert await process.take()
    await settle()
    assert all(await asyncio.gather(*(process.take(who=f"{n}") for n in range(20))))
    assert store.remote.asked == 25
    await process.quotas.close()


async def test_closing_lets_nobody_wait() -> None:
    clock, link, process = alone(Rate(8, 1))
    link.hangs = True
    taking = [asyncio.ensure_future(process.take(who=who)) for who in ("ada", "ada", "bob")]
    await until(lambda: link.asked == 2)
    taking.append(asyncio.ensure_future(process.take(who="eve")))
    await asyncio.sleep(0)
    await process.quotas.close()
    assert all(await asyncio.gather(*taking))
    assert not process.quotas._leases._pumps
    link.hangs = False
    clock.move(2.0)
    assert await process.take()


async def test_keys_are_bounded_and_the_unused_are_forgotten() -> None:
    store = RemoteStore(clock=(clock := Hand()))
    leases = Leases(Counting(store, clock), clock, answered=lambda: None, max_keys=50)
    quota = Quota("things", Rate(40, 1), "moving-window")
    for n in range(200):
        assert await leases.take([Ask(quota, f"{n}", 1)]) == [None]
    assert len(leases) == 50
    clock.move(1.1)
    for n in range(40):
        await leases.take([Ask(quota, f"new {n}", 1)])
    assert len(leases) == 40


async def test_a_process_tells_for_how_many_keys_it_remembers_units() -> None:
    store = RemoteStore(clock=Hand())
    limiter = RateLimiter(store=store, publishes=Limit("40/second", by="user", shared=True))
    assert limiter.gauges()["leases"] == 0
    for name in ("ada", "bob", "ada"):
        assert (await limiter.publishes.take(subject(name), {})).allowed
    assert limiter.gauges()["leases"] == 2
    await limiter.aclose()
