"""The roster folds diffs, tells changes in batches, and mends what it has missed."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.messages import Entry, Members, PresenceDiff
from starlette_realtime.presence import Change, Roster
from starlette_realtime.testing import FakeClock


def entry(name: str, status: Any = "online") -> Entry:
    return Entry(name, f"u:{name}", name, status)


class Watched:
    """A roster, what it told, and how often it asked for a snapshot."""

    def __init__(self, clock: FakeClock, bound: int = 8) -> None:
        self.changes: list[Change] = []
        self.gaps = 0
        self.roster = Roster(clock=clock, interval=0.1, changed=self.changes.append, gap=self._gap, bound=bound)

    def _gap(self) -> None:
        self.gaps += 1

    def told(self) -> list[Change]:
        changes, self.changes[:] = self.changes[:], []
        return changes


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def watched(clock: FakeClock) -> Iterator[Watched]:
    watched = Watched(clock)
    watched.roster.load(Members(1, 1, (entry("a"),)))
    yield watched
    watched.roster.close()
    assert clock.timers == 0


async def test_the_first_snapshot_is_no_change(watched: Watched) -> None:
    assert watched.told() == []
    assert (watched.roster.seq, len(watched.roster), "a" in watched.roster) == (1, 1, True)


async def test_the_first_change_is_told_at_once_and_the_next_ones_together(watched: Watched, clock: FakeClock) -> None:
    roster = watched.roster
    roster.apply(PresenceDiff(1, 2, entered=(entry("b"),)))
    assert watched.told() == [Change(1, 2, [entry("b")], [], [])]
    roster.apply(PresenceDiff(2, 3, entered=(entry("c"),)))
    roster.apply(PresenceDiff(3, 4, entered=(entry("a", "away"),)))
    roster.apply(PresenceDiff(4, 5, entered=(entry("c", "away"),)))
    roster.apply(PresenceDiff(5, 6, left=("b",)))
    await clock.advance(0.09)
    assert watched.told() == []
    await clock.advance(0.02)
    assert watched.told() == [Change(2, 6, [entry("c", "away")], [entry("a", "away")], ["b"])]
    await clock.advance(1.0)
    assert watched.told() == []


async def test_what_comes_and_goes_within_a_batch_has_left(watched: Watched, clock: FakeClock) -> None:
    roster = watched.roster
    roster.apply(PresenceDiff(1, 2, entered=(entry("b"),)))
    watched.told()
    roster.apply(PresenceDiff(2, 3, entered=(entry("c"),)))
    roster.apply(PresenceDiff(3, 4, left=("c",)))
    await clock.advance(0.2)
    assert watched.told() == [Change(2, 4, [], [], ["c"])]  # a snapshot may have shown it


async def test_a_repeated_diff_is_nothing(watched: Watched) -> None:
    diff = PresenceDiff(1, 2, entered=(entry("b"),))
    watched.roster.apply(diff)
    watched.roster.apply(diff)
    assert len(watched.told()) == 1
    assert watched.gaps == 0


async def test_a_hole_asks_for_a_snapshot_and_what_comes_meanwhile_waits(watched: Watched, clock: FakeClock) -> None:
    roster = watched.roster
    roster.apply(PresenceDiff(2, 3, entered=(entry("c"),)))
    roster.apply(PresenceDiff(3, 4, left=("a",)))
    assert (watched.gaps, roster.loaded, watched.told()) == (1, False, [])
    roster.load(Members(3, 3, (entry("a"), entry("b"), entry("c"))))
    await clock.advance(0.2)
    assert roster.loaded
    final = {name: state for change in watched.told() for name, state in _states(change)}
    assert final == {"a": None, "b": "online", "c": "online"}
    assert roster.seq == 4


async def test_an_empty_diff_says_where_the_store_is(watched: Watched) -> None:
    watched.roster.apply(PresenceDiff(1, 1))
    assert watched.gaps == 0
    watched.roster.apply(PresenceDiff(4, 4))
    assert watched.gaps == 1


async def test_an_older_snapshot_changes_nothing(watched: Watched) -> None:
    roster = watched.roster
    roster.apply(PresenceDiff(1, 2, entered=(entry("b"),)))
    roster.load(Members(1, 1, (entry("a"),)))
    assert (roster.seq, len(roster)) == (2, 2)


async def test_too_much_that_waits_is_forgotten_and_asked_for_again(watched: Watched) -> None:
    roster = watched.roster
    roster.restart()
    for seq in range(2, 30):
        roster.apply(PresenceDiff(seq - 1, seq, entered=(entry(f"n{seq}"),)))
    roster.load(Members(3, 1, (entry("a"),)))
    assert (watched.gaps, roster.loaded) == (1, False)
    roster.load(Members(29, 2, (entry("a"), entry("z"))))
    assert (watched.gaps, roster.loaded) == (1, True)
    assert {member.connection for member in roster.entries(10)} == {"a", "z"}


async def test_the_longest_present_are_shown_first(watched: Watched) -> None:
    roster = watched.roster
    roster.apply(PresenceDiff(1, 3, entered=(entry("b"), entry("c"))))
    roster.apply(PresenceDiff(3, 4, entered=(entry("a", "away"),)))
    assert [member.connection for member in roster.entries(2)] == ["a", "b"]


@given(seed=st.integers(0, 2**32), lossy=st.booleans())
def test_whoever_has_a_snapshot_and_takes_the_changes_over_has_the_members(seed: int, lossy: bool) -> None:
    import asyncio

    async def run() -> None:
        rng, clock = random.Random(seed), FakeClock()
        truth: dict[str, Entry] = {}
        seq = 0
        watched = Watched(clock)
        followers: list[tuple[int, dict[str, Any]]] = []
        roster = watched.roster
        roster.load(Members(0, 0, ()))
        told = 0
        for _ in range(60):
            name = rng.choice("abcdef")
            before, seq = seq, seq + 1
            if name in truth and rng.random() < 0.5:
                del truth[name]
                diff = PresenceDiff(before, seq, left=(name,))
            else:
                truth[name] = entry(name, rng.choice(["online", "away"]))
                diff = PresenceDiff(before, seq, entered=(truth[name],))
            if not (lossy and rng.random() < 0.2):
                roster.apply(diff)
            if not roster.loaded and rng.random() < 0.5:
                roster.load(Members(seq, len(truth), tuple(truth.values())))
            if roster.loaded and rng.random() < 0.3:
                followers.append((roster.seq, {each.connection: each.status for each in roster.entries(99)}))
            await clock.advance(rng.choice([0.0, 0.02, 0.2]))
            while told < len(watched.changes):
                change = watched.changes[told]
                told += 1
                followers = [_follow(at, members, change) for at, members in followers]
        roster.load(Members(seq, len(truth), tuple(truth.values())))
        await clock.advance(1.0)
        for change in watched.changes[told:]:
            followers = [_follow(at, members, change) for at, members in followers]
        for at, members in followers:
            assert at == seq
            assert members == {name: each.status for name, each in truth.items()}
        roster.close()

    asyncio.run(run())


def _states(change: Change) -> list[tuple[str, str | None]]:
    return [
        *((each.connection, each.status) for each in (*change.joined, *change.updated)),
        *((name, None) for name in change.left),
    ]


def _follow(at: int, members: dict[str, Any], change: Change) -> tuple[int, dict[str, Any]]:
    """What a client does with a change."""
    if change.seq <= at:
        return at, members
    assert change.prev <= at, "a hole that nobody told of"
    members = {**members, **dict(_states(change))}
    return change.seq, {name: state for name, state in members.items() if state is not None}
