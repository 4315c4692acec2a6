"""Publications: what one turn of the event loop publishes in a topic goes out as one script; and reading them."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import History, Page, Position, Publication, Recovery
from starlette_realtime.store.redis.keys import Keys
from starlette_realtime.store.redis.link import Link
from starlette_realtime.store.redis.scripts import script

__all__ = ["Publications", "decode_publication"]

BATCH = 64
"""Publications that one script makes."""

BATCH_BYTES = 262_144
"""Bytes of data after which a script is full."""

REPEATED = 5.0
"""For how many times the store's time limit a publication without a key is known, in case that it is sent again."""

REASONS = {b"forgotten": "forgotten", b"rewound": "rewound", b"trimmed": "trimmed", b"too_many": "too_many"}


class _Item(NamedTuple):
    """One publication that waits to be sent."""

    data: bytes
    id: bytes
    key: bytes
    known: int  # milliseconds
    future: "asyncio.Future[Position]"


class Publications:
    """
    The publications of one deployment's topics. `dedupe`, `forget`, `forget_joined`: seconds, see `RedisStore`.

    `history_bytes` bounds the data of one topic's history.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        *,
        rng: random.Random,
        timeout: float,
        dedupe: float,
        forget: float,
        forget_joined: float,
        history_bytes: int,
    ) -> None:
        self._link = link
        self._keys = keys
        self._rng = rng
        self._publish = b"SPUBLISH" if link.sharded else b"PUBLISH"
        self._dedupe = round(dedupe * 1000)
        self._repeated = round(timeout * REPEATED * 1000)
        self._forget = forget
        self._forget_joined = b"%d" % round(forget_joined * 1000)
        self._history_bytes = b"%d" % history_bytes
        self._pending: dict[tuple[str, History], list[_Item]] = {}
        self._scheduled = False

    # --- publishing ---

    def publish(
        self, topic: str, data: bytes, history: History, producer: str, key: str, n: int
    ) -> "asyncio.Future[Position]":
        """See `Store.publish`: sent with whatever else this turn of the event loop publishes."""
        loop = asyncio.get_running_loop()
        id = b"%016x" % self._rng.getrandbits(64)
        if key:
            parts = (quote(producer, safe="", errors="surrogatepass"), quote(key, safe="", errors="surrogatepass"))
            known, name = self._dedupe, f"{parts[0]}:{parts[1]}:{n}".encode()
        else:
            known, name = self._repeated, id
        item = _Item(data, id, name, known, loop.create_future())
        self._pending.setdefault((topic, history), []).append(item)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)
        return item.future

    def _flush(self) -> None:
        self._scheduled = False
        pending, self._pending = self._pending, {}
        for (topic, history), items in pending.items():
            start = 0
            while start < len(items):
                end, size = start, 0
                while end < len(items) and end - start < BATCH and (size == 0 or size < BATCH_BYTES):
                    size += len(items[end].data)
                    end += 1
                try:
                    self._send(topic, history, items[start:end])
                except Exception as exc:  # what can't be sent is the caller's mistake, and nobody else's
                    for item in items[start:end]:
                        if not item.future.done():
                            item.future.set_exception(exc)
                start = end

    def _send(self, topic: str, history: History, items: Sequence[_Item]) -> None:
        base = self._keys.topic(topic)
        keys = [base + b":m", base + b":s", *(b"%b:i:%b" % (base, item.key) for item in items)]
        forget = max(self._forget, 10 * history.ttl)
        args = [
            base,
            self._publish,
            self._new_epoch(),
            b"%d" % max(0, history.size),
            b"%d" % max(1, round(history.ttl * 1000)),
            b"%d" % round(forget * 1000),
            self._history_bytes,
        ]
        for item in items:
            args += (item.id, b"%d" % item.known, item.data)
        answer = self._link.submit(script("publish"), keys, args)
        answer.add_done_callback(lambda answer: _distribute(answer, items))

    async def publish_volatile(self, topic: str, data: bytes) -> None:
        """See `Store.publish_volatile`."""
        base = self._keys.topic(topic)
        await self._link.run(script("volatile"), (base,), (base, self._publish, data), once=True)

    # --- reading ---

    async def read(self, topic: str, since: Position | None, limit: int, limit_bytes: int) -> Recovery:
        """See `Store.read`."""
        base = self._keys.topic(topic)
        where = (b"", b"0", b"") if since is None else _encode(since)
        bounds = (b"%d" % max(0, limit), b"%d" % max(0, limit_bytes))
        args = (self._new_epoch(), self._forget_joined, *where, *bounds)
        status, epoch, offset, id, *rows = await self._link.run(script("read"), (base + b":m", base + b":s"), args)
        with _ours():
            position = Position(epoch.decode(), int(offset), id.decode())
            if status != b"ok":
                return Recovery((), position, complete=False, reason=REASONS.get(status, "lost"))
            return Recovery(_rows(position.epoch, rows), position, complete=True)

    async def page(self, topic: str, before: Position | None, limit: int, limit_bytes: int) -> Page:
        """See `Store.page`."""
        base = self._keys.topic(topic)
        where = (b"", b"0", b"") if before is None else _encode(before)
        bounds = (b"%d" % max(0, limit), b"%d" % max(0, limit_bytes))
        args = (self._new_epoch(), self._forget_joined, *where, *bounds)
        more, truncated, epoch, *rows = await self._link.run(script("page"), (base + b":m", base + b":s"), args)
        with _ours():
            return Page(_rows(epoch.decode(), rows), more=bool(more), truncated=bool(truncated))

    async def where(self, topics: Sequence[str], keep: float) -> list[tuple[Position, int]]:
        """Position and presence sequence of each topic, which is then known for `keep` seconds more at least."""
        groups: dict[bytes, list[tuple[int, bytes]]] = {}
        for index, topic in enumerate(topics):
            base = self._keys.topic(topic)
            # One script serves the topics of one slot; without slots, all of them.
            slot = base[: base.index(b"}")] if self._link.sharded else b""
            groups.setdefault(slot, []).append((index, base))
        args = (self._new_epoch(), b"%d" % round(keep * 1000))
        answers = [
            self._link.submit(script("where"), [key for _, base in group for key in (base + b":m", base + b":s")], args)
            for group in groups.values()
        ]
        found: dict[int, tuple[Position, int]] = {}
        for group, rows in zip(groups.values(), await asyncio.gather(*answers), strict=True):
            for (index, _), (epoch, offset, id, sequence) in zip(group, rows, strict=True):
                found[index] = Position(epoch.decode(), int(offset), id.decode()), int(sequence)
        return [found[index] for index in range(len(topics))]

    def _new_epoch(self) -> bytes:
        return b"%016x" % self._rng.getrandbits(64)


def decode_publication(payload: bytes) -> Publication:
    """What came over a topic's channel. Raises `ValueError` for what no store of ours has sent."""
    head, end, data = payload.partition(b"\n")
    parts = head.split(b" ")
    if end and len(parts) == 6 and parts[0] == b"p":
        _, epoch, offset, id, previous, at = parts
        return Publication(data, int(at), Position(epoch.decode(), int(offset), id.decode()), previous.decode())
    if end and len(parts) == 2 and parts[0] == b"v":
        return Publication(data, int(parts[1]))
    raise ValueError("this is no publication")


def _encode(position: Position) -> tuple[bytes, bytes, bytes]:
    # A position comes from a client: any text, any number. To the scripts, an empty epoch is no position at all.
    return (
        position.epoch.encode(errors="surrogatepass") or b"-",
        b"%d" % max(-1, min(position.offset, 2**53)),
        position.id.encode(errors="surrogatepass"),
    )


@contextmanager
def _ours() -> Iterator[None]:
    """What can't be read was written by somebody else."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as exc:
        raise StoreError("the store has publications that no store of ours has written") from exc


def _rows(epoch: str, rows: Sequence[Any]) -> tuple[Publication, ...]:
    """`[[offset, id, previous, at, data], …]`."""
    return tuple(
        Publication(data, int(at), Position(epoch, int(offset), id.decode()), previous.decode())
        for offset, id, previous, at, data in rows
    )


def _distribute(answer: "asyncio.Future[Any]", items: Sequence[_Item]) -> None:
    """Give each publication its part of the script's answer: `epoch offset id`."""
    if answer.cancelled():
        for item in items:
            item.future.cancel()
        return
    error = answer.exception()
    for index, item in enumerate(items):
        if item.future.done():
            continue
        if error is not None:
            refusal = StoreError(str(error))
            refusal.__cause__ = error.__cause__ or error
            item.future.set_exception(refusal)
        else:
            epoch, offset, id = answer.result()[index].decode().split(" ")
            item.future.set_result(Position(epoch, int(offset), id))
