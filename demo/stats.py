"""Stats: the last minutes of this process, one point a second, from what the kit counts."""

import secrets
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from starlette_realtime import Realtime

FIELDS = ("at", "connections", "people", "members", "received", "sent", "refused", "resumed", "reset")
"""The columns of a report: a moment in Unix milliseconds, three gauges, and five rates per second."""

Point = tuple[float, ...]
"""One value for each of `FIELDS`."""


def columns(points: Iterable[Point]) -> dict[str, Sequence[float]]:
    """Points as columns, by field."""
    rows = list(points)
    return {field: [row[column] for row in rows] for column, field in enumerate(FIELDS)}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page is told of a process: points, as columns, and what stands since its start."""

    process: int
    """Its number."""
    run: str
    """Another one after each start."""
    node: str
    """Its name on the store at present."""
    beats: Mapping[str, float]
    """How long ago the store last heard of each node, in seconds; empty where there is one process."""
    points: Mapping[str, Sequence[float]]
    rooms: Mapping[str, int]
    """Members by room, empty rooms left out."""
    refused: Mapping[str, int]
    """Refusals by error code."""
    resumed: int
    """Rooms that were resumed without a gap."""
    reset: int
    """Rooms that had to start afresh."""


class Stats:
    """
    Reads what `realtime` counts and holds, and keeps the last `size` points.

    `rooms` are those that are shown, `process` is this one's number; the clock is that of `realtime`.
    """

    def __init__(self, realtime: Realtime, rooms: Collection[str], *, process: int = 1, size: int = 300) -> None:
        self.run = secrets.token_hex(4)
        self._realtime = realtime
        self._rooms = frozenset(rooms)
        self._process = process
        self._beats: Mapping[str, float] = {}
        self._points: deque[Point] = deque(maxlen=size)
        self._last = self._count()
        self._sampled = realtime.clock.now()

    @property
    def users(self) -> set[str]:
        """Whom this process serves."""
        return {connection.user for connection in self._realtime.connections if connection.user is not None}

    def sample(self, *, elsewhere: Collection[str] = (), beats: Mapping[str, float] | None = None) -> None:
        """
        Add a point: what is held now, and what was counted since the last point, per second.

        People are those of all processes: `elsewhere` are the users of the others.
        """
        clock, connections = self._realtime.clock, self._realtime.connections
        now, counted = clock.now(), self._count()
        elapsed = max(now - self._sampled, 0.001)
        rates = [round((new - old) / elapsed, 1) for new, old in zip(counted, self._last, strict=True)]
        people = len(self.users.union(elsewhere))
        members = sum(self._occupied().values())
        self._points.append((round(clock.time() * 1000), len(connections), people, members, *rates))
        self._last, self._sampled = counted, now
        self._beats = beats if beats is not None else {}

    def latest(self) -> Report:
        """The last point."""
        return self._report(list(self._points)[-1:])

    def recent(self) -> Report:
        """All points that are kept, the oldest first."""
        return self._report(list(self._points))

    def _report(self, points: Sequence[Point]) -> Report:
        counters = self._realtime.counters
        return Report(
            process=self._process,
            run=self.run,
            node=self._realtime.store.node,
            beats=self._beats,
            points=columns(points),
            rooms=self._occupied(),
            refused=dict(counters.refused),
            resumed=counters.resumed,
            reset=counters.reset,
        )

    def _occupied(self) -> dict[str, int]:
        here = self._realtime.occupancy()
        return {room: here[room] for room in here if room in self._rooms and here[room]}

    def _count(self) -> tuple[int, ...]:
        counters = self._realtime.counters
        return counters.received, counters.sent, counters.refused.total(), counters.resumed, counters.reset
