"""Inbox: what processes send to each other, kept in Redis until it is received."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable

from starlette_realtime.errors import StoreError
from starlette_realtime.store.inbox import INBOX_BYTES, INBOX_ENTRIES
from starlette_realtime.store.redis.keys import Keys
from starlette_realtime.store.redis.lease import FORMER
from starlette_realtime.store.redis.link import Link
from starlette_realtime.store.redis.scripts import script

__all__ = ["Inbox"]

logger = logging.getLogger("starlette_realtime.store")

STEP = 128
"""How many messages are received at once."""

LIFE = 3_600_000
"""Milliseconds that messages wait for a process that doesn't receive."""

REPEATED = 5.0
"""For how many times the store's time limit a message is known, in case that it is sent again."""


class Inbox:
    """
    Sends to processes, and hands to `deliver` what is sent to this one, in order and each once, as long as `wanted`.

    A process that takes another id still receives what had been sent to the one before.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        *,
        rng: random.Random,
        timeout: float,
        deliver: Callable[[bytes], object],
        wanted: Callable[[], bool],
    ) -> None:
        self._link = link
        self._keys = keys
        self._rng = rng
        self._known = b"%d" % round(timeout * REPEATED * 1000)
        self._deliver = deliver
        self._wanted = wanted
        self._publish = b"SPUBLISH" if link.sharded else b"PUBLISH"
        self._nodes: deque[str] = deque(maxlen=FORMER)  # the last one is this process's id
        self._received: list[bytes] = []  # of the first of them: what need not come again
        self._task: asyncio.Task[None] | None = None
        self._again = False

    async def send(self, node: str, data: bytes) -> None:
        """See `Store.send`."""
        names = [self._keys.node(node, kind) for kind in ("alive", "in", "size", f"s:{self._rng.getrandbits(96):024x}")]
        bounds = (b"%d" % INBOX_ENTRIES, b"%d" % INBOX_BYTES, b"%d" % LIFE)
        args = (self._publish, data, *bounds, self._known)
        answer = await self._link.run(script("send"), (*names, self._keys.node(node, "wake")), args)
        if answer == 0:
            raise StoreError(f"there is no process {node}: it is gone")
        if answer < 0:
            raise StoreError("the process's inbox is full")

    def own(self, node: str) -> None:
        """This process is now known as `node`."""
        if len(self._nodes) == self._nodes.maxlen:
            self._received.clear()
        self._nodes.append(node)
        self.woken()

    def woken(self) -> None:
        """Something may have come."""
        self._again = True
        if self._task is None and self._nodes and self._wanted():
            self._task = asyncio.get_running_loop().create_task(self._receive())

    async def stop(self) -> None:
        """Receive no more."""
        self._nodes.clear()
        self._received.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _receive(self) -> None:
        try:
            while self._again and self._wanted():
                self._again = False
                while await self._step():
                    pass
        except StoreError as exc:
            logger.debug("what was sent to this process can't be received: %s", exc)  # the next beat looks again
        finally:
            self._task = None

    async def _step(self) -> bool:
        """Take what comes next; False when there is nothing left."""
        node = self._nodes[0]
        keys = (self._keys.node(node, "in"), self._keys.node(node, "size"))
        rows = await self._link.run(script("receive"), keys, (b"%d" % STEP, *self._received))
        if not self._nodes or self._nodes[0] != node:
            return bool(self._nodes)
        self._received.clear()
        for id, data in rows:
            if not self._wanted():
                return False
            self._received.append(id)
            self._deliver(data)
        if not rows and len(self._nodes) > 1:
            self._nodes.popleft()
            return True
        return bool(rows)
