"""Redis stores in tests: each process of a test reaches its servers through proxies of its own."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias
from uuid import uuid4

from starlette_realtime.messages import Delivery
from starlette_realtime.store import Store
from starlette_realtime.store.redis import RedisStore
from starlette_realtime.store.redis.address import Host
from starlette_realtime.testing import FakeClock, StoreContract
from tests.support.proxy import Proxy
from tests.support.redis import Cluster, Sentinels, Server

Servers: TypeAlias = Server | Sentinels | Cluster

SHORT: dict[str, Any] = {
    "timeout": 1.0,
    "start_timeout": 10.0,
    "lease": 2.0,
    "beat": 0.4,
    "sweep": 0.3,
    "dedupe": 2.0,
    "probe": 0.5,
    "check_interval": 0.8,
    "stale_after": 1.0,
}
"""Periods for tests: long enough for a machine that is busy, short enough to wait for."""


def hosts(servers: Servers) -> list[Host]:
    """Where all of them listen."""
    if isinstance(servers, Server):
        found = [servers]
    elif isinstance(servers, Cluster):
        found = list(servers.nodes)
    else:
        found = [*servers.pair, *servers.watchers]
    return [("127.0.0.1", server.port) for server in found]


class FaultyStore(RedisStore):
    """One process's store, with what can go wrong between it and its servers."""

    def __init__(self, servers: Servers, proxies: dict[Host, Proxy], **options: Any) -> None:
        super().__init__(servers.url, remap=lambda host: ("127.0.0.1", proxies[host].port), **options)
        self.proxies = proxies
        self.dropping = 0
        self.doubling = 0

    def _received(self, topic: str, delivery: Delivery) -> None:
        if self.dropping:
            self.dropping -= 1
            return
        super()._received(topic, delivery)
        if self.doubling:
            self.doubling -= 1
            super()._received(topic, delivery)

    def cut(self) -> None:
        """Nothing gets through any more, and everybody notices."""
        for proxy in self.proxies.values():
            proxy.cut()

    def half_open(self) -> None:
        """Nothing gets through any more, and nobody notices."""
        for proxy in self.proxies.values():
            proxy.half_open()

    def restore(self) -> None:
        """Everything gets through again."""
        for proxy in self.proxies.values():
            proxy.restore()

    def cut_links(self) -> None:
        """Reset all links: new ones are accepted."""
        for proxy in self.proxies.values():
            proxy.cut_links()

    def cut_subscriptions(self) -> None:
        """Reset the links that listen."""
        for proxy in self.proxies.values():
            proxy.cut_links(lambda link: link.sent(b"SUBSCRIBE"))

    def lose_reply(self, request: bytes = b"") -> None:
        """The next answer to a request that has `request` in it is lost, and the link with it."""
        for proxy in self.proxies.values():
            proxy.lose_reply(request)


@asynccontextmanager
async def stores(servers: Servers, count: int, *, prefix: str = "", **options: Any) -> AsyncIterator[list[FaultyStore]]:
    """So many processes' stores on the same servers, under one prefix of their own; not entered yet."""
    prefix = prefix or uuid4().hex
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            proxies = {host: await stack.enter_async_context(Proxy(*host)) for host in hosts(servers)}
            rng = random.Random(uuid4().int)
            made.append(FaultyStore(servers, proxies, prefix=prefix, rng=rng, **{**SHORT, **options}))
        yield made


@asynccontextmanager
async def processes(servers: Servers, count: int, **options: Any) -> AsyncIterator[Sequence[FaultyStore]]:
    """The same, entered."""
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(stores(servers, count, **options))
        for store in made:
            await stack.enter_async_context(store)
        yield made


class RedisContract(StoreContract):
    """The contract on real servers: `servers` is set by a fixture."""

    lease, sweep, dedupe = SHORT["lease"], SHORT["sweep"], SHORT["dedupe"]
    check_interval, stale_after = SHORT["check_interval"], SHORT["stale_after"]

    servers: Servers

    async def make_stores(self, count: int, clock: FakeClock) -> Sequence[Store]:
        return await self.stack.enter_async_context(stores(self.servers, count))

    @asynccontextmanager
    async def nodes(self, count: int) -> AsyncIterator[Sequence[Store]]:
        async with AsyncExitStack() as self.stack, super().nodes(count) as made:
            yield made

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def drop(self, store: Store, count: int) -> None:
        assert isinstance(store, FaultyStore)
        store.dropping = count

    async def duplicate(self, store: Store, count: int) -> None:
        assert isinstance(store, FaultyStore)
        store.doubling = count

    async def lose_answers(self, store: Store, count: int) -> None:
        assert isinstance(store, FaultyStore)
        assert count == 1  # of each server
        store.lose_reply(b"EVALSHA")

    async def rewind(self, store: Store, topic: str, count: int) -> None:
        await rewind(store, topic, count)

    async def lose(self, store: Store, topic: str) -> None:
        assert isinstance(store, FaultyStore)
        base = store._keys.topic(topic)
        await store._link.call(b"DEL", base + b":m", base + b":s", key=base)

    async def stall(self, store: Store) -> None:
        assert isinstance(store, FaultyStore)
        store.half_open()

    async def resume(self, store: Store) -> None:
        assert isinstance(store, FaultyStore)
        store.restore()

    async def kill(self, store: Store) -> None:
        assert isinstance(store, FaultyStore)
        store.cut()


async def rewind(store: Store, topic: str, count: int) -> None:
    """Put the topic back by `count` publications, as an older snapshot would."""
    assert isinstance(store, FaultyStore)
    base = store._keys.topic(topic)
    meta, stream = base + b":m", base + b":s"
    rows = await store._link.call(b"XRANGE", stream, b"-", b"+", key=base)
    left, gone = rows[: len(rows) - count], rows[len(rows) - count :]
    assert len(gone) == count
    lives = await store._link.call(b"PTTL", stream, key=base)
    await store._link.call(b"DEL", stream, key=base)
    for id, fields in left:
        await store._link.call(b"XADD", stream, id, *fields, key=base)
    await store._link.call(b"PEXPIRE", stream, b"%d" % lives, key=base)
    offset = int(gone[0][0].split(b"-")[0]) - 1
    total = left[-1][1][7] if left else b"0"
    await store._link.call(b"HSET", meta, b"o", b"%d" % offset, b"i", gone[0][1][3], b"c", total, key=base)
