"""Callbacks: an application's functions that hear of users who come and go, one after the other."""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import anyio.to_thread

from starlette_realtime.clock import Clock
from starlette_realtime.messages import Entry
from starlette_realtime.presence.users import ConnectionPresence, view
from starlette_realtime.tasks import finish

__all__ = ["HANDLING", "WAITING", "Callbacks", "Heard"]

logger = logging.getLogger("starlette_realtime.presence")

HANDLING = 30.0
"""How long one function may take, in seconds: what else is told of the same user waits for it."""

WAITING = 10_000
"""How many arrivals and departures wait to be told at most; over it they are logged, and not told."""

Heard = Callable[[str, ConnectionPresence], Any]
"""Takes the topic and the connection that brought the user, or was their last; may be async."""


class Callbacks:
    """
    Tells arrivals and departures.

    Those of one user in one topic are told in order and never overlap, so that what one writes is there for the
    next; users don't wait for each other. Functions that aren't async run in a thread.
    """

    def __init__(self, clock: Clock) -> None:
        self.arrivals: list[Heard] = []
        self.departures: list[Heard] = []
        self._clock = clock
        self._queues: dict[tuple[str, str], deque[tuple[bool, Entry]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0

    @property
    def gauges(self) -> Mapping[str, int]:
        """What is held at the moment."""
        return {"telling": self._waiting}

    def tell(self, topic: str, entry: Entry, *, arrived: bool) -> None:
        """Have it told, soon."""
        if not (self.arrivals if arrived else self.departures):
            return
        if self._waiting >= WAITING:
            logger.error("over %d users who came or went wait for on_join and on_leave: this one isn't told", WAITING)
            return
        self._waiting += 1
        key = (topic, entry.who)
        queue = self._queues.get(key)
        if queue is not None:
            queue.append((arrived, entry))
            return
        self._queues[key] = deque(((arrived, entry),))
        task = asyncio.get_running_loop().create_task(self._work(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait until all is told, for as long as one function may take; then give up."""
        try:
            async with self._clock.timeout(HANDLING):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            logger.error("on_join and on_leave take too long: %d users are not told of any more", self._waiting)
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    async def _work(self, key: tuple[str, str]) -> None:
        queue = self._queues[key]
        try:
            while queue:
                arrived, entry = queue[0]
                for function in tuple(self.arrivals if arrived else self.departures):
                    await self._call(function, key[0], entry)
                queue.popleft()
                self._waiting -= 1
        finally:
            self._waiting -= len(queue)
            del self._queues[key]

    async def _call(self, function: Heard, topic: str, entry: Entry) -> None:
        try:
            async with self._clock.timeout(HANDLING):
                if inspect.iscoroutinefunction(function):
                    result = function(topic, view(entry))
                else:
                    result = await anyio.to_thread.run_sync(function, topic, view(entry))
                if inspect.isawaitable(result):
                    await finish(result)
        except Exception:
            logger.exception("on_join or on_leave failed")
