"""A gate counts whom it should, all its limits or none, in this process and in the store."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from starlette_realtime.errors import ConfigurationError, RateLimited
from starlette_realtime.ratelimit import Decision, Limit, Limits, Rate, RateLimiter, Subject, TokenBucket
from starlette_realtime.ratelimit.gate import UNLIMITED
from starlette_realtime.store import MemoryStore
from starlette_realtime.store.redis import RedisStore
from starlette_realtime.testing import FakeClock
from tests.ratelimit.support import OTHER, PUBLIC, scope, subject


async def allowed(limiter: RateLimiter, limits: Limits, subjects: Sequence[Subject], **options: Any) -> list[bool]:
    """Whether each of them, one after the other, may pass a new gate."""
    gate = limiter.gate("things", limits)
    return [(await gate.take(each, {}, **options)).allowed for each in subjects]


# --- one connection, at once ------------------------------------------------------------------------------------------


async def test_a_connections_own_limit_is_decided_at_once() -> None:
    gate = RateLimiter(clock=(clock := FakeClock())).gate("things", Limit("10/second", burst=3))
    assert gate.local
    mine: dict[object, TokenBucket] = {}
    assert [gate.take_now(mine).remaining for _ in range(3)] == [2, 1, 0]
    decision = gate.take_now(mine)
    assert (decision.allowed, decision.remaining, decision.limit, decision.policy) == (False, 0, 3, "things")
    assert decision.retry_after == pytest.approx(0.1)
    assert decision.reset == pytest.approx(0.3)
    assert gate.take_now({}).allowed
    await clock.advance(0.1)
    assert (await gate.take(subject(connection="c"), mine)).allowed
    assert not (await gate.take(subject(connection="c"), mine)).allowed


async def test_what_nothing_limits_passes() -> None:
    gate = RateLimiter().gate("things", ())
    assert gate.local
    assert gate.take_now({}) == await gate.take(subject(), {}) == UNLIMITED
    assert not gate.due({}, UNLIMITED)


async def test_of_several_limits_all_are_charged_or_none() -> None:
    gate = RateLimiter(clock=(clock := FakeClock())).gate("things", "3/second;5/minute")
    mine: dict[object, TokenBucket] = {}
    assert [gate.take_now(mine).allowed for _ in range(4)] == [True, True, True, False]
    await clock.advance(1.0)
    # The refusal cost the minute nothing: two are left of its five, and a twelfth of a second's gain.
    assert [gate.take_now(mine).allowed for _ in range(3)] == [True, True, False]
    decision = gate.take_now(mine)
    assert decision.policy == "things-2"
    assert decision.retry_after == pytest.approx(11.0)


async def test_the_tightest_of_several_limits_is_told() -> None:
    gate = RateLimiter(clock=FakeClock()).gate("things", ["100/second", "4/minute"])
    mine: dict[object, TokenBucket] = {}
    told = gate.take_now(mine)
    assert (told.policy, told.remaining, told.limit) == ("things-2", 3, 4)
    gate = RateLimiter(clock=FakeClock()).gate("things", ["4/minute", "100/second"])
    assert gate.take_now(mine).policy == "things-1"


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from([1, 2, 3])), max_size=40))
def test_several_limits_let_through_what_each_of_them_would(steps: list[tuple[float, int]]) -> None:
    class Hand(FakeClock):
        def move(self, seconds: float) -> None:
            self._now += seconds

    clock = Hand()
    gate = RateLimiter(clock=clock).gate("things", Limit("5/2seconds;4/second", cost=lambda what: what))
    mine: dict[object, TokenBucket] = {}
    models = [TokenBucket(Rate(5, 2), clock=clock), TokenBucket(Rate(4, 1), clock=clock)]
    for pause, cost in steps:
        clock.move(pause)
        fits = not any(model.wait(cost) for model in models)
        decision = gate.take_now(mine, cost)
        assert decision.allowed is fits
        if fits:
            for model in models:
                model.take(cost)
        else:
            assert decision.retry_after == max(model.wait(cost) for model in models)
            clock.move(decision.retry_after or 0.0)
            assert gate.take_now(mine, cost).allowed
            for model in models:
                model.take(cost)


async def test_what_one_limit_does_not_count_another_one_may() -> None:
    limits = [Limit("9/minute", by=lambda peer: peer.headers.get("x-key")), Limit("1/minute", by="address")]
    assert await allowed(RateLimiter(clock=FakeClock()), limits, [subject(), subject()]) == [True, False]


async def test_of_several_refusals_the_longest_is_told() -> None:
    limits = [
        Limit(rate, by="user", shared=True, cost=lambda what: what) for rate in ("2/10seconds", "2/minute", "2/second")
    ]
    store = MemoryStore(clock=FakeClock())
    one, other = (RateLimiter(store=each).gate("things", limits) for each in (store, store.sibling()))
    who = subject("ada")
    assert (await one.take(who, {}, 2)).allowed
    for gate in (other, one, other):  # as the store says; as the bucket; as it is remembered
        refused = await gate.take(who, {}, 1)
        assert not refused.allowed
        assert refused.retry_after == pytest.approx(30 if gate is one else 60, abs=0.01)
        assert refused.policy == "things-2"
    assert (await one.take(who, {}, 3)).retry_after is (await other.take(who, {}, 3)).retry_after is None


# --- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["connection", "user"])
async def test_a_thing_may_cost_more_than_one_or_nothing(by: Any) -> None:
    limiter = RateLimiter(clock=FakeClock())
    gate = limiter.gate("things", Limit("10/second", by=by, cost=lambda frame: len(frame) / 2))
    mine: dict[object, TokenBucket] = {}
    who = subject("ada", connection="c")
    assert (await gate.take(who, mine, "a" * 15)).remaining == 2  # 2.5 are left
    assert not (await gate.take(who, mine, "a" * 6)).allowed
    assert (await gate.take(who, mine, "")).allowed
    assert (await gate.take(who, mine, "a" * 5)).remaining == 0
    assert (await gate.take(who, mine, "")).allowed


@pytest.mark.parametrize("by", ["connection", "user"])
@pytest.mark.parametrize("shared", [False, True])
async def test_what_costs_more_than_may_ever_be_spent_at_once_is_refused_as_such(by: Any, shared: bool) -> None:
    if by == "connection" and shared:
        by = "address"
    gate = RateLimiter(clock=FakeClock()).gate("things", Limit("10/second", by=by, cost=len, shared=shared))
    mine: dict[object, TokenBucket] = {}
    who = subject("ada", connection="c")
    decision = await gate.take(who, mine, "a" * 11)
    assert (decision.allowed, decision.retry_after, decision.remaining, decision.limit) == (False, None, 10, 10)
    refusal = decision.refusal()
    assert (refusal.code, refusal.retry_after) == ("too_expensive", None)
    assert "more than the 10 that may be spent at once" in refusal.message
    assert (await gate.take(who, mine, "a" * 10)).allowed  # it was not charged


@pytest.mark.parametrize("limits", ["10/second", "10/second;20/minute"])
@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf"), None, "1"])
def test_a_cost_that_is_no_cost_is_the_programs_error(cost: Any, limits: str) -> None:
    gate = RateLimiter().gate("things", Limit(limits, cost=lambda what: what))
    with pytest.raises(ConfigurationError, match="a cost is a number, 0 or more, not"):
        gate.take_now({}, cost)


def test_a_refusal_tells_when_to_come_back() -> None:
    refusal = Decision(False, 1.5).refusal()
    assert isinstance(refusal, RateLimited)
    assert (refusal.code, refusal.retry_after) == ("rate_limited", 1.5)


# --- by whom ----------------------------------------------------------------------------------------------------------


async def test_a_user_is_counted_over_all_connections_in_the_process() -> None:
    limiter = RateLimiter(clock=FakeClock())
    visits = [subject("ada", connection="1"), subject("ada", connection="2", client=OTHER), subject("bob")]
    assert await allowed(limiter, Limit("1/minute", by="user"), visits) == [True, False, True]


async def test_who_has_no_name_is_counted_by_connection_or_else_by_address() -> None:
    gate = RateLimiter(clock=FakeClock()).gate("things", Limit("1/minute", by="user"))
    mine: dict[object, TokenBucket] = {}
    assert [(await gate.take(subject(connection="c"), mine)).allowed for _ in range(2)] == [True, False]
    assert (await gate.take(subject(connection="d"), {})).allowed
    assert [(await gate.take(subject(client=PUBLIC), {})).allowed for _ in range(2)] == [True, False]
    assert (await gate.take(subject(client=OTHER), {})).allowed
    assert gate.kept == 2


async def test_nobody_can_be_counted_as_somebody_else_by_a_name() -> None:
    limiter = RateLimiter(clock=FakeClock())
    gate = limiter.gate("things", Limit("1/minute", by="user"))
    for name in ("203.0.113.7", "address:203.0.113.7", "user:ada", "ada", "key:ada"):
        assert (await gate.take(subject(name), {})).allowed
    assert (await gate.take(subject(client=PUBLIC), {})).allowed


async def test_an_ipv6_address_is_counted_with_its_network() -> None:
    visits = [subject(client=(f"2001:db8::{n}", 1)) for n in (1, 2)] + [subject(client=("2001:db8:0:1::1", 1))]
    assert await allowed(RateLimiter(clock=FakeClock()), Limit("1/minute", by="address"), visits) == [True, False, True]


async def test_a_function_says_who_is_counted_and_who_is_not() -> None:
    def key(peer: HTTPConnection) -> str | None:
        return peer.headers.get("x-key")

    visits = [Subject(scope(x_key=key)) for key in ("a", "a", "b")] + [Subject(scope()), Subject(scope())]
    assert await allowed(RateLimiter(clock=FakeClock()), Limit("1/minute", by=key), visits) == [
        True,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("client", [("127.0.0.1", 1), ("10.1.2.3", 1), ("::1", 1), ("fd00::1", 1), None, ("unix", 0)])
async def test_private_peers_are_not_limited_by_address_which_is_said_once(
    client: tuple[str, int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = RateLimiter(clock=FakeClock())
    with caplog.at_level(logging.WARNING, "starlette_realtime"):
        assert await allowed(limiter, Limit("1/minute", by="address"), [subject(client=client)] * 3) == [True] * 3
        await limiter.admit("slot", scope=scope(client))
    (record,) = caplog.records
    assert "limits by address are off for peers of private networks" in record.message


@pytest.mark.parametrize("named", [{"x_forwarded_for": "203.0.113.9"}, {"forwarded": "for=203.0.113.9"}])
async def test_a_proxy_that_is_not_trusted_is_named(caplog: pytest.LogCaptureFixture, named: dict[str, str]) -> None:
    gate = RateLimiter(clock=FakeClock()).gate("things", Limit("1/minute", by="address"))
    with caplog.at_level(logging.WARNING, "starlette_realtime"):
        for headers in ({}, named, named, {}):
            assert (await gate.take(Subject(scope(("10.0.0.2", 1), **headers)), {})).allowed
    assert len(caplog.records) == 2  # a load balancer's own check comes without the header, and must not hide it
    assert "come through a proxy (10.0.0.2)" in caplog.messages[1]
    assert "--forwarded-allow-ips=10.0.0.2" in caplog.messages[1]


async def test_a_private_peer_behind_a_trusted_proxy_is_no_proxy(caplog: pytest.LogCaptureFixture) -> None:
    gate = RateLimiter(clock=FakeClock()).gate("things", Limit("1/minute", by="address"))
    with caplog.at_level(logging.WARNING, "starlette_realtime"):
        await gate.take(Subject(scope(("10.0.0.9", 0), x_forwarded_for="10.0.0.9")), {})
    assert "private networks, such as 10.0.0.9" in caplog.messages[0]


async def test_a_proxy_on_a_unix_socket_is_named_as_well(caplog: pytest.LogCaptureFixture) -> None:
    gate = RateLimiter(clock=FakeClock()).gate("things", Limit("1/minute", by="address"))
    with caplog.at_level(logging.WARNING, "starlette_realtime"):
        await gate.take(Subject(scope(None, x_forwarded_for="203.0.113.9")), {})
    assert "--forwarded-allow-ips='*'" in caplog.messages[0]


# --- what a client is told --------------------------------------------------------------------------------------------


async def test_a_limits_frame_is_due_below_a_quarter_and_once_a_second() -> None:
    limiter = RateLimiter(clock=(clock := FakeClock()))
    gate, other = limiter.gate("things", "8/minute"), limiter.gate("others", "8/minute")
    mine: dict[object, TokenBucket] = {}
    told: dict[object, float] = {}
    due = [gate.due(told, gate.take_now(mine)) for _ in range(9)]
    assert due == [False] * 6 + [True, False, False]
    await clock.advance(0.999)
    assert not gate.due(told, gate.take_now(mine))
    await clock.advance(0.001)
    refused = gate.take_now(mine)
    assert gate.due(told, refused)
    assert not refused.allowed
    assert other.due(told, Decision(False, 5.0, 0, 8, 5.0))


# --- binding ----------------------------------------------------------------------------------------------------------


async def test_a_store_and_a_clock_are_bound_where_none_was_given() -> None:
    store, clock = MemoryStore(clock=FakeClock()), FakeClock()
    limiter = RateLimiter()
    limiter.bind(store, clock)
    assert (limiter.store, limiter.clock) == (store, clock)
    own = MemoryStore(clock=FakeClock())
    limiter = RateLimiter(store=own)
    limiter.bind(store, clock)
    assert (limiter.store, limiter.clock) == (own, own.clock)
    limiter = RateLimiter(clock=own.clock)
    limiter.bind(store, clock)
    assert (limiter.store, limiter.clock) == (store, own.clock)
    limiter = RateLimiter(clock=own.clock)
    assert limiter.store.clock is own.clock


def test_of_several_workers_those_that_share_a_store_are_told_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("starlette_realtime.ratelimit.limiter.several", lambda: True)
    shared = RateLimiter(store=RedisStore("redis://127.0.0.1:1"))
    assert shared.quotas is shared.quotas
    assert not caplog.records
    alone = RateLimiter()
    assert alone.quotas is alone.quotas
    assert [record.message.partition(",")[0] for record in caplog.records] == ["this server runs several workers"]


def test_a_gate_names_itself_and_its_policies() -> None:
    gate = RateLimiter().gate("things", [Limit("10/second", burst=40), Limit("9/minute", by="user", shared=True)])
    assert repr(gate) == "<Gate things>"
    assert not gate.local
    assert gate.policies == (("things-1", 40, 4.0), ("things-2", 9, 60.0))


def test_the_gates_of_a_limiter_are_named_as_its_options_are() -> None:
    limiter = RateLimiter(requests="9/minute", clock=FakeClock())
    gates = (limiter.requests, limiter.handshakes, limiter.frames, limiter.joins, limiter.publishes)
    names = ["requests", "handshakes", "frames", "joins", "publishes"]
    assert [gate.name for gate in gates] == names
    assert [policy for gate in gates for policy, _, _ in gate.policies] == names


def test_a_publication_costs_what_it_costs_whatever_it_says() -> None:
    with pytest.raises(ConfigurationError, match="a publication costs a number"):
        RateLimiter(publishes=Limit("9/minute", by="user", cost=len))
    RateLimiter(publishes=Limit("9/minute", by="user", cost=3))
