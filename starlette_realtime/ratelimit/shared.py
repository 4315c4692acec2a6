"""Shared quotas: what all processes count together in the store, and what one counts while the store is away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from limits.errors import StorageError

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.ratelimit.buckets import KeyedBuckets
from starlette_realtime.ratelimit.counting import Ask, Counting
from starlette_realtime.ratelimit.leases import ANSWER, Leases
from starlette_realtime.ratelimit.rate import Decision, Rate
from starlette_realtime.store import PROCESSES, Store
from starlette_realtime.store.quotas import MemoryQuotas

__all__ = ["SharedQuotas"]

logger = logging.getLogger("starlette_realtime.ratelimit")

AWAY = 1.0
"""Seconds after a failure until the store is asked again, so that not everything waits for it in turn."""

NODES = 10.0
"""Seconds between two looks at how many processes there are."""


class SharedQuotas:
    """
    Asks the store; where it doesn't answer, counts here, at the limit divided by the last known processes.

    Quotas in memory are asked each time. Those of a server are asked for units in advance, which are spent here.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._counting = Counting(store, clock)
        self._leases = Leases(self._counting, clock, answered=self.answered)
        self._nodes = 1
        self._counted = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._asks_again = float("-inf")
        self._away = False

    @property
    def nodes(self) -> int:
        """How many processes there were when the store was last asked, at least 1."""
        return self._nodes

    @property
    def leased(self) -> int:
        """For how many keys this process remembers units that it holds, or held of late."""
        return len(self._leases)

    @property
    def away(self) -> bool:
        """Whether the store has failed, and not answered since."""
        return self._away

    def may_ask(self) -> bool:
        """Whether to ask the store: not while it is away. Whether it is back is found out while nobody waits for it."""
        if not self._away:
            return True
        if self._clock.now() >= self._asks_again:
            self._asks_again = self._clock.now() + AWAY
            self._look(self._try_again)
        return False

    async def take(self, asks: Sequence[Ask], *, exact: bool = False) -> list[Decision | None]:
        """
        Take them all, or none; tells for each what came of it.

        None is an allowance without figures, of which only `exact` wants to know. What two processes ask at the same
        moment may be charged though another of its limits refuses.
        """
        if self.may_ask():
            try:
                if isinstance(self._store.limits, MemoryQuotas):  # it doesn't wait for anything
                    decisions = await self._ask(asks, exact)
                    self.answered()
                else:
                    decisions = await self._leases.take(asks)
                    if exact and not any(decisions):
                        decisions = await self._told(asks)
                self.count_nodes()
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
            self._asks_again = float("-inf")
            logger.info("the store is back: limits are counted there again")

    def _is_outage(self, exc: Exception) -> bool:
        # What the driver raises is one exception or a tuple of them; `isinstance` takes both.
        return isinstance(exc, (StoreError, StorageError, OSError, TimeoutError, self._store.limits.base_exceptions))

    def count_nodes(self) -> None:
        """Look, now and then, among how many processes limits and caps are to be divided; nobody waits for it."""
        now = self._clock.now()
        if now - self._counted < NODES:
            return
        self._counted = now
        self._look(self._count_nodes)

    def _look(self, how: Callable[[], Awaitable[None]]) -> None:
        """Ask the store something in the background, one thing at a time."""
        loop = asyncio.get_running_loop()
        if self._looking is None or self._looking.done() or self._looking.get_loop() is not loop:
            self._looking = loop.create_task(self._looked(how))

    async def _looked(self, how: Callable[[], Awaitable[None]]) -> None:
        try:
            async with self._clock.timeout(ANSWER):
                await how()
        except Exception as exc:
            # One that was left meanwhile, say: whoever asks for something hears of that.
            logger.debug("the store doesn't answer: %r", exc)

    async def _try_again(self) -> None:
        if await self._store.limits.check():
            self.answered()
            await self._count_nodes()

    async def _count_nodes(self) -> None:
        # Who serves rooms; publishers and workers share the store, and no limits. Without rooms, all that there are.
        serving = (await self._store.members(PROCESSES, limit=0)).total
        self._nodes = serving or max(1, len(await self._store.nodes()))

    async def close(self) -> None:
        """End what goes on in the background."""
        await self._leases.close()
        looking, self._looking = self._looking, None
        if looking is not None and not looking.done():
            looking.cancel()
            await asyncio.wait((looking,))

    # --- in the store -----------------------------------------------------------------------------------------------

    async def _ask(self, asks: Sequence[Ask], exact: bool) -> list[Decision | None]:
        counting = self._counting
        decisions: list[Decision | None] = [None] * len(asks)
        for n, ask in enumerate(asks):
            # Asking first keeps what is refused from being charged: by another limit, or by a window that counts
            # refusals, where a large one would use up what a small one could have.
            first = len(asks) > 1 or (ask.whole > 1 and ask.quota.strategy == "fixed-window")
            if first and await counting.room(ask) < ask.whole:
                decisions[n] = await counting.figures(ask, allowed=False)
        if any(decisions):
            return decisions
        for n, ask in enumerate(asks):
            allowed = (await counting.charge(ask, ask.whole))[0] >= ask.whole
            if exact or not allowed:
                decisions[n] = await counting.figures(ask, allowed=allowed)
            if not allowed:
                break
        return decisions

    async def _told(self, asks: Sequence[Ask]) -> list[Decision | None]:
        """What the store says of what was allowed; units that are held here still remain."""
        decisions: list[Decision | None] = []
        async with self._clock.timeout(ANSWER):
            for ask in asks:
                told = await self._counting.figures(ask, allowed=True)
                remaining = min(told.limit, told.remaining + self._leases.left(ask))
                decisions.append(Decision(True, 0.0, remaining, told.limit, told.reset))
        return decisions

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
