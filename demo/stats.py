"""Stats: the last minutes of this process, one point a second, from what the kit counts."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from starlette_realtime import Realtime

FIELDS = ("at", "connections", "people", "members", "received", "sent", "refused", "resumed", "reset")
"""The columns of a report: a moment in Unix milliseconds, three gauges, and five rates per second."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page is told: one point or many, as columns, and what stands since the start of the process."""

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

    `rooms` are those that are shown; the clock is that of `realtime`.
    """

    def __init__(self, realtime: Realtime, rooms: Collection[str], *, size: int = 300) -> None:
        self._realtime = realtime
        self._rooms = frozenset(rooms)
        self._points: deque[tuple[float, ...]] = deque(maxlen=size)
        self._last = self._count()
        self._sampled = realtime.clock.now()

    def sample(self) -> None:
        """Add a point: what is held now, and what was counted since the last point, per second."""
        clock, connections = self._realtime.clock, self._realtime.connections
        now, counted = clock.now(), self._count()
        elapsed = max(now - self._sampled, 0.001)
        rates = [round((new - old) / elapsed, 1) for new, old in zip(counted, self._last, strict=True)]
        people = len({connection.user for connection in connections} - {None})
        members = sum(self._occupied().values())
        self._points.append((round(clock.time() * 1000), len(connections), people, members, *rates))
        self._last, self._sampled = counted, now

    def latest(self) -> Report:
        """The last point."""
        return self._report(list(self._points)[-1:])

    def recent(self) -> Report:
        """All points that are kept, the oldest first."""
        return self._report(list(self._points))

    def _report(self, points: Sequence[tuple[float, ...]]) -> Report:
        counters = self._realtime.counters
        return Report(
            points={field: [point[column] for point in points] for column, field in enumerate(FIELDS)},
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
