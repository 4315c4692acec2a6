"""Topics: what a memory backend knows of each topic; made when met, forgotten when unused, bounded in all."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Delivery, Entry, History
from starlette_realtime.store.stream import Stream

if TYPE_CHECKING:
    from starlette_realtime.store.backend import Lease
    from starlette_realtime.store.memory import MemoryStore

__all__ = ["Topic", "Topics"]

logger = logging.getLogger("starlette_realtime.store")

FORGET_STEP = 100
"""How many topics one publication forgets at most, to have room for its bytes."""


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


class Topics(dict[str, Topic]):
    """
    All topics by name, for reading; they come and go through the methods.

    `forget` and `forget_joined`: seconds that a topic is known after a publication (ten times its history's ttl, where
    that is longer), and after it was only read. `history_bytes` and `total_bytes`: data that the history of one topic,
    and of all, may hold. `max_topics`: how many there may be.

    Over either of the last two, topics that nobody holds are forgotten before their time, the longest unused first:
    they wait in two orders of use, all of them, and those of them that have data, so that nobody has to search. Where
    all are held, a further topic is refused, and a further publication drops the oldest of its own topic's; so does one
    that is too large for what `FORGET_STEP` topics leave.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        new_id: Callable[[], str],
        forget: float,
        forget_joined: float,
        history_bytes: int,
        max_topics: int,
        total_bytes: int,
    ) -> None:
        super().__init__()
        self.size = 0
        """Bytes of data in all histories."""
        self._clock = clock
        self._new_id = new_id
        self._forget_after = forget
        self._forget_joined = forget_joined
        self._history_bytes = history_bytes
        self._max_topics = max_topics
        self._total_bytes = total_bytes
        self._unheld: OrderedDict[str, Topic] = OrderedDict()  # the longest unused first
        self._unheld_filled: OrderedDict[str, Topic] = OrderedDict()  # those of them that have data, in the same order
        self._warned: set[str] = set()

    def meet(self, name: str, now: float, *, regardless: bool = False) -> Topic:
        """
        The topic, made, or made anew, where there is none any more.

        Raises `StoreError` where that would be one too many and all others are held, unless `regardless`.
        """
        topic = self.get(name)
        if topic is None:
            if len(self) >= self._max_topics:
                self._make_room(regardless)
            topic = self[name] = Topic(name, self._new_stream())
        elif now >= topic.forget_at and not topic.held:
            self._replace(topic)
            topic.seq = 0
        else:
            if topic.stream.rows and now >= topic.stream.expires:
                self._expire(topic)
            return topic
        self._keep(topic, now + self._forget_joined, now)
        self.used(topic)
        return topic

    def touch(self, name: str) -> Topic:
        """The topic for a reader: known for a while, though nothing was published."""
        now = self._clock.now()
        topic = self.meet(name, now)
        self._keep(topic, now + self._forget_joined, now)
        self.used(topic)
        return topic

    def grown(self, topic: Topic, before: int, history: History, now: float) -> None:
        """Account for a publication that was appended to its stream, whose size was `before` until then."""
        stream = topic.stream
        self.size += stream.size - before
        known = 10 * history.ttl
        forget_at = now + (max(self._forget_after, known))
        if stream.expires < topic.due or topic.timer is None:
            self._keep(topic, forget_at, now)
        elif forget_at > topic.forget_at:
            topic.forget_at = forget_at
        if not topic.listeners:
            self.used(topic)
        if self.size > self._total_bytes:
            self._fit(topic)

    def used(self, topic: Topic) -> None:
        """Let it be the last to be forgotten early, or not at all while it is held: call when either may change."""
        name = topic.name
        if topic.listeners or topic.entries:
            self._unheld.pop(name, None)
            self._unheld_filled.pop(name, None)
            return
        self._unheld[name] = topic
        self._unheld.move_to_end(name)
        if topic.stream.size:
            self._unheld_filled[name] = topic
            self._unheld_filled.move_to_end(name)
        else:
            self._unheld_filled.pop(name, None)

    def released(self, topic: Topic) -> None:
        """Somebody is there no more; the topic is known for a while yet."""
        now = self._clock.now()
        self._keep(topic, now + self._forget_joined, now)
        self.used(topic)

    def listen(self, name: str, store: "MemoryStore") -> None:
        """Deliver the topic to that store."""
        topic = self.touch(name)
        if store not in topic.listeners:
            topic.listeners = (*topic.listeners, store)
        if topic.timer is not None and not topic.stream.rows:  # as in `_keep`
            topic.timer.cancel()
            topic.timer, topic.due = None, inf
        self.used(topic)

    def unlisten(self, name: str, store: "MemoryStore") -> None:
        """Undo `listen`."""
        topic = self.get(name)
        if topic is not None and store in topic.listeners:
            topic.listeners = tuple(other for other in topic.listeners if other is not store)
            self.released(topic)

    def lose(self, name: str) -> Stream | None:
        """Forget the topic's publications and position: the next ones belong to another epoch."""
        topic = self.get(name)
        if topic is None:
            return None
        self._replace(topic)
        return topic.stream

    def rewind(self, name: str, count: int) -> Stream:
        """Take the last `count` publications back, within the same epoch."""
        topic = self.meet(name, self._clock.now())
        before = topic.stream.size
        topic.stream.rewind(count)
        self._shrunk(topic, before)
        return topic.stream

    def _new_stream(self) -> Stream:
        return Stream(self._new_id(), self._history_bytes)

    def _replace(self, topic: Topic) -> None:
        before, topic.stream = topic.stream.size, self._new_stream()
        self._shrunk(topic, before)

    def _expire(self, topic: Topic) -> None:
        before = topic.stream.size
        topic.stream.expire()
        self._shrunk(topic, before)

    def _shrunk(self, topic: Topic, before: int) -> None:
        """Account for what its history has less than before."""
        self.size += topic.stream.size - before
        if not topic.stream.size:
            self._unheld_filled.pop(topic.name, None)

    # --- forgetting in time ---

    def _keep(self, topic: Topic, until: float, now: float) -> None:
        """Don't forget it before that; its one timer is early or right, never late."""
        topic.forget_at = max(topic.forget_at, until)
        due = topic.forget_at
        if topic.stream.rows:
            due = min(due, topic.stream.expires)
        elif topic.held:
            return  # nothing to expire, and nobody forgets it until it is released
        if due < topic.due:
            if topic.timer is not None:
                topic.timer.cancel()
            topic.due = due
            topic.timer = self._clock.call_later(due - now, self._tidy, topic)

    def _tidy(self, topic: Topic) -> None:
        now = self._clock.now()
        topic.timer, topic.due = None, inf
        if topic.stream.rows and now >= topic.stream.expires:
            self._expire(topic)
        if topic.stream.rows or (not topic.held and now < topic.forget_at):
            self._keep(topic, topic.forget_at, now)
        elif not topic.held:
            self._forget(topic)

    # --- forgetting early ---

    def _forget(self, topic: Topic) -> None:
        if topic.timer is not None:
            topic.timer.cancel()
        self.size -= topic.stream.size
        self._unheld.pop(topic.name, None)
        self._unheld_filled.pop(topic.name, None)
        del self[topic.name]

    def _make_room(self, regardless: bool) -> None:
        """For one more topic."""
        self._warn(
            "max_topics", "over %d topics: the longest unused that nobody holds are forgotten early", self._max_topics
        )
        while self._unheld and len(self) >= self._max_topics:
            self._forget(next(iter(self._unheld.values())))
        if len(self) >= self._max_topics and not regardless:
            raise StoreError(f"all {self._max_topics} topics are in use, none to spare: raise max_topics")

    def _fit(self, topic: Topic) -> None:
        """For what was published last."""
        self._warn(
            "total_bytes",
            "over %d bytes of publications: the longest unused topics that nobody holds are forgotten early, and where "
            "all are held, the oldest publications of the one that publishes",
            self._total_bytes,
        )
        for _ in range(FORGET_STEP):
            if self.size <= self._total_bytes:
                return
            unused = next(iter(self._unheld_filled.values()), topic)
            if unused is topic:
                break
            self._forget(unused)
        before = topic.stream.size
        topic.stream.trim(before - (self.size - self._total_bytes))
        self._shrunk(topic, before)

    def _warn(self, option: str, message: str, bound: int) -> None:
        """Once for each option; it may happen with every publication from now on."""
        if option not in self._warned:
            self._warned.add(option)
            logger.warning(message + "; raise %s", bound, option)
