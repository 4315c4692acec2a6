"""The store's interface and promises, and the local fan-out that every store shares."""

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import anyio
import limits.aio.storage

from starlette_realtime.clock import Clock
from starlette_realtime.messages import (
    Delivery,
    Entry,
    History,
    Members,
    Node,
    Page,
    Position,
    Recovery,
)
from starlette_realtime.store.feed import Deliver
from starlette_realtime.store.feeds import Feeds
from starlette_realtime.store.ring import Rings

__all__ = ["PROCESSES", "READ_BYTES", "REVOCATIONS", "Deliver", "PresenceChanged", "Store"]

logger = logging.getLogger("starlette_realtime.store")

READ_BYTES = 1_048_576
"""How many bytes of data one `read` or `page` answers with, unless told otherwise."""

REVOCATIONS = "rt:revocations"
"""The topic that tells of every new revocation: the data is the JSON of `[subject, issued_before]`."""

PROCESSES = "rt:processes"
"""The topic where the processes that serve rooms are present, and are asked."""

PresenceChanged = Callable[[str, tuple[Entry, ...], tuple[Entry, ...]], object]
"""
Hears of presence that the store itself changed: topic, entries whose `who` appeared, entries whose `who` is gone.
"""


class Store(ABC):
    """
    State that processes share: the one seam behind which several processes become one service.

    An async context manager, entered as often as it is used. All durations are seconds; every failure of a backend
    is a `StoreError`, within the store's `timeout`. What a store promises is checked by
    `starlette_realtime.testing.StoreContract`.

    A subclass implements the abstract methods and `_listen`, `_unlisten`, `_start`, `_stop`; it hands what its
    backend delivers to `_received` and `_addressed`, and calls `_interrupted` whenever it may have missed something.
    Order, gaps, repeats, repair and the local fan-out are then this class's business.
    """

    node: str
    """This process, as an incarnation: after a missed lease it is another one."""

    _rings = True
    """Whether recent publications are kept here, too: not where reading costs nothing."""

    limits: limits.aio.storage.Storage
    """The same backend, for the rate limiter."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        check_interval: float = 10.0,
        stale_after: float = 2.0,
        replay_entries: int = 1_024,
        replay_bytes: int = 1_048_576,
        replay_total_bytes: int = 67_108_864,
        ring_entries: int = 512,
        ring_bytes: int = 1_048_576,
        ring_total_bytes: int = 67_108_864,
    ) -> None:
        """
        `check_interval`: seconds between two comparisons of every live topic's position with the store's.
        `stale_after`: seconds that a topic's repair may take before its subscribers hear `Stale`.
        `replay_entries`, `replay_bytes`: what a topic holds back, and reads again, in one repair; over it, a `Gap`.
        `replay_total_bytes`: bytes of memory for what all topics hold back; over it, they read twice instead.
        `ring_entries`, `ring_bytes`: the last publications of a topic that are kept in this process as well, so that
        those who come back are answered from here. `ring_total_bytes`: bytes of memory for those of all topics; over
        it, the longest unused are forgotten. (None of these three where reading the store costs nothing.)
        """
        self.clock = clock if clock is not None else Clock()
        self._rng = rng if rng is not None else random.Random()
        rings = Rings(clock=self.clock, entries=ring_entries, size=ring_bytes, total=ring_total_bytes)
        self._feeds = Feeds(
            self,
            clock=self.clock,
            rng=self._rng,
            check_interval=check_interval,
            stale_after=stale_after,
            entries=replay_entries,
            size=replay_bytes,
            total=replay_total_bytes,
            rings=rings if self._rings else None,
        )
        self._receivers: list[Callable[[bytes], object]] = []
        self._presence_watchers: list[PresenceChanged] = []
        self._users = 0
        self._started = False
        self._starting = asyncio.Lock()

    # --- publications ---

    @abstractmethod
    async def publish(
        self, topic: str, data: bytes, *, history: History, producer: str = "", key: str = "", n: int = 0
    ) -> Position:
        """
        Append to `topic` and deliver to every subscriber, in one order for all.

        The same `(producer, topic, key, n)` within 120 s answers with the first position and appends nothing; without
        a `key` every call appends. Raises `StoreError`: the publication may or may not have been made then, and
        repeating it with the same key is safe.
        """

    @abstractmethod
    async def publish_volatile(self, topic: str, data: bytes) -> None:
        """Deliver to whoever listens now: no position, no history, no promise of order against kept publications."""

    @abstractmethod
    async def read(self, topic: str, *, since: Position | None, limit: int, limit_bytes: int = READ_BYTES) -> Recovery:
        """
        Read what `topic` published after `since`, oldest first: all of it, or nothing.

        `since=None` reads nothing and tells the current position, which it creates where there is none.
        `Recovery.complete` is False, without publications, when `since` is not in what the store has; `reason` is
        then `forgotten` (another epoch), `rewound` (the store has something else at that offset), `trimmed` (the
        history no longer reaches back) or `too_many` (over `limit` publications or `limit_bytes` of data).
        """

    @abstractmethod
    async def page(self, topic: str, *, before: Position | None, limit: int, limit_bytes: int = READ_BYTES) -> Page:
        """
        Read at most `limit` publications and about `limit_bytes` of them before `before`, oldest first.

        None reads up to the newest. A `before` that the topic never had, or has no more, gives an empty page that is
        `truncated`.
        """

    async def recover(
        self,
        topic: str,
        *,
        since: Position | None,
        limit: int,
        limit_bytes: int = READ_BYTES,
        history: History | None = None,
    ) -> Recovery:
        """
        As `read`, for those who join: answered in this process where it can be, and else by a read that they share.

        It is right for whoever holds back, from before it asks until it has the answer, what a subscriber of `topic`
        hears: the answer leads up to where this process's subscribers are, or further, and no answer is older than
        the question. `history` is what the topic keeps: what that excludes is not told, though it may be known here.
        """
        return await self._feeds.recover(topic, since=since, limit=limit, limit_bytes=limit_bytes, history=history)

    async def subscribe(self, topic: str, deliver: Deliver) -> None:
        """
        Call `deliver` with everything that `topic` publishes once this has returned, in order, each exactly once.

        What cannot be had in order any more is one `Gap`. `PresenceDiff`s tell how members change; an empty one
        says where the store is, after something may have been missed. `Stale` and `Fresh` say that the store is away
        and back. Subscribing the same callable again changes nothing. Raises `StoreError` when the store is away; then,
        and when cancelled, nothing is subscribed.
        """
        await self._feeds.subscribe(topic, deliver)

    def position(self, topic: str) -> Position | None:
        """Up to where this process's subscribers have heard `topic`; None where nobody subscribed."""
        return self._feeds.position(topic)

    async def unsubscribe(self, topic: str, deliver: Deliver) -> None:
        """
        Don't call `deliver` any more, from this moment on. Never raises `StoreError`.

        The last one of a topic also waits until the backend has been told; when cancelled, that goes on by itself.
        """
        await self._feeds.unsubscribe(topic, deliver)

    # --- presence ---

    @abstractmethod
    async def enter(self, topic: str, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """
        Add or update presence records of this node; tells which of them brought a `who` that was absent (0→1).

        Every record that changed raises the topic's presence sequence by one; subscribers get one `PresenceDiff`.
        After a `StoreError` the records are what they were before, or will be as soon as the store is back.
        """

    @abstractmethod
    async def leave(self, topic: str, connections: Sequence[str]) -> tuple[Entry, ...]:
        """
        Remove presence records of this node; tells which of them were the last of their `who` (1→0).

        After a `StoreError` it is made as soon as the store is back, and `on_presence` tells what came of it.
        """

    @abstractmethod
    async def members(self, topic: str, *, limit: int) -> Members:
        """The presence snapshot, at most `limit` entries, the longest present first."""

    def on_presence(self, callback: PresenceChanged) -> None:
        """
        Hear of changes that no `enter` or `leave` returned, each in exactly one process.

        That is: members of a dead process that this one removed, and members of this process that were announced anew
        after it had missed its lease; and leaves that were made late, because the store was away. A callback is
        forgotten when the store is left for the last time.
        """
        if callback not in self._presence_watchers:
            self._presence_watchers.append(callback)

    def off_presence(self, callback: PresenceChanged) -> None:
        """Undo `on_presence`."""
        if callback in self._presence_watchers:
            self._presence_watchers.remove(callback)

    # --- connections, tickets, revocations ---

    @abstractmethod
    async def admit(self, key: str, slot: str, *, limit: int) -> bool:
        """
        Take one of `limit` leased slots under `key`; a slot that is held already is simply taken over.

        Within a process, a slot that was taken over is free again when each of its holders has released it.
        """

    @abstractmethod
    async def release(self, key: str, slot: str) -> None:
        """
        Give a slot back; nothing happens where another process has taken it over.

        After a `StoreError` it is given back as soon as the store is back.
        """

    @abstractmethod
    async def claim(self, key: str, *, ttl: float) -> bool:
        """True for exactly one caller within `ttl` seconds."""

    @abstractmethod
    async def revoke(self, subject: str, *, issued_before: float) -> None:
        """
        Revoke what was issued to `subject` (a user or a token id) before that Unix time; later ones stay.

        It stands as long as a token may live, and is published on `REVOCATIONS`. After a `StoreError` it may stand or
        not: revoke again, which does no harm.
        """

    @abstractmethod
    async def revocations(self) -> Mapping[str, float]:
        """All standing revocations, subject → issued before."""

    # --- processes ---

    @abstractmethod
    async def send(self, node: str, data: bytes) -> None:
        """Send to one process. Raises `StoreError` when it is gone or its inbox is full."""

    async def receive(self, deliver: Callable[[bytes], object]) -> None:
        """Call `deliver` with what `send` addresses to this process, in order; what waited already comes first."""
        if deliver not in self._receivers:
            self._receivers.append(deliver)

    async def ignore(self, deliver: Callable[[bytes], object]) -> None:
        """Undo `receive`."""
        if deliver in self._receivers:
            self._receivers.remove(deliver)

    @abstractmethod
    async def nodes(self) -> Sequence[Node]:
        """The processes that hold a lease, this one included."""

    # --- observation, start, stop ---

    def gauges(self) -> dict[str, int]:
        """What this process holds at the moment: back at its baseline after churn."""
        return self._feeds.gauges()

    async def __aenter__(self) -> Self:
        self._users += 1
        try:
            async with self._starting:
                if not self._started:
                    await self._start()
                    self._started = True
        except BaseException:
            self._users -= 1
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._users -= 1
        with anyio.CancelScope(shield=True):
            async with self._starting:
                if self._users == 0 and self._started:
                    self._started = False
                    await self._feeds.close()
                    self._receivers.clear()
                    self._presence_watchers.clear()
                    await self._stop()

    # --- what a backend implements ---

    async def _start(self) -> None:
        """Connect, take a lease; called by the first `async with`."""

    async def _stop(self) -> None:
        """Give everything back; called when the last `async with` ends, after the feeds were closed."""

    @abstractmethod
    async def _listen(self, topic: str) -> None:
        """
        Have `topic` delivered to this process: what is published once this has returned reaches `_received`.

        Called once per topic, before any `_unlisten`. Raises `StoreError`.
        """

    @abstractmethod
    async def _unlisten(self, topic: str) -> None:
        """Undo `_listen`, also one that failed or was cancelled halfway."""

    async def _ready(self, topic: str) -> None:
        """
        Wait until what is published from now on reaches `_received`, as after `_listen`.

        Called before each repair, once `_listen` has returned: the link may have been cut since. Raises `StoreError`
        when it is not so in time.
        """

    async def _where(self, topics: Sequence[str]) -> Sequence[tuple[Position, int]]:
        """
        The position and the presence sequence of each of these topics, at most 256, in their order.

        As a `read` does, it creates a position where there is none, and keeps the topics from being forgotten: every
        topic that somebody hears is asked for once in `check_interval`. Raises `StoreError`.
        """
        found = []
        for topic in topics:
            position = (await self.read(topic, since=None, limit=0)).position
            found.append((position, (await self.members(topic, limit=0)).seq))
        return found

    # --- what a backend calls ---

    def _received(self, topic: str, delivery: Delivery) -> None:
        """Take a delivery of a topic that is listened to, whatever its order."""
        self._feeds.received(topic, delivery)

    def _addressed(self, data: bytes) -> None:
        """Take what was sent to this process."""
        for receiver in tuple(self._receivers):
            try:
                receiver(data)
            except Exception:
                logger.exception("a receiver failed; the others are served")

    def _interrupted(self, topic: str | None = None) -> None:
        """Deliveries of one topic, or of all, may have been lost: the link was cut, or is back."""
        self._feeds.interrupted(topic)

    def _presence_changed(self, topic: str, joined: tuple[Entry, ...], left: tuple[Entry, ...]) -> None:
        """Tell the watchers of `on_presence`."""
        for watcher in tuple(self._presence_watchers):
            try:
                watcher(topic, joined, left)
            except Exception:
                logger.exception("a presence watcher failed; the others are served")
