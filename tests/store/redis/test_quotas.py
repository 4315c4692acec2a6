"""Quotas on a real server decide as those in memory do, hold over all processes, and are away when it is."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import limits
import pytest
from limits.aio.strategies import STRATEGIES

from starlette_realtime.errors import ConfigurationError, StoreError
from starlette_realtime.ratelimit import Gate, Limit, RateLimiter, Subject
from starlette_realtime.store.quotas import MemoryQuotas
from starlette_realtime.store.redis.quotas import RedisQuotas
from tests.store.redis.support import FaultyStore, Servers, stores
from tests.support.redis import BINARIES, cluster, sentinels, server
from tests.support.waiting import until

KINDS: dict[str, Callable[..., Any]] = {"single": server, "sentinel": sentinels, "cluster": cluster}
NAMES = list(STRATEGIES)
LONG = 10_000_000  # seconds: no window ends meanwhile
ADA = Subject({"type": "http"}, "ada")

Pair: TypeAlias = tuple[FaultyStore, FaultyStore]


@pytest.fixture(scope="module", params=list(KINDS))
async def servers(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Servers]:
    async with KINDS[request.param](BINARIES[0]) as running:
        yield running


@pytest.fixture
async def pair(servers: Servers) -> AsyncIterator[Pair]:
    """Two processes."""
    async with AsyncExitStack() as stack:
        one, other = await stack.enter_async_context(stores(servers, 2, lease=30.0, beat=5.0, timeout=0.8))
        yield await stack.enter_async_context(one), await stack.enter_async_context(other)


async def take(gate: Gate, count: int) -> int:
    """How many of so many pass."""
    return [(await gate.take(ADA, {})).allowed for _ in range(count)].count(True)


def gate(store: FaultyStore, rate: str, **options: Any) -> Gate:
    """A limit, as that process counts it."""
    return RateLimiter(store=store).gate("things", Limit(rate, by="user", shared=True, **options))


def keys(store: FaultyStore) -> str:
    """What its keys of quotas begin with."""
    assert isinstance(store.limits, RedisQuotas)
    return store.limits.bridge.key_prefix


@pytest.mark.parametrize("name", NAMES)
async def test_every_strategy_decides_as_in_memory(pair: Pair, name: str) -> None:
    rng = random.Random(name)
    ours = [STRATEGIES[name](store.limits) for store in pair]  # type: ignore[abstract]
    model = STRATEGIES[name](MemoryQuotas())  # type: ignore[abstract]
    for _ in range(200):
        item = limits.RateLimitItemPerSecond(rng.choice([3, 20, 50]), LONG)
        who = rng.choice(["a", "b", "{a}", "a/b"])
        cost = rng.choice([1, 1, 1, 2, 3, 7, 20])
        asked = rng.choice(ours)
        if rng.random() < 0.7:
            assert await asked.hit(item, who, cost=cost) is await model.hit(item, who, cost=cost)
        else:
            assert await asked.test(item, who, cost=cost) is await model.test(item, who, cost=cost)
        assert (await asked.get_window_stats(item, who)).remaining == (
            await model.get_window_stats(item, who)
        ).remaining


@pytest.mark.parametrize("name", NAMES)
async def test_a_window_ends_by_itself(pair: Pair, name: str) -> None:
    strategy = STRATEGIES[name](pair[0].limits)  # type: ignore[abstract]
    item = limits.RateLimitItemPerSecond(3, 1)
    begun = time.monotonic()
    assert [await strategy.hit(item, "a") for _ in range(4)] == [True, True, True, False]
    while not await strategy.hit(item, "a"):  # which doesn't make it longer
        assert time.monotonic() - begun < 5.0
        await asyncio.sleep(0.01)
    assert time.monotonic() - begun > 0.3, "not at once"


async def test_the_end_of_a_window_is_told_in_parts_of_a_second(pair: Pair) -> None:
    quotas = pair[0].limits
    await quotas.incr("things", 5)
    begun, told = time.time(), list[float]()
    while time.time() < begun + 1.0:
        told.append(await quotas.get_expiry("things"))
        await asyncio.sleep(0.02)
    assert max(told) - min(told) < 0.4, "in whole seconds it would jump by one"
    assert begun + 4.5 < min(told) < begun + 5.5
    assert await quotas.get_expiry("nothing") <= time.time()


@pytest.mark.parametrize("strategy", NAMES)
async def test_processes_count_together_and_charge_in_advance(pair: Pair, strategy: Any) -> None:
    one, other = (gate(store, "40/20 seconds", strategy=strategy) for store in pair)
    assert await take(one, 12) + await take(other, 12) == 24
    passed = await take(other, 60) + await take(one, 60)
    assert 40 - 4 - 24 <= passed <= 40 - 24, "at most a second's worth is held in advance by each"


async def test_a_fast_sender_costs_the_server_few_questions(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = pair[0], 0
    run = store._link.run

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        return await run(*args, **options)

    sender = gate(store, "1000/second")
    assert await take(sender, 1)
    monkeypatch.setattr(store._link, "run", counted)
    assert await take(sender, 300) == 300
    assert asked < 100


@pytest.mark.parametrize("name", ["{a}", "{}", "}{", "a}b{c", "{a}{b}", "{{a}}", "\ud800"])
async def test_names_with_braces_stay_in_one_slot(pair: Pair, name: str) -> None:
    limit = Limit("2/hour", by=lambda _: name, shared=True, strategy="sliding-window-counter")
    one, other = (RateLimiter(store=store).gate("{things}", limit) for store in pair)
    assert (await take(one, 2), await take(other, 2)) == (2, 0)


async def test_keys_are_below_the_stores_prefix_and_expire(servers: Servers) -> None:
    async with stores(servers, 1, prefix="{an} app") as (store,), store:
        for name in NAMES:
            assert await STRATEGIES[name](store.limits).hit(  # type: ignore[abstract]
                limits.RateLimitItemPerSecond(3, 60), "a", name
            )
        assert keys(store) == "%7Ban%7D%20app:quotas"
        for name in NAMES:
            key = f"LIMITER/a/{name}/3/60/second"
            found = f"{{{key}}}" if name == "sliding-window-counter" else key
            assert 50 < await store.limits.get_expiry(found) - time.time() <= 120
            await store.limits.clear(found)
            assert await store.limits.get(found) == 0


async def test_a_storage_answers_what_limits_asks_besides(pair: Pair) -> None:
    assert await pair[0].limits.check()
    assert pair[0].limits.base_exceptions is StoreError
    with pytest.raises(NotImplementedError, match="delete the keys that begin with"):
        await pair[0].limits.reset()


async def test_a_store_that_was_not_entered_says_so(servers: Servers) -> None:
    async with stores(servers, 1) as (store,):
        with pytest.raises(ConfigurationError, match="lifespan"):
            await take(gate(store, "5/minute"), 1)
        with pytest.raises(ConfigurationError, match="lifespan"):
            await store.limits.get("a")


async def test_a_lost_answer_lets_no_more_through(pair: Pair) -> None:
    one, other = (gate(store, "20/hour") for store in pair)
    passed = 0
    for _ in range(3):
        pair[0].lose_reply(b"EVALSHA")
        passed += await take(one, 3)
    passed += await take(other, 40)
    assert 9 <= passed <= 20


async def test_a_server_that_is_away_is_warned_of_once_and_each_process_has_its_share(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    store, limiter = pair[0], RateLimiter(store=pair[0])
    things = limiter.gate("things", Limit("20/hour", by="user", shared=True, strategy="fixed-window"))
    assert await take(things, 1) == 1
    await until(lambda: limiter.quotas.nodes == 2)
    with caplog.at_level(logging.INFO, "starlette_realtime.ratelimit"):
        store.half_open()
        assert await take(things, 30) == 10
        store.restore()

        deadline = time.monotonic() + 10.0
        while not await take(things, 1):
            assert time.monotonic() < deadline, "who was refused here is let in again as soon as the store is back"
            await asyncio.sleep(0.05)
        # What was asked for in vain may have arrived all the same, and be charged.
        assert await take(things, 30) in (17, 18)
    told = [record.message.split(":")[0] for record in caplog.records]
    assert told == ["the store is away", "the store is back"]
    await limiter.aclose()


async def test_a_server_that_is_away_is_a_store_error(pair: Pair) -> None:
    pair[0].cut()
    with pytest.raises(StoreError):
        await pair[0].limits.get("a")
    assert not await pair[0].limits.check()
    pair[0].restore()
    deadline = time.monotonic() + 10.0
    while not await pair[0].limits.check():
        assert time.monotonic() < deadline
