"""Roster: one topic's members as this process knows them, and how they changed, in batches."""

from collections.abc import Callable, Sequence
from itertools import islice

from msgspec import Struct

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.messages import Entry, Members, PresenceDiff

__all__ = ["Change", "Roster"]


class Change(Struct, frozen=True):
    """
    How a topic's members changed from sequence `prev` to `seq`: final states, and who is gone.

    A `seq` that is not above `prev` is a store's that was wound back: only a snapshot follows that.
    """

    prev: int
    seq: int
    joined: Sequence[Entry]
    updated: Sequence[Entry]
    left: Sequence[str]


class Roster:
    """
    The fold of a topic's presence diffs.

    `apply` takes the store's diffs in order; `changed` hears of them at most every `interval` seconds, the first at
    once. Whoever has the members at a sequence from `prev` to `seq` and takes over the final states of a change has
    them at `seq`. A diff that doesn't follow on calls `gap`, and `load` with a fresh snapshot mends it: diffs that
    come in between wait, at most `bound` of them.
    """

    __slots__ = (
        "_before",
        "_changed",
        "_clock",
        "_entries",
        "_gap",
        "_interval",
        "_last",
        "_sent",
        "_timer",
        "_touched",
        "_waiting",
        "bound",
        "seq",
    )

    def __init__(
        self,
        *,
        clock: Clock,
        interval: float,
        changed: Callable[[Change], None],
        gap: Callable[[], None],
        bound: int = 1024,
    ) -> None:
        self.seq = 0
        self.bound = bound
        self._clock = clock
        self._interval = interval
        self._changed = changed
        self._gap = gap
        self._entries: dict[str, Entry] = {}
        self._touched: dict[str, bool] = {}
        self._sent = -1  # nobody was told anything
        self._last = float("-inf")
        self._timer: Timer | None = None
        self._waiting: list[PresenceDiff] | None = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, connection: str) -> bool:
        return connection in self._entries

    @property
    def loaded(self) -> bool:
        """Whether the members are known, up to `seq`."""
        return self._waiting is None

    @property
    def settled(self) -> bool:
        """Whether all that is known has been told."""
        return self._timer is None and not self._touched and self.seq == self._sent

    def entries(self, limit: int) -> tuple[Entry, ...]:
        """At most `limit` entries, the longest present first."""
        return tuple(islice(self._entries.values(), limit))

    def apply(self, diff: PresenceDiff) -> None:
        """Take the store's next diff."""
        if self._waiting is not None:
            if len(self._waiting) < self.bound:
                self._waiting.append(diff)
            else:
                self._waiting.clear()  # the snapshot under way may be too old now: what follows shows a gap again
            return
        # An empty diff says where the store is: behind us, where it was wound back.
        wound_back = diff.seq < self.seq and not diff.entered and not diff.left
        if diff.seq <= self.seq and not wound_back:
            return
        if wound_back or diff.prev > self.seq:
            self._waiting = [diff]
            self._gap()
            return
        self._fold(diff.entered, diff.left)
        self.seq = diff.seq
        self._schedule()

    def load(self, members: Members) -> None:
        """Take a whole snapshot, and the diffs that waited for it; one that is older than what is known is nothing."""
        if self._waiting is None and members.seq < self.seq:
            return
        waiting, self._waiting = self._waiting or [], None
        first = self._sent < 0
        now = {entry.connection: entry for entry in members.entries}
        gone = [connection for connection in self._entries if connection not in now]
        self._fold([entry for name, entry in now.items() if self._entries.get(name) != entry], gone)
        self.seq = members.seq
        if first:
            self._sent = self.seq
            self._touched.clear()
        for diff in waiting:
            if diff.seq > self.seq:  # the snapshot is newer than the others, wherever the store was wound back to
                self.apply(diff)
        self._schedule()

    def restart(self) -> bool:
        """Wait for a snapshot from now on; False when that is so already."""
        if self._waiting is not None:
            return False
        self._waiting = []
        return True

    def forget(self) -> None:
        """Let nothing wait: the next snapshot will have it, or it is a past's that the store was wound back behind."""
        if self._waiting is not None:
            self._waiting = []

    def close(self) -> None:
        """Say nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fold(self, entered: Sequence[Entry], left: Sequence[str]) -> None:
        for connection in left:
            if self._entries.pop(connection, None) is not None:
                self._touched.setdefault(connection, True)
        for entry in entered:
            self._touched.setdefault(entry.connection, entry.connection in self._entries)
            self._entries[entry.connection] = entry

    def _schedule(self) -> None:
        if self._timer is not None or (self.seq == self._sent and not self._touched):
            return
        wait = self._last + self._interval - self._clock.now()
        if wait <= 0:
            self._flush()
        else:
            self._timer = self._clock.call_later(wait, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._last = self._clock.now()
        joined: list[Entry] = []
        updated: list[Entry] = []
        left: list[str] = []
        for connection, was_there in self._touched.items():
            entry = self._entries.get(connection)
            if entry is None:
                left.append(connection)
            else:
                (updated if was_there else joined).append(entry)
        change = Change(self._sent, self.seq, joined, updated, left)
        self._touched.clear()
        self._sent = self.seq
        self._changed(change)
