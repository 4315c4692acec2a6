"""MemoryBackend: what several memory stores of one event loop share, as several processes share a server."""

import logging
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import inf
from typing import TYPE_CHECKING

import limits.aio.storage

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Delivery, Entry, History, Members, Position, PresenceDiff, Publication
from starlette_realtime.store.stream import Stream

if TYPE_CHECKING:
    from starlette_realtime.store.memory import MemoryStore

__all__ = ["Lease", "MemoryBackend", "Topic"]

logger = logging.getLogger("starlette_realtime.store")

REAP_STEP = 500
"""How many members of a dead process one step removes, with one diff for each topic."""

Key = tuple[str, str, str, int]


class Lease:
    """One incarnation of one process: what it has in the store, and until when."""

    __slots__ = ("beaten", "dead", "node", "slots", "store", "topics", "until")

    def __init__(self, node: str, store: "MemoryStore", now: float) -> None:
        self.node = node
        self.store = store
        self.beaten = now
        self.until = inf  # until the store is entered, nobody beats, and nobody has to
        self.dead = False  # the tombstone: an incarnation that was reaped writes no more
        self.topics: dict[str, dict[str, None]] = {}  # topic → its connections there, in order
        self.slots: set[tuple[str, str]] = set()


class Topic:
    """A topic's stream, its presence, and the processes that listen."""

    __slots__ = ("due", "entries", "forget_at", "listeners", "name", "seq", "stream", "timer", "whos")

    def __init__(self, name: str, stream: Stream) -> None:
        self.name = name
        self.stream = stream
        self.forget_at = 0.0
        self.listeners: tuple[MemoryStore, ...] = ()
        self.seq = 0  # of presence
        self.entries: dict[str, tuple[Entry, Lease]] = {}  # connection → its record, the longest present first
        self.whos: dict[str, int] = {}  # who → connections
        self.timer: Timer | None = None
        self.due = inf

    @property
    def held(self) -> bool:
        """Whether somebody is there, so that it must not be forgotten."""
        return bool(self.listeners or self.entries)

    def deliver(self, delivery: Delivery) -> None:
        """Tell every process that listens."""
        for store in self.listeners:
            store._hear(self.name, delivery)


class MemoryBackend:
    """
    The data. Every method is one atomic step; `MemoryStore` is the way to it, with the faults in between.

    For the options see `MemoryStore`, which makes a backend of its own where none is given.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        rng: random.Random,
        dedupe: float,
        forget: float,
        forget_joined: float,
        revocation_life: float,
        history_bytes: int,
        max_keys: int,
    ) -> None:
        self.clock = clock
        self.limits: limits.aio.storage.Storage = limits.aio.storage.MemoryStorage()
        self.topics: dict[str, Topic] = {}
        self.leases: dict[str, Lease] = {}
        self.slots: dict[str, dict[str, Lease]] = {}
        self.claims: dict[str, Timer] = {}
        self.revoked: dict[str, tuple[float, Timer]] = {}
        self.published: dict[Key, tuple[float, Position]] = {}
        self._rng = rng
        self._dedupe = dedupe
        self._forget = forget
        self._forget_joined = forget_joined
        self._revocation_life = revocation_life
        self._history_bytes = history_bytes
        self._max_keys = max_keys
        self._published_order: deque[tuple[float, Key]] = deque()
        self._published_timer: Timer | None = None
        self._warned = False

    def new_id(self) -> str:
        """64 random bits: unique, not secret."""
        return f"{self._rng.getrandbits(64):016x}"

    # --- topics ---

    def topic(self, name: str, now: float) -> Topic:
        """The topic, made, or made anew, where there is none any more."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, Stream(self.new_id(), self._history_bytes))
        elif now >= topic.forget_at and not topic.held:
            topic.stream, topic.seq = Stream(self.new_id(), self._history_bytes), 0
        else:
            if topic.stream.rows and now >= topic.stream.expires:
                topic.stream.expire()
            return topic
        self._keep(topic, now + self._forget_joined, now)
        return topic

    def _keep(self, topic: Topic, until: float, now: float) -> None:
        """Don't forget it before that; its one timer is early or right, never late."""
        topic.forget_at = max(topic.forget_at, until)
        due = topic.forget_at
        if topic.stream.rows:
            due = min(due, topic.stream.expires)
        if due < topic.due:
            if topic.timer is not None:
                topic.timer.cancel()
            topic.due = due
            topic.timer = self.clock.call_later(due - now, self._tidy, topic)

    def _tidy(self, topic: Topic) -> None:
        now = self.clock.now()
        topic.timer, topic.due = None, inf
        if topic.stream.rows and now >= topic.stream.expires:
            topic.stream.expire()
        if topic.stream.rows or (not topic.held and now < topic.forget_at):
            self._keep(topic, topic.forget_at, now)
        elif not topic.held:
            del self.topics[topic.name]

    def publish(self, name: str, data: bytes, history: History, key: Key | None) -> Position:
        """Append and deliver, unless that key has been published already."""
        now = self.clock.now()
        topic = self.topic(name, now)
        if key is not None and (found := self.published.get(key)) is not None and now < found[0]:
            return found[1]
        at = int(self.clock.time() * 1000)
        publication = topic.stream.append(data, id=self.new_id(), at=at, history=history, now=now)
        position = publication.position
        assert position is not None
        forget_at = now + max(self._forget, 10 * history.ttl, self._dedupe)
        if topic.stream.expires < topic.due or topic.timer is None:
            self._keep(topic, forget_at, now)
        elif forget_at > topic.forget_at:
            topic.forget_at = forget_at
        if key is not None:
            self._remember(key, position, now)
        topic.deliver(publication)
        return position

    def publish_volatile(self, name: str, data: bytes) -> None:
        """Deliver only."""
        topic = self.topics.get(name)
        if topic is not None and topic.listeners:
            topic.deliver(Publication(data, int(self.clock.time() * 1000)))

    def touch(self, name: str) -> Topic:
        """The topic for a reader: known for a while, though nothing was published."""
        now = self.clock.now()
        topic = self.topic(name, now)
        self._keep(topic, now + self._forget_joined, now)
        return topic

    def listen(self, name: str, store: "MemoryStore") -> None:
        """Deliver the topic to that store."""
        topic = self.touch(name)
        if store not in topic.listeners:
            topic.listeners = (*topic.listeners, store)

    def unlisten(self, name: str, store: "MemoryStore") -> None:
        """Undo `listen`; the topic is known for a while yet."""
        topic = self.topics.get(name)
        if topic is not None and store in topic.listeners:
            topic.listeners = tuple(other for other in topic.listeners if other is not store)
            now = self.clock.now()
            self._keep(topic, now + self._forget_joined, now)

    def lose(self, name: str) -> None:
        """Forget the topic's publications and position: the next ones belong to another epoch."""
        if (topic := self.topics.get(name)) is not None:
            topic.stream = Stream(self.new_id(), self._history_bytes)
            self._unpublish(name, topic.stream)

    def rewind(self, name: str, count: int) -> None:
        """Take the last `count` publications back, within the same epoch."""
        topic = self.topic(name, self.clock.now())
        topic.stream.rewind(count)
        self._unpublish(name, topic.stream)

    def _remember(self, key: Key, position: Position, now: float) -> None:
        deadline = now + self._dedupe
        self.published[key] = (deadline, position)
        self._published_order.append((deadline, key))
        self._forget_keys(now)
        while len(self._published_order) > self._max_keys:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "over %d idempotency keys: the oldest are forgotten before their time; raise max_keys",
                    self._max_keys,
                )
            self._drop_key()
        if self._published_timer is None and self._published_order:
            self._published_timer = self.clock.call_later(self._dedupe, self._forget_keys_later)

    def _drop_key(self) -> None:
        deadline, key = self._published_order.popleft()
        if (found := self.published.get(key)) is not None and found[0] == deadline:
            del self.published[key]

    def _forget_keys(self, now: float) -> None:
        while self._published_order and self._published_order[0][0] <= now:
            self._drop_key()

    def _forget_keys_later(self) -> None:
        now = self.clock.now()
        self._forget_keys(now)
        self._published_timer = None
        if self._published_order:
            delay = self._published_order[0][0] - now
            self._published_timer = self.clock.call_later(delay, self._forget_keys_later)

    def _unpublish(self, name: str, stream: Stream) -> None:
        """Whose publication is gone, their keys are gone: repeating them publishes again."""
        for key in [
            key
            for key, (_, position) in self.published.items()
            if key[1] == name and (position.epoch != stream.epoch or position.offset > stream.offset)
        ]:
            del self.published[key]

    # --- presence ---

    def enter(self, name: str, lease: Lease, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        """See `Store.enter`."""
        topic = self.topic(name, self.clock.now())
        before, changed, joined = topic.seq, dict[str, Entry](), list[Entry]()
        mine = lease.topics.setdefault(name, {})
        for entry in entries:
            known = topic.entries.get(entry.connection)
            if known is not None:
                old, owner = known
                if owner is not lease:
                    self._disown(owner, name, entry.connection)
                elif old == entry:
                    continue
                if old.who != entry.who:
                    self._count(topic, old.who, -1)
            topic.entries[entry.connection] = (entry, lease)
            mine[entry.connection] = None
            if (known is None or known[0].who != entry.who) and self._count(topic, entry.who, 1) == 1:
                joined.append(entry)
            topic.seq += 1
            changed[entry.connection] = entry
        if not mine:
            del lease.topics[name]
        if changed:
            topic.deliver(PresenceDiff(before, topic.seq, entered=tuple(changed.values())))
        return tuple(joined)

    def leave(self, name: str, lease: Lease, connections: Iterable[str]) -> tuple[Entry, ...]:
        """See `Store.leave`; what another incarnation holds stays."""
        topic = self.topics.get(name)
        if topic is None:
            return ()
        before, gone, last = topic.seq, list[str](), list[Entry]()
        for connection in connections:
            entry, owner = topic.entries.get(connection, (None, None))
            if entry is None or owner is not lease:
                continue
            del topic.entries[connection]
            self._disown(lease, name, connection)
            if self._count(topic, entry.who, -1) == 0:
                last.append(entry)
            topic.seq += 1
            gone.append(connection)
        if gone:
            topic.deliver(PresenceDiff(before, topic.seq, left=tuple(gone)))
            if not topic.held:
                now = self.clock.now()
                self._keep(topic, now + self._forget_joined, now)
        return tuple(last)

    def members(self, name: str, limit: int) -> Members:
        """See `Store.members`."""
        topic = self.topics.get(name)
        if topic is None:
            return Members(0, 0, ())
        shown = tuple(entry for entry, _ in islice(topic.entries.values(), max(0, limit)))
        return Members(topic.seq, len(topic.entries), shown)

    @staticmethod
    def _count(topic: Topic, who: str, change: int) -> int:
        count = topic.whos.get(who, 0) + change
        if count:
            topic.whos[who] = count
        else:
            topic.whos.pop(who, None)
        return count

    @staticmethod
    def _disown(lease: Lease, name: str, connection: str) -> None:
        mine = lease.topics.get(name)
        if mine is not None:
            mine.pop(connection, None)
            if not mine:
                del lease.topics[name]

    # --- leases ---

    def reap(self, lease: Lease) -> Sequence[tuple[str, tuple[Entry, ...]]]:
        """
        Remove a step's worth of what a dead incarnation has; tells, topic by topic, who left with it.

        The incarnation is gone from `leases` when nothing of it is left.
        """
        lease.dead = True
        left: list[tuple[str, tuple[Entry, ...]]] = []
        budget = REAP_STEP
        while lease.topics and budget > 0:
            name, mine = next(iter(lease.topics.items()))
            step = tuple(islice(mine, budget))
            budget -= len(step)
            left.append((name, self.leave(name, lease, step)))
        if not lease.topics:
            for key, slot in tuple(lease.slots):
                self.release(key, slot, lease)
            self.leases.pop(lease.node, None)
        return left

    def admit(self, key: str, slot: str, lease: Lease, limit: int) -> bool:
        """See `Store.admit`."""
        taken = self.slots.get(key, {})
        holder = taken.get(slot)
        if holder is None and len(taken) >= limit:
            return False
        if holder is not None:
            holder.slots.discard((key, slot))
        self.slots.setdefault(key, taken)[slot] = lease
        lease.slots.add((key, slot))
        return True

    def release(self, key: str, slot: str, lease: Lease) -> None:
        """See `Store.release`."""
        lease.slots.discard((key, slot))
        taken = self.slots.get(key, {})
        if taken.get(slot) is lease:
            del taken[slot]
            if not taken:
                del self.slots[key]

    # --- claims, revocations ---

    def claim(self, key: str, ttl: float) -> bool:
        """See `Store.claim`."""
        if key in self.claims:
            return False
        if len(self.claims) >= self._max_keys:
            raise StoreError(f"over {self._max_keys} claims are standing: raise max_keys")
        self.claims[key] = self.clock.call_later(ttl, self.claims.pop, key, None)
        return True

    def revoke(self, subject: str, issued_before: float) -> None:
        """See `Store.revoke`."""
        if (known := self.revoked.get(subject)) is not None:
            issued_before = max(issued_before, known[0])
            known[1].cancel()
        elif len(self.revoked) >= self._max_keys:
            raise StoreError(f"over {self._max_keys} revocations are standing: raise max_keys")
        timer = self.clock.call_later(self._revocation_life, self.revoked.pop, subject, None)
        self.revoked[subject] = (issued_before, timer)

    def revocations(self) -> Mapping[str, float]:
        """See `Store.revocations`."""
        return {subject: issued_before for subject, (issued_before, _) in self.revoked.items()}

    def gauges(self) -> dict[str, int]:
        """How much there is of everything."""
        topics = self.topics.values()
        return {
            "topics": len(topics),
            "publications": sum(len(topic.stream.rows) for topic in topics),
            "publication_bytes": sum(topic.stream.size for topic in topics),
            "entries": sum(len(topic.entries) for topic in topics),
            "slots": sum(len(taken) for taken in self.slots.values()),
            "claims": len(self.claims),
            "revocations": len(self.revoked),
            "dedupe_keys": len(self.published),
            "nodes": len(self.leases),
        }
