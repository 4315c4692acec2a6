"""Witnesses: what a server really has of a topic, and subscribers that check everything as they hear it."""

from collections.abc import Callable
from typing import NamedTuple

from starlette_realtime.messages import (
    Delivery,
    Entry,
    Fresh,
    Gap,
    History,
    Members,
    Position,
    PresenceDiff,
    Publication,
    Recovery,
    Stale,
)

__all__ = ["HISTORY", "LOOK", "REWIND", "Listener", "Row", "Seen", "Truth", "as_text"]

HISTORY = History(size=16, ttl=60.0)
"""What topics keep: more than is published between two looks."""

LOOK = """
local meta = redis.call('HMGET', KEYS[1], 'e', 'o', 'i')
return {meta[1] or '', meta[2] or '0', meta[3] or '', redis.call('XRANGE', KEYS[2], '-', '+')}
"""
"""All that a server has of a topic's publications, at one moment. KEYS: meta, stream."""

REWIND = """
local rows, lives = redis.call('XRANGE', KEYS[2], '-', '+'), redis.call('PTTL', KEYS[2])
redis.call('DEL', KEYS[2])
local left = #rows - ARGV[1]
for at = 1, left do
    redis.call('XADD', KEYS[2], rows[at][1], unpack(rows[at][2]))
end
redis.call('PEXPIRE', KEYS[2], lives)
local id, fields = rows[left + 1][1], rows[left + 1][2]
redis.call('HSET', KEYS[1], 'o', string.format('%d', id:match('^%d+') - 1), 'i', fields[4],
    'c', string.format('%d', fields[8] - #fields[10]))
"""
"""Put a topic back by some publications, at once, as an older snapshot would. KEYS: meta, stream. ARGV: how many."""


class Row(NamedTuple):
    """A publication as the server keeps it."""

    offset: int
    id: str
    data: bytes


class Seen(NamedTuple):
    """What a server had of a topic at one moment: `LOOK`'s answer."""

    epoch: str
    offset: int
    id: str
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, answer: list[object]) -> "Seen":
        """Decode it."""
        epoch, offset, id, found = answer
        assert isinstance(found, list)
        rows = (Row(int(name.split(b"-")[0]), fields[1].decode(), fields[9]) for name, fields in found)
        return cls(as_text(epoch), int(as_text(offset)), as_text(id), tuple(rows))


def as_text(answer: object) -> str:
    """A word of a server's answer."""
    assert isinstance(answer, bytes)
    return answer.decode()


class Truth:
    """
    What a topic has published and not taken back, as its server had it whenever somebody looked.

    Nothing is predicted: what was refused may have been made, and may still be. But whatever is found must have been
    sent, once; and what was found, or acknowledged, must stay.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.rows: list[tuple[Position, bytes]] = []
        self.kept = 0  # how many of them the history still has
        self.keys: dict[str, Position] = {}  # the position under which each idempotency key is known
        self.setbacks = 0  # how often something was taken back

    @property
    def top(self) -> Position:
        """Where it is."""
        return self.rows[-1][0] if self.rows else Position(self.epoch, 0, "")

    def has(self, position: Position) -> bool:
        """Whether it is, or was, there."""
        if position.offset == 0:
            return position == Position(self.epoch, 0, "")
        return 0 < position.offset <= len(self.rows) and self.rows[position.offset - 1][0] == position

    def copy(self) -> "Truth":
        """As it is now."""
        copy = Truth()
        copy.epoch, copy.rows, copy.kept, copy.keys = self.epoch, list(self.rows), self.kept, dict(self.keys)
        return copy

    def set_back(self, to: "Truth") -> None:
        """What came after `to` was taken back."""
        self.epoch, self.rows, self.kept, self.keys = to.epoch, list(to.rows), to.kept, dict(to.keys)
        self.setbacks += 1

    def take_back(self, count: int) -> None:
        """The last `count` were taken back."""
        del self.rows[len(self.rows) - count :]
        self.setbacks += 1

    def look(self, seen: Seen, sent: dict[bytes, str]) -> None:
        """Take in what is new. `sent`: what anybody tried to publish there, and under which key."""
        if not self.epoch:
            self.epoch = seen.epoch
        assert self.epoch == seen.epoch, "another epoch"
        known = len(self.rows)
        assert seen.offset >= known, f"{known - seen.offset} publications are gone"
        published = {data for _, data in self.rows}
        for row in seen.rows:
            position = Position(seen.epoch, row.offset, row.id)
            if row.offset <= known:
                assert self.rows[row.offset - 1] == (position, row.data), "another one in its place"
                continue
            assert row.offset == len(self.rows) + 1, "a hole in the history, or it was trimmed before anybody looked"
            assert row.data in sent, f"{row.data!r} was never sent"
            assert row.data not in published, f"{row.data!r} was published twice"
            published.add(row.data)
            if key := sent[row.data]:
                assert key not in self.keys, f"the key {key} was published twice"
                self.keys[key] = position
            self.rows.append((position, row.data))
        self.kept = len(seen.rows)
        assert self.top == Position(seen.epoch, seen.offset, seen.id), "it says that it is where it is not"

    def check(self, since: Position | None, recovery: Recovery, *, floor: int, old: Position | None = None) -> None:
        """
        See that `recovery` is exactly what came after `since`, or that it could not be had.

        It may not be older than the offset `floor`. With `old`, it may also be what a process knows that is still
        there: it has not learned yet that this was taken back.
        """
        position = recovery.position
        current = self.has(position) and position.offset >= floor
        assert current or position == old, f"{position} is not where the topic is"
        if not recovery.complete:
            assert recovery.publications == ()
            assert since is not None, recovery.reason
            reach = position.offset - self.kept
            assert not (self.has(since) and current and reach <= since.offset <= position.offset), recovery.reason
            return
        last = since or position
        for publication in recovery.publications:
            assert publication.position is not None
            follows(last, publication)
            last = publication.position
        assert last == position, "something is missing in the end"
        if current:
            found = [(publication.position, publication.data) for publication in recovery.publications]
            start = since.offset if since is not None else position.offset
            assert found == self.rows[start : position.offset]


def follows(last: Position, publication: Publication) -> None:
    """See that it is the very next one."""
    position = publication.position
    assert position is not None
    wanted = (last.epoch, last.offset + 1, last.id)
    assert (position.epoch, position.offset, publication.previous) == wanted, f"{position} does not follow {last}"


class Listener:
    """One subscriber: everything it hears is checked as it comes, and `fail` is called with what is wrong."""

    def __init__(self, topic: str, truth: Truth, fail: Callable[[str], None]) -> None:
        self.topic = topic
        self.base: Position | None = None  # where it began, or its last gap
        self.heard: list[Publication] = []  # since then
        self.stale = False
        self.roster: dict[str, Entry] = {}
        self.sequence = -1  # of presence, where its roster is; -1: it needs a snapshot
        self._early: list[PresenceDiff] = []  # what came before that
        self._truth = truth
        self._setbacks = truth.setbacks
        self._fail = fail

    @property
    def position(self) -> Position | None:
        """Where it is."""
        return self.heard[-1].position if self.heard else self.base

    def __call__(self, delivery: Delivery) -> None:
        try:
            self._hear(delivery)
        except AssertionError as error:  # raised in a subscriber it would be logged, and that is all
            self._fail(f"a subscriber of {self.topic} heard what is wrong: {error}")

    def _hear(self, delivery: Delivery) -> None:
        if isinstance(delivery, Publication):
            assert self.position is not None, "before it was subscribed"
            follows(self.position, delivery)
            self.heard.append(delivery)
        elif isinstance(delivery, Gap):
            trimmed = delivery.reason == "trimmed" and delivery.position.offset > HISTORY.size
            assert trimmed or self._truth.setbacks > self._setbacks, f"{delivery}, for nothing"
            self.base, self.heard = delivery.position, []
        elif isinstance(delivery, PresenceDiff):
            if self.sequence == -1:
                self._early.append(delivery)
            else:
                self._change(delivery)
        elif isinstance(delivery, Stale):
            assert not self.stale, "stale twice"
            self.stale = True
        else:
            assert isinstance(delivery, Fresh)
            assert self.stale, "fresh, but it was never stale"
            self.stale = False

    def begin(self, position: Position | None) -> None:
        """It is subscribed, and that is where the process was."""
        assert self.base is None, "heard something before it was subscribed"
        assert not self.heard, "heard something before it was subscribed"
        assert position is not None
        self.base = position

    def load(self, members: Members) -> None:
        """Take a presence snapshot, and on it the changes that came while it was fetched."""
        self.roster = {entry.connection: entry for entry in members.entries}
        self.sequence = members.seq
        early, self._early = self._early, []
        for diff in early:
            if self.sequence != -1 and diff.seq > self.sequence:
                self._change(diff)

    def _change(self, diff: PresenceDiff) -> None:
        if diff.prev != self.sequence:
            if diff.seq != self.sequence:
                self.sequence = -1
            return
        self.sequence = diff.seq
        self.roster.update((entry.connection, entry) for entry in diff.entered)
        for connection in diff.left:
            self.roster.pop(connection, None)
