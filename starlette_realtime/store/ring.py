"""Ring: a topic's last publications, kept where they were heard, so that a storm of resumes needs no store."""

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from itertools import islice

from starlette_realtime.clock import Clock
from starlette_realtime.messages import History, Position, Publication, Recovery
from starlette_realtime.replay import OVERHEAD

__all__ = ["Ring", "Rings", "after"]


def after(
    rows: Collection[Publication], top: Position, since: Position, limit: int, limit_bytes: int
) -> Recovery | None:
    """
    What a history that ends at `top` answers to `Store.read`; None where its `rows` don't reach back to `since`.

    The rows are without a hole, oldest first, and the last of them is at `top`.
    """
    if since == top:
        return Recovery((), top, complete=True)
    if since.epoch != top.epoch:
        return Recovery((), top, complete=False, reason="forgotten")
    missed = top.offset - since.offset
    if missed <= 0:
        return Recovery((), top, complete=False, reason="rewound")
    if missed > len(rows):
        return None
    if missed > limit:
        return Recovery((), top, complete=False, reason="too_many")
    found = tuple(islice(rows, len(rows) - missed, None))
    if found[0].previous != since.id:
        return Recovery((), top, complete=False, reason="rewound")
    if sum(len(publication.data) for publication in found) > limit_bytes:
        return Recovery((), top, complete=False, reason="too_many")
    return Recovery(found, top, complete=True)


class Rings:
    """
    The bounds of all rings of a process.

    `entries` and `size` bound one ring, in publications and bytes of their data; `total` is for all of them, in bytes
    of memory: over it, the longest unused are emptied.
    """

    def __init__(self, *, clock: Clock, entries: int, size: int, total: int) -> None:
        self.clock = clock
        self.entries = entries
        self.size = size
        self.publications = 0
        """How many all of them hold."""
        self.taken = 0
        """How many bytes of memory they take, about."""
        self._total = total
        self._order: OrderedDict[Ring, None] = OrderedDict()  # those that hold anything, the longest unused first

    def used(self, ring: "Ring") -> None:
        """Let it be the last to be emptied, and empty what is over the bound."""
        if not ring.rows:
            return
        self._order[ring] = None
        self._order.move_to_end(ring)
        while self.taken > self._total:
            next(iter(self._order)).clear()

    def changed(self, ring: "Ring", publications: int, data: int) -> None:
        """Account for what a ring holds more, or less."""
        ring.size += data
        self.publications += publications
        self.taken += data + publications * OVERHEAD
        if not ring.rows:
            self._order.pop(ring, None)


class Ring:
    """
    One topic's last publications: a chain without a hole that ends where the process's subscribers are, or nothing.

    `asked`: a reader had to go to the store already. `deep`: as much as fits has been read from the store, so that
    reading it again brings no more.
    """

    __slots__ = ("_all", "_heard", "_whole", "asked", "deep", "rows", "size")

    def __init__(self, rings: Rings) -> None:
        self.rows: deque[Publication] = deque()
        self.size = 0  # bytes of data
        self.asked = False
        self.deep = False
        self._all = rings
        self._whole = False  # whether the store has nothing from before the first row either
        self._heard = 0.0  # when the last one came

    def add(self, publication: Publication) -> None:
        """Take what was delivered just now."""
        rows = self.rows
        if rows and not _follow(rows[-1], publication):
            self.clear()
        rows.append(publication)
        self._heard = self._all.clock.now()
        self._all.changed(self, 1, len(publication.data))
        while len(rows) > self._all.entries or self.size > self._all.size:
            self._whole = False
            self._all.changed(self, -1, -len(rows.popleft().data))
        self._all.used(self)

    def fill(self, found: Sequence[Publication], end: Position, *, whole: bool) -> None:
        """Take what a read has found before the first row. `end`: where the process is; `whole`: that was all."""
        if not found:
            return
        if self.rows:
            first = self.rows[0]
            assert first.position is not None
            last = Position(end.epoch, first.position.offset - 1, first.previous)
        else:
            clock, last = self._all.clock, end
            self._heard = clock.now() - max(0.0, clock.time() - found[-1].at / 1000)
        older = [row for row in found if row.position is not None and row.position.offset <= last.offset]
        if not older:
            self._whole = self._whole or (whole and any(row.position == found[0].position for row in self.rows))
            return
        if older[-1].position != last:
            return  # of another past than the process's
        size = self.size
        room = self._all.entries - len(self.rows)
        for count, publication in enumerate(reversed(older)):
            size += len(publication.data)
            if count >= room or size > self._all.size:
                older, whole = older[len(older) - count :], False
                break
        self.rows.extendleft(reversed(older))
        self._whole = whole
        self._all.changed(self, len(older), sum(len(publication.data) for publication in older))
        self._all.used(self)

    def clear(self) -> None:
        """Forget everything."""
        count, size = len(self.rows), self.size
        self.rows.clear()
        self.asked = self.deep = self._whole = False
        self._all.changed(self, -count, -size)

    def answer(
        self, since: Position, end: Position, limit: int, limit_bytes: int, history: History | None
    ) -> Recovery | None:
        """
        What the store would answer to a read since `since`, or None where only it can tell.

        `end` is where the process is, and `history` what the topic keeps: what is beyond it is not told.
        """
        if since == end:
            return Recovery((), end, complete=True)
        missed = end.offset - since.offset
        if since.epoch != end.epoch or missed <= 0:
            return None  # the reader may be ahead of this process
        if history is not None and self.rows and self._all.clock.now() - self._heard >= history.ttl:
            self.clear()
        if not self.rows:
            return None
        if (history is not None and missed > history.size) or (self._whole and missed > len(self.rows)):
            return Recovery((), end, complete=False, reason="trimmed")
        found = after(self.rows, end, since, limit, limit_bytes)
        if found is None or found.reason == "rewound":
            return None
        self._all.used(self)
        return found


def _follow(one: Publication, other: Publication) -> bool:
    before, behind = one.position, other.position
    return (
        before is not None
        and behind is not None
        and other.previous == before.id
        and behind.offset == before.offset + 1
        and behind.epoch == before.epoch
    )
