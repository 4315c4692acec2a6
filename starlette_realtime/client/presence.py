"""Who is in a room: a snapshot, kept up to date by numbered differences; a gap in the numbers asks for a new one."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET

from starlette_realtime.client.values import Change, Person
from starlette_realtime.messages import MemberInfo, Roster
from starlette_realtime.messages import Presence as Diff

__all__ = ["Presence"]

HELD: Final = 64
"""Differences kept while a snapshot is on its way; one more only means to ask once more."""


class Presence:
    """
    The members of a room that was declared with `presence=True`.

    `members` maps each user, or the connection of somebody anonymous, to a `Person`; `total` counts connections, also
    those that are not shown; `complete` is False where the room is too large and `members` is a sample; `seq` is how
    far it is known.
    """

    def __init__(self, ask: Callable[[Callable[[Roster | None], None]], None], changed: Callable[[], None]) -> None:
        self._ask = ask
        self._tell = changed
        self.members: Mapping[str, Person] = {}
        self.total = 0
        self.seq = 0
        self.complete = True
        self._connections: dict[str, MemberInfo] = {}
        self._held: list[Diff] | None = None
        self._known = False  # the room shows its members

    def load(self, roster: Roster) -> None:
        """Start from a snapshot, and apply what came while it was on its way."""
        held, self._held = self._held or [], None
        self._known = True
        self._take(roster.seq, roster.total, roster.list)
        for diff in held:
            self._fold(diff)
        self._changed()

    def diff(self, diff: Diff) -> None:
        """Apply a difference, where it follows."""
        self._fold(diff)
        self._changed()

    def reset(self) -> None:
        """The store has lost count, so its numbers may have started over: a new snapshot is right, whatever it says."""
        if self._known:
            self._reload([])

    def change(self, before: Mapping[str, Person]) -> Change:
        """What has changed since `members` was `before`."""
        now = self.members
        return Change(
            joined=tuple(one for key, one in now.items() if key not in before),
            updated=tuple(one for key, one in now.items() if key in before and before[key] != one),
            left=tuple(one for key, one in before.items() if key not in now),
        )

    def _take(self, seq: int, total: int, shown: Iterable[MemberInfo]) -> None:
        self._connections = {member.connection: member for member in shown}
        self.seq, self.total = seq, total
        self.complete = len(self._connections) >= total

    def _fold(self, diff: Diff) -> None:
        if self._held is not None:
            if len(self._held) < HELD:
                self._held.append(diff)
        elif diff.seq <= self.seq:
            return
        elif diff.sample is not None:
            self._take(diff.seq, diff.total or 0, diff.sample)
            self.complete = False
        elif (diff.prev or 0) > self.seq or not self.complete:
            self._reload([diff])
        else:
            # Final states, so that an overlap does no harm.
            for member in (*diff.joined, *diff.updated):
                self._connections[member.connection] = member
            for connection in diff.left:
                self._connections.pop(connection, None)
            self.seq = diff.seq
            self.total = len(self._connections)

    def _reload(self, held: list[Diff]) -> None:
        self._held = held

        def answered(roster: Roster | None) -> None:
            if self._held is not held:
                return  # a join has brought a newer one
            if roster is not None:
                self.load(roster)
            else:
                self._held = None  # the next difference asks again

        self._ask(answered)

    def _changed(self) -> None:
        people: dict[str, Person] = {}
        for member in sorted(self._connections.values(), key=_since):
            key = member.user if member.user is not None else member.connection
            known = people.get(key)
            status = "online" if member.status is UNSET else member.status
            meta: Any = None if member.meta is UNSET else msgspec.json.decode(member.meta)
            if known is None:
                people[key] = Person(member.user, status, meta, (member.connection,), _since(member))
            else:
                people[key] = Person(
                    known.user,
                    "online" if "online" in (status, known.status) else status,
                    known.meta if meta is None else meta,
                    (*known.connections, member.connection),
                    known.since,
                )
        if people != self.members:
            self.members = people
            self._tell()


def _since(member: MemberInfo) -> int:
    return 0 if member.since is UNSET else member.since
