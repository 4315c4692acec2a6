"""Feeds: what a backend delivers to this process, topic by topic, on to the local subscribers; and its repair."""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Protocol

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import ConfigurationError, StoreError
from starlette_realtime.messages import (
    Delivery,
    Fresh,
    History,
    Position,
    PresenceDiff,
    Publication,
    Recovery,
    Stale,
)
from starlette_realtime.replay import Budget, Replay
from starlette_realtime.store import recoveries
from starlette_realtime.store.feed import Deliver, Feed
from starlette_realtime.store.gate import Gate
from starlette_realtime.store.recoveries import Recoveries
from starlette_realtime.store.ring import Rings

__all__ = ["Feeds", "Source"]

logger = logging.getLogger("starlette_realtime.store")

CHECKED = 256
"""How many topics one question of the periodic check is about."""

OVERTAKEN = 0.25
"""Seconds that diffs have to arrive which the store's answer to the periodic check has overtaken."""

FIRST_RETRY = 0.05
"""Seconds until the first new attempt at a repair; each further one waits twice as long, less up to half at random."""

LAST_RETRY = 2.0
"""Seconds that no attempt waits longer than."""

READING = 64
"""How many topics are read at once, by repairs and for those who join; the others wait in line."""


class Source(recoveries.Source, Protocol):
    """What the feeds ask of a backend. Each call ends within the backend's own time limit, or raises `StoreError`."""

    async def _listen(self, topic: str) -> None:
        """Have the topic delivered to this process; returns when what is published from now on will arrive."""

    async def _unlisten(self, topic: str) -> None:
        """Undo `_listen`, also one that failed or was only half done."""

    async def _ready(self, topic: str) -> None:
        """Wait until it is delivered again, whatever happened to the link since `_listen`."""

    async def _where(self, topics: Sequence[str]) -> Sequence[tuple[Position, int]]:
        """The position and the presence sequence of each of at most 256 topics."""


class Feeds:
    """
    The feeds of one process.

    `check_interval` is how often, in seconds, the position of every live topic is compared with the store's;
    `stale_after` is how long a repair may take before subscribers hear `Stale`; `entries` and `size` bound what one
    topic holds back while it repairs, in publications and bytes of data, and `total` all of them, in bytes of memory:
    over it, a topic holds nothing back and reads twice. `rings` are kept where there are any.
    """

    def __init__(
        self,
        source: Source,
        *,
        clock: Clock,
        rng: random.Random,
        check_interval: float,
        stale_after: float,
        entries: int,
        size: int,
        total: int,
        rings: Rings | None,
    ) -> None:
        self._source = source
        self._clock = clock
        self._rng = rng
        self._check_interval = check_interval
        self._stale_after = stale_after
        self._entries = entries
        self._size = size
        self._budget = Budget(total)
        self._rings = rings
        self._gate, self._recoveries = self._readers()
        self._feeds: dict[str, Feed] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._check_timer: Timer | None = None
        self._checker: asyncio.Task[None] | None = None

    # --- what subscribers call ---

    def position(self, topic: str) -> Position | None:
        """See `Store.position`."""
        feed = self._feeds.get(topic)
        return feed.replay.position if feed is not None else None

    async def recover(
        self, topic: str, *, since: Position | None, limit: int, limit_bytes: int, history: History | None
    ) -> Recovery:
        """See `Store.recover`."""
        if self._recoveries is None:
            return await self._source.read(topic, since=since, limit=limit, limit_bytes=limit_bytes)
        self._bind()
        return await self._recoveries.recover(topic, since=since, limit=limit, limit_bytes=limit_bytes, history=history)

    async def subscribe(self, topic: str, deliver: Deliver) -> None:
        """See `Store.subscribe`."""
        loop = self._bind()
        feed = self._feeds.get(topic)
        if feed is None:
            feed = self._feeds[topic] = Feed(topic, self._replay(), self._rings)
            if self._check_timer is None:
                self._check_timer = self._clock.call_later(self._check_interval, self._start_check)
        while not feed.live:
            waiter = loop.create_future()
            feed.waiters.add(waiter)
            self._wake(feed)
            try:
                await waiter
            except BaseException:
                feed.waiters.discard(waiter)
                if not feed.wanted and self._feeds.get(topic) is feed:
                    self._wake(feed)
                raise
            feed.waiters.discard(waiter)  # only now, so that the worker saw that the feed is wanted until it is
        feed.add(deliver)

    async def unsubscribe(self, topic: str, deliver: Deliver) -> None:
        """See `Store.unsubscribe`."""
        feed = self._feeds.get(topic)
        if feed is None:
            return
        feed.remove(deliver)
        if not feed.wanted:
            worker = self._wake(feed)
            await asyncio.wait((worker,))  # goes on to its end when this call is cancelled

    # --- what the backend calls ---

    def received(self, topic: str, delivery: Delivery) -> None:
        """Take one delivery from the backend, at any time, in any condition."""
        feed = self._feeds.get(topic)
        if feed is None:
            return
        if isinstance(delivery, Publication):
            replay = feed.replay
            feed.deliver_all(replay.live(delivery))
            if replay.needs_read and feed.worker is None and feed.retry is None:
                self._wake(feed)
            return
        if isinstance(delivery, PresenceDiff):
            feed.presence = delivery.seq
        feed.deliver(delivery)

    def interrupted(self, topic: str | None = None) -> None:
        """Deliveries of one topic, or of all, may have been lost: repair now, without waiting for the backoff."""
        for name in self.topics if topic is None else (topic,):
            feed = self._feeds.get(name)
            if feed is not None and feed.listening:
                feed.replay.interrupted()
                self._wake(feed)

    def abandon(self) -> list[Feed]:
        """Forget every subscriber, and end all timers and workers; returns what was fed until now."""
        feeds, self._feeds = list(self._feeds.values()), {}
        self._rest()
        if self._recoveries is not None:
            self._recoveries.abandon()
        for feed in feeds:
            feed.rest()
            feed.forget()
            feed.refuse(StoreError("the store was closed"))
            if feed.worker is not None:
                feed.worker.cancel()
        return feeds

    async def close(self) -> None:
        """`abandon`, and tell the backend."""
        reads = self._recoveries.tasks if self._recoveries is not None else ()
        others, feeds = (self._checker, *reads), self.abandon()
        pending = [task for task in (*others, *(feed.worker for feed in feeds)) if task is not None]
        if pending:
            await asyncio.wait(pending)
        for feed in feeds:
            if feed.listening:
                await self._close_one(feed)

    @property
    def topics(self) -> list[str]:
        """The topics that are heard here, or about to be."""
        return list(self._feeds)

    def gauges(self) -> dict[str, int]:
        """What is held at this moment."""
        feeds = self._feeds.values()
        return {
            "feeds": len(feeds),
            "subscribers": sum(feed.subscribers for feed in feeds),
            "waiting_subscribers": sum(len(feed.waiters) for feed in feeds),
            "repairs": sum(feed.worker is not None or feed.retry is not None for feed in feeds),
            "held_publications": sum(feed.replay.held for feed in feeds),
            "held_bytes": sum(feed.replay.held_bytes for feed in feeds),
            "recoveries": len(self._recoveries.tasks) if self._recoveries is not None else 0,
            "ring_publications": self._rings.publications if self._rings is not None else 0,
            "ring_bytes": self._rings.taken if self._rings is not None else 0,
        }

    # --- the worker ---

    def _replay(self) -> Replay:
        return Replay(limit_entries=self._entries, limit_bytes=self._size, budget=self._budget)

    def _readers(self) -> tuple[Gate, Recoveries | None]:
        gate, rings = Gate(READING), self._rings
        if rings is None:
            return gate, None
        return gate, Recoveries(self._source, self._feed, gate=gate, rings=rings)

    def _feed(self, topic: str) -> Feed | None:
        return self._feeds.get(topic)

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed() and self._feeds:
                raise ConfigurationError("a store serves one event loop at a time: give each loop its own")
            for feed in self._feeds.values():  # a closed loop's
                feed.forget()
            self._feeds.clear()
            self._check_timer = self._checker = None
            self._gate, self._recoveries = self._readers()
            self._loop = loop
        return loop

    def _wake(self, feed: Feed) -> asyncio.Task[None]:
        """See to it that a worker is at it."""
        if feed.retry is not None:
            feed.retry.cancel()
            feed.retry = None
        if feed.subscribers and feed.stale_timer is None and not feed.stale:
            feed.stale_timer = self._clock.call_later(self._stale_after, self._tell_stale, feed)
        if feed.worker is None:
            feed.worker = asyncio.get_running_loop().create_task(self._work(feed))
        return feed.worker

    async def _work(self, feed: Feed) -> None:
        """Make what is what is wanted; nothing awaits between the last look and the end of the task."""
        try:
            while feed.wanted or feed.listening:
                try:
                    if not feed.wanted:
                        await self._close_one(feed)
                    elif not feed.listening:
                        feed.forget()
                        feed.listening, feed.replay = True, self._replay()
                        await self._source._listen(feed.topic)
                    elif feed.replay.needs_read:
                        await self._repair(feed)
                    else:
                        self._is_live(feed)
                        if feed.live:  # unless a subscriber that was told made it otherwise
                            return None
                except Exception as exc:
                    if not isinstance(exc, StoreError):
                        logger.exception("the store failed with something else than a StoreError")
                    feed.refuse(exc)
                    if feed.subscribers:
                        return self._retry(feed)
            feed.rest()
            feed.forget()
            if self._feeds.get(feed.topic) is feed:
                del self._feeds[feed.topic]
                if not self._feeds:
                    self._rest()
        finally:
            feed.worker = None

    async def _repair(self, feed: Feed) -> None:
        await self._source._ready(feed.topic)  # before the line: all of them may have to wait for that
        async with self._gate:
            feed.replay.begin()
            await self._source._ready(feed.topic)  # and the link may have been cut in the line
            since, presence = feed.replay.position, feed.presence
            if since is None:
                ((position, sequence),) = await self._source._where((feed.topic,))
                recovery = Recovery((), position, complete=True)
            else:
                recovery, ((_, sequence),) = await asyncio.gather(
                    self._source.read(feed.topic, since=since, limit=self._entries), self._source._where((feed.topic,))
                )
        feed.deliver_all(feed.replay.recovered(recovery))
        if not presence <= sequence <= feed.presence:  # diffs may have overtaken the answer
            self._tell_presence(feed, sequence)

    def _tell_presence(self, feed: Feed, sequence: int) -> None:
        """An empty diff at the store's sequence: whoever is elsewhere sees the hole and loads a snapshot."""
        feed.presence = sequence
        feed.deliver(PresenceDiff(sequence, sequence))

    async def _close_one(self, feed: Feed) -> None:
        feed.listening = False  # from now on, so that a new subscriber waits for another `_listen`
        try:
            await self._source._unlisten(feed.topic)
        except Exception:
            logger.debug("the store was away while a topic was closed", exc_info=True)

    def _is_live(self, feed: Feed) -> None:
        feed.failures = 0
        feed.rest()
        if feed.stale:
            feed.stale = False
            feed.deliver(Fresh())
        for waiter in feed.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _retry(self, feed: Feed) -> None:
        delay = min(LAST_RETRY, FIRST_RETRY * 2**feed.failures) * self._rng.uniform(0.5, 1.0)
        feed.failures = min(feed.failures + 1, 16)
        feed.retry = self._clock.call_later(delay, self._wake, feed)

    def _tell_stale(self, feed: Feed) -> None:
        feed.stale_timer, feed.stale = None, True
        feed.deliver(Stale())

    # --- the check ---

    def _rest(self) -> None:
        if self._check_timer is not None:
            self._check_timer.cancel()
        if self._checker is not None:
            self._checker.cancel()
        self._check_timer = self._checker = None

    def _start_check(self) -> None:
        self._checker = asyncio.get_running_loop().create_task(self._check())

    async def _check(self) -> None:
        """Compare every live topic with the store: the last resort against losses that nothing else showed."""
        feeds = [feed for feed in self._feeds.values() if feed.worker is None and feed.live]
        ahead: list[tuple[Feed, Replay, int]] = []
        for first in range(0, len(feeds), CHECKED):
            batch = [feed for feed in feeds[first : first + CHECKED] if feed.live]
            try:
                await self._check_batch(batch, ahead)
            except Exception as exc:
                if not isinstance(exc, StoreError):
                    logger.exception("the store failed with something else than a StoreError")
                for feed in batch:
                    if feed.listening:
                        feed.replay.interrupted()
                        self._wake(feed)
                break  # away: the others would only wait as long, batch by batch
            await asyncio.sleep(0)
        if ahead:
            await self._clock.sleep(OVERTAKEN)
            for feed, replay, sequence in ahead:
                if feed.replay is replay and feed.live and feed.presence < sequence:
                    self._tell_presence(feed, sequence)
        self._checker = None
        self._check_timer = self._clock.call_later(self._check_interval, self._start_check)

    async def _check_batch(self, feeds: Sequence[Feed], ahead: list[tuple[Feed, Replay, int]]) -> None:
        asked = [(feed, feed.replay, feed.replay.position, feed.presence) for feed in feeds]
        found = await self._source._where([feed.topic for feed in feeds])
        for (feed, replay, since, presence), (position, sequence) in zip(asked, found, strict=True):
            if feed.replay is not replay or not feed.live or since is None:
                continue
            # The store cannot be behind what this process had heard by then, unless it was wound back.
            behind = position.epoch != since.epoch or position.offset < since.offset
            replay.check(Recovery((), position, complete=not behind))
            if sequence < presence:
                self._tell_presence(feed, sequence)
            elif sequence > feed.presence:
                ahead.append((feed, replay, sequence))
            if replay.needs_read:
                self._wake(feed)
