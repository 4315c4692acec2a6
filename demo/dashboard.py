"""The dashboard: what the server counts, told once a second for as long as somebody watches."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from demo.processes import Peers, Place
from demo.stats import Report, Stats
from starlette_realtime import Realtime, StoreError, Unavailable

ROOM = "dashboard"
EVERY = 1.0


class Dashboard:
    """
    A room whose members hear `stats` every second, and ask with `snapshot` for the last minutes.

    It is ephemeral: whoever was away asks again. `rooms` are those that are shown. Of several processes (`place`) each
    tells of itself, and the answer to `snapshot` has a report of each that was heard in the last minutes.
    """

    def __init__(self, realtime: Realtime, rooms: Collection[str], place: Place | None = None) -> None:
        place = place if place is not None else Place()
        self.stats = Stats(realtime, rooms, process=place.number)
        self.peers = Peers(realtime, self.stats.run)
        self._several = len(place.ports) > 1
        self._realtime = realtime
        self._room = realtime.room(ROOM, history=None)
        self._room.on("snapshot", limit="2/second")(self._snapshot)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sample for as long as the block lasts."""
        async with AsyncExitStack() as stack:
            if self._several:
                await stack.enter_async_context(self.peers.listening())
            task = asyncio.create_task(self._run())
            try:
                yield
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _snapshot(self) -> list[Report]:
        return [self.stats.recent(), *self.peers.recent()]

    async def _run(self) -> None:
        view = self._room.at()
        while True:
            await self._realtime.clock.sleep(EVERY)
            self.stats.sample(elsewhere=self.peers.users, beats=await self._beats())
            latest = self.stats.latest()
            if self._several:
                await self.peers.tell(latest, self.stats.users)
            # Of several processes nobody knows whether somebody watches on another one.
            if self._several or self._realtime.occupancy().get(ROOM):
                with suppress(Unavailable):  # the next one is as good
                    await view.broadcast_volatile("stats", latest)

    async def _beats(self) -> dict[str, float]:
        """How long ago the store last heard of each process; nothing while it is away."""
        if not self._several:
            return {}
        try:
            return {node.id: round(node.age, 1) for node in await self._realtime.store.nodes()}
        except StoreError:
            return {}
