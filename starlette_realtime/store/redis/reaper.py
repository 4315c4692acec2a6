"""Reaper: clears away what dead processes have left behind, whoever gets to it, and tells each leave once."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.buried import Burial, Buried
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


class _Step(NamedTuple):
    """What this process has removed in a topic: the key where it is noted, its number, since when it was connected."""

    last: bytes
    number: int
    since: float | None


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
        self._unsettled: dict[str, _Step] = {}  # by topic, steps whose answer was lost
        self._told = Buried(link.steady_since, clock=clock, keep=KNOWN / 2)  # servers know it for longer
        self._every = Every(sweep, self.sweep, clock)

    def start(self) -> None:
        """From now on."""
        self._every.start()

    async def stop(self) -> None:
        """No more."""
        await self._every.stop()
        self._unsettled.clear()
        self._told.clear()

    async def sweep(self) -> None:
        """Clear away who is dead now. Raises `StoreError`."""
        await self._lease.standing()  # first of all this process itself: it may have been frozen
        # One server of a cluster may be away: what the others have is cleared away all the same.
        trouble = await self._each(self._settle(topic) for topic in list(self._unsettled))
        trouble = await self._each(self._doubt(burial) for burial in self._told.suspects()) or trouble
        since = self._link.steady_since(self._keys.nodes)
        for node in await self._lease.overdue(by=0.0 if self._watched() else self._lease.length):
            if node == self._lease.node:
                self._lease.missed(node)
            else:
                trouble = await self._each((self._clear(node, since),)) or trouble
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

    async def _clear(self, node: str, since: float | None) -> None:
        """Clear it away on the servers that were connected to `since` then: others may know that it lives."""
        topics = self._keys.node(node, "rooms")
        keys = (self._keys.node(node, "x"), topics, self._keys.node(node, "alive"))
        while True:
            self._certain(since)
            args = (ms(KNOWN), b"%d" % TOPICS)
            found: list[bytes] = await self._link.run(script("bury"), keys, args, once=True)
            if not found:
                break
            self._rng.shuffle(found)  # others may be about it, too: not all in the same order
            parts = (found[start : start + AT_ONCE] for start in range(0, len(found), AT_ONCE))
            trouble = await self._each(self._empty(node, part, since) for part in parts)
            if trouble is not None:
                raise trouble
        own = [self._keys.node(node, kind) for kind in ("in", "size", "rooms")]
        self._certain(since)
        await self._link.call(b"DEL", *own, key=own[0], once=True)
        self._certain(since)
        await self._link.call(b"ZREM", self._keys.nodes, node.encode(), key=self._keys.nodes, once=True)

    def _certain(self, since: float | None) -> None:
        if since is None or self._link.steady_since(self._keys.nodes) != since:
            raise StoreError("the connection is another one by now: who is dead is looked up again")

    async def _empty(self, node: str, topics: Sequence[bytes], since: float | None) -> None:
        names = [topic.decode(errors="surrogatepass") for topic in topics]
        results = await asyncio.gather(*(self._remove(node, name, since) for name in names), return_exceptions=True)
        done = [topic for topic, result in zip(topics, results, strict=True) if result is None]
        if done:
            self._certain(since)
            await self._link.run(script("unindex"), (self._keys.node(node, "rooms"),), (b"inf", *done), once=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _remove(self, node: str, topic: str, since: float | None) -> None:
        """Remove the dead process's members of one topic."""
        if topic in self._unsettled:
            await self._settle(topic)
        keys = Records.of(self._keys.topic(topic))
        name = node.encode()
        remaining = 1
        while remaining:
            self._certain(since)
            self._number += 1
            last = keys.last(self._lease.node, reaper=True)
            step = self._unsettled[topic] = _Step(last, self._number, self._link.steady_since(last))
            args = (self._publish, name, b"%d" % step.number, b"", ms(KNOWN), b"%d" % STEP, ms(KNOWN))
            answer, remaining = await self._link.run(
                script("leave"), (*keys, keys.owned(node), keys.tombstone(node), last), args, once=True
            )
            del self._unsettled[topic]
            self._tell(topic, step, answer)

    async def _settle(self, topic: str) -> None:
        """Learn what came of a step; if it was not made, it never will be, and somebody makes another one."""
        step = self._unsettled[topic]
        since = self._link.steady_since(step.last)
        answer = await self._link.run(script("settle"), (step.last,), (b"%d" % step.number, ms(KNOWN)))
        del self._unsettled[topic]
        self._tell(topic, step._replace(since=since), answer)

    def _tell(self, topic: str, step: "_Step", answer: bytes) -> None:
        left = decode_entries(answer)
        if left:
            self._told.add(topic, *step, left)
            self._changed(topic, (), left)

    async def _doubt(self, burial: Burial) -> None:
        """Have those come for whoever was told that they left, where another server doesn't know that, and has them."""
        keys = Records.of(self._keys.topic(burial.topic))
        since = self._link.steady_since(burial.last)
        users = [who.encode() for who in burial.users]
        try:
            done = await self._link.call(b"GET", burial.last, key=burial.last)
            counts = await self._link.call(b"HMGET", keys.counts, *users, key=keys.counts)
        except StoreError:
            self._told.add(burial.topic, burial.last, burial.number, burial.since, burial.users.values())
            raise
        if done is not None and int(done.split(b" ", 1)[0]) >= burial.number:
            self._told.add(burial.topic, burial.last, burial.number, since, burial.users.values())
            return
        back = [entry for entry, count in zip(burial.users.values(), counts, strict=True) if count is not None]
        if back:
            self._changed(burial.topic, tuple(back), ())
