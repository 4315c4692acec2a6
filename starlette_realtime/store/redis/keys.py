"""Keys: what everything is called in Redis. One topic's keys, and its channel, are in one slot of a cluster."""

from binascii import crc32, crc_hqx
from urllib.parse import quote

__all__ = ["SLOTS", "TAGS", "Keys", "ms", "slot_of"]

SLOTS = 16_384
"""Slots of a Redis Cluster (Redis Cluster specification, "Key distribution model")."""

PARTITIONS = 256


def slot_of(key: bytes) -> int:
    """The cluster slot of `key`: CRC16 (XMODEM) of what stands between its first braces, or of all of it."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def _spread() -> tuple[bytes, ...]:
    """A short tag for each of `PARTITIONS` equal ranges of slots, so that whoever owns a range owns a tag of it."""
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < PARTITIONS:
        tag = b"%x" % number
        found.setdefault(crc_hqx(tag, 0) % SLOTS * PARTITIONS // SLOTS, tag)
        number += 1
    return tuple(found[partition] for partition in range(PARTITIONS))


TAGS = _spread()
"""The hash tags, by partition. They are part of the data's layout: a topic's tag never changes."""


def ms(seconds: float) -> bytes:
    """A duration as scripts take it: whole milliseconds."""
    return b"%d" % round(seconds * 1000)


class Keys:
    """
    The names of one deployment's keys and channels, below `prefix`. Channels don't belong to a database, as keys do:
    so the names of another one than 0 tell its number.

    A topic's keys carry the tag of its partition: a raw `{topic}` could be broken out of by a topic with braces. What
    belongs to a process carries its id as the tag. Names are percent-encoded, so that no part is taken for another.
    """

    def __init__(self, prefix: str, db: int = 0) -> None:
        self.prefix = quote(prefix, safe="") + (f":@{db}" if db else "")
        self._start = self.prefix.encode()
        self.nodes = self._start + b":nodes"
        """ZSET: process → when it was last heard of, in milliseconds of the server's clock."""
        self.revocations = self._start + b":{revoked}"
        """HASH: subject → issued before; with `:x`, a ZSET of when each lapses."""

    def topic(self, topic: str) -> bytes:
        """What a topic's keys start with, and the name of its channel."""
        name = topic.encode(errors="surrogatepass")
        return b"%b:{%b}:%b" % (self._start, TAGS[crc32(name) % PARTITIONS], quote(name, safe="").encode())

    def of(self, kind: str, name: str) -> bytes:
        """A key of its own of a kind of thing: `claim`, `slots`."""
        encoded = name.encode(errors="surrogatepass")
        tag = TAGS[crc32(encoded) % PARTITIONS]
        return b"%b:%b:{%b}:%b" % (self._start, kind.encode(), tag, quote(encoded, safe="").encode())

    def node(self, node: str, kind: str) -> bytes:
        """A process's key of a kind; all of one process share a slot."""
        return b"%b:{%b}:%b" % (self._start, quote(node, safe="").encode(), kind.encode())
