"""A clock for tests: time stands still until the test moves it, and timers fire in order."""

import asyncio
from collections.abc import Awaitable, Callable
from heapq import heappop
from typing import TypeVar
from weakref import WeakSet

from starlette_realtime.clock import Clock

__all__ = ["FakeClock", "settle", "standstill"]

T = TypeVar("T")

_clocks: "WeakSet[FakeClock]" = WeakSet()


async def settle(rounds: int = 1_000) -> None:
    """
    Let the event loop run until nothing is ready, at most `rounds` times.

    What waits for a socket, a thread or a timer is not ready. A loop that does not show its queue (uvloop) is given a
    fixed fifty rounds.
    """
    ready = getattr(asyncio.get_running_loop(), "_ready", None)
    for _ in range(rounds if ready is not None else min(rounds, 50)):
        await asyncio.sleep(0)
        if ready is not None and not ready:
            return


class FakeClock(Clock):
    """
    A `Clock` that only the test moves: `now()` and `time()` go together.

    `now` is where the monotonic time starts, `time` the Unix time then, both in seconds.

    It governs what is given this clock and nothing else: `asyncio.sleep`, `asyncio.timeout`, sockets and threads keep
    to real time, and time never waits for them. One clock may serve many applications and peers of one event loop.
    """

    def __init__(self, *, now: float = 1_000.0, time: float = 1_800_000_000.0) -> None:
        super().__init__()
        self._now = now
        self._ahead = time - now
        _clocks.add(self)

    def now(self) -> float:
        """Seconds that only the test adds to."""
        return self._now

    def time(self) -> float:
        """Unix time: what `now` is, shifted."""
        return self._now + self._ahead

    @property
    def next_timer(self) -> float | None:
        """In how many seconds the next timer is due, 0 where it is overdue; None: none waits."""
        when = self._next()
        return None if when is None else max(0.0, when - self._now)

    async def advance(self, seconds: float) -> None:
        """
        Move the time by `seconds`: each timer on the way fires at its own time, in order, and the event loop settles
        before the next one and at the end.
        """
        if seconds < 0:
            raise ValueError("time does not run backwards: advance() takes seconds >= 0")
        target = self._now + seconds
        await settle()
        while await self._fire_next(target):
            pass
        self._now = max(self._now, target)
        await settle()

    async def until(self, condition: Callable[[], object], *, within: float = 60.0) -> None:
        """
        Move the time from timer to timer until `condition()` is true, and not at all where it is true at once.

        Raises `TimeoutError` when it is not, `within` seconds of this clock later.
        """
        target = self._now + within
        await settle()
        while not condition():
            if not await self._fire_next(target):
                self._now = max(self._now, target)
                await settle()
                if not condition():
                    raise TimeoutError(f"the condition did not come true within {within} s of the clock")

    async def run(self, awaitable: Awaitable[T], *, within: float = 60.0, timeout: float = 5.0) -> T:
        """
        Await something that waits for this clock itself: the time moves from timer to timer until it is done.

        Raises `TimeoutError` after `within` seconds of this clock, or where no timer is left and `timeout` seconds of
        real time don't help either. What was awaited is then cancelled.
        """
        task = asyncio.ensure_future(awaitable)
        target = self._now + within
        try:
            await settle()
            while not task.done():
                if not await self._fire_next(target):
                    # No timer of this clock can help: it waits for a thread, a socket or for nothing.
                    await asyncio.wait((task,), timeout=timeout)
                    if not task.done():
                        raise TimeoutError(f"not done within {within} s of the clock and {timeout} s of real time")
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    async def _fire_next(self, latest: float) -> bool:
        """Move to the next timer, unless it is due later than that, and settle."""
        when = self._next()
        if when is None or when > latest:
            return False
        self._now = max(self._now, when)
        self.run_due()
        await settle()
        return True

    def _next(self) -> float | None:
        while self._heap and not self._heap[0].active:
            heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0].when if self._heap else None

    def _arm(self) -> None:
        """The event loop's own timers are not used: they would run on real time."""


def standstill() -> str:
    """What a time limit adds to its complaint where a fake clock of this event loop has timers; else ""."""
    loop = asyncio.get_running_loop()
    due = [clock.next_timer for clock in list(_clocks) if clock._loop is loop]
    soonest = min((seconds for seconds in due if seconds is not None), default=None)
    if soonest is None:
        return ""
    return f"; a fake clock stands still, and its next timer is due in {soonest:.6g} s: advance() moves it"
