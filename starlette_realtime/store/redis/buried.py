"""Buried: with whom a process has told that users left, in case that another server has them alive."""

from collections import OrderedDict
from collections.abc import Callable, Collection

from starlette_realtime.clock import Clock
from starlette_realtime.messages import Entry

__all__ = ["Burial", "Buried"]

USERS = 4_096
"""How many users are remembered, the latest ones; but always a whole burial."""


class Burial:
    """Members of a dead process in one topic, with whom this process has told that users left."""

    __slots__ = ("at", "last", "number", "since", "topic", "users")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.last = b""
        self.number = 0
        self.since: float | None = None
        self.at = 0.0
        self.users: dict[str, Entry] = {}


class Buried:
    """
    Of whom this process has told that they left with a dead process; each for `keep` seconds.

    A master that is cut off takes those for dead that are cut off from it, and live with the next master: there, nobody
    knows of what was told. `since` tells from when on the present connection to a key's server stands.
    """

    def __init__(self, since: Callable[[bytes], float | None], *, clock: Clock, keep: float) -> None:
        self._since = since
        self._clock = clock
        self._keep = keep
        self._burials: OrderedDict[tuple[str, bytes, float | None], Burial] = OrderedDict()
        self._size = 0

    def add(self, topic: str, last: bytes, number: int, since: float | None, left: Collection[Entry]) -> None:
        """It was told: operation `number`, noted in the key `last`, over the connection that stood `since` then."""
        key = topic, last, since
        burial = self._burials.get(key)
        if burial is None:
            burial = self._burials[key] = Burial(topic)
        self._burials.move_to_end(key)
        self._size -= len(burial.users)
        burial.users.update((entry.who, entry) for entry in left)
        self._size += len(burial.users)
        burial.last, burial.number, burial.since, burial.at = last, number, since, self._clock.now()
        while len(self._burials) > 1 and self._size > USERS:
            self._size -= len(self._burials.popitem(last=False)[1].users)

    def suspects(self) -> list[Burial]:
        """What the servers that there are now may not know; it is forgotten here, unless it is told again."""
        now, found = self._clock.now(), []
        for key, burial in list(self._burials.items()):
            known = self._since(burial.last) in (None, burial.since)
            if known and now - burial.at < self._keep:
                continue
            if not known:
                found.append(burial)
            del self._burials[key]
            self._size -= len(burial.users)
        return found

    def clear(self) -> None:
        """Forget them all."""
        self._burials.clear()
        self._size = 0
