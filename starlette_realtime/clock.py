"""Clock: the time that is passed in, and the one queue of all timers that run on it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heappush
from typing import Any

from starlette_realtime.errors import ConfigurationError

__all__ = ["Clock", "Timer"]


class Timer:
    """One callback that is due at `when` (seconds of `Clock.now`), until it is cancelled."""

    __slots__ = ("_clock", "args", "callback", "when")

    def __init__(self, clock: "Clock", when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._clock: Clock | None = clock
        self.when = when
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when

    @property
    def active(self) -> bool:
        """Whether the callback is still to come."""
        return self._clock is not None

    def cancel(self) -> None:
        """Don't call; a timer that has fired or was cancelled stays as it is."""
        clock, self._clock = self._clock, None
        if clock is not None:
            self.callback, self.args = None, ()
            clock._forget()


class Clock:
    """
    The system's time, and timers on it.

    However many timers wait, the event loop holds one. A clock serves one event loop at a time. Tests pass a
    `starlette_realtime.testing.FakeClock` instead, and move it.
    """

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._cancelled = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """Seconds that only ever rise, from an arbitrary start."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    @property
    def timers(self) -> int:
        """How many timers wait."""
        return len(self._heap) - self._cancelled

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call `callback(*args)` once, `delay` seconds from now, on the running event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and self.timers and not self._loop.is_closed():
                raise ConfigurationError("a Clock serves one event loop at a time: give each loop its own")
            self._loop, self._heap, self._cancelled, self._handle = loop, [], 0, None
        timer = Timer(self, self.now() + max(0.0, delay), callback, args)
        heappush(self._heap, timer)
        if self._heap[0] is timer:
            self._arm()
        return timer

    async def sleep(self, delay: float) -> None:
        """Wait `delay` seconds."""
        done = asyncio.Event()
        timer = self.call_later(delay, done.set)
        try:
            await done.wait()
        finally:
            timer.cancel()

    @asynccontextmanager
    async def timeout(self, delay: float | None) -> AsyncIterator[None]:
        """Cancel the block and raise `TimeoutError` when it takes over `delay` seconds; None: no limit."""
        if delay is None:
            yield
            return
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as scope:
            timer = self.call_later(delay, lambda: scope.reschedule(loop.time()))
            try:
                yield
            finally:
                timer.cancel()

    def run_due(self) -> None:
        """Call what is due by now. An exception goes to the loop's exception handler; the others still run."""
        now = self.now()
        while self._heap and (self._heap[0].when <= now or not self._heap[0].active):
            timer = heappop(self._heap)
            if not timer.active:
                self._cancelled -= 1
                continue
            callback, args = timer.callback, timer.args
            timer._clock, timer.callback, timer.args = None, None, ()
            assert callback is not None
            try:
                callback(*args)
            except Exception as exc:
                context = {"message": "a timer's callback failed", "exception": exc}
                asyncio.get_running_loop().call_exception_handler(context)

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._heap:
            assert self._loop is not None
            self._handle = self._loop.call_later(max(0.0, self._heap[0].when - self.now()), self._fire)

    def _fire(self) -> None:
        self._handle = None
        self.run_due()
        if self._handle is None:
            self._arm()

    def _forget(self) -> None:
        """Count one cancelled timer; sweep when they are most of the heap, so that churn leaves nothing behind."""
        self._cancelled += 1
        if self._cancelled * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if timer.active]
            heapify(self._heap)
            self._cancelled = 0
            if not self._heap and self._handle is not None:
                self._handle.cancel()
                self._handle = None
