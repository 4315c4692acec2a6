"""Presence in Redis under many faults: in the end all agree, and whoever came and went was told to, once."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry, PresenceDiff
from starlette_realtime.testing.contract.harness import Heard
from starlette_realtime.testing.contract.presence import entry, fold, names
from tests.store.redis.support import FaultyStore, stores
from tests.support.redis import Cluster, Sentinels, Server, cluster, sentinels, server
from tests.support.waiting import until

TOPICS = ("t", "u")


@pytest.fixture(scope="module")
async def running(anyio_backend: str) -> AsyncIterator[Server]:
    async with server() as found:
        yield found


class Player:
    """One process whose members come and go at random; it knows who should be there, and who was told of."""

    def __init__(self, store: FaultyStore, name: str, seed: int, told: Counter[tuple[str, str]]) -> None:
        self.store = store
        self.wanted: dict[tuple[str, str], Entry] = {}
        self._name = name
        self._random = random.Random(seed)
        self._told = told
        self._since = 0
        store.on_presence(self._tell)

    async def play(self, topic: str, calls: int) -> None:
        """Some calls, one after the other."""
        for _ in range(calls):
            connection = f"{self._name}{self._random.randrange(4)}"
            try:
                if self._random.random() < 0.6:
                    await self._enter(topic, connection)
                else:
                    self.wanted.pop((topic, connection), None)
                    self._tell(topic, (), await self.store.leave(topic, [connection]))
            except StoreError:
                pass
            await asyncio.sleep(self._random.random() * 0.02)

    async def _enter(self, topic: str, connection: str) -> None:
        self._since += 1
        new = entry(connection, f"u:{int(connection[-1]) % 3}", since=self._since)
        joined = await self.store.enter(topic, [new])
        self.wanted[topic, connection] = new
        self._tell(topic, joined, ())

    def _tell(self, topic: str, joined: tuple[Entry, ...], left: tuple[Entry, ...]) -> None:
        for each in joined:
            self._told[topic, each.who] += 1
        for each in left:
            self._told[topic, each.who] -= 1


async def trouble(store: FaultyStore, seed: int, *, silence: float) -> None:
    """Faults, until cancelled; in the end the link is whole."""
    chance = random.Random(seed)
    try:
        while True:
            await asyncio.sleep(chance.random() * 0.15)
            kind = chance.randrange(8)
            if kind < 3:
                store.lose_reply(b"EVAL")
            elif kind < 5:
                store.cut_links()
            elif kind == 5:
                for proxy in store.proxies.values():
                    proxy.drop_replies()
                await asyncio.sleep(chance.random() * silence / 2)
                store.cut_links()  # what was lost is lost with the link: the rest of a stream doesn't come
                store.restore()
            elif kind == 6:
                store.half_open()
                await asyncio.sleep(chance.random() * silence)
                store.restore()
            else:
                store.cut()
                await asyncio.sleep(chance.random() * silence / 2)
                store.restore()
    finally:
        store.cut_links()
        store.restore()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("lease", "silence"), [(30.0, 1.0), (1.2, 2.5)])
async def test_in_the_end_all_is_as_it_should_be(running: Server, seed: int, lease: float, silence: float) -> None:
    async with AsyncExitStack() as stack:
        options: dict[str, Any] = {"timeout": 0.4, "lease": lease, "beat": min(0.3, lease / 4), "sweep": 0.2}
        made = await stack.enter_async_context(stores(running, 3, **options))
        for store in made:
            await stack.enter_async_context(store)
        watcher, *busy = made
        told: Counter[tuple[str, str]] = Counter()
        watcher.on_presence(lambda topic, joined, left: Player._tell(players[0], topic, joined, left))
        players = [Player(store, f"p{number}-", seed * 10 + number, told) for number, store in enumerate(busy)]
        heard = {topic: Heard() for topic in TOPICS}
        for topic in TOPICS:
            await watcher.subscribe(topic, heard[topic])
        start = {topic: await watcher.members(topic, limit=99) for topic in TOPICS}
        faults = [
            asyncio.create_task(trouble(store, seed + number, silence=silence)) for number, store in enumerate(busy)
        ]
        await asyncio.gather(*(player.play(topic, 60) for player in players for topic in TOPICS))
        for task in faults:
            task.cancel()
        await asyncio.wait(faults)

        async def settled() -> bool:
            for topic in TOPICS:
                wanted = {each for player in players for (at, _), each in player.wanted.items() if at == topic}
                if set((await watcher.members(topic, limit=99)).entries) != wanted:
                    return False
                if {who for at, who in +told if at == topic} != {each.who for each in wanted}:
                    return False
            return True

        async with asyncio.timeout(20.0):
            while not await settled():
                await asyncio.sleep(0.05)
        assert set(told.values()) <= {0, 1}
        for topic in TOPICS:
            end = await watcher.members(topic, limit=99)
            await until(lambda topic=topic, end=end: heard[topic].diffs[-1].seq == end.seq)  # type: ignore[misc]
            assert fold(heard[topic].diffs, start[topic]) == (end.seq, set(end.entries), True)


@pytest.mark.parametrize("kind", ["sentinels", "cluster"])
async def test_members_outlive_the_master(kind: str) -> None:
    async with AsyncExitStack() as stack:
        servers: Sentinels | Cluster
        if kind == "sentinels":
            servers = await stack.enter_async_context(sentinels())
        else:
            servers = await stack.enter_async_context(cluster(replicas=1))
        made = await stack.enter_async_context(stores(servers, 3, lease=4.0, beat=0.5))
        for store in made:
            await stack.enter_async_context(store)
        topics = [f"topic {number}" for number in range(12)]  # in all shards
        told: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        for number, store in enumerate(made):
            store.on_presence(lambda topic, joined, left: told.append((topic, names(joined), names(left))))
            for topic in topics:
                await store.enter(topic, [entry(f"c{number}")])
        heard = Heard()
        await made[0].subscribe(topics[0], heard)
        if isinstance(servers, Sentinels):
            await servers.kill_master()
        else:
            await servers.kill_master(0)

        async def whole() -> bool:
            for topic in topics:
                try:
                    if sorted(names((await made[0].members(topic, limit=9)).entries)) != ["c0", "c1", "c2"]:
                        return False
                except StoreError:
                    return False
            return True

        async with asyncio.timeout(30.0):
            while not await whole():
                await asyncio.sleep(0.1)
        await asyncio.sleep(5.0)  # longer than a lease: what would be cleared away wrongly is, by now
        assert await whole()
        assert [change for change in told if change[2]] == []
        for store in made:
            await store.enter(topics[0], [entry("later")])
        await until(lambda: any(isinstance(one, PresenceDiff) and "later" in names(one.entered) for one in heard))
