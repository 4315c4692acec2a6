"""Lease: what a process is known by, for as long as it gives signs of life; after a missed lease, by another name."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from math import inf

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Node
from starlette_realtime.store.redis.keys import Keys
from starlette_realtime.store.redis.link import Link
from starlette_realtime.store.redis.scripts import script

__all__ = ["FORMER", "LONGEST", "Every", "Lease"]

logger = logging.getLogger("starlette_realtime.store")

NODES = 10_000
"""How many processes are looked at."""

FORMER = 8
"""How many of its earlier ids a process remembers."""

LOOK = 1.0
"""Seconds for which a list of the living is good enough."""

LONGEST = 300.0
"""Seconds that a lease may take, so that tombstones outlive it."""

GRACE = 300.0
"""
Seconds after its lease until which a process's writes are refused by tombstones alone, and not by the server's time.

The masters of a cluster need not agree on the time, and tombstones stand for longer than this.
"""


class Every:
    """Calls something every `interval` seconds; never twice at a time, and a `StoreError` is not the end."""

    def __init__(self, interval: float, call: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self._interval = interval
        self._call = call
        self._clock = clock
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on."""
        self._timer = self._clock.call_later(self._interval, self._due)

    async def stop(self) -> None:
        """No more, and not half."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _due(self) -> None:
        self._timer = self._clock.call_later(self._interval, self._due)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._call()
        except StoreError as exc:
            logger.debug("the store is away: %s", exc)
        except Exception:
            logger.exception("what is done every %g s failed", self._interval)
        finally:
            self._task = None


class Lease:
    """
    A process's lease of `lease` seconds, renewed every `beat`.

    `node` is its id. Once the lease has been missed, whatever is written under that id is refused, or undone by whoever
    clears away what the dead have left; so before it writes, a process awaits `standing()`, which takes a new id where
    that is due. `renewed` is called then, to announce everything anew; `beaten` after every beat, with whether
    something waits in the inbox.
    An id tells its lease, so that processes with other periods judge it by its own.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        *,
        clock: Clock,
        rng: random.Random,
        lease: float,
        beat: float,
        renewed: Callable[[str], object],
        beaten: Callable[[bool], object],
    ) -> None:
        self._link = link
        self._keys = keys
        self._clock = clock
        self._rng = rng
        self._renewed = renewed
        self._on_beat = beaten
        self.length = lease
        self.node = self._new_id()
        self.former: deque[str] = deque(maxlen=FORMER)
        """Ids that it had before, the last one last."""
        self._beaten = -inf  # when the last beat that came through was sent
        self._until = 0  # in the server's milliseconds
        self._unbroken = inf  # since when every beat has come through
        self._renewing: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._living: frozenset[str] = frozenset()
        self._looked = -inf
        self._stopped = False
        self._every = Every(beat, self.beat, clock)

    @property
    def until(self) -> bytes:
        """Until when a write under this id may be made at the very latest, in the server's milliseconds."""
        return b"%d" % (self._until + round((self.length + GRACE) * 1000))

    @property
    def earlier(self) -> bytes:
        """The ids that it had before, as scripts take them."""
        return " ".join(self.former).encode()

    @property
    def steady(self) -> float:
        """For how many seconds the server has been there: only after a lease's time does silence mean anything."""
        since = self._link.steady_since(self._keys.nodes)
        return 0.0 if since is None else max(0.0, self._clock.now() - max(since, self._unbroken))

    async def start(self) -> None:
        """Take the lease, and keep it; once it was stopped, under another id. Raises `StoreError`."""
        if self._stopped:
            self._stopped = False
            self.former.append(self.node)
            self.node = self._new_id()
        await self._take(self.node)
        self._every.start()

    async def stop(self) -> None:
        """Keep it no longer; it stands until it is given up, or missed."""
        self._stopped = True
        await self._every.stop()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))

    async def give_up(self) -> None:
        """End it: nothing of this process is left. Raises `StoreError`."""
        name = self.node
        own = [self._keys.node(name, kind) for kind in ("alive", "in", "size", "rooms")]
        await self._link.call(b"DEL", *own, key=own[0])
        await self._link.call(b"ZREM", self._keys.nodes, name.encode(), key=self._keys.nodes)

    async def standing(self) -> str:
        """The id to write under: after a missed lease, that of a new incarnation. Raises `StoreError`."""
        if self._lapsed():
            if self._renewing is None:
                self._renewing = asyncio.get_running_loop().create_task(self._renew())
                self._renewing.add_done_callback(self._no_longer_renewing)
            await asyncio.shield(self._renewing)  # who gives up waiting doesn't take it away from the others
        return self.node

    def missed(self, node: str) -> None:
        """The server refuses what this id writes."""
        if node == self.node:
            self._beaten = -inf

    async def beat(self) -> None:
        """Give a sign of life. Raises `StoreError`."""
        try:
            if self._lapsed():
                await self.standing()
            else:
                await self._beat()
        except StoreError:
            self._unbroken = inf
            raise

    async def nodes(self) -> list[Node]:
        """The processes that hold a lease. Raises `StoreError`."""
        return [node for node in await self._all() if node.age <= self._length_of(node.id)]

    async def overdue(self, *, by: float = 0.0) -> list[str]:
        """
        Who has certainly missed their lease by `by` seconds. Raises `StoreError`.

        After a restart of the server, or of this process, silence doesn't mean death before a whole lease has passed.
        """
        found, steady = await self._all(), self.steady
        return [node.id for node in found if self._missed(node, steady) and node.age > self._length_of(node.id) + by]

    async def dead(self, nodes: Collection[str]) -> list[str]:
        """
        Those of `nodes`, which were found just now, that are certainly not alive. Raises `StoreError`.

        The living are read at most once a second; who can't be told from them yet is not dead.
        """
        asked = self._clock.now()
        if self._living.issuperset(nodes) and asked - self._looked < LOOK:
            return []
        async with self._looking:
            if self._looked < asked:
                now = self._clock.now()
                if now - self._looked < LOOK:
                    return []
                found = await self._all()
                steady = self.steady
                self._living = frozenset(node.id for node in found if not self._missed(node, steady))
                self._looked = now
        return [node for node in nodes if node not in self._living]

    async def known(self) -> set[str]:
        """All processes that have a lease, or had one and were not cleared away yet. Raises `StoreError`."""
        return {node.id for node in await self._all()}

    # --- inside ---

    async def _all(self) -> list[Node]:
        now, *rest = await self._link.run(script("nodes"), (self._keys.nodes,), (b"%d" % NODES,))
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return [Node(id.decode(), max(0.0, (int(now) - float(at)) / 1000)) for id, at in pairs]

    def _missed(self, node: Node, steady: float) -> bool:
        """Whether it has certainly missed its lease, as somebody knows who has seen the server for `steady` seconds."""
        length = self._length_of(node.id)
        return node.age > length and steady >= length

    def _length_of(self, node: str) -> float:
        """The lease of whoever has that id, in seconds."""
        length = node.rpartition("-")[2]
        return int(length) / 1000 if length.isdecimal() and len(length) < 7 else self.length

    def _lapsed(self) -> bool:
        return self._clock.now() - self._beaten >= self.length

    async def _renew(self) -> None:
        """Become another one. Who was frozen, or cut off, may have been declared dead meanwhile."""
        if self._stopped:
            raise StoreError("the lease is over, and this process ends: others clear away what it has left")
        self._unbroken = inf
        node = self._new_id()
        await self._take(node)
        logger.info("the lease was missed: process %s goes on as %s", self.node, node)
        self.former.append(self.node)
        self.node = node
        self._renewed(node)

    async def _take(self, node: str) -> None:
        began = self._clock.now()
        _, self._until = await asyncio.gather(self._sign(node), self._stamp(node, first=True))
        self._beaten = began
        self._unbroken = self._clock.now()

    async def _beat(self) -> None:
        node, began = self.node, self._clock.now()
        waits, stamp = await asyncio.gather(self._sign(node), self._stamp(node, first=False))
        if not stamp:
            self.missed(node)
            await self.standing()
            return
        if node != self.node:
            return
        self._beaten, self._until = began, stamp
        self._unbroken = min(self._unbroken, began)
        self._on_beat(waits)

    def _no_longer_renewing(self, task: "asyncio.Task[None]") -> None:
        self._renewing = None
        if not task.cancelled():
            task.exception()  # whoever waits for it has it

    async def _sign(self, node: str) -> bool:
        keys = (self._keys.node(node, "alive"), self._keys.node(node, "in"))
        return bool(await self._link.run(script("alive"), keys, (b"%d" % round(self.length * 1000),)))

    async def _stamp(self, node: str, *, first: bool) -> int:
        args = (node.encode(), b"%d" % round(self.length * 1000), b"1" if first else b"0")
        return int(await self._link.run(script("beat"), (self._keys.nodes,), args))

    def _new_id(self) -> str:
        return f"{self._rng.getrandbits(96):024x}-{round(self.length * 1000)}"
