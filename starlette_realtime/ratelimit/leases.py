"""Leases: units of shared quotas that a process has charged in advance, so that not every hit asks the store."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from math import inf

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.ratelimit.buckets import MAX_KEYS
from starlette_realtime.ratelimit.counting import Ask, Counting, Quota
from starlette_realtime.ratelimit.rate import Decision

__all__ = ["ANSWER", "LEASE", "Leases"]

ANSWER = 0.5
"""Seconds that the store has to answer: what is limited is to be refused within two, its own time limit included."""

LEASE = 1.0
"""Seconds after which units that were charged in advance lapse unspent, at the latest."""

HOLD = 3.0
"""Seconds for which no more is asked for in advance than before, after there was too little left."""

WORTH = 12
"""How many units a whole window must bring at the pace of late, for it to be worth asking when it ends."""

SWEEP = 2
"""How many of the longest unused keys each new one looks at."""


class Waiter:
    """Somebody who waits for the store; hears until when the units count that were charged, or why there are none."""

    __slots__ = ("ask", "heard")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.heard: asyncio.Future[float | Decision] = asyncio.get_running_loop().create_future()


class Lease:
    """
    What one process holds of one key of a quota: units that the store has charged, and are not spent yet.

    At most a quarter of the amount, and what the rate gives in a second, so that who sends now and then is counted
    exactly; and only as many as are spent, at the pace of late, in half of the time that they last, so that hardly any
    lapse.
    """

    __slots__ = (
        "_units",
        "_until",
        "asked",
        "ends",
        "extra",
        "held",
        "most",
        "pump",
        "seconds",
        "spent",
        "used",
        "waiters",
        "window",
    )

    def __init__(self, quota: Quota) -> None:
        self.window = quota.rate.seconds
        self.seconds = min(LEASE, self.window)
        self.most = min(quota.amount // 4, int(quota.rate.per_second * self.seconds))
        self.ends = inf if quota.strategy == "moving-window" else -inf  # the window, as far as is known
        self.used = -inf  # when somebody wanted some last
        self.asked = -inf  # when the store was asked last
        self.spent = 0  # since then
        self.extra = 0  # how many units were asked for in advance then
        self.held = -inf  # until when that is not raised, as there was too little left
        self.waiters: deque[Waiter] = deque()
        self.pump: asyncio.Task[None] | None = None
        self._units = 0
        self._until = -inf

    def left(self, now: float) -> int:
        """How many units may be spent."""
        if now >= self._until:
            self._units = 0
        return self._units

    def spend(self, units: int, now: float) -> float | None:
        """Spend so many, and tell until when they would have counted; None where there are too few."""
        if self.left(now) < units:
            return None
        self._units -= units
        self.spent += units
        return self._until

    def put(self, units: int, until: float, now: float) -> None:
        """Keep units that were charged and are not spent, until then."""
        if units <= 0 or until <= now:
            return
        # Two kinds become one, of which none lasts longer than it may.
        self._until = min(until, self._until) if self.left(now) else until
        self._units = min(self._units + units, self.most)

    def lasts(self, now: float) -> float:
        """For how long units that are charged now may be kept, in seconds; not positive: for no time."""
        return min(self.seconds, self.ends - now)

    def worth(self, now: float) -> bool:
        """Whether it is worth asking when the window ends."""
        elapsed = now - self.asked
        return self.most > 0 and elapsed < self.seconds and self.spent * self.window >= WORTH * elapsed

    def advance(self, cost: int, now: float) -> int:
        """How many units to ask for beyond those that are wanted; a multiple of `cost`."""
        lasts, elapsed = self.lasts(now), now - self.asked
        if elapsed >= lasts or not self.most:
            self.extra = 0
            return 0
        raised = self.extra if now < self.held else max(cost, 2 * self.extra)
        if elapsed > 0:
            raised = min(raised, int(max(0, self.spent) * lasts / (2 * elapsed)))
        self.extra = min(raised, self.most) // cost * cost
        return self.extra

    def idle(self, now: float) -> bool:
        """Whether forgetting it changes nothing."""
        # Who wants some may still be at a question that comes before the pump's.
        return self.pump is None and now - max(self.used, self.asked) >= self.seconds and not self.left(now)


class Leases:
    """
    Takes units of a store's quotas: those held in advance first, and asks for more where they don't suffice.

    Who asks for the same key at once shares one question at a time; `answered` is called after each that was
    answered. At most `max_keys` are remembered.
    """

    def __init__(
        self, counting: Counting, clock: Clock, *, answered: Callable[[], object], max_keys: int = MAX_KEYS
    ) -> None:
        self._counting = counting
        self._clock = clock
        self._answered = answered
        self._max = max_keys
        self._leases: OrderedDict[tuple[Quota, str], Lease] = OrderedDict()
        self._pumps: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._leases)

    def left(self, ask: Ask) -> int:
        """How many units this process holds of that key."""
        lease = self._leases.get((ask.quota, ask.who))
        return lease.left(self._clock.now()) if lease is not None else 0

    async def take(self, asks: Sequence[Ask]) -> list[Decision | None]:
        """
        Take them all, or none; tells the refusals, None for each that was allowed. Raises the storage's errors.

        What was charged for some before another one refused is kept, and spent on what comes next.
        """
        now = self._clock.now()
        leases = [self._lease(ask, now) for ask in asks]
        short = [ask for ask, lease in zip(asks, leases, strict=True) if lease.left(now) < ask.whole]
        if len(short) > 1:
            # Asking first keeps what another one refuses from being charged.
            looked = dict(zip(short, await self._look(short), strict=True))
            if any(looked.values()):
                return [looked.get(ask) for ask in asks]
            now = self._clock.now()
        taken: list[tuple[Lease, int, float]] = []
        waiting: list[tuple[int, Lease, Waiter]] = []
        for n, (ask, lease) in enumerate(zip(asks, leases, strict=True)):
            until = lease.spend(ask.whole, now)
            if until is not None:
                taken.append((lease, ask.whole, until))
            else:
                waiting.append((n, lease, self._wait(lease, ask)))
        decisions: list[Decision | None] = [None] * len(asks)
        allowed = False
        try:
            for n, _, waiter in waiting:
                heard = await waiter.heard
                decisions[n] = heard if isinstance(heard, Decision) else None
            allowed = not any(decisions)
        finally:
            if not allowed:
                self._put_back(taken, waiting)
        return decisions

    async def close(self) -> None:
        """Ask no more; who waits hears a `StoreError`."""
        for pump in tuple(self._pumps):
            pump.cancel()
            await asyncio.wait((pump,))

    # --- one key ----------------------------------------------------------------------------------------------------

    def _lease(self, ask: Ask, now: float) -> Lease:
        key = (ask.quota, ask.who)
        lease = self._leases.get(key)
        if lease is not None:
            self._leases.move_to_end(key)
            lease.used = now
            return lease
        for _ in range(SWEEP):
            oldest = next(iter(self._leases), None)
            if oldest is None or not self._leases[oldest].idle(now):
                break
            del self._leases[oldest]
        if len(self._leases) >= self._max:
            self._leases.popitem(last=False)
        lease = self._leases[key] = Lease(ask.quota)
        lease.used = now
        return lease

    def _wait(self, lease: Lease, ask: Ask) -> Waiter:
        waiter = Waiter(ask)
        lease.waiters.append(waiter)
        if lease.pump is None:
            pump = lease.pump = asyncio.get_running_loop().create_task(self._serve(lease))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)
            # One that is cancelled before it has begun doesn't say so itself.
            pump.add_done_callback(lambda _: self._served(lease) if lease.pump is pump else None)
        return waiter

    def _put_back(self, taken: list[tuple[Lease, int, float]], waiting: list[tuple[int, Lease, Waiter]]) -> None:
        now = self._clock.now()
        for lease, units, until in taken:
            lease.spent -= units
            lease.put(units, until, now)
        for _, lease, waiter in waiting:
            if not waiter.heard.done():
                waiter.heard.cancel()
            elif not waiter.heard.cancelled() and waiter.heard.exception() is None:
                heard = waiter.heard.result()
                if not isinstance(heard, Decision):
                    lease.spent -= waiter.ask.whole
                    lease.put(waiter.ask.whole, heard, now)

    # --- asking -----------------------------------------------------------------------------------------------------

    async def _look(self, asks: Sequence[Ask]) -> list[Decision | None]:
        """The refusals that these would meet."""
        async with self._clock.timeout(ANSWER):
            found = await asyncio.gather(*(self._refusal(ask) for ask in asks), return_exceptions=True)
        decisions: list[Decision | None] = []
        for each in found:
            if isinstance(each, BaseException):
                raise each
            decisions.append(each)
        self._answered()
        return decisions

    async def _refusal(self, ask: Ask) -> Decision | None:
        if await self._counting.room(ask) >= ask.whole:
            return None
        return await self._counting.figures(ask, allowed=False)

    async def _serve(self, lease: Lease) -> None:
        """Ask the store, until nobody waits any more."""
        try:
            while waiter := _first(lease.waiters):
                async with self._clock.timeout(ANSWER):
                    await self._ask(lease, waiter.ask)
                self._answered()
        except Exception as exc:
            lease.extra = 0
            _fail(lease.waiters, exc)
        finally:
            self._served(lease)

    def _served(self, lease: Lease) -> None:
        lease.pump = None
        _fail(lease.waiters, StoreError("the limiter was closed"))  # where it was cancelled

    async def _ask(self, lease: Lease, ask: Ask) -> None:
        """Ask for what is wanted, and some more; where that is not there, for what there is."""
        now, cost, amount = self._clock.now(), ask.whole, ask.quota.amount
        until = lease.spend(cost, now)
        if until is not None:  # put back while it waited
            lease.waiters[0].heard.set_result(until)
            return
        worth = lease.worth(now)
        units = min(amount, _wanted(lease.waiters, amount) + lease.advance(cost, now))
        if cost > 1 and ask.quota.strategy == "fixed-window":
            # It counts refusals: what is too large would use up what small ones could have.
            room = await self._counting.room(ask)
            if room < cost:
                _refuse(lease.waiters, cost, await self._counting.figures(ask, allowed=False))
                return
            units = units if units <= room else _wanted(lease.waiters, room)
        granted, ends = await self._counting.charge(ask, units)
        figures = None
        if granted < units:
            lease.extra //= 2
            lease.held = now + HOLD
        if granted < cost:
            figures = await self._counting.figures(ask, allowed=False)
            if units > cost and not granted and figures.remaining >= cost:
                now, units = self._clock.now(), max(cost, _wanted(lease.waiters, figures.remaining))
                granted, ends = await self._counting.charge(ask, units)
                if granted < cost:
                    figures = await self._counting.figures(ask, allowed=False)
        if ends is not None:
            lease.ends = ends
        lease.asked, lease.spent = now, 0
        _grant(lease, granted, now + lease.lasts(now), self._clock.now())
        if granted < cost and figures is not None:
            _refuse(lease.waiters, cost, figures)
        elif worth and lease.ends <= now:
            lease.ends = await self._counting.ends(ask)


def _first(waiters: deque[Waiter]) -> Waiter | None:
    """Who has waited longest, and still does."""
    while waiters and waiters[0].heard.done():
        waiters.popleft()
    return waiters[0] if waiters else None


def _wanted(waiters: deque[Waiter], most: int) -> int:
    """What those want who wait longest, as many of them as `most` units suffice for."""
    units = 0
    for waiter in waiters:
        if not waiter.heard.done():
            if units + waiter.ask.whole > most:
                break
            units += waiter.ask.whole
    return units


def _grant(lease: Lease, units: int, until: float, now: float) -> None:
    """Give units to who waits, in turn, and keep what is left."""
    for waiter in lease.waiters:
        if not waiter.heard.done() and waiter.ask.whole <= units:
            units -= waiter.ask.whole
            lease.spent += waiter.ask.whole
            waiter.heard.set_result(until)
    lease.put(units, until, now)


def _refuse(waiters: deque[Waiter], cost: int, decision: Decision) -> None:
    """Turn away who wants as much as was refused, or more."""
    for waiter in waiters:
        if not waiter.heard.done() and waiter.ask.whole >= cost:
            waiter.heard.set_result(decision)


def _fail(waiters: deque[Waiter], exc: Exception) -> None:
    while waiter := _first(waiters):
        waiter.heard.set_exception(exc)
