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
from starlette_realtime.messages import Entry, History, Members, Position, PresenceDiff, Publication
from starlette_realtime.store.quotas import MemoryQuotas
from starlette_realtime.store.stream import Stream
from starlette_realtime.store.topics import Topic, Topics

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
        max_topics: int,
        total_bytes: int,
    ) -> None:
        self.clock = clock
        self.limits: limits.aio.storage.Storage = MemoryQuotas(clock)
        self.topics = Topics(
            clock=clock,
            new_id=self.new_id,
            forget=max(forget, dedupe),
            forget_joined=forget_joined,
            history_bytes=history_bytes,
            max_topics=max_topics,
            total_bytes=total_bytes,
        )
        self.leases: dict[str, Lease] = {}
        self.slots: dict[str, dict[str, Lease]] = {}
        self.claims: dict[str, Timer] = {}
        self.revoked: dict[str, tuple[float, Timer]] = {}
        self.published: dict[Key, tuple[float, Position]] = {}
        self._rng = rng
        self._dedupe = dedupe
        self._revocation_life = revocation_life
        self._max_keys = max_keys
        self._published_order: deque[tuple[float, Key]] = deque()
        self._published_timer: Timer | None = None
        self._warned = False

    def new_id(self) -> str:
        """64 random bits: unique, not secret."""
        return f"{self._rng.getrandbits(64):016x}"

    # --- publications ---

    def publish(self, name: str, data: bytes, history: History, key: Key | None) -> Position:
        """Append and deliver, unless that key has been published already."""
        now = self.clock.now()
        if key is not None and (found := self.published.get(key)) is not None and now < found[0]:
            return found[1]
        topic = self.topics.meet(name, now)
        stream, before = topic.stream, topic.stream.size
        at = int(self.clock.time() * 1000)
        publication = stream.append(data, id=self.new_id(), at=at, history=history, now=now)
        self.topics.grown(topic, before, history, now)
        position = publication.position
        assert position is not None
        if key is not None:
            self._remember(key, position, now)
        topic.deliver(publication)
        return position

    def publish_volatile(self, name: str, data: bytes) -> None:
        """Deliver only."""
        topic = self.topics.get(name)
        if topic is not None and topic.listeners:
            topic.deliver(Publication(data, int(self.clock.time() * 1000)))

    def lose(self, name: str) -> None:
        """Lose the topic's publications and position: the next ones belong to another epoch."""
        if (stream := self.topics.lose(name)) is not None:
            self._unpublish(name, stream)

    def rewind(self, name: str, count: int) -> None:
        """Take the last `count` publications back, within the same epoch."""
        self._unpublish(name, self.topics.rewind(name, count))

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

    def enter(self, name: str, lease: Lease, entries: Iterable[Entry], *, anew: bool = False) -> tuple[Entry, ...]:
        """See `Store.enter`; `anew` is for what had been there, so that no bound refuses it."""
        topic = self.topics.meet(name, self.clock.now(), regardless=anew)
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
            self.topics.used(topic)
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
                self.topics.released(topic)
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
            "publication_bytes": self.topics.size,
            "entries": sum(len(topic.entries) for topic in topics),
            "slots": sum(len(taken) for taken in self.slots.values()),
            "claims": len(self.claims),
            "revocations": len(self.revoked),
            "dedupe_keys": len(self.published),
            "nodes": len(self.leases),
        }
