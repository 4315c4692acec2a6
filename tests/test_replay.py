"""Replay: by example, by a state machine, and by bugs that the machine must find."""

from collections import deque
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from starlette_realtime.messages import Gap, Position, Publication, Recovery
from starlette_realtime.replay import OVERHEAD, REMEMBERED, Budget, Replay

START = Position("e", 0, "")


def published(offset: int, *, epoch: str = "e", id: str = "", previous: str = "", data: bytes = b"") -> Publication:
    """The publication at that offset: its id is the offset unless told otherwise."""
    before = str(offset - 1) if offset > 1 else ""
    return Publication(data, 0, Position(epoch, offset, id or str(offset)), previous or before)


def live_at(offset: int, *, limit_entries: int = 1_024, limit_bytes: int = 1_048_576) -> Replay:
    """A replay that has gone live at that offset."""
    position = Position("e", offset, str(offset) if offset else "")
    replay = Replay(limit_entries=limit_entries, limit_bytes=limit_bytes)
    assert replay.recovered(Recovery((), position, complete=True)) == ()
    return replay


def test_it_begins_with_a_read() -> None:
    assert Replay().needs_read
    assert Replay(START).needs_read
    assert not live_at(0).needs_read


def test_what_follows_is_delivered() -> None:
    replay = live_at(0)
    assert [replay.live(published(offset)) for offset in (1, 2, 3)] == [(published(offset),) for offset in (1, 2, 3)]
    assert replay.position == published(3).position


def test_what_is_known_is_dropped_without_a_read() -> None:
    replay = live_at(0)
    for offset in range(1, 10):
        replay.live(published(offset))
    for offset in range(1, 10):
        assert replay.live(published(offset)) == ()
        assert not replay.needs_read


@pytest.mark.parametrize(
    "doubtful",
    [
        published(7),
        published(6, previous="other"),
        published(5, id="other"),
        published(4, id="other"),
        published(6, epoch="other", previous="5"),
        published(1, epoch="other"),
    ],
)
def test_anything_else_is_a_doubt(doubtful: Publication) -> None:
    replay = live_at(3)
    for offset in (4, 5):
        replay.live(published(offset))
    assert replay.live(doubtful) == ()
    assert replay.needs_read
    assert replay.live(published(6)) == ()
    assert replay.position == published(5).position


def test_missed_and_held_publications_come_in_order_and_once() -> None:
    replay = Replay(published(2).position)
    for offset in (5, 6):
        assert replay.live(published(offset)) == ()
    assert replay.held == 2
    missed = tuple(published(offset) for offset in (3, 4, 5))
    delivered = replay.recovered(Recovery(missed, Position("e", 5, "5"), complete=True))
    assert delivered == tuple(published(offset) for offset in (3, 4, 5, 6))
    assert not replay.needs_read
    assert replay.held == replay.held_bytes == 0


def test_a_reader_without_a_position_starts_at_the_top() -> None:
    replay = Replay()
    for offset in (5, 6, 7, 8):
        replay.live(published(offset))
    assert replay.recovered(Recovery((), Position("e", 7, "7"), complete=True)) == (published(8),)
    assert not replay.needs_read  # 5 and 6 are proved by the chain that leads to 7


def test_what_the_chain_does_not_prove_needs_another_read() -> None:
    replay = Replay()
    replay.live(published(6, id="other"))
    assert replay.recovered(Recovery((), Position("e", 7, "7"), complete=True)) == ()
    assert replay.needs_read
    assert replay.recovered(Recovery((), Position("e", 7, "7"), complete=True)) == ()
    assert not replay.needs_read


def test_an_incomplete_recovery_is_one_gap() -> None:
    replay = Replay(published(2).position)
    replay.live(published(9))
    top = Position("e", 8, "8")
    assert replay.recovered(Recovery((), top, complete=False, reason="trimmed")) == (Gap(top, "trimmed"), published(9))
    assert replay.position == published(9).position


def test_a_recovery_with_a_hole_is_a_gap_and_none_of_it_is_delivered() -> None:
    replay = Replay(published(2).position)
    top = Position("e", 6, "6")
    missed = tuple(published(offset) for offset in (3, 5, 6))
    assert replay.recovered(Recovery(missed, top, complete=True)) == (Gap(top, "inconsistent"),)
    assert replay.position == top
    assert not replay.needs_read


def test_volatile_publications_pass_unless_a_read_is_due() -> None:
    volatile = Publication(b"typing", 0)
    replay = live_at(1)
    assert replay.live(volatile) == (volatile,)
    replay.interrupted()
    assert replay.live(volatile) == ()
    assert replay.held == 0


@pytest.mark.parametrize("options", [{"limit_entries": 2}, {"limit_bytes": 20}])
def test_what_is_held_is_bounded_and_read_again(options: dict[str, int]) -> None:
    replay = live_at(0, **options)
    replay.interrupted()
    for offset in range(1, 6):
        replay.live(published(offset, data=b"x" * 10))
    assert (replay.held, replay.held_bytes) == (2, 20)
    delivered = replay.recovered(Recovery((), START, complete=True))
    assert [publication.position.offset for publication in delivered if publication.position] == [1, 2]
    assert replay.needs_read


def test_an_interruption_during_a_read_needs_another() -> None:
    replay = live_at(1)
    replay.interrupted()
    replay.interrupted()
    replay.recovered(Recovery((), Position("e", 1, "1"), complete=True))
    assert replay.needs_read
    replay.recovered(Recovery((), Position("e", 1, "1"), complete=True))
    assert not replay.needs_read


def test_a_read_that_begins_after_an_interruption_is_the_other_one() -> None:
    replay = live_at(1)
    replay.interrupted()
    replay.interrupted()
    replay.begin()
    replay.recovered(Recovery((), Position("e", 1, "1"), complete=True))
    assert not replay.needs_read
    replay.interrupted()
    replay.begin()
    replay.interrupted()
    replay.recovered(Recovery((), Position("e", 1, "1"), complete=True))
    assert replay.needs_read


def test_what_several_hold_is_bounded_and_given_back() -> None:
    budget = Budget(2 * (OVERHEAD + 10))
    one, two = (Replay(START, budget=budget) for _ in range(2))
    for offset in (1, 2):
        one.live(published(offset, data=b"x" * 10))
    two.live(published(1, data=b"x" * 10))
    assert (one.held, two.held, budget.left) == (2, 0, 0)
    assert two.recovered(Recovery((), START, complete=True)) == ()
    assert two.needs_read
    assert len(one.recovered(Recovery((), START, complete=True))) == 2
    assert not one.needs_read
    assert budget.left == 2 * (OVERHEAD + 10)
    two.live(published(1, data=b"x" * 10))
    assert [publication.position for publication in two.discard()] == [Position("e", 1, "1")]
    assert (two.held, two.held_bytes, budget.left) == (0, 0, 2 * (OVERHEAD + 10))


def test_a_check_demands_a_read_only_where_something_is_wrong() -> None:
    replay = live_at(0)
    for offset in (1, 2, 3):
        replay.live(published(offset))
    for offset in (2, 3):  # an answer that was overtaken by deliveries
        replay.check(Recovery((), Position("e", offset, str(offset)), complete=True))
        assert not replay.needs_read
    for recovery in (
        Recovery((published(4),), Position("e", 4, "4"), complete=True),
        Recovery((), Position("e", 3, "other"), complete=False),
        Recovery((), Position("e", 2, "2"), complete=False),
        Recovery((), Position("f", 0, ""), complete=False),
    ):
        replay.check(recovery)
        assert replay.needs_read
        replay.recovered(Recovery((), Position("e", 3, "3"), complete=True))


def test_the_memory_of_ids_is_bounded() -> None:
    replay = live_at(0)
    for offset in range(1, REMEMBERED + 100):
        replay.live(published(offset))
    assert len(replay._ids) == REMEMBERED
    replay.live(published(120))
    assert not replay.needs_read
    replay.live(published(90))
    assert replay.needs_read  # older than what is remembered: the store decides


class ReplayMachine(RuleBasedStateMachine):
    """A topic that can be lost and wound back, a link with deliveries under way, and reads that take time."""

    replay: type[Replay] = Replay

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count(1)
        self.epoch = "e0"
        self.rows: list[Publication] = []
        self.trimmed = 0  # rows before it are no longer in the history
        self.wire: deque[Publication] = deque()
        self.asked: Recovery | None = None
        self.reader = self.replay(limit_entries=3, limit_bytes=1_000)
        self.base: Position | None = None  # where the reader started, or its last gap
        self.heard: list[Publication] = []  # since then
        self.unheard = False  # whether anything has happened that only a check can find

    # --- the topic ---

    @property
    def top(self) -> Position:
        position = self.rows[-1].position if self.rows else Position(self.epoch, 0, "")
        assert position is not None
        return position

    def append(self) -> Publication:
        top = self.top
        position = Position(self.epoch, top.offset + 1, f"i{next(self.numbers)}")
        publication = Publication(b"data", 0, position, top.id)
        self.rows.append(publication)
        return publication

    def read(self) -> Recovery:
        since, top = self.reader.position, self.top
        if since is None:
            return Recovery((), top, complete=True)
        if since == Position(self.epoch, 0, "") or since in [row.position for row in self.rows]:
            if since.offset >= self.trimmed:
                return Recovery(tuple(self.rows[since.offset :]), top, complete=True)
            return Recovery((), top, complete=False, reason="trimmed")
        return Recovery((), top, complete=False, reason="gone")

    @rule()
    def publish(self) -> None:
        self.wire.append(self.append())

    @rule(size=st.integers(2, 6))
    def burst(self, size: int) -> None:
        self.wire.extend([self.append() for _ in range(size)])
        while self.wire:
            self.deliver(1)

    @rule(lost=st.booleans())
    def trim(self, lost: bool) -> None:
        self.trimmed = len(self.rows) if lost else max(0, len(self.rows) - 3)

    @rule(back=st.integers(1, 3), forth=st.integers(0, 3), told=st.booleans())
    def rewind(self, back: int, forth: int, told: bool) -> None:
        self.unheard = not (told and forth)
        del self.rows[max(0, len(self.rows) - back) :]
        self.trimmed = min(self.trimmed, len(self.rows))
        again = [self.append() for _ in range(forth)]
        if told:
            self.wire.extend(again)

    @rule(forth=st.integers(0, 2), told=st.booleans())
    def lose(self, forth: int, told: bool) -> None:
        self.unheard = not (told and forth)
        self.rows, self.trimmed, self.epoch = [], 0, f"e{next(self.numbers)}"
        again = [self.append() for _ in range(forth)]
        if told:
            self.wire.extend(again)

    # --- the link ---

    def hear(self, deliveries: tuple[Any, ...]) -> None:
        for delivery in deliveries:
            if isinstance(delivery, Gap):
                assert delivery.reason != "inconsistent"
                self.base, self.heard = delivery.position, []
                continue
            last = self.heard[-1].position if self.heard else self.base
            position = delivery.position
            assert last is not None
            assert (position.epoch, position.offset, delivery.previous) == (last.epoch, last.offset + 1, last.id)
            self.heard.append(delivery)

    def arrive(self, publication: Publication) -> None:
        if [publication] == self.rows[-1:]:
            self.unheard = False  # it leads back to whatever was lost before it
        elif publication not in self.rows:
            self.unheard = True  # it was under way when it was taken back, and may well follow
        self.hear(self.reader.live(publication))

    @precondition(lambda self: self.wire)
    @rule(copies=st.integers(1, 2))
    def deliver(self, copies: int) -> None:
        publication = self.wire.popleft()
        for _ in range(copies):
            self.arrive(publication)

    @precondition(lambda self: self.wire)
    @rule()
    def drop(self) -> None:
        self.unheard = True
        self.wire.popleft()

    @precondition(lambda self: self.heard)
    @rule(index=st.integers(0, 5))
    def repeat(self, index: int) -> None:
        self.arrive(self.heard[-1 - index % len(self.heard)])

    @rule()
    def volatile(self) -> None:
        publication = Publication(b"typing", 0)
        assert self.reader.live(publication) == (() if self.reader.needs_read else (publication,))

    @precondition(lambda self: self.reader.needs_read and self.asked is None)
    @rule()
    def ask(self) -> None:
        self.reader.begin()
        self.asked = self.read()

    @precondition(lambda self: self.asked is not None)
    @rule()
    def answer(self) -> None:
        recovery, self.asked = self.asked, None
        assert recovery is not None
        if self.reader.position is None:
            self.base = recovery.position
        self.hear(self.reader.recovered(recovery))

    @rule()
    def interrupt(self) -> None:
        self.reader.interrupted()
        self.unheard = self.unheard and self.reader.held > 0

    @precondition(lambda self: self.reader.position is not None)
    @rule()
    def resume_elsewhere(self) -> None:
        """Another process, another link, the same position."""
        self.wire.clear()
        self.asked = None
        self.reader = self.replay(self.reader.position, limit_entries=3, limit_bytes=1_000)

    @rule()
    def catch_up(self) -> None:
        """Progress: once nothing more goes wrong, the reader is where the topic is, and has heard what led there."""
        if self.asked is not None:
            self.answer()
        while self.wire:
            self.deliver(1)
        self.read_as_often_as_needed()
        if not self.unheard:
            assert self.reader.position == self.top
        self.reader.check(self.read())
        self.read_as_often_as_needed()
        self.unheard = False
        assert self.reader.position == self.top
        assert self.base is not None
        assert self.base.epoch == self.epoch
        assert self.heard == self.rows[self.base.offset :]

    def read_as_often_as_needed(self) -> None:
        for _ in range(4):
            if self.reader.needs_read:
                self.ask()
                self.answer()
        assert not self.reader.needs_read

    @invariant()
    def holds_no_more_than_it_may(self) -> None:
        assert self.reader.held <= 3
        assert self.reader.held_bytes == 4 * self.reader.held
        assert self.reader.needs_read or not self.reader.held


TestReplayMachine = ReplayMachine.TestCase
TestReplayMachine.settings = settings(max_examples=150, stateful_step_count=40)


class OffByOne(Replay):
    """Takes the next but one for the next."""

    def _follows(self, publication: Publication) -> bool:
        position, last = publication.position, self.position
        if position and last and position.epoch == last.epoch and position.offset == last.offset + 2:
            self._adopt(position)
            return True
        return super()._follows(publication)


class SkippedGap(Replay):
    """Goes on at whatever comes later."""

    def live(self, publication: Publication) -> tuple[Publication, ...]:
        position = publication.position
        if position and self.position and not self.needs_read and position.offset > self.position.offset + 1:
            self._adopt(position)
            return (publication,)
        return super().live(publication)


class Repeating(Replay):
    """Delivers what it knows."""

    def live(self, publication: Publication) -> tuple[Publication, ...]:
        if publication.position and not self.needs_read and self._knows(publication.position):
            return (publication,)
        return super().live(publication)


class AnyEpoch(Replay):
    """Does not look at the epoch of what follows."""

    def _follows(self, publication: Publication) -> bool:
        position, last = publication.position, self.position
        if position and last and position.epoch != last.epoch:
            self.position = Position(position.epoch, last.offset, last.id)
            if super()._follows(publication):
                return True
            self.position = last
            return False
        return super()._follows(publication)


class AnyPrevious(Replay):
    """Does not look at the previous id."""

    def _follows(self, publication: Publication) -> bool:
        previous = self.position.id if self.position else ""
        return super()._follows(Publication(publication.data, publication.at, publication.position, previous))


class AnyId(Replay):
    """Takes everything at or before its offset for a repeat."""

    def _knows(self, position: Position) -> bool:
        last = self.position
        return last is not None and position.epoch == last.epoch and position.offset <= last.offset


class Forgetful(Replay):
    """Forgets what it held."""

    def recovered(self, recovery: Recovery) -> tuple[Publication | Gap, ...]:
        self._held, self._held_bytes = [], 0
        return super().recovered(recovery)


class Hasty(Replay):
    """Thinks that one read is enough, whatever happened since."""

    def recovered(self, recovery: Recovery) -> tuple[Publication | Gap, ...]:
        self._again = False
        return super().recovered(recovery)


class Trusting(Replay):
    """Never checks."""

    def check(self, recovery: Recovery) -> None:
        pass


class Silent(Replay):
    """Does not tell of gaps."""

    def recovered(self, recovery: Recovery) -> tuple[Publication | Gap, ...]:
        return tuple(each for each in super().recovered(recovery) if isinstance(each, Publication))


@pytest.mark.parametrize(
    "bug", [OffByOne, SkippedGap, Repeating, AnyEpoch, AnyPrevious, AnyId, Forgetful, Hasty, Trusting, Silent]
)
def test_the_machine_finds_the_bug(bug: type[Replay]) -> None:
    machine = type("Machine", (ReplayMachine,), {"replay": bug})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=2_000,
                stateful_step_count=30,
                phases=[Phase.generate],
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
