"""Buckets of many keys: one each, forgotten when full, and never too many."""

from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.ratelimit import Rate
from starlette_realtime.ratelimit.buckets import Blocked, KeyedBuckets
from starlette_realtime.testing import FakeClock


async def test_each_key_has_a_bucket_of_its_own() -> None:
    clock, buckets = FakeClock(), KeyedBuckets(Rate(1, 10), 1)
    assert buckets.get("a", clock).take() == 0.0
    assert buckets.get("b", clock).take() == 0.0
    assert buckets.get("a", clock).take() == 10.0


async def test_a_full_bucket_is_forgotten_when_new_keys_come() -> None:
    clock, buckets = FakeClock(), KeyedBuckets(Rate(1, 10), 1)
    for n in range(1_000):
        buckets.get(f"{n}", clock).take()
        await clock.advance(1.0)
    assert len(buckets) <= 11


async def test_at_the_bound_a_full_bucket_goes_first_then_the_one_unused_for_longest() -> None:
    clock, buckets = FakeClock(), KeyedBuckets(Rate(1, 10), 5, max_keys=3)
    buckets.get("oldest", clock).take(5)
    buckets.get("full", clock)
    buckets.get("newest", clock).take(5)
    buckets.get("more", clock).take(5)
    assert len(buckets) == 3
    assert buckets.get("oldest", clock).take() > 0  # "full" went; and this one is now the last that was used
    buckets.get("yet more", clock).take(5)
    assert len(buckets) == 3
    assert buckets.get("oldest", clock).take() > 0
    assert buckets.get("newest", clock).take(5) == 0.0


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 5))))
def test_the_bound_holds_and_no_bucket_in_use_is_forgotten_below_it(steps: list[tuple[int, float]]) -> None:
    class Hand(FakeClock):
        def move(self, seconds: float) -> None:
            self._now += seconds

    clock, bounded, free = Hand(), KeyedBuckets(Rate(1, 3), 2, max_keys=8), KeyedBuckets(Rate(1, 3), 2, max_keys=100)
    reference = {n: KeyedBuckets(Rate(1, 3), 2) for n in range(21)}
    for key, pause in steps:
        clock.move(pause)
        bounded.get(f"{key}", clock).take()
        assert len(bounded) <= 8
        assert free.get(f"{key}", clock).take() == reference[key].get("", clock).take()


def test_a_block_is_known_until_it_ends_and_for_what_it_costs() -> None:
    blocked = Blocked()
    blocked.block("k", 2, until=110.0, now=100.0)
    assert blocked.wait("k", 2, 104.0) == blocked.wait("k", 3, 104.0) == 6.0
    assert blocked.wait("k", 1, 104.0) == 0.0
    assert blocked.wait("else", 2, 104.0) == 0.0
    assert blocked.wait("k", 2, 110.0) == 0.0
    assert len(blocked) == 0


def test_no_block_is_forgotten_before_its_time_below_the_bound() -> None:
    blocked = Blocked()
    for n in range(50):
        blocked.block(f"{n}", 1, until=100.0, now=float(n))
    assert [blocked.wait(f"{n}", 1, 99.0) for n in range(50)] == [1.0] * 50
    blocked.block("last", 1, until=200.0, now=100.0)
    assert len(blocked) == 49  # two of those that have ended went
    assert blocked.wait("last", 1, 100.0) == 100.0


def test_blocks_are_bounded_and_forgotten() -> None:
    blocked = Blocked(max_keys=10)
    for n in range(100):
        blocked.block(f"{n}", 1, until=n + 1_000.0, now=float(n))
        assert len(blocked) <= 10
    assert blocked.wait("0", 1, 100.0) == 0.0
    assert blocked.wait("99", 1, 100.0) == 999.0
    for n in range(20):
        blocked.block(f"later {n}", 1, until=10_000.0 + n, now=5_000.0 + n)
        blocked.block("again", 1, until=5_000.5 + n, now=5_000.0 + n)
    assert len(blocked) <= 10


def test_at_the_bound_a_few_are_looked_at_however_many_there_are() -> None:
    clock, buckets = FakeClock(), KeyedBuckets(Rate(1, 10), 1, max_keys=40)
    for n in range(40):
        bucket = buckets.get(f"{n}", clock)
        if n != 20:
            bucket.take()
    buckets.get("more", clock).take()
    assert len(buckets) == 40
    assert buckets.get("1", clock).take() > 0.0
    assert buckets.get("0", clock).take() == 0.0, "it went, as a full one was far behind it"


def test_who_is_blocked_again_is_not_the_oldest_any_more_and_takes_no_other_place() -> None:
    blocked = Blocked(max_keys=2)
    for key in ("a", "b", "b"):
        blocked.block(key, 1, until=110.0, now=100.0)
    assert [blocked.wait(key, 1, 100.0) for key in ("a", "b")] == [10.0, 10.0]
    for key in ("a", "c"):
        blocked.block(key, 1, until=110.0, now=100.0)
    assert [blocked.wait(key, 1, 100.0) for key in ("a", "b", "c")] == [10.0, 0.0, 10.0]
