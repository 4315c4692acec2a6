"""Replay: put one topic's live publications after its recovered ones, without a gap, a repeat, or I/O."""

from collections import deque
from collections.abc import Sequence

from starlette_realtime.messages import Gap, Position, Publication, Recovery

__all__ = ["OVERHEAD", "Budget", "Replay"]

OVERHEAD = 400
"""Bytes of memory that a publication takes besides its data, about."""

REMEMBERED = 256
"""How many of the last ids are known, to tell a repeat from a stream that was wound back."""


class Budget:
    """Bytes of memory that several replays may take together for what they hold back."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size


class Replay:
    """
    One reader's place in one topic.

    It starts, and after any doubt goes on, by demanding a read of the store (`needs_read`); what arrives meanwhile is
    held back, at most `limit_entries` publications and `limit_bytes` bytes, and what a `budget` has left. The caller
    feeds every delivery to `live`, and answers each demand with the result of `Store.read(since=replay.position)` given
    to `recovered`; both tell what to deliver now. A `Gap` is the one way in which publications may be left out.

    `position` is where the reader is: its own since a resume, or None for a reader that starts at whatever the store
    says. The rules are these: a publication that follows the last one by epoch, offset and previous id is delivered;
    one whose id is known at its offset is a repeat and dropped; anything else is a doubt, and only a read that is
    made after it resolves it. So one object serves a process's feed of a topic, and a single connection that joins:
    attach, read, and go live in one step when `needs_read` is False.
    """

    __slots__ = (
        "_again",
        "_budget",
        "_held",
        "_held_bytes",
        "_ids",
        "_limit_bytes",
        "_limit_entries",
        "needs_read",
        "position",
    )

    def __init__(
        self,
        position: Position | None = None,
        *,
        limit_entries: int = 1_024,
        limit_bytes: int = 1_048_576,
        budget: Budget | None = None,
    ) -> None:
        self.position = position
        """The last publication that was delivered, or where the reader starts."""
        self.needs_read = True
        """Whether nothing is delivered until `recovered` is called."""
        self._limit_entries = limit_entries
        self._limit_bytes = limit_bytes
        self._budget = budget
        self._held: list[Publication] = []
        self._held_bytes = 0
        # The ids of the last offsets without a hole; the rightmost is the position's.
        self._ids: deque[str] = deque(() if position is None else (position.id,), maxlen=REMEMBERED)
        self._again = False  # what happened since the read was demanded needs another one

    @property
    def held(self) -> int:
        """How many publications wait for the read."""
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """How many bytes of data wait for the read."""
        return self._held_bytes

    def live(self, publication: Publication) -> tuple[Publication, ...]:
        """
        Take what the topic published just now; returns what to deliver: it, or nothing.

        A volatile publication passes, except while a read is due. Look at `needs_read` when nothing comes back.
        """
        position = publication.position
        if self.needs_read:
            if position is not None:
                self._hold(publication)
            return ()
        if position is None or self._follows(publication):
            return (publication,)
        if not self._knows(position):
            self.needs_read = True  # the read comes after it, and so accounts for it: it need not be held
        return ()

    def recovered(self, recovery: Recovery) -> tuple[Publication | Gap, ...]:
        """
        Take the answer to the read that was demanded; returns what to deliver, in order: what was missed, then what
        was held back. `needs_read` is True again where that leaves a doubt.
        """
        deliver: list[Publication | Gap] = []
        held = self.discard()
        self.needs_read, self._again = self._again, False
        if self.position is None:
            self._adopt(recovery.position)
        elif not recovery.complete:
            deliver.append(Gap(recovery.position, recovery.reason))
            self._adopt(recovery.position)
        else:
            deliver.extend(publication for publication in recovery.publications if self._follows(publication))
            if self.position != recovery.position:  # not what was asked for: better a gap that is told than a guess
                deliver = [Gap(recovery.position, "inconsistent")]
                self._adopt(recovery.position)
        self._learn(held)
        for publication in held:
            if self._follows(publication):
                deliver.append(publication)
            elif publication.position is not None and not self._knows(publication.position):
                self.needs_read = True  # and that read accounts for whatever else was held
                break
        return tuple(deliver)

    def begin(self) -> None:
        """The read that was demanded begins only now, and so accounts for whatever happened until now."""
        self._again = False

    def interrupted(self) -> None:
        """Deliveries may have been lost: demand a read, or another one if one is under way."""
        self._again = self.needs_read
        self.needs_read = True

    def discard(self) -> Sequence[Publication]:
        """Hold nothing back any more: what was."""
        if self._budget is not None:
            self._budget.left += self._held_bytes + OVERHEAD * len(self._held)
        held, self._held, self._held_bytes = self._held, [], 0
        return held

    def check(self, recovery: Recovery) -> None:
        """
        Take the answer to a read that was made on suspicion alone, since a position this reader has been at.

        Nothing is delivered: where the topic's position is not one that was delivered, a read is demanded.
        """
        if not self.needs_read and not (recovery.complete and self._knows(recovery.position)):
            self.needs_read = True

    def _follows(self, publication: Publication) -> bool:
        """Whether it is the very next one; then the reader is there."""
        position, last = publication.position, self.position
        if (
            position is None
            or last is None
            or position.offset != last.offset + 1
            or publication.previous != last.id
            or position.epoch != last.epoch
        ):
            return False
        self.position = position
        self._ids.append(position.id)
        return True

    def _knows(self, position: Position) -> bool:
        """Whether that very publication is among the last ones that the reader has passed."""
        last = self.position
        if last is None or position.epoch != last.epoch:
            return False
        behind = last.offset - position.offset
        return 0 <= behind < len(self._ids) and self._ids[-1 - behind] == position.id

    def _adopt(self, position: Position) -> None:
        self.position = position
        self._ids.clear()
        self._ids.append(position.id)

    def _learn(self, held: Sequence[Publication]) -> None:
        """Know the ids before the position that the held publications' own chain proves."""
        for publication in reversed(held):
            position, last = publication.position, self.position
            if position is None or last is None or len(self._ids) >= REMEMBERED:
                return
            oldest = last.offset - len(self._ids) + 1
            if position.offset == oldest and position.offset > 0 and self._knows(position):
                self._ids.appendleft(publication.previous)

    def _hold(self, publication: Publication) -> None:
        size = len(publication.data)
        if len(self._held) >= self._limit_entries or self._held_bytes + size > self._limit_bytes:
            self._again = True  # the store has it: a second read will bring it
            return
        if self._budget is not None:
            if self._budget.left < size + OVERHEAD:
                self._again = True
                return
            self._budget.left -= size + OVERHEAD
        self._held.append(publication)
        self._held_bytes += size
