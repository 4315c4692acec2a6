"""The ring: a topic's last publications in the process, and what it dares to answer in the store's place."""

from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.messages import History, Position, Publication
from starlette_realtime.replay import OVERHEAD
from starlette_realtime.store.ring import Ring, Rings
from starlette_realtime.store.stream import Stream
from starlette_realtime.testing import FakeClock

KEPT = History(size=64, ttl=60.0)


def rings(*, clock: FakeClock | None = None, entries: int = 8, size: int = 1_000, total: int = 100_000) -> Rings:
    return Rings(clock=clock or FakeClock(), entries=entries, size=size, total=total)


class Topic:
    """What the store has."""

    def __init__(self, history: History = KEPT, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.stream = Stream("e", 1_000_000)
        self.history = history
        self.positions = [self.stream.position]

    @property
    def end(self) -> Position:
        return self.stream.position

    def publish(self, data: bytes = b"x") -> Publication:
        id, now, at = f"i{len(self.positions)}", self.clock.now(), int(self.clock.time() * 1000)
        publication = self.stream.append(data, id=id, at=at, history=self.history, now=now)
        self.positions.append(self.stream.position)
        return publication


def test_it_answers_as_the_store_does_or_not_at_all() -> None:
    topic, ring = Topic(), Ring(rings())
    for number in range(20):
        publication = topic.publish()
        if number >= 5:
            ring.add(publication)
    answers = [ring.answer(since, topic.end, 64, 1_000, KEPT) for since in topic.positions]
    assert answers[:12] == [None] * 12
    assert answers[12:] == [topic.stream.read(since, 64, 1_000) for since in topic.positions[12:]]
    for limit, limit_bytes in ((5, 1_000), (64, 5)):
        answer = ring.answer(topic.positions[13], topic.end, limit, limit_bytes, KEPT)
        assert answer == topic.stream.read(topic.positions[13], limit, limit_bytes)
        assert answer is not None
        assert answer.reason == "too_many"


def test_what_only_the_store_can_tell_it_leaves_to_the_store() -> None:
    topic, ring = Topic(), Ring(rings())
    for _ in range(5):
        ring.add(topic.publish())
    for since in (
        Position("another", 3, "i3"),
        Position("e", 3, "another"),
        Position("e", 5, "another"),
        Position("e", 6, "i6"),
        Position("e", 0, "another"),
    ):
        assert ring.answer(since, topic.end, 64, 1_000, KEPT) is None


def test_it_tells_no_more_than_the_topic_keeps() -> None:
    topic, ring = Topic(History(size=3, ttl=60.0)), Ring(rings())
    for _ in range(6):
        ring.add(topic.publish())
    for since in topic.positions:
        assert ring.answer(since, topic.end, 64, 1_000, topic.history) == topic.stream.read(since, 64, 1_000)


async def test_it_forgets_a_history_that_is_over() -> None:
    clock = FakeClock()
    topic, ring = Topic(clock=clock), Ring(rings(clock=clock))
    for _ in range(3):
        ring.add(topic.publish())
    await clock.advance(59.0)
    assert ring.answer(topic.positions[1], topic.end, 64, 1_000, KEPT) is not None
    await clock.advance(1.0)
    assert ring.answer(topic.positions[1], topic.end, 64, 1_000, KEPT) is None
    assert not ring.rows


async def test_what_was_read_late_is_no_younger_for_it() -> None:
    clock = FakeClock()
    topic, ring = Topic(clock=clock), Ring(rings(clock=clock))
    found = [topic.publish() for _ in range(3)]
    await clock.advance(40.0)
    ring.fill(found, topic.end, whole=True)
    assert ring.answer(topic.positions[1], topic.end, 64, 1_000, KEPT) is not None
    await clock.advance(20.0)
    assert ring.answer(topic.positions[1], topic.end, 64, 1_000, KEPT) is None


def test_what_a_read_has_found_goes_before_what_was_heard() -> None:
    topic, ring = Topic(), Ring(rings())
    before = [topic.publish() for _ in range(4)]
    heard = [topic.publish() for _ in range(2)]
    for publication in heard:
        ring.add(publication)
    ring.fill([*before[1:], *heard], topic.end, whole=True)
    assert list(ring.rows) == [*before[1:], *heard]
    late = ring.answer(topic.positions[0], topic.end, 64, 1_000, KEPT)
    assert late is not None
    assert late.reason == "trimmed"  # what the read didn't find is gone


def test_a_read_that_is_ahead_of_the_process_counts_up_to_where_it_is() -> None:
    topic, ring = Topic(), Ring(rings())
    before = [topic.publish() for _ in range(3)]
    here = topic.end
    ahead = topic.publish()
    ring.fill([*before, ahead], here, whole=True)
    assert list(ring.rows) == before
    ring.add(ahead)
    assert list(ring.rows) == [*before, ahead]


def test_a_read_of_another_past_is_not_taken() -> None:
    topic, ring = Topic(), Ring(rings())
    found = [topic.publish() for _ in range(3)]
    ring.fill(found, Position("e", 3, "another"), whole=True)
    ring.fill(found, Position("another", 3, "i3"), whole=True)
    ring.fill((), topic.end, whole=True)
    assert not ring.rows
    assert ring.answer(topic.positions[0], topic.end, 64, 1_000, KEPT) is None


def test_a_read_that_brings_nothing_new_still_tells_where_the_history_begins() -> None:
    topic, ring = Topic(), Ring(rings())
    lost, first = topic.publish(), topic.publish()
    ring.add(first)
    ring.fill([first], topic.end, whole=True)
    late = ring.answer(topic.positions[0], topic.end, 64, 1_000, KEPT)
    assert late is not None
    assert late.reason == "trimmed"
    assert ring.answer(Position("e", 1, lost.previous), topic.end, 64, 1_000, KEPT) is None


def test_what_it_drops_itself_it_does_not_call_gone() -> None:
    topic, ring = Topic(), Ring(rings(entries=4))
    ring.fill([topic.publish() for _ in range(3)], topic.end, whole=True)
    ring.add(topic.publish())
    ring.add(topic.publish())
    assert len(ring.rows) == 4
    assert ring.answer(topic.positions[0], topic.end, 64, 1_000, KEPT) is None
    wide = Ring(rings(entries=4))
    wide.fill([*ring.rows, topic.publish()], topic.end, whole=True)
    assert len(wide.rows) == 4
    assert wide.answer(topic.positions[0], topic.end, 64, 1_000, KEPT) is None


def test_what_does_not_follow_begins_it_anew() -> None:
    topic, ring = Topic(), Ring(rings())
    ring.add(topic.publish())
    topic.publish()
    last = topic.publish()
    ring.add(last)
    assert list(ring.rows) == [last]


def test_one_ring_is_bounded_in_bytes() -> None:
    bounds = rings(size=10)
    topic, ring = Topic(), Ring(bounds)
    for _ in range(4):
        ring.add(topic.publish(b"1234"))
    assert (len(ring.rows), ring.size) == (2, 8)
    ring.add(topic.publish(b"far too large"))
    assert (len(ring.rows), ring.size, bounds.taken) == (0, 0, 0)
    ring.add(topic.publish(b"1234"))
    assert len(ring.rows) == 1


def test_over_the_bound_of_all_the_longest_unused_give_way() -> None:
    bounds = rings(total=6 * (OVERHEAD + 1))
    topics = [Topic() for _ in range(3)]
    all_rings = [Ring(bounds) for _ in topics]
    for topic, ring in zip(topics, all_rings, strict=True):
        for _ in range(2):
            ring.add(topic.publish())
    assert all_rings[0].answer(topics[0].positions[0], topics[0].end, 64, 1_000, KEPT) is not None
    all_rings[2].add(topics[2].publish())
    assert [len(ring.rows) for ring in all_rings] == [2, 0, 3]
    for ring in all_rings:
        ring.clear()
    assert (bounds.taken, bounds.publications) == (0, 0)


@given(
    st.lists(st.sampled_from(["add", "skip", "fill", "publish", "clear", "other"]), max_size=40),
    st.integers(1, 6),
    st.integers(1, 12),
)
def test_whatever_happens_it_says_what_the_store_says(steps: list[str], entries: int, kept: int) -> None:
    bounds = rings(entries=entries, size=40, total=8 * (OVERHEAD + 5))
    history = History(size=kept, ttl=60.0)
    topic, ring, other = Topic(history), Ring(bounds), Ring(bounds)
    here, behind = topic.end, list[Publication]()
    for step in steps:
        if step in ("add", "publish"):
            behind.append(topic.publish(b"12345"))
        if step == "skip":  # the process has to adopt where the store is
            topic.publish(b"12345")
            behind.clear()
            ring.clear()
            here = topic.end
        if step == "add":
            for publication in behind:
                ring.add(publication)
                here = publication.position or here
            behind.clear()
        if step == "fill":
            page = topic.stream.page(None, entries, 40)
            ring.fill(page.publications, here, whole=not page.more)
        if step == "clear":
            ring.clear()
        if step == "other":
            other.add(Publication(b"12345", 0, Position("e", len(other.rows) + 1, "x"), "x" if other.rows else ""))
        if ring.rows:
            assert ring.rows[-1].position == here
        if not behind:
            for since in topic.positions:
                answer = ring.answer(since, here, 64, 64, history)
                assert answer is None or answer == topic.stream.read(since, 64, 64)
        assert bounds.taken <= 8 * (OVERHEAD + 5)
        assert bounds.publications == len(ring.rows) + len(other.rows)
