"""The bounds of the memory store's topics against a naive model of them; and bugs that the machine must find."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry, History
from starlette_realtime.store import MemoryStore
from starlette_realtime.store.stream import Stream
from starlette_realtime.store.topics import Topic, Topics
from starlette_realtime.testing import FakeClock
from starlette_realtime.testing.contract import Heard

NAMES = "abcdefg"
MAX_TOPICS, TOTAL, SHORT = 4, 60, History(size=3, ttl=50.0)

names = st.sampled_from(NAMES)


class Known:
    """What the model knows of a topic: the size of each publication that is kept."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.expires = 0.0
        self.forget_at = 0.0


class TopicsMachine(RuleBasedStateMachine):
    """Which topics there are, in which order of use, and how much they hold: by search where the store has orders."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.store = MemoryStore(
            clock=self.clock, rng=random.Random(1), max_topics=MAX_TOPICS, total_bytes=TOTAL, forget=200.0
        )
        self.known: dict[str, Known] = {}  # the longest unused first
        self.heard: dict[str, Heard] = {}
        self.present: set[str] = set()

    def held(self, name: str) -> bool:
        return name in self.heard or name in self.present

    def unheld(self) -> list[str]:
        return [name for name in self.known if not self.held(name)]

    def pass_time(self) -> None:
        now = self.clock.now()
        for name, topic in list(self.known.items()):
            if now >= topic.expires:
                topic.rows = []
            if not self.held(name) and now >= topic.forget_at:
                del self.known[name]

    def use(self, name: str, stays: float) -> bool:
        """Whether the topic is, or can be made, there; then it is the last used."""
        if name not in self.known and len(self.known) >= MAX_TOPICS:
            if not self.unheld():
                return False
            del self.known[self.unheld()[0]]
        topic = self.known[name] = self.known.pop(name) if name in self.known else Known()
        topic.forget_at = max(topic.forget_at, self.clock.now() + stays)
        return True

    def run(self, operation: Coroutine[Any, Any, object], *, possible: bool) -> None:
        async def attempt() -> bool:
            try:
                await operation
            except StoreError:
                return False
            return True

        assert self.runner.run(attempt()) is possible

    @rule(name=names, size=st.sampled_from((0, 1, 10, 25, 70)))
    def publish(self, name: str, size: int) -> None:
        possible = self.use(name, max(200.0, 10 * SHORT.ttl))
        self.run(self.store.publish(name, b"x" * size, history=SHORT), possible=possible)
        if not possible:
            return
        topic = self.known[name]
        topic.rows = [*topic.rows, size][-SHORT.size :]
        topic.expires = self.clock.now() + SHORT.ttl
        for other in self.unheld():
            if self.total() > TOTAL and other != name and any(self.known[other].rows):
                del self.known[other]
        while self.total() > TOTAL:
            topic.rows.pop(0)

    @rule(name=names)
    def read(self, name: str) -> None:
        self.run(self.store.read(name, since=None, limit=1), possible=self.use(name, 60.0))

    @rule(name=names)
    def subscribe(self, name: str) -> None:
        if name not in self.heard:
            possible, heard = self.use(name, 60.0), Heard()
            self.run(self.store.subscribe(name, heard), possible=possible)
            if possible:
                self.heard[name] = heard

    @precondition(lambda self: self.heard)
    @rule(which=st.integers(0, 9))
    def unsubscribe(self, which: int) -> None:
        name = sorted(self.heard)[which % len(self.heard)]
        self.run(self.store.unsubscribe(name, self.heard.pop(name)), possible=True)
        assert self.use(name, 60.0)

    @rule(name=names)
    def enter(self, name: str) -> None:
        if name not in self.present:
            possible = self.use(name, 0.0) if name in self.known else self.use(name, 60.0)
            self.run(self.store.enter(name, [Entry("c", "u:x")]), possible=possible)
            if possible:
                self.present.add(name)

    @precondition(lambda self: self.present)
    @rule(which=st.integers(0, 9))
    def leave(self, which: int) -> None:
        name = sorted(self.present)[which % len(self.present)]
        self.run(self.store.leave(name, ["c"]), possible=True)
        self.present.discard(name)
        if not self.held(name):
            assert self.use(name, 60.0)

    @precondition(lambda self: self.known)
    @rule(which=st.integers(0, 9), rewind=st.booleans())
    def take_back(self, which: int, rewind: bool) -> None:
        name = sorted(self.known)[which % len(self.known)]
        topic = self.known[name]

        async def within() -> None:
            if not rewind:
                self.store.faults.lose(name)
            elif topic.rows:
                self.store.faults.rewind(name, 1)

        self.runner.run(within())
        topic.rows = topic.rows[:-1] if rewind else []

    @rule(seconds=st.sampled_from((1.0, 49.0, 60.0, 300.0, 501.0)))
    def advance(self, seconds: float) -> None:
        self.runner.run(self.clock.advance(seconds))
        self.pass_time()

    def total(self) -> int:
        return sum(sum(topic.rows) for topic in self.known.values())

    @invariant()
    def the_store_has_what_the_model_has(self) -> None:
        topics = self.store.backend.topics
        assert {name: [len(row.data) for row in topic.stream.rows] for name, topic in topics.items()} == {
            name: topic.rows for name, topic in self.known.items()
        }
        gauges = self.store.gauges()
        assert gauges["topics"] == len(self.known) <= MAX_TOPICS
        assert gauges["publications"] == sum(len(topic.rows) for topic in self.known.values())
        assert gauges["publication_bytes"] == self.total() <= TOTAL

    def teardown(self) -> None:
        try:
            for name, heard in self.heard.items():
                self.runner.run(self.store.unsubscribe(name, heard))
            for name in self.present:
                self.runner.run(self.store.leave(name, ["c"]))
            self.runner.run(self.clock.advance(1_000.0))
            left = {name: value for name, value in self.store.gauges().items() if value}
            assert left.keys() <= {"nodes"}
        finally:
            self.runner.close()


TestTopicsMachine = TopicsMachine.TestCase
TestTopicsMachine.settings = settings(max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck))


# --- bugs that the machine must find ---


def nothing_is_forgotten_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither bound holds."""
    monkeypatch.setattr(Topics, "_make_room", lambda *arguments: None)


def bytes_are_not_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The histories grow."""
    monkeypatch.setattr(Topics, "_fit", lambda *arguments: None)


def use_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest topic goes, however lately it was used."""
    real = Topics.used

    def used(self: Topics, topic: Topic) -> None:
        if topic.held or topic.name not in self._unheld:
            real(self, topic)

    monkeypatch.setattr(Topics, "used", used)


def the_held_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who is there does not count."""
    real = Topics.used

    def used(self: Topics, topic: Topic) -> None:
        real(self, topic)
        self._unheld[topic.name] = topic

    monkeypatch.setattr(Topics, "used", used)


def what_expires_is_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum drifts."""
    monkeypatch.setattr(Topics, "_expire", lambda self, topic: topic.stream.expire())


def what_is_taken_back_is_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it does here."""
    monkeypatch.setattr(Topics, "_shrunk", lambda *arguments: None)


def too_much_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """One publication more than it takes."""
    real = Stream.trim

    def trim(self: Stream, size: int) -> None:
        real(self, size)
        real(self, self.size - 1)

    monkeypatch.setattr(Stream, "trim", trim)


@pytest.mark.parametrize(
    "bug",
    [
        nothing_is_forgotten_early,
        bytes_are_not_bounded,
        use_is_not_noticed,
        the_held_are_forgotten,
        what_expires_is_still_counted,
        what_is_taken_back_is_still_counted,
        too_much_is_dropped,
    ],
)
def test_the_machine_finds_the_bug(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        run_state_machine_as_test(
            TopicsMachine,
            settings=settings(
                max_examples=2_000,
                stateful_step_count=40,
                phases=[Phase.generate],
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
