"""The dashboard: what the server counts, told once a second for as long as somebody watches."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

from demo.stats import Report, Stats
from starlette_realtime import Realtime, Unavailable

ROOM = "dashboard"
EVERY = 1.0


class Dashboard:
    """
    A room whose members hear `stats` every second, and ask with `snapshot` for the last minutes.

    It is ephemeral: whoever was away asks again. `rooms` are those that are shown.
    """

    def __init__(self, realtime: Realtime, rooms: Collection[str]) -> None:
        self.stats = Stats(realtime, rooms)
        self._realtime = realtime
        self._room = realtime.room(ROOM, history=None)
        self._room.on("snapshot", limit="2/second")(self._snapshot)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sample for as long as the block lasts."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _snapshot(self) -> Report:
        return self.stats.recent()

    async def _run(self) -> None:
        view = self._room.at()
        while True:
            await self._realtime.clock.sleep(EVERY)
            self.stats.sample()
            if self._realtime.occupancy().get(ROOM):
                with suppress(Unavailable):  # the next one is as good
                    await view.broadcast_volatile("stats", self.stats.latest())
