"""Shared quotas: what all processes count together in the store, and what one counts while the store is away."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import cast
from urllib.parse import quote

import limits
import limits.aio.storage
import limits.aio.strategies
from limits.aio.storage import SlidingWindowCounterSupport
from limits.aio.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)
from limits.errors import StorageError

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.ratelimit.buckets import KeyedBuckets
from starlette_realtime.ratelimit.limit import Strategy
from starlette_realtime.ratelimit.rate import Decision, Rate
from starlette_realtime.store import Store
from starlette_realtime.store.quotas import MemoryQuotas

__all__ = ["Ask", "Quota", "SharedQuotas"]

logger = logging.getLogger("starlette_realtime.ratelimit")

ANSWER = 1.0
"""Seconds that the store has to answer."""

AWAY = 1.0
"""Seconds after a failure until the store is asked again, so that not everything waits for it in turn."""

NODES = 10.0
"""Seconds between two looks at how many processes there are."""

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

    __slots__ = ("item", "local", "name", "rate", "strategy")

    def __init__(self, name: str, rate: Rate, strategy: Strategy) -> None:
        self.name = name
        self.rate = rate
        self.strategy = strategy
        self.item = limits.RateLimitItemPerSecond(int(rate.amount), int(rate.seconds), namespace="rt")
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


class SharedQuotas:
    """Asks the store; where it doesn't answer, counts here, at the limit divided by the last known processes."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._strategies: dict[Strategy, limits.aio.strategies.RateLimiter] = {}
        self._nodes = 1
        self._counted = float("-inf")
        self._asks_again = float("-inf")
        self._away = False

    @property
    def nodes(self) -> int:
        """How many processes there were when the store was last asked, at least 1."""
        return self._nodes

    @property
    def asking(self) -> bool:
        """Whether the store is asked: not right after it failed."""
        return self._clock.now() >= self._asks_again

    async def take(self, asks: Sequence[Ask], *, exact: bool = False) -> list[Decision | None]:
        """
        Take them all, or none; tells for each what came of it.

        None is an allowance without figures, of which only `exact` wants to know. What two processes ask at the same
        moment may be charged though another of its limits refuses.
        """
        if self.asking:
            try:
                if isinstance(self._store.limits, MemoryQuotas):  # it doesn't wait for anything
                    decisions = await self._ask(asks, exact)
                else:
                    async with self._clock.timeout(ANSWER):
                        decisions = await self._ask(asks, exact)
                self.answered()
                await self.count_nodes()
                return decisions
            except Exception as exc:
                if not self._is_outage(exc):
                    raise
                self.failed(exc)
        return self._take_here(asks)

    def failed(self, exc: BaseException) -> None:
        """The store did not answer."""
        self._asks_again = self._clock.now() + AWAY
        if not self._away:
            self._away = True
            logger.warning(
                "the store is away: limits are counted in this process alone, divided by %d (%r)", self._nodes, exc
            )

    def answered(self) -> None:
        """The store did answer."""
        if self._away:
            self._away = False
            logger.info("the store is back: limits are counted there again")

    def _is_outage(self, exc: Exception) -> bool:
        # What the driver raises is one exception or a tuple of them; `isinstance` takes both.
        return isinstance(exc, (StoreError, StorageError, OSError, TimeoutError, self._store.limits.base_exceptions))

    async def count_nodes(self) -> None:
        """Look, now and then, among how many processes limits and caps are to be divided."""
        now = self._clock.now()
        if now - self._counted < NODES:
            return
        self._counted = now
        try:
            self._nodes = max(1, len(await self._store.nodes()))
        except StoreError as exc:
            logger.debug("the store didn't say how many processes there are: %r", exc)

    # --- in the store -----------------------------------------------------------------------------------------------

    def _strategy(self, name: Strategy) -> limits.aio.strategies.RateLimiter:
        strategy = self._strategies.get(name)
        if strategy is None:
            strategy = self._strategies[name] = STRATEGIES[name](self._store.limits)
        return strategy

    async def _ask(self, asks: Sequence[Ask], exact: bool) -> list[Decision | None]:
        decisions: list[Decision | None] = [None] * len(asks)
        for n, ask in enumerate(asks):
            # Asking first keeps what is refused from being charged: by another limit, or by a window that counts
            # refusals, where a large one would use up what a small one could have.
            if len(asks) > 1 or (ask.whole > 1 and ask.quota.strategy == "fixed-window"):
                strategy = self._strategy(ask.quota.strategy)
                if not await strategy.test(ask.quota.item, *ask.quota.key(ask.who), cost=ask.whole):
                    decisions[n] = await self._figures(ask, allowed=False)
        if any(decisions):
            return decisions
        for n, ask in enumerate(asks):
            strategy = self._strategy(ask.quota.strategy)
            allowed = await strategy.hit(ask.quota.item, *ask.quota.key(ask.who), cost=ask.whole)
            if exact or not allowed:
                decisions[n] = await self._figures(ask, allowed=allowed)
            if not allowed:
                break
        return decisions

    async def _figures(self, ask: Ask, *, allowed: bool) -> Decision:
        quota = ask.quota
        seconds, amount = int(quota.rate.seconds), int(quota.rate.amount)
        if quota.strategy == "sliding-window-counter":
            storage = cast(SlidingWindowCounterSupport, self._store.limits)
            window = await storage.get_sliding_window(quota.item.key_for(*quota.key(ask.who)), seconds)
            before, before_left, count, left = window
            used = floor(before * before_left / seconds + count)
            wait = 0.0 if allowed else _sliding_wait(amount - ask.whole + 1, seconds, *window)
            reset = left if count else before_left
            return Decision(allowed, wait, max(0, amount - used), amount, reset)
        stats = await self._strategy(quota.strategy).get_window_stats(quota.item, *quota.key(ask.who))
        reset = min(max(0.0, stats.reset_time - self._clock.time()), quota.rate.seconds)
        # Where there is room already, what refused has ended this very moment.
        wait = EDGE if stats.remaining >= ask.whole else reset + EDGE
        return Decision(allowed, 0.0 if allowed else wait, max(0, stats.remaining), amount, reset)

    # --- here -------------------------------------------------------------------------------------------------------

    def _take_here(self, asks: Sequence[Ask]) -> list[Decision | None]:
        buckets = []
        for ask in asks:
            quota, rate = ask.quota, Rate(max(1.0, ask.quota.rate.amount / self._nodes), ask.quota.rate.seconds)
            if quota.local is None or quota.local.rate != rate:
                quota.local = KeyedBuckets(rate, rate.amount)
            buckets.append(quota.local.get(ask.who, self._clock))
        # A share of the limit may be less than a cost that the limit allows: then it takes all of the share.
        costs = [min(ask.cost, bucket.burst) for ask, bucket in zip(asks, buckets, strict=True)]
        waits = [bucket.wait(cost) for bucket, cost in zip(buckets, costs, strict=True)]
        if any(waits):
            return [
                Decision(False, wait, int(bucket.remaining), int(bucket.burst), bucket.reset) if wait else None
                for bucket, wait in zip(buckets, waits, strict=True)
            ]
        return [bucket.decide(cost) for bucket, cost in zip(buckets, costs, strict=True)]


def _sliding_wait(room: int, seconds: int, before: int, before_left: float, count: int, left: float) -> float:
    """When the weighted count of both windows falls below `room`, in seconds: it falls evenly, then they move on."""
    if before and count < room:
        return max(0.0, before_left - (room - count) * seconds / before) + EDGE
    rest = max(0.0, left - seconds)  # until the current window is the previous one
    return rest + max(0.0, seconds - room * seconds / max(1, count)) + EDGE
