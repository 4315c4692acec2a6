"""A clock for tests: time stands still until the test moves it, and timers fire in order."""

import asyncio

from starlette_realtime.clock import Clock

__all__ = ["FakeClock", "settle"]


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
    A `Clock` that only `advance` moves: `now()` and `time()` go together.

    `now` is where the monotonic time starts, `time` the Unix time then, both in seconds.
    """

    def __init__(self, *, now: float = 1_000.0, time: float = 1_800_000_000.0) -> None:
        super().__init__()
        self._now = now
        self._ahead = time - now

    def now(self) -> float:
        """Seconds that only `advance` adds to."""
        return self._now

    def time(self) -> float:
        """Unix time: what `now` is, shifted."""
        return self._now + self._ahead

    async def advance(self, seconds: float) -> None:
        """
        Move the time by `seconds`: each timer on the way fires at its own time, in order, and the event loop settles
        before the next one and at the end.
        """
        if seconds < 0:
            raise ValueError("time does not run backwards: advance() takes seconds >= 0")
        target = self._now + seconds
        await settle()
        while (when := self._next()) is not None and when <= target:
            self._now = max(self._now, when)
            self.run_due()
            await settle()
        self._now = max(self._now, target)
        await settle()

    def _next(self) -> float | None:
        return min((timer.when for timer in self._heap if timer.active), default=None)

    def _arm(self) -> None:
        """The event loop's own timers are not used: they would run on real time."""
