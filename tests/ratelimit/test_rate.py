"""A bucket lets through its burst and its rate, never more, and says truly when to come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError
from starlette_realtime.ratelimit import Rate, TokenBucket


class Hand(Clock):
    """A clock that the test moves."""

    at = 1_000.0

    def now(self) -> float:
        return self.at


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("5/second", Rate(5, 1)),
        ("10/minute", Rate(10, 60)),
        ("10 per minute", Rate(10, 60)),
        ("100 per 5 seconds", Rate(100, 5)),
        ("100/5 seconds", Rate(100, 5)),
        ("1/hour", Rate(1, 3600)),
        (" 2 / DAY ", Rate(2, 86400)),
    ],
)
def test_a_rate_is_written_as_limits_writes_it(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate
    assert rate.per_second == rate.amount / rate.seconds


@pytest.mark.parametrize(
    "text", ["", "5", "five/second", "5/fortnight", "-1/second", "5/second burst 9", "5/s", "9" * 400 + "/second"]
)
def test_a_rate_in_other_words_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="5/second"):
        Rate.parse(text)


def test_several_rates_are_not_quietly_one() -> None:
    with pytest.raises(ConfigurationError, match="is no rate limit"):
        Rate.parse("5/second;100/minute")


@pytest.mark.parametrize(
    ("amount", "seconds"), [(0, 1), (-1, 1), (1, 0), (1, -1), (float("inf"), 1), (1, float("inf")), (1, float("nan"))]
)
def test_a_rate_is_positive(amount: float, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="positive"):
        Rate(amount, seconds)


def test_zero_in_a_second_is_no_rate() -> None:
    with pytest.raises(ConfigurationError, match="positive"):
        Rate.parse("0/second")


@pytest.mark.parametrize("burst", [0, 0.5, -1, float("inf"), float("nan")])
def test_a_burst_is_one_or_more(burst: float) -> None:
    with pytest.raises(ConfigurationError, match="burst"):
        TokenBucket(Rate(5), burst)


def test_a_bucket_counts_by_real_time_unless_it_is_given_a_clock() -> None:
    bucket = TokenBucket(Rate(2, 3_600.0))
    assert bucket.take() == bucket.take() == 0.0
    assert 1_790.0 < bucket.take() <= 1_800.0


def test_a_full_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Hand()
    bucket = TokenBucket(Rate(5, 1.0), 3, clock)
    assert [bucket.take() for _ in range(3)] == [0.0] * 3
    assert bucket.take() == pytest.approx(0.2)
    assert bucket.take() == pytest.approx(0.2)  # a refusal costs nothing
    clock.at += 0.1
    assert bucket.take() == pytest.approx(0.1)
    clock.at += 0.1
    assert bucket.take() == 0.0
    assert bucket.take() > 0.0
    clock.at += 3600.0
    assert [bucket.take() > 0 for _ in range(4)] == [False, False, False, True]


def test_the_burst_is_the_rates_amount_unless_given() -> None:
    bucket = TokenBucket(Rate(5, 10.0), clock=Hand())
    assert bucket.burst == 5
    assert [bucket.take() > 0 for _ in range(6)] == [False] * 5 + [True]


def test_what_remains_is_told() -> None:
    clock = Hand()
    bucket = TokenBucket(Rate(10, 1.0), 4, clock)
    assert bucket.remaining == 4
    bucket.take(2.5)
    assert bucket.remaining == pytest.approx(1.5)
    assert bucket.take(2) == pytest.approx(0.05)
    clock.at += 0.1
    assert bucket.remaining == pytest.approx(2.5)
    clock.at += 60
    assert bucket.remaining == 4


def test_how_long_it_would_take_is_told_without_taking() -> None:
    clock = Hand()
    bucket = TokenBucket(Rate(10, 1.0), 4, clock)
    bucket.take(3)
    assert bucket.wait(1) == 0.0
    assert bucket.wait(2) == pytest.approx(0.1)
    assert bucket.wait(4.5) == float("inf")
    assert bucket.remaining == pytest.approx(1)
    assert bucket.reset == pytest.approx(0.3)
    bucket.give_back(2)
    assert bucket.remaining == pytest.approx(3)


def test_what_came_of_it_is_told_with_figures() -> None:
    clock = Hand()
    bucket = TokenBucket(Rate(10, 1.0), 4.5, clock)
    told = bucket.decide(1.5, "policy")
    assert (told.allowed, told.retry_after, told.remaining, told.limit, told.policy) == (True, 0.0, 3, 4, "policy")
    assert told.reset == pytest.approx(0.15)
    told = bucket.decide(4)
    assert (told.allowed, told.remaining, told.limit) == (False, 3, 4)
    assert told.retry_after == pytest.approx(0.1)
    assert told.reset == pytest.approx(0.15)
    told = bucket.decide(5)
    assert (told.allowed, told.retry_after, told.remaining, told.limit) == (False, None, 3, 4)
    clock.at += 60.0
    told = bucket.decide(0)
    assert (told.allowed, told.remaining, told.reset) == (True, 4, 0.0)
    clock.at += 60.0
    assert bucket.decide(4.5).allowed


@pytest.mark.parametrize("cost", [0, -1, 4.1, float("nan"), float("inf")])
def test_a_cost_that_could_never_be_taken_is_an_error(cost: float) -> None:
    with pytest.raises(ValueError, match="cost"):
        TokenBucket(Rate(1), 4, Hand()).take(cost)


def test_rates_below_a_second_work() -> None:
    clock = Hand()
    bucket = TokenBucket(Rate(1, 0.01), clock=clock)
    assert bucket.take() == 0.0
    assert bucket.take() == pytest.approx(0.01)
    clock.at += 0.01
    assert bucket.take() == 0.0


steps = st.lists(st.tuples(st.floats(0, 5) | st.just(0.0), st.floats(0.1, 1.0) | st.just(1.0)), max_size=80)
rates = st.builds(Rate, st.floats(0.5, 50), st.floats(0.1, 60))


@given(rates, st.floats(1, 30), st.floats(0, 10**7), steps)
def test_no_stretch_of_time_lets_through_more_than_burst_and_rate(
    rate: Rate, burst: float, start: float, schedule: list[tuple[float, float]]
) -> None:
    clock = Hand()
    clock.at = start
    bucket = TokenBucket(rate, burst, clock)
    taken: list[tuple[float, float]] = []
    for pause, cost in schedule:
        clock.at += pause
        before = bucket.remaining
        if bucket.take(cost) == 0.0:
            taken.append((clock.at, cost))
            assert bucket.remaining == pytest.approx(max(0.0, before - cost), abs=1e-3)
        else:
            assert bucket.remaining == before < cost
    for n, (begin, _) in enumerate(taken):
        total = 0.0
        for at, cost in taken[n:]:
            total += cost
            assert total <= burst + rate.per_second * (at - begin + 1e-5)


@given(rates, st.floats(1, 30), st.floats(0, 10**7), st.lists(st.floats(0.1, 1.0), min_size=1, max_size=60))
def test_whoever_waits_as_told_is_let_through(rate: Rate, burst: float, start: float, costs: list[float]) -> None:
    clock = Hand()
    clock.at = start
    bucket = TokenBucket(rate, burst, clock)
    for cost in costs:
        wait = bucket.take(cost)
        if wait:
            clock.at += wait
            assert bucket.take(cost) == 0.0
