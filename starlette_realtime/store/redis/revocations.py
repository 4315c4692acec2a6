"""Revocations: what was taken back, read again only when it has changed."""

import logging
from collections.abc import Mapping
from math import inf, isnan
from types import MappingProxyType

from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.keys import Keys
from starlette_realtime.store.redis.link import Link
from starlette_realtime.store.redis.scripts import script

__all__ = ["Revocations"]

logger = logging.getLogger("starlette_realtime.store")

READ = 1_000
"""About how many revocations come in one answer."""

NAMED = 10
"""How many of those that can't be read the log names."""

LAPSED = 1_000
"""How many that have lapsed one look forgets."""


class Revocations:
    """All standing revocations. `life`: seconds that one stands; over `most` of them, a further one is refused."""

    def __init__(self, link: Link, keys: Keys, *, life: float, most: int = 200_000) -> None:
        self._link = link
        self._names = (keys.revocations, keys.revocations + b":x", keys.revocations + b":v")
        self._life = life
        self._most = most
        self._version = b""
        self._known: Mapping[str, float] = MappingProxyType({})
        self._told: frozenset[bytes] = frozenset()

    async def add(self, subject: str, issued_before: float) -> None:
        """Revoke what was issued to `subject` before then. Raises `StoreError`, also when there are too many."""
        args = (
            subject.encode(errors="surrogatepass"),
            repr(float(issued_before)).encode(),
            b"%d" % round(self._life * 1000),
            b"%d" % self._most,
        )
        if not await self._link.run(script("revoke"), self._names, args):
            raise StoreError(f"over {self._most} revocations are standing: let tokens live for a shorter time")

    async def read(self) -> Mapping[str, float]:
        """
        All of them, subject → issued before. Raises `StoreError`.

        Where somebody else has written what is no time, all that was issued to that subject is revoked, until it is
        revoked again: what can't be read lets nobody in, and keeps nobody else out.
        """
        # The version first: what changes while the rest is read makes the next look read again.
        version = await self._link.run(script("revocations"), self._names, (b"%d" % LAPSED,))
        if version and version == self._version:
            return self._known
        found: dict[str, float] = {}
        foreign: set[bytes] = set()
        cursor = b"0" if version else b""
        while cursor:
            scan = (b"HSCAN", self._names[0], cursor, b"COUNT", b"%d" % READ)
            cursor, pairs = await self._link.call(*scan, key=self._names[0])
            for name, issued_before in zip(pairs[::2], pairs[1::2], strict=True):
                until = _time(issued_before)
                try:
                    found[name.decode(errors="surrogatepass")] = inf if until is None else until
                except UnicodeDecodeError:
                    until = None  # there is nobody of that name
                if until is None:
                    foreign.add(name)
            if cursor == b"0":
                break
        if foreign - self._told:
            named = sorted(foreign)[:NAMED]
            logger.error("%d revocations can't be read: whatever these were issued is revoked: %r", len(foreign), named)
        self._told = frozenset(foreign)
        self._known, self._version = MappingProxyType(found), version
        return self._known


def _time(text: bytes) -> float | None:
    try:
        time = float(text)
    except ValueError:
        return None
    return None if isnan(time) else time
