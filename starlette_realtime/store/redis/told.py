"""Told: of whom a process has told that they came or went, in case that the server forgets what it has answered."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from starlette_realtime.clock import Clock
from starlette_realtime.messages import Entry

__all__ = ["Gone", "Told"]

NAMES = 4_096
"""How many of those who went are remembered, the latest ones."""

NEVER = ("", b"0")

encode = msgspec.json.Encoder().encode


class Gone:
    """With which connections this process has told that their users left, and when; each for `keep` seconds."""

    def __init__(self, *, clock: Clock, keep: float) -> None:
        self._clock = clock
        self._keep = keep
        self._told: OrderedDict[tuple[str, str], tuple[float, bytes, Entry]] = OrderedDict()

    def add(self, topic: str, entry: Entry, at: bytes) -> None:
        """It was told; `at` in the server's milliseconds."""
        key, now = (topic, entry.connection), self._clock.now()
        self._told[key] = now, at, entry
        self._told.move_to_end(key)
        while len(self._told) > NAMES or next(iter(self._told.values()))[0] < now - self._keep:
            self._told.popitem(last=False)

    def get(self, topic: str, connection: str) -> tuple[bytes, Entry] | None:
        """When it was told, and of whom."""
        found = self._told.get((topic, connection))
        return found[1:] if found is not None and self._clock.now() - found[0] <= self._keep else None

    def discard(self, topic: str, connection: str) -> None:
        """It comes again."""
        self._told.pop((topic, connection), None)

    def clear(self) -> None:
        """Forget them all."""
        self._told.clear()


class Told:
    """
    What a process knows of a topic's users, where it has members itself: that they are there, and were told to be.

    A master that fails takes with it what it had acknowledged and no replica had yet; an older copy of a server lacks
    more. A process does again what was its own of that (see `Presence`). It says then what it knows, and since when,
    and the scripts answer what is news to those who were told before. `stays` says whether a user has other members
    in this process.
    """

    def __init__(self, topic: str, gone: Gone, stays: Callable[[str], bool]) -> None:
        self._topic = topic
        self._gone = gone
        self._stays = stays
        self._there: dict[str, tuple[str, bytes]] = {}  # user → the process's id then, and the server's time (ms)

    @property
    def ids(self) -> bytes:
        """The ids that this process had when it knew that they are there."""
        return " ".join({node for node, _ in self._there.values()}).encode()

    def entering(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """What `enter` is told of each: connection, user, entry, when the user was there."""
        for entry in entries:
            self._gone.discard(self._topic, entry.connection)  # whatever comes of it now
            _, at = self._there.get(entry.who, NEVER)
            yield from (entry.connection.encode(), entry.who.encode(), encode(entry), at)

    def leaving(self, entries: Mapping[str, Entry | None]) -> Iterator[bytes]:
        """What `leave` is told of each: connection; user, and when that was there; or when it left before."""
        for connection, entry in entries.items():
            who, at = "", b"0"
            if entry is None:
                at, _ = self._gone.get(self._topic, connection) or (at, None)
            elif not self._stays(entry.who):
                who, (_, at) = entry.who, self._there.get(entry.who, NEVER)
            yield from (connection.encode(), who.encode(), at)

    def came(self, entries: Iterable[Entry], node: str, at: bytes) -> None:
        """They are there."""
        for entry in entries:
            self._there[entry.who] = node, at

    def went(
        self,
        leaving: Mapping[str, Entry | None],
        left: Iterable[Entry],
        lost: Iterable[str],
        stays: Iterable[str],
        at: bytes,
    ) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
        """
        `leaving` are gone, and the users of `left` with them; what brought those of `lost` is lost; those of `stays`,
        who had gone before, are still there.

        Tells of whom to say that they are there after all, and that they left.
        """
        back: list[Entry] = []
        gone = [entry for connection in lost if (entry := leaving[connection]) is not None]
        for entry in left:
            if (before := self._gone.get(self._topic, entry.connection)) is None:
                gone.append(entry)
            self._gone.add(self._topic, entry, at if before is None else before[0])
        for connection in stays:
            if (before := self._gone.get(self._topic, connection)) is not None:
                self._gone.discard(self._topic, connection)
                if int(before[0]) > int(self._there.get(before[1].who, NEVER)[1]):
                    back.append(before[1])  # and whoever keeps it there was not told to have brought it
        for who in {entry.who for entry in leaving.values() if entry is not None}:
            if not self._stays(who):
                self._there.pop(who, None)
        return tuple(back), tuple(gone)

    def forget(self) -> None:
        """Nobody knows any more what others may have told of those who are here."""
        self._there.clear()
