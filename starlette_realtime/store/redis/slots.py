"""Slots: counted places, leased like presence; and claims, which one caller gets."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.keys import Keys, ms
from starlette_realtime.store.redis.lately import Lately
from starlette_realtime.store.redis.lease import Lease
from starlette_realtime.store.redis.link import Link
from starlette_realtime.store.redis.mending import Mending
from starlette_realtime.store.redis.presence import BATCH, KNOWN, LIFE, REFRESH
from starlette_realtime.store.redis.scripts import script

__all__ = ["Slots", "claim"]


ATTEMPTS = 3
"""How often a slot is asked for, where that is uncertain."""


class _Held:
    """The slots of one key that this process holds, and how often."""

    __slots__ = ("coming", "name", "refreshed", "slots", "steady")

    def __init__(self, name: bytes, now: float, steady: float | None) -> None:
        self.name = name
        self.slots: Counter[str] = Counter()
        self.coming: Counter[str] = Counter()  # asked for, not answered yet
        self.refreshed = now
        self.steady = steady  # since when the connection stood over which the server was told


class Slots:
    """
    The slots of this process. A dead process's are found when a key is full.

    What came of an attempt is uncertain when its answer was lost; then Redis is told which slots are held, and an
    attempt from before that is not made any more: all have numbers.
    """

    def __init__(self, link: Link, keys: Keys, lease: Lease, *, clock: Clock) -> None:
        self._link = link
        self._keys = keys
        self._lease = lease
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._number = 0
        self._mending = Mending(self._mend, clock=clock, retry=min(0.5, lease.length / 10))
        self._released = Lately(link.steady_since, clock=clock, keep=2 * lease.length)

    async def admit(self, key: str, slot: str, limit: int) -> bool:
        """See `Store.admit`."""
        held = self._held.get(key)
        if held is None:
            name = self._keys.of("slots", key)
            held = self._held[key] = _Held(name, self._clock.now(), self._link.steady_since(name))
        held.coming[slot] += 1
        admitted = False
        try:
            admitted = await self._take(key, slot, limit)
        finally:
            self._reduce(held.coming, slot)
            if admitted:
                held.slots[slot] += 1
            self._drop(key, held)
        return admitted

    async def release(self, key: str, slot: str) -> None:
        """See `Store.release`."""
        held = self._held.get(key)
        if held is None or not held.slots[slot]:
            return
        self._reduce(held.slots, slot)
        if slot in held.slots or slot in held.coming:
            if slot not in held.slots:
                self._mending.soon((key,))  # whoever is about to take it may fail to
            return
        self._released.add(key, held.name, self._link.steady_since(held.name))
        try:
            await self._run("release", key, self._lease.node, (self._lease.earlier, _bytes(slot)))
        except BaseException:
            self._mending.soon((key,))
            raise
        finally:
            self._drop(key, held)

    def renewed(self) -> None:
        """The process has another id: it takes its slots again."""
        self._mending.soon(self._held)

    def refresh(self) -> None:
        """To be called now and then: have slots outlive servers, and their own expiry."""
        now, due = self._clock.now(), self._released.suspects()
        since: dict[bytes, float | None] = {}
        for key, held in self._held.items():
            tag = held.name.partition(b"}")[0]
            if tag not in since:
                since[tag] = self._link.steady_since(held.name)
            if now - held.refreshed >= REFRESH or (since[tag] is not None and since[tag] != held.steady):
                due.append(key)
        self._mending.soon(due)

    async def stop(self) -> None:
        """Give all back. Raises `StoreError`."""
        await self._mending.end()
        keys = list(self._held)
        for held in self._held.values():
            held.slots.clear()
        for start in range(0, len(keys), BATCH):
            some = (self._mend(key) for key in keys[start : start + BATCH])
            for result in await asyncio.gather(*some, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result

    async def discard(self) -> None:
        """Forget what this process held."""
        await self._mending.end()
        self._held.clear()
        self._released.clear()

    def gauges(self) -> dict[str, int]:
        """What is held."""
        return {"slot_keys": len(self._held), "slots_mending": len(self._mending)}

    async def _take(self, key: str, slot: str, limit: int) -> bool:
        args = (_bytes(slot), b"%d" % max(0, limit), ms(LIFE))
        dead: list[str] = []
        for _ in range(ATTEMPTS):
            node = await self._lease.standing()
            try:
                holders = await self._run("admit", key, node, (*args, *(one.encode() for one in dead)))
            except BaseException:
                self._mending.soon((key,))
                raise
            if holders == 0:
                continue  # what this process holds of the key was put in order meanwhile
            if not holders:
                return True
            if dead or not (dead := await self._lease.dead([holder.decode() for holder in holders])):
                return False
        raise StoreError("the store had to be put in order again and again")

    async def _mend(self, key: str) -> None:
        """Have in Redis what this process holds of this key, and nothing else."""
        node, name = await self._lease.standing(), self._keys.of("slots", key)
        held, since = self._held.get(key), self._link.steady_since(name)
        slots = [] if held is None else list(held.slots)
        coming = [] if held is None else list(held.coming)
        args = (self._lease.earlier, ms(LIFE), ms(KNOWN), b"%d" % len(slots))
        await self._run("keep", key, node, (*args, *(_bytes(slot) for slot in (*slots, *coming))))
        if held is not None:
            held.refreshed, held.steady = self._clock.now(), since
            self._drop(key, held)
        if key not in self._held:
            self._released.add(key, name, since)

    async def _run(self, name: str, key: str, node: str, args: Sequence[bytes]) -> Any:
        self._number += 1
        slots = self._keys.of("slots", key)
        return await self._link.run(script(name), (slots, slots + b":n"), (node.encode(), b"%d" % self._number, *args))

    @staticmethod
    def _reduce(count: Counter[str], slot: str) -> None:
        count[slot] -= 1
        if not count[slot]:
            del count[slot]

    def _drop(self, key: str, held: _Held) -> None:
        if not held.slots and not held.coming and self._held.get(key) is held:
            del self._held[key]


async def claim(link: Link, keys: Keys, rng: random.Random, key: str, ttl: float) -> bool:
    """See `Store.claim`. Whoever asks again because the answer was lost finds their own mark."""
    name, mark, life = keys.of("claim", key), b"%024x" % rng.getrandbits(96), ms(max(0.001, ttl))
    found = await link.run(script("claim"), (name,), (mark, life))
    if found is not None and not isinstance(found, bytes):
        raise StoreError("the store answered what it can't have been asked")
    return found is None or found == mark


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogatepass")
