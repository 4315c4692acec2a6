"""A memory store that plays a networked one: reading it takes a while, is counted, and can be held up."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Delivery, Members, Page, Position, Recovery
from starlette_realtime.store import READ_BYTES, MemoryStore


class RemoteStore(MemoryStore):
    """It keeps rings, and answers on a later turn of the event loop."""

    _rings = True

    def __init__(self, *, clock: Clock | None = None, **options: Any) -> None:
        super().__init__(clock=clock, **options)
        self.asked: Counter[str] = Counter()
        """How often each operation was asked for."""
        self.at_once = 0
        """How many reads and pages were under way at the same time, at most."""
        self.held: asyncio.Event | None = None
        """What reads and pages wait for before they are answered; the answer is from before the wait."""
        self.broken = False
        """Whether reads and pages fail."""
        self._under_way = 0
        self._late: list[tuple[str, Delivery]] | None = None

    def sibling(self) -> "RemoteStore":
        """Another process on the same backend."""
        return RemoteStore(clock=self.clock, backend=self.backend, **self._options)

    def hold_deliveries(self) -> Callable[[], None]:
        """Let deliveries be late until what is returned is called."""
        waiting: list[tuple[str, Delivery]] = []
        self._late = waiting

        def release() -> None:
            self._late = None
            for topic, delivery in waiting:
                self._hear(topic, delivery)

        return release

    def _hear(self, topic: str, delivery: Delivery) -> None:
        if self._late is not None:
            self._late.append((topic, delivery))
        else:
            super()._hear(topic, delivery)

    def reset(self) -> None:
        """Count anew."""
        self.asked.clear()
        self.at_once = 0

    async def read(self, topic: str, *, since: Position | None, limit: int, limit_bytes: int = READ_BYTES) -> Recovery:
        await self._before("read")
        answer = await super().read(topic, since=since, limit=limit, limit_bytes=limit_bytes)
        await self._after()
        return answer

    async def page(self, topic: str, *, before: Position | None, limit: int, limit_bytes: int = READ_BYTES) -> Page:
        await self._before("page")
        answer = await super().page(topic, before=before, limit=limit, limit_bytes=limit_bytes)
        await self._after()
        return answer

    async def members(self, topic: str, *, limit: int) -> Members:
        self.asked["members" if limit else "sequence"] += 1
        await asyncio.sleep(0)
        return await super().members(topic, limit=limit)

    async def _where(self, topics: Sequence[str]) -> Sequence[tuple[Position, int]]:
        self.asked["where"] += 1
        await asyncio.sleep(0)
        await self._answer()
        streams = [self.backend.topics.touch(topic).stream for topic in topics]
        return [
            (stream.position, self.backend.members(topic, 0).seq) for topic, stream in zip(topics, streams, strict=True)
        ]

    async def _before(self, operation: str) -> None:
        self.asked[operation] += 1
        self._under_way += 1
        self.at_once = max(self.at_once, self._under_way)
        await asyncio.sleep(0)
        if self.broken:
            self._under_way -= 1
            raise StoreError("it is broken")

    async def _after(self) -> None:
        try:
            await asyncio.sleep(0)
            if self.held is not None:
                await self.held.wait()
        finally:
            self._under_way -= 1
