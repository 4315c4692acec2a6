"""Counting: what the strategies of `limits` say of one key in the store."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import cast
from urllib.parse import quote

import limits
import limits.aio.storage
import limits.aio.strategies
from limits.aio.storage import MovingWindowSupport, SlidingWindowCounterSupport
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)

from starlette_realtime.clock import Clock
from starlette_realtime.ratelimit.buckets import KeyedBuckets
from starlette_realtime.ratelimit.limit import Strategy
from starlette_realtime.ratelimit.rate import Decision, Rate
from starlette_realtime.store import Store

__all__ = ["EDGE", "Ask", "Counting", "Quota", "sliding_wait"]

LONGEST = 128
"""Characters of a key that the store is given as they are; what is longer is hashed."""

EDGE = 0.001
"""Seconds added to what a window says: at its very end, it still counts."""

STRATEGIES: Mapping[Strategy, Callable[[limits.aio.storage.Storage], limits.aio.strategies.RateLimiter]] = {
    "moving-window": MovingWindowRateLimiter,
    "fixed-window": FixedWindowRateLimiter,
    "sliding-window-counter": SlidingWindowCounterRateLimiter,
}


class Quota:
    """One rate that processes share: `name` tells it from others in the store."""

    __slots__ = ("amount", "item", "local", "name", "rate", "seconds", "strategy")

    def __init__(self, name: str, rate: Rate, strategy: Strategy) -> None:
        self.name = name
        self.rate = rate
        self.strategy = strategy
        self.amount, self.seconds = int(rate.amount), int(rate.seconds)
        self.item = limits.RateLimitItemPerSecond(self.amount, self.seconds, namespace="rt")
        self.local: KeyedBuckets | None = None  # counts while the store is away

    @property
    def surge(self) -> float:
        """How large a token bucket must be to let through whatever the strategy does."""
        # A window that ends is followed by a whole new one; a moving window is never over its amount.
        return self.rate.amount if self.strategy == "moving-window" else 2 * self.rate.amount

    def key(self, who: str) -> tuple[str, str]:
        """What the store is to count under."""
        if len(who) > LONGEST:
            who = "#" + hashlib.sha256(who.encode(errors="surrogatepass")).hexdigest()
        return quote(self.name, safe=""), quote(who.encode(errors="surrogatepass"), safe="")


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to the store: may `who` take `cost`?"""

    quota: Quota
    who: str
    cost: float

    @property
    def whole(self) -> int:
        """The cost as the store counts: in whole things."""
        return ceil(self.cost)

    @property
    def key(self) -> str:
        """What the store counts under, in one."""
        return self.quota.item.key_for(*self.quota.key(self.who))


class Counting:
    """
    One store's quotas, asked about one key at a time.

    Each call is one question to the storage, `figures` one or two. Errors are those of the storage.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._strategies: dict[Strategy, limits.aio.strategies.RateLimiter] = {}

    async def charge(self, ask: Ask, units: int) -> tuple[int, float | None]:
        """
        Charge so many units; tells how many there were: all or none, and in a fixed window as many as were left.

        The second figure is when that window ends, by `clock.now()`, where the charge has begun it; else None.
        """
        quota = ask.quota
        if quota.strategy != "fixed-window":
            strategy = self._strategy(quota.strategy)
            hit = await strategy.hit(quota.item, *quota.key(ask.who), cost=units)
            return (units if hit else 0), None
        sent = self._clock.now()
        count = await self._store.limits.incr(ask.key, quota.seconds, amount=units)
        return max(0, min(units, quota.amount - (count - units))), sent + quota.seconds if count == units else None

    async def room(self, ask: Ask) -> int:
        """How many units there are; may be below 0."""
        quota, storage = ask.quota, self._store.limits
        if quota.strategy == "fixed-window":
            return quota.amount - await storage.get(ask.key)
        if quota.strategy == "moving-window":
            moving = cast(MovingWindowSupport, storage)
            return quota.amount - (await moving.get_moving_window(ask.key, quota.amount, quota.seconds))[1]
        before, before_left, count, _ = await self._sliding(ask)
        return quota.amount - floor(before * before_left / quota.seconds + count)

    async def ends(self, ask: Ask) -> float:
        """When the window ends, by `clock.now()`, never later than it does; infinite for one that moves."""
        quota, sent = ask.quota, self._clock.now()
        if quota.strategy == "moving-window":
            return inf
        if quota.strategy == "fixed-window":
            expiry = await self._store.limits.get_expiry(ask.key)
            return sent + expiry - self._clock.time()
        return sent + (await self._sliding(ask))[3] - quota.seconds

    async def figures(self, ask: Ask, *, allowed: bool) -> Decision:
        """What there is to say about a decision that was made."""
        quota = ask.quota
        seconds, amount = quota.seconds, quota.amount
        if quota.strategy == "sliding-window-counter":
            window = await self._sliding(ask)
            before, before_left, count, left = window
            used = floor(before * before_left / seconds + count)
            wait = 0.0 if allowed else sliding_wait(amount - ask.whole + 1, seconds, *window)
            reset = left if count else before_left
            return Decision(allowed, wait, max(0, amount - used), amount, reset)
        stats = await self._strategy(quota.strategy).get_window_stats(quota.item, *quota.key(ask.who))
        reset = min(max(0.0, stats.reset_time - self._clock.time()), quota.rate.seconds)
        # Where there is room already, what refused has ended this very moment.
        wait = EDGE if stats.remaining >= ask.whole else reset + EDGE
        return Decision(allowed, 0.0 if allowed else wait, max(0, stats.remaining), amount, reset)

    async def _sliding(self, ask: Ask) -> tuple[int, float, int, float]:
        storage = cast(SlidingWindowCounterSupport, self._store.limits)
        return await storage.get_sliding_window(ask.key, ask.quota.seconds)

    def _strategy(self, name: Strategy) -> limits.aio.strategies.RateLimiter:
        strategy = self._strategies.get(name)
        if strategy is None:
            strategy = self._strategies[name] = STRATEGIES[name](self._store.limits)
        return strategy


def sliding_wait(room: int, seconds: int, before: int, before_left: float, count: int, left: float) -> float:
    """When the weighted count of both windows falls below `room`, in seconds: it falls evenly, then they move on."""
    if count < room:
        return (max(0.0, before_left - (room - count) * seconds / before) if before else 0.0) + EDGE
    rest = max(0.0, left - seconds)  # until the current window is the previous one
    return rest + max(0.0, seconds - room * seconds / max(1, count)) + EDGE
