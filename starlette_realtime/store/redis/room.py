"""Room: one topic's presence keys, and what one process has, or is about to have, there."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from starlette_realtime.messages import Entry
from starlette_realtime.store.redis.told import Gone, Told

__all__ = ["Records", "Room", "Unsettled"]


class Records(NamedTuple):
    """The keys of one topic's presence, in the order in which scripts take them."""

    channel: bytes
    meta: bytes
    records: bytes
    order: bytes
    counts: bytes
    holders: bytes

    @classmethod
    def of(cls, base: bytes) -> "Records":
        """The keys of the topic whose keys start with `base`."""
        return cls(base, base + b":m", base + b":pe", base + b":pz", base + b":pu", base + b":pn")

    def owned(self, node: str) -> bytes:
        """What that process has there: SET of connections."""
        return b"%b:p:%b" % (self.channel, node.encode())

    def tombstone(self, node: str) -> bytes:
        """That it was declared dead."""
        return b"%b:px:%b" % (self.channel, node.encode())

    def last(self, node: str, *, reaper: bool = False) -> bytes:
        """Its last operation there, and what came of it."""
        return b"%b:%b:%b" % (self.channel, b"pr" if reaper else b"po", node.encode())


class Unsettled(NamedTuple):
    """An operation of which it isn't known yet whether it was made."""

    key: bytes
    number: bytes
    leaving: Mapping[str, Entry | None] | None  # None: it is an enter


class Room:
    """What this process has, or is about to have, in one topic."""

    __slots__ = (
        "_users",
        "coming",
        "indexed",
        "keys",
        "leaving",
        "lock",
        "mine",
        "refreshed",
        "steady",
        "told",
        "topic",
        "unsettled",
        "users",
    )

    def __init__(self, topic: str, keys: Records, gone: Gone) -> None:
        self.topic = topic
        self.keys = keys
        self.lock = asyncio.Lock()
        self.users = 0  # who hold the lock, or wait for it
        self.mine: dict[str, Entry] = {}  # as it should be: connection → entry; changed by `put` and `take`
        self._users = Counter[str]()  # how many of them each user has
        self.coming: dict[str, Entry] = {}  # what of it is still to be entered, by whoever asked for it
        self.leaving: dict[str, Entry] = {}  # what left, and the server may not know it
        self.told = Told(topic, gone, self._users.__contains__)
        self.indexed = ""  # the id under which the topic is noted
        self.unsettled: Unsettled | None = None
        self.steady: float | None = None  # since when the connection stood over which the records were written
        self.refreshed = 0.0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember."""
        return not (self.users or self.mine or self.leaving or self.indexed or self.unsettled)

    def put(self, entry: Entry) -> None:
        """It should be there, instead of what its connection had before."""
        self.take(entry.connection)
        self.mine[entry.connection] = entry
        self._users[entry.who] += 1

    def take(self, connection: str) -> Entry | None:
        """It should not be there any more; tells what should have been."""
        entry = self.mine.pop(connection, None)
        if entry is not None:
            self._users[entry.who] -= 1
            if not self._users[entry.who]:
                del self._users[entry.who]
        return entry
