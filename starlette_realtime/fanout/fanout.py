"""Fan-out: the topics of this process, subscribed as long as somebody is there, and who is present in them."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress

from starlette_realtime.clock import Clock
from starlette_realtime.counters import Counters
from starlette_realtime.errors import StoreError
from starlette_realtime.fanout.topic import Topic
from starlette_realtime.messages import Body, ServerEvent
from starlette_realtime.presence import Change, Roster
from starlette_realtime.store import Store
from starlette_realtime.tasks import Tasks

__all__ = ["Fanout"]

logger = logging.getLogger("starlette_realtime.fanout")

ALL = 2**31 - 1
"""A limit for members that is none."""

PATIENCE = 0.5
"""Seconds that a record which was entered may take to be heard of, before it is looked for in a snapshot."""


class _Reading:
    """One read of all members, for all who asked for it before it began."""

    __slots__ = ("begun", "task")

    def __init__(self) -> None:
        self.begun = False
        self.task: asyncio.Task[None] | None = None


class Fanout:
    """
    The topics of this process.

    `control` hears the kit's own publications. Presence is followed where `attach` is given `present`, which turns a
    change into the event that clients get.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        control: Callable[[Topic, Body], None],
        presence_interval: float = 0.1,
        counters: Counters | None = None,
    ) -> None:
        self.topics: dict[str, Topic] = {}
        self._store = store
        self._clock = clock
        self._control = control
        self._interval = presence_interval
        self._counters = counters if counters is not None else Counters()
        self._readings: dict[Topic, _Reading] = {}
        self._tasks = Tasks("the fan-out failed", logger=logger, expected=(StoreError,))

    async def attach(self, name: str, present: Callable[[Topic, Change], ServerEvent] | None = None) -> Topic:
        """
        The topic, subscribed, with its members known where `present` asks for them. Raises `StoreError`.

        Every `attach` is to be followed by one `detach`; where it raises, nothing is left.
        """
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, self._control, self._counters)
        topic.references += 1
        if topic._started is None:
            topic._started = self._tasks.start(self._start(topic, present))
        try:
            await asyncio.shield(topic._started)
        except BaseException as exc:
            self._release(topic)
            if isinstance(exc, asyncio.CancelledError) and topic._started.cancelled():
                raise StoreError("the subscription was cancelled") from None
            raise
        return topic

    def hears(self, name: str) -> Topic | None:
        """The topic, where this process hears it already."""
        topic = self.topics.get(name)
        if topic is None or topic._started is None or not topic._started.done():
            return None
        return topic

    def detach(self, topic: Topic) -> None:
        """Give a topic back; with the last one the subscription ends."""
        self._release(topic)

    async def know(self, topic: Topic, connection: str) -> None:
        """
        See to it that the topic's members are known, with that connection, which has entered. Raises `StoreError`.

        Most often it takes no more than waiting for what the store tells everybody. Where it takes a snapshot, all who
        need one share it.
        """
        if topic.knows(connection):
            return
        if not topic.stale and topic.roster is not None and topic.roster.loaded:
            waiter = topic._expected[connection] = asyncio.get_running_loop().create_future()
            try:
                with suppress(TimeoutError):
                    async with self._clock.timeout(PATIENCE):
                        await waiter
            finally:
                if topic._expected.get(connection) is waiter:
                    del topic._expected[connection]
        while not topic.knows(connection):
            reading = self._readings.get(topic)
            if reading is None:
                reading = self._readings[topic] = _Reading()
                reading.task = self._tasks.start(self._snapshot(topic, reading))
            ours = not reading.begun  # or it may be from before the question
            assert reading.task is not None
            await asyncio.wait((reading.task,))
            if reading.task.cancelled():
                raise StoreError("the snapshot was cancelled")
            if (error := reading.task.exception()) is not None:
                raise StoreError(f"the members could not be read: {error}") from error
            if ours:
                return

    async def _snapshot(self, topic: Topic, reading: _Reading) -> None:
        reading.begun = True
        try:
            # Never past the roster: what is told of changes later is told to whoever has a state that it has been in.
            topic.load(await self._store.members(topic.name, limit=ALL))
        finally:
            del self._readings[topic]

    async def close(self) -> None:
        """Wait until nothing is under way."""
        await self._tasks.ended()

    def cancel(self) -> None:
        """Give up what is under way."""
        self._tasks.cancel()

    def __iter__(self) -> Iterator[Topic]:
        return iter(tuple(self.topics.values()))

    def _release(self, topic: Topic) -> None:
        topic.references -= 1
        if topic.references:
            return
        if self.topics.get(topic.name) is topic:
            del self.topics[topic.name]
        if topic.roster is not None:
            topic.roster.close()
        self._tasks.start(self._stop(topic))

    async def _stop(self, topic: Topic) -> None:
        if topic._started is not None:
            await asyncio.wait((topic._started,))
        try:
            await self._store.unsubscribe(topic.name, topic.deliver)
        except StoreError as exc:
            logger.warning("a topic could not be unsubscribed: %s", exc)

    async def _start(self, topic: Topic, present: Callable[[Topic, Change], ServerEvent] | None) -> None:
        if present is not None:
            show = present
            topic.roster = Roster(
                clock=self._clock,
                interval=self._interval,
                changed=lambda change: topic.broadcast(show(topic, change)),
                gap=lambda: self._reload(topic),
            )
            topic._reload = lambda: self._reload(topic)
        try:
            await self._store.subscribe(topic.name, topic.deliver)
            if present is not None:
                topic.load(await self._store.members(topic.name, limit=ALL))
        except BaseException:
            # Whoever comes next starts anew.
            if self.topics.get(topic.name) is topic:
                del self.topics[topic.name]
            raise

    def _reload(self, topic: Topic) -> None:
        roster = topic.roster
        if roster is not None and topic.references:
            roster.restart()
            self._tasks.start(self._load(topic, roster))

    async def _load(self, topic: Topic, roster: Roster) -> None:
        delay = 0.05
        while topic.references and not roster.loaded:
            with suppress(StoreError):
                topic.load(await self._store.members(topic.name, limit=ALL))
            if not roster.loaded:
                await self._clock.sleep(delay)
                delay = min(delay * 2, 5.0)
                roster.forget()  # the next snapshot has it, or it is a past's that the store was wound back behind
