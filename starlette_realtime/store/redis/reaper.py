"""Reaper: clears away what dead processes have left behind, whoever gets to it, and tells each leave once."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.keys import Keys, ms
from starlette_realtime.store.redis.lease import Every, Lease
from starlette_realtime.store.redis.link import Link
from starlette_realtime.store.redis.presence import KNOWN, PresenceChanged, Records, decode_entries
from starlette_realtime.store.redis.scripts import script

__all__ = ["Reaper"]

logger = logging.getLogger("starlette_realtime.store")

STEP = 500
"""How many members of a dead process one script removes, with one diff."""

TOPICS = 256
"""How many of its topics are looked up at once."""

AT_ONCE = 16
"""In how many topics it is removed at the same time."""


class Reaper:
    """
    Looks every `sweep` seconds for processes that have missed their lease.

    First such a process is declared dead, so that nothing it still says counts; then, topic by topic, the topic knows
    it too, and its members leave; at last it is forgotten. Every step can be made twice, or by another process: what
    one has removed the other doesn't find, so that only one tells of it through `changed`. A process where nobody
    would hear that, as `watched` says, leaves it to the others for one more lease: one that only publishes, say.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        lease: Lease,
        *,
        clock: Clock,
        rng: random.Random,
        sweep: float,
        changed: PresenceChanged,
        watched: Callable[[], bool],
    ) -> None:
        self._link = link
        self._keys = keys
        self._lease = lease
        self._rng = rng
        self._changed = changed
        self._watched = watched
        self._publish = b"SPUBLISH" if link.sharded else b"PUBLISH"
        self._number = 0
        self._unsettled: dict[str, tuple[bytes, bytes]] = {}  # topic → key and number of a step whose answer was lost
        self._every = Every(sweep, self.sweep, clock)

    def start(self) -> None:
        """From now on."""
        self._every.start()

    async def stop(self) -> None:
        """No more."""
        await self._every.stop()
        self._unsettled.clear()

    async def sweep(self) -> None:
        """Clear away who is dead now. Raises `StoreError`."""
        await self._lease.standing()  # first of all this process itself: it may have been frozen
        # One server of a cluster may be away: what the others have is cleared away all the same.
        trouble = await self._each(self._settle(topic) for topic in list(self._unsettled))
        for node in await self._lease.overdue(by=0.0 if self._watched() else self._lease.length):
            if node == self._lease.node:
                self._lease.missed(node)
            else:
                trouble = await self._each((self._clear(node),)) or trouble
        if trouble is not None:
            raise trouble

    @staticmethod
    async def _each(calls: Iterable[Coroutine[Any, Any, None]]) -> StoreError | None:
        """Make them one by one; tells the last failure."""
        trouble = None
        for call in calls:
            try:
                await call
            except StoreError as exc:
                trouble = exc
        return trouble

    async def _clear(self, node: str) -> None:
        topics = self._keys.node(node, "rooms")
        keys = (self._keys.node(node, "x"), topics, self._keys.node(node, "alive"))
        while True:
            found: list[bytes] = await self._link.run(script("bury"), keys, (ms(KNOWN), b"%d" % TOPICS))
            if not found:
                break
            self._rng.shuffle(found)  # others may be about it, too: not all in the same order
            steps = (self._empty(node, found[start : start + AT_ONCE]) for start in range(0, len(found), AT_ONCE))
            trouble = await self._each(steps)
            if trouble is not None:
                raise trouble
        own = [self._keys.node(node, kind) for kind in ("in", "size", "rooms")]
        await self._link.call(b"DEL", *own, key=own[0])
        await self._link.call(b"ZREM", self._keys.nodes, node.encode(), key=self._keys.nodes)

    async def _empty(self, node: str, topics: Sequence[bytes]) -> None:
        names = [topic.decode(errors="surrogatepass") for topic in topics]
        results = await asyncio.gather(*(self._remove(node, name) for name in names), return_exceptions=True)
        done = [topic for topic, result in zip(topics, results, strict=True) if result is None]
        if done:
            await self._link.run(script("unindex"), (self._keys.node(node, "rooms"),), (b"inf", *done))
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _remove(self, node: str, topic: str) -> None:
        """Remove the dead process's members of one topic."""
        if topic in self._unsettled:
            await self._settle(topic)
        keys = Records.of(self._keys.topic(topic))
        name = node.encode()
        remaining = 1
        while remaining:
            self._number += 1
            number = b"%d" % self._number
            last = keys.last(self._lease.node, reaper=True)
            self._unsettled[topic] = last, number
            args = (self._publish, name, number, b"", ms(KNOWN), b"%d" % STEP, ms(KNOWN))
            answer, remaining = await self._link.run(
                script("leave"), (*keys, keys.owned(node), keys.tombstone(node), last), args
            )
            del self._unsettled[topic]
            self._tell(topic, answer)

    async def _settle(self, topic: str) -> None:
        """Learn what came of a step; if it was not made, it never will be, and somebody makes another one."""
        key, number = self._unsettled[topic]
        answer = await self._link.run(script("settle"), (key,), (number, ms(KNOWN)))
        del self._unsettled[topic]
        self._tell(topic, answer)

    def _tell(self, topic: str, answer: bytes) -> None:
        left = decode_entries(answer)
        if left:
            self._changed(topic, (), left)
