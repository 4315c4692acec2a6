"""Several processes on one store, with everything that can go wrong; and bugs that the machine must find."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import (
    Delivery,
    Entry,
    Fresh,
    Gap,
    History,
    Position,
    PresenceDiff,
    Publication,
    Recovery,
    Stale,
)
from starlette_realtime.store import MemoryStore
from starlette_realtime.store.backend import Lease, MemoryBackend
from starlette_realtime.store.feed import Feed
from starlette_realtime.store.feeds import Feeds
from starlette_realtime.store.stream import Stream
from starlette_realtime.testing import FakeClock

T = TypeVar("T")

HISTORY = History(size=6, ttl=100.0)
TOPICS = ("a", "b")
NODES = 3
HELD = 8

topics = st.sampled_from(TOPICS)
nodes = st.integers(0, NODES - 1)
whos = st.sampled_from(("u:x", "u:y"))


class Truth:
    """What a topic has published and not taken back, in its present epoch."""

    def __init__(self) -> None:
        self.rows: list[tuple[Position, bytes]] = []
        self.kept = 0  # how many of them the history still has
        self.expires = 0.0

    def add(self, position: Position, data: bytes, now: float) -> None:
        self.rows.append((position, data))
        self.kept = min(HISTORY.size, (self.kept if now < self.expires else 0) + 1)
        self.expires = now + HISTORY.ttl

    def take_back(self, count: int) -> None:
        del self.rows[len(self.rows) - count :]
        self.kept -= count

    def at(self, offset: int) -> str:
        return self.rows[offset - 1][0].id if offset else ""


class Listener:
    """One subscriber: everything it hears is checked as it comes."""

    def __init__(self, start: Position) -> None:
        self.base = start  # where it began, or its last gap
        self.heard: list[Publication] = []
        self.stale = False
        self.sequence = -1  # of presence, where its roster is; -1: it needs a snapshot
        self.roster: dict[str, Entry] = {}
        self.gaps = 0

    @property
    def position(self) -> Position:
        last = self.heard[-1].position if self.heard else self.base
        assert last is not None
        return last

    def __call__(self, delivery: Delivery) -> None:
        if isinstance(delivery, Publication):
            last, position = self.position, delivery.position
            assert position is not None
            if not self.heard and self.gaps == 0 and position != last and position.offset <= last.offset:
                self.fail("heard what was published before it subscribed")
            if (position.epoch, position.offset, delivery.previous) != (last.epoch, last.offset + 1, last.id):
                self.fail(f"{position} does not follow {last}")
            self.heard.append(delivery)
        elif isinstance(delivery, Gap):
            self.base, self.heard, self.gaps = delivery.position, [], self.gaps + 1
        elif isinstance(delivery, PresenceDiff):
            if delivery.prev != self.sequence:
                self.sequence = -1 if delivery.seq != self.sequence else self.sequence
                return
            self.sequence = delivery.seq
            self.roster.update((entry.connection, entry) for entry in delivery.entered)
            for connection in delivery.left:
                self.roster.pop(connection, None)
        elif isinstance(delivery, Stale):
            if self.stale:
                self.fail("stale twice")
            self.stale = True
        else:
            assert isinstance(delivery, Fresh)
            if not self.stale:
                self.fail("fresh without stale")
            self.stale = False

    failures: list[str]  # shared by all listeners of a machine: an exception in a subscriber is logged, not raised

    def fail(self, reason: str) -> None:
        self.failures.append(reason)


class StoreMachine(RuleBasedStateMachine):
    """The invariants are those of the design: order, no silent gap, agreement, idempotency, presence, bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.truth = {topic: Truth() for topic in TOPICS}
        self.listeners: dict[tuple[int, str], Listener] = {}
        self.acknowledged: dict[tuple[str, str], tuple[float, Position]] = {}
        self.clients: dict[str, Position] = {}
        self.entered: dict[tuple[str, str], tuple[int, str]] = {}  # (topic, connection) → node, who
        self.present: set[tuple[str, str]] = set()  # (topic, who), as joins and leaves tell
        self.failures: list[str] = []
        self.numbers = 0

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run an operation; while the store is stalled, time passes until it gives up."""

        async def drive() -> T:
            task = asyncio.ensure_future(coroutine)
            while not task.done():
                await self.clock.advance(0.0)
                if not task.done():
                    await self.clock.advance(0.5)
            return task.result()

        return self.runner.run(drive())

    def stream(self, topic: str) -> Stream:
        """What the backend has, without a fault in between."""

        return self.do(lambda: self.stores[0].backend.topics.touch(topic).stream)

    def do(self, call: Callable[[], T]) -> T:
        """Call it within the event loop."""

        async def within() -> T:
            return call()

        return self.runner.run(within())

    @initialize()
    def start(self) -> None:
        first = MemoryStore(clock=self.clock, rng=random.Random(1), replay_entries=HELD, check_interval=10.0)
        self.stores = [first, *(first.sibling() for _ in range(NODES - 1))]
        for store in self.stores:
            self.open(store)

    def open(self, store: MemoryStore) -> None:
        self.run(store.__aenter__())
        store.on_presence(self.changed)

    # --- publications ---

    @rule(topic=topics, node=nodes, key=st.sampled_from(("", "", "k1", "k2")), lost=st.booleans())
    def publish(self, topic: str, node: int, key: str, lost: bool) -> None:
        store, truth = self.stores[node], self.truth[topic]
        known = self.acknowledged.get((topic, key))
        self.numbers += 1
        data = b"%d" % self.numbers
        before = len(truth.rows)
        if lost:
            store.faults.unanswered(1)
        try:
            position = self.run(store.publish(topic, data, history=HISTORY, producer="u:x", key=key))
        except StoreError:
            if store.faults.stalled:
                store.faults.unanswered(0)
                return
            # The client does what it should: it repeats with its key; without one, it looks.
            if key:
                position = self.run(store.publish(topic, b"again", history=HISTORY, producer="u:x", key=key))
            else:
                position = store.backend.topics[topic].stream.position
        store.faults.unanswered(0)
        if known is not None and self.clock.now() < known[0]:
            assert position == known[1], "a known key was published again"
        else:
            truth.add(position, data, self.clock.now())
            if key:
                self.acknowledged[topic, key] = (self.clock.now() + 120.0, position)
            assert position.offset == before + 1
            assert position.epoch == truth.rows[0][0].epoch

    @rule(topic=topics, node=nodes, size=st.integers(2, 12))
    def burst(self, topic: str, node: int, size: int) -> None:
        for _ in range(size):
            self.publish(topic, node, "", lost=False)

    @rule(topic=topics, node=nodes)
    def subscribe(self, topic: str, node: int) -> None:
        if (node, topic) in self.listeners:
            return
        store = self.stores[node]
        top = self.stream(topic).position
        listener = Listener(top)
        listener.failures = self.failures
        try:
            self.run(store.subscribe(topic, listener))
        except StoreError:
            assert store.faults.stalled
            return
        # What was published before it began may not be heard, and is checked above; it begins where the process is.
        if not listener.heard:
            listener.base = store.position(topic) or top
        self.listeners[node, topic] = listener

    @rule(topic=topics, node=nodes)
    def unsubscribe(self, topic: str, node: int) -> None:
        if (listener := self.listeners.pop((node, topic), None)) is not None:
            self.run(self.stores[node].unsubscribe(topic, listener))

    @rule(topic=topics, node=nodes)
    def resume(self, topic: str, node: int) -> None:
        """A client comes back, to any process; then it is where the topic is."""
        position = self.read(topic, node, self.clients.get(topic))
        if position is not None:
            self.clients[topic] = position

    def read(self, topic: str, node: int, since: Position | None) -> Position | None:
        """Exactly what was missed, or word that it is not to be had."""
        store, truth = self.stores[node], self.truth[topic]
        try:
            recovery = self.run(store.read(topic, since=since, limit=100))
        except StoreError:
            assert store.faults.stalled
            return None
        assert (recovery.position.offset, recovery.position.id) == (len(truth.rows), truth.at(len(truth.rows)))
        if since is not None:
            behind = len(truth.rows) - since.offset
            kept = truth.kept if self.clock.now() < truth.expires else 0
            assert recovery.complete is (
                since.epoch == recovery.position.epoch
                and behind >= 0
                and truth.at(since.offset) == since.id
                and behind <= kept
            ), recovery.reason
        missed = truth.rows[since.offset :] if since is not None and recovery.complete else []
        assert [(row.position, row.data) for row in recovery.publications] == missed
        return recovery.position

    # --- faults ---

    @rule(node=nodes, count=st.integers(1, 4))
    def drop(self, node: int, count: int) -> None:
        self.stores[node].faults.drop(count)

    @rule(node=nodes, count=st.integers(1, 4))
    def duplicate(self, node: int, count: int) -> None:
        self.stores[node].faults.duplicate(count)

    @rule(topic=topics, count=st.integers(1, 4), node=nodes, again=st.integers(0, 4), key=st.sampled_from(("", "k1")))
    def rewind(self, topic: str, count: int, node: int, again: int, key: str) -> None:
        store, truth = self.stores[node], self.truth[topic]
        if len(self.stream(topic).rows) < count:
            return
        self.do(lambda: store.faults.rewind(topic, count))
        truth.take_back(count)
        self.forget_keys(topic, lambda position: position.offset > len(truth.rows))
        for _ in range(again):
            self.publish(topic, node, key, lost=False)

    @rule(topic=topics, again=st.integers(0, 2), node=nodes)
    def lose(self, topic: str, again: int, node: int) -> None:
        self.do(lambda: self.stores[0].faults.lose(topic))
        self.truth[topic] = Truth()
        self.forget_keys(topic, lambda position: True)
        if again:
            self.burst(topic, node, again)

    def forget_keys(self, topic: str, gone: Callable[[Position], bool]) -> None:
        for name, (_, position) in list(self.acknowledged.items()):
            if name[0] == topic and gone(position):
                del self.acknowledged[name]

    @rule(node=nodes)
    def stall(self, node: int) -> None:
        self.do(self.stores[node].faults.stall)

    @rule(node=nodes)
    def unstall(self, node: int) -> None:
        self.do(self.stores[node].faults.resume)
        self.runner.run(self.clock.advance(0.0))

    @rule(node=nodes, topic=topics, seconds=st.sampled_from((1.0, 4.0, 25.0)), size=st.integers(0, 3))
    def outage(self, node: int, topic: str, seconds: float, size: int) -> None:
        self.stall(node)
        self.burst(topic, (node + 1) % NODES, size)
        self.advance(seconds)
        self.unstall(node)

    @rule(node=nodes)
    def kill(self, node: int) -> None:
        """The process dies; another takes its place."""
        dead = self.stores[node]
        self.do(dead.faults.kill)
        self.listeners = {place: listener for place, listener in self.listeners.items() if place[0] != node}
        self.entered = {place: held for place, held in self.entered.items() if held[0] != node}
        self.stores[node] = dead.sibling()
        self.open(self.stores[node])

    @rule(seconds=st.sampled_from((0.3, 2.0, 7.0, 19.0, 40.0, 130.0)))
    def advance(self, seconds: float) -> None:
        self.runner.run(self.clock.advance(seconds))

    # --- presence ---

    def changed(self, topic: str, joined: tuple[Entry, ...], left: tuple[Entry, ...]) -> None:
        for entry in joined:
            if (topic, entry.who) in self.present:
                self.failures.append(f"{entry.who} joined twice")
            self.present.add((topic, entry.who))
        for entry in left:
            if (topic, entry.who) not in self.present:
                self.failures.append(f"{entry.who} left twice")
            self.present.discard((topic, entry.who))

    @rule(topic=topics, node=nodes, who=whos, number=st.integers(0, 1), status=st.sampled_from(("online", "away")))
    def enter(self, topic: str, node: int, who: str, number: int, status: Any) -> None:
        store = self.stores[node]
        entry = Entry(f"{store.node}:{who}:{number}", who, status=status)
        place = (topic, f"{node}:{who}:{number}")
        known = self.entered.get(place)
        if known is not None:
            entry = Entry(known[1], who, status=status)
        try:
            joined = self.run(store.enter(topic, (entry,)))
        except StoreError:
            assert store.faults.stalled
            return
        self.entered[place] = (node, entry.connection)
        self.changed(topic, joined, ())

    @precondition(lambda self: self.entered)
    @rule(which=st.integers(0, 9), cut=st.booleans())
    def leave(self, which: int, cut: bool) -> None:
        place = sorted(self.entered)[which % len(self.entered)]
        topic, (node, connection) = place[0], self.entered.pop(place)
        if cut:
            self.stall(node)
        try:
            left = self.run(self.stores[node].leave(topic, (connection,)))
        except StoreError:
            assert self.stores[node].faults.stalled
            return
        self.changed(topic, (), left)

    # --- progress ---

    @rule()
    def quiesce(self) -> None:
        """Once nothing more goes wrong, all are where the store is, have heard what led there, and see who is there."""
        for store in self.stores:
            self.do(store.faults.resume)
            store.faults.drop(0)
            store.faults.duplicate(0)
        self.runner.run(self.clock.advance(30.0))
        assert not self.failures
        for (node, topic), listener in self.listeners.items():
            store, truth = self.stores[node], self.truth[topic]
            top = self.stream(topic).position
            assert listener.position == top == store.position(topic)
            assert not listener.stale
            assert [row.data for row in listener.heard] == [data for _, data in truth.rows[listener.base.offset :]]
            members = self.run(store.members(topic, limit=1_000))
            if listener.sequence == -1:
                listener.roster = {entry.connection: entry for entry in members.entries}
                listener.sequence = members.seq
            assert listener.sequence == members.seq
            assert set(listener.roster.values()) == set(members.entries)
        for topic in TOPICS:
            self.resume(topic, 0)
            for position, _ in self.truth[topic].rows[-2 * HISTORY.size :]:
                self.read(topic, 1, position)
            members = self.run(self.stores[0].members(topic, limit=1_000))
            expected = {held[1] for place, held in self.entered.items() if place[0] == topic}
            assert {entry.connection for entry in members.entries} == expected
            assert {entry.who for entry in members.entries} == {who for name, who in self.present if name == topic}
        assert {each.id for each in self.run(self.stores[0].nodes())} == {store.node for store in self.stores}

    @invariant()
    def nobody_heard_anything_wrong(self) -> None:
        assert not self.failures

    @invariant()
    def everything_is_bounded(self) -> None:
        for store in getattr(self, "stores", []):
            gauges = store.gauges()
            assert gauges["held_publications"] <= HELD * gauges["feeds"]
            assert gauges["publications"] <= HISTORY.size * len(TOPICS)
            assert gauges["subscribers"] == sum(1 for place in self.listeners if self.stores[place[0]] is store)

    def teardown(self) -> None:
        try:
            if hasattr(self, "stores") and not self.failures:
                self.quiesce()
                for (node, topic), listener in list(self.listeners.items()):
                    self.run(self.stores[node].unsubscribe(topic, listener))
                for store in self.stores:
                    assert store.gauges()["feeds"] == 0
                    self.run(store.__aexit__(None, None, None))
                self.runner.run(self.clock.advance(90_000.0))
                gauges = self.stores[0].gauges()
                left = {name: value for name, value in gauges.items() if value}
                assert not left, left
        finally:
            self.runner.run(self.cancel_all())
            self.runner.close()

    @staticmethod
    async def cancel_all() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=30, suppress_health_check=list(HealthCheck))


# --- bugs that the machine must find ---


def read_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read leaves out the first of what was missed."""
    real = Stream.read

    def read(self: Stream, since: Position | None, limit: int, limit_bytes: int) -> Recovery:
        recovery = real(self, since, limit, limit_bytes)
        return Recovery(recovery.publications[1:], recovery.position, recovery.complete, recovery.reason)

    monkeypatch.setattr(Stream, "read", read)


def read_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read begins with the publication that the reader has."""
    real = Stream.read

    def read(self: Stream, since: Position | None, limit: int, limit_bytes: int) -> Recovery:
        recovery = real(self, since, limit, limit_bytes)
        own = tuple(row for row in self.rows if row.position == since)
        return Recovery(own + recovery.publications, recovery.position, recovery.complete, recovery.reason)

    monkeypatch.setattr(Stream, "read", read)


def read_any_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read looks at the offset alone."""
    real = Stream.read

    def read(self: Stream, since: Position | None, limit: int, limit_bytes: int) -> Recovery:
        if since is not None and since.offset <= self.offset <= since.offset + len(self.rows):
            start = len(self.rows) - (self.offset - since.offset)
            return Recovery(tuple(self.rows)[start:], self.position, complete=True)
        return real(self, since, limit, limit_bytes)

    monkeypatch.setattr(Stream, "read", read)


def read_hides_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read gives what is left, and calls it all."""
    real = Stream.read

    def read(self: Stream, since: Position | None, limit: int, limit_bytes: int) -> Recovery:
        recovery = real(self, since, limit, limit_bytes)
        if recovery.reason == "trimmed":
            return Recovery(tuple(self.rows), recovery.position, complete=True)
        return recovery

    monkeypatch.setattr(Stream, "read", read)


def keys_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated key publishes again."""
    monkeypatch.setattr(MemoryBackend, "_remember", lambda *arguments: None)


def keys_outlive_their_publications(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rewind, a repeated key is answered with a position that is no more, or is another's."""
    monkeypatch.setattr(MemoryBackend, "_unpublish", lambda *arguments: None)


def history_is_one_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The history keeps one publication less than it says, and doesn't tell."""
    real = Stream.append

    def append(self: Stream, data: bytes, **options: Any) -> Publication:
        publication = real(self, data, **options)
        if len(self.rows) == HISTORY.size:
            self.rows.popleft()
            self.rows.popleft()
        return publication

    monkeypatch.setattr(Stream, "append", append)


def the_dead_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reaps."""
    monkeypatch.setattr(MemoryStore, "_sweep", lambda self: None)


def the_dead_leave_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process tells that a member of a dead process left."""
    real = MemoryBackend.reap

    def reap(self: MemoryBackend, lease: Lease) -> Any:
        left = real(self, lease)
        for topic, last in left:
            if last:
                lease.store.sibling()._presence_changed(topic, (), last)
                for other in self.leases.values():
                    other.store._presence_changed(topic, (), last)
        return left

    monkeypatch.setattr(MemoryBackend, "reap", reap)


def the_living_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that missed its lease does not announce its members anew."""
    monkeypatch.setattr(MemoryStore, "_announce", lambda *arguments: None)


def leaves_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever leaves while the store is away stays for good."""
    monkeypatch.setattr(MemoryStore, "_make_up", lambda *arguments: None)


def presence_counts_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that comes is a join, also the second of the same user."""
    real = MemoryBackend.enter

    def enter(self: MemoryBackend, name: str, lease: Lease, entries: Any) -> tuple[Entry, ...]:
        real(self, name, lease, entries)
        return tuple(entries)

    monkeypatch.setattr(MemoryBackend, "enter", enter)


def repairs_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries pass as they come."""

    def received(self: Feeds, topic: str, delivery: Delivery) -> None:
        if (feed := self._feeds.get(topic)) is not None:
            feed.deliver(delivery)

    monkeypatch.setattr(Feeds, "received", received)


def nobody_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no later delivery betrays is never found."""
    monkeypatch.setattr(Feeds, "_start_check", lambda self: None)


def fresh_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscribers believe for ever that the store is away."""
    monkeypatch.setattr(Feed, "deliver", quietly(Feed.deliver))


def quietly(deliver: Callable[[Feed, Delivery], None]) -> Callable[[Feed, Delivery], None]:
    return lambda self, delivery: None if isinstance(delivery, Fresh) else deliver(self, delivery)


def topics_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last subscriber leaves its feed behind."""

    async def unsubscribe(self: Feeds, topic: str, deliver: Any) -> None:
        if (feed := self._feeds.get(topic)) is not None:
            feed.remove(deliver)

    monkeypatch.setattr(Feeds, "unsubscribe", unsubscribe)


BUGS = [
    read_off_by_one,
    read_repeats,
    read_any_epoch,
    read_hides_the_gap,
    keys_are_ignored,
    keys_outlive_their_publications,
    history_is_one_short,
    the_dead_stay,
    the_dead_leave_twice,
    the_living_are_forgotten,
    leaves_are_lost,
    presence_counts_connections,
    repairs_are_not_made,
    nobody_checks,
    fresh_is_not_told,
    topics_stay,
]


@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_finds_the_bug(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            StoreMachine,
            settings=settings(
                max_examples=3_000,
                stateful_step_count=30,
                phases=[Phase.generate],
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
