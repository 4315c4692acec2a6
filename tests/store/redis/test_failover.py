"""Masters that change: behind Sentinels and in a cluster, nothing acknowledged is lost in silence."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from starlette_realtime.messages import Gap, Position, Publication
from starlette_realtime.store.redis.cluster import Cluster as Link
from starlette_realtime.store.redis.keys import slot_of
from starlette_realtime.testing.contract.harness import Heard
from tests.store.redis.load import WIDE, Sent, all_was_heard, more, publishing, readers, running
from tests.store.redis.support import FaultyStore, stores
from tests.support.redis import BINARIES, Binary, Cluster, Sentinels, Server, cluster, sentinels
from tests.support.waiting import until

TOPICS = [f"t{number}" for number in range(100)]


@pytest.fixture(params=BINARIES, ids=str)
async def watched(request: pytest.FixtureRequest) -> AsyncIterator[Sentinels]:
    binary: Binary = request.param
    async with sentinels(binary) as running:
        yield running


@pytest.fixture(scope="module", params=BINARIES, ids=str)
async def clustered(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Cluster]:
    binary: Binary = request.param
    async with cluster(binary) as running:
        yield running


@pytest.fixture(params=BINARIES, ids=str)
async def replicated(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    binary: Binary = request.param
    async with cluster(binary, replicas=1) as running:
        yield running


def whole(reader: Heard, sent: Sent) -> int:
    """See that a reader heard what was acknowledged, but for what gaps tell; tells how much those left out."""
    position: Position | None = None
    for delivery in reader:
        if isinstance(delivery, Publication) and delivery.position is not None:
            if position is not None:
                assert delivery.position.offset == position.offset + 1
                assert delivery.previous == position.id
            position = delivery.position
        elif delivery in reader.gaps:
            position = reader.gaps[0].position
    assert len(set(reader.data)) == len(reader.data), "something came twice"
    missing = sent.acknowledged.keys() - set(reader.data)
    assert not missing or reader.gaps, "left out in silence"
    return len(missing)


async def caught_up(heard: list[Heard], store: FaultyStore, topic: str) -> None:
    """Wait until all readers are where the store is."""
    position = (await store.read(topic, since=None, limit=0)).position

    def there(reader: Heard) -> bool:
        return position in [each.position for each in reader if isinstance(each, Publication | Gap)]

    await until(lambda: all(there(reader) for reader in heard), within=10.0, what="the readers at the top")


# --- Sentinels ---


async def test_a_failover_by_command_is_followed_and_told(watched: Sentinels) -> None:
    async with running(watched, 2) as (one, two), readers("t", one, two, two) as heard:
        async with publishing(one, "t") as sent:
            await more(sent, 100)
            await watched.failover()
            await more(sent, 100)
        assert sent.refused == set()
        await caught_up(heard, one, "t")
        # What the old master took while the new one took over is a gap, told once.
        lost = {whole(reader, sent) for reader in heard}
        assert len(lost) == 1 or all(reader.gaps for reader in heard)
        assert all(len(reader.gaps) <= 1 for reader in heard)
        position = await two.publish("t", b"end", history=WIDE)
        assert await watched.master.command("XLEN", one._keys.topic("t") + b":s") > 0
        assert (await one.read("t", since=None, limit=0)).position == position


async def test_a_master_that_is_killed_loses_nothing_that_was_replicated(watched: Sentinels) -> None:
    async with running(watched, 2) as (one, two), readers("t", one, two, two) as heard:
        async with publishing(one, "t") as sent:
            await more(sent, 100)
        await watched.linked()  # the replica has it all
        async with readers("t2", one) as others:
            async with publishing(two, "t2") as busy:
                await watched.kill_master()
                await more(busy, 100)
            await caught_up(others, one, "t2")
        sent.acknowledged[b"end"] = await one.publish("t", b"end", history=WIDE)
        await all_was_heard(heard, sent)
        await until(lambda: all(reader.data[-1] == b"end" for reader in heard))
        assert [reader.gaps for reader in heard] == [[], [], []]
        whole(others[0], busy)
        assert len(others[0].gaps) <= 1


async def test_an_old_master_that_wakes_up_gets_no_publication(watched: Sentinels) -> None:
    async with running(watched, 2) as (one, two), readers("t", one, two) as heard:
        old = watched.master
        await one.publish("t", b"0", history=WIDE)
        await watched.linked()
        async with publishing(one, "t") as sent:
            await more(sent, 50)
            await watched.linked()
            old.pause()
            try:
                await watched._promoted()  # as seen by those that live
            finally:
                old.resume()
            before = set(sent.acknowledged)
            await more(sent, 200)
        await caught_up(heard, one, "t")
        for reader in heard:
            whole(reader, sent)
            assert len(reader.gaps) <= 1
        stream = one._keys.topic("t") + b":s"
        held = {row[1][9] for row in await watched.master.command("XRANGE", stream, "-", "+")}
        assert sent.acknowledged.keys() - before <= held


async def test_a_switch_that_nobody_told_is_found(watched: Sentinels) -> None:
    async with running(watched, 1) as (one,):
        await one.publish("t", b"0", history=WIDE)
        await watched.linked()
        # The one that is listened to goes, and with it the news.
        proxy_of = {("127.0.0.1", watcher.port): one.proxies["127.0.0.1", watcher.port] for watcher in watched.watchers}
        for proxy in proxy_of.values():
            proxy.cut()
        await watched.failover()
        for proxy in proxy_of.values():
            proxy.restore()
        new = {"127.0.0.1", watched.master.port}
        await until(
            lambda: one.proxies["127.0.0.1", watched.master.port].open > 0, within=3.0, what=f"a connection to {new}"
        )
        await one.publish("t", b"1", history=WIDE)


async def test_sentinels_that_come_and_go_change_nothing(watched: Sentinels) -> None:
    async with running(watched, 2) as (one, two), readers("t", one, two) as heard:
        async with publishing(one, "t") as sent:
            for watcher in watched.watchers:
                await watcher.kill()
            await more(sent, 100)
            for watcher in watched.watchers:
                await watcher.start()
            one.cut_links()
            two.cut_links()
            await more(sent, 100)
        await all_was_heard(heard, sent)


async def test_sentinels_that_say_nothing_are_passed_over(watched: Sentinels) -> None:
    async with stores(watched, 1) as (store,):
        for watcher in watched.watchers[:2]:
            store.proxies["127.0.0.1", watcher.port].half_open()
        async with store:
            assert (await store.publish("t", b"0", history=WIDE)).offset == 1
            store.proxies["127.0.0.1", watched.master.port].cut_links()
            assert (await store.publish("t", b"1", history=WIDE)).offset == 2
            store.restore()


# --- a cluster ---


def slots_of(store: FaultyStore) -> dict[str, int]:
    """The slot of each topic."""
    return {topic: slot_of(store._keys.topic(topic)) for topic in TOPICS}


async def test_a_hundred_topics_over_all_masters_are_whole_and_in_order(clustered: Cluster) -> None:
    async with running(clustered, 2) as (one, two):
        owners = {(await clustered.owner(slot)).port for slot in slots_of(one).values()}
        assert len(owners) == 3
        heard = {topic: Heard() for topic in TOPICS}
        await asyncio.gather(*(two.subscribe(topic, reader) for topic, reader in heard.items()))
        for turn in range(5):
            await asyncio.gather(
                *(one.publish(topic, b"%d.%d" % (turn, n), history=WIDE) for topic in TOPICS for n in range(4))
            )
            two.cut_subscriptions()
        expected = [b"%d.%d" % (turn, n) for turn in range(5) for n in range(4)]
        await until(lambda: all(len(reader.data) >= 20 for reader in heard.values()), within=10.0)
        for reader in heard.values():
            assert (reader.data, reader.gaps) == (expected, [])
        for topic, reader in heard.items():
            await two.unsubscribe(topic, reader)


async def test_slots_that_move_under_load_lose_nothing(clustered: Cluster) -> None:
    async with running(clustered, 2) as (one, two), readers("t", one, two, two) as heard:
        slot = slot_of(one._keys.topic("t"))
        source = await clustered.owner(slot)
        targets = [node for node in clustered.nodes if node is not source]
        async with publishing(one, "t") as sent:
            for target in (*targets, source):
                await until(lambda: sent.acknowledged)

                async def halfway() -> None:
                    await asyncio.sleep(0.2)  # while the slot has two owners

                await clustered.move_slot(slot, target, halfway=halfway)
                await more(sent, 50)
        assert sent.refused == set()
        await all_was_heard(heard, sent)


async def test_the_slot_of_a_listeners_own_channel_may_move(clustered: Cluster) -> None:
    async with running(clustered, 1) as (store,), readers("t", store) as (reader,):
        link = store._link
        assert isinstance(link, Link)
        await store.publish("t", b"0", history=WIDE)
        node = link._at(slot_of(store._keys.topic("t")))
        assert node is not None
        listener, host = node.listener, node.host
        await until(lambda: listener._hears)
        moving = listener.echo
        assert moving is not None
        source = next(server for server in clustered.nodes if server.port == host[1])
        target = next(server for server in clustered.nodes if server is not source)
        await clustered.move_slot(slot_of(moving), target)
        await until(lambda: listener.echo != moving and listener._hears, what="another channel")
        since = listener.since
        probed = listener._echoed
        probed.clear()
        await until(probed.is_set, what="a probe that is heard")
        assert listener.since == since
        await store.publish("t", b"1", history=WIDE)
        await until(lambda: reader.data == [b"0", b"1"])


async def test_a_master_without_slots_is_left_and_one_that_gets_some_is_used() -> None:
    settings = ["--cluster-allow-replica-migration", "no"]  # or it becomes a replica
    async with (
        cluster(args=settings) as clustered,
        running(clustered, 2) as (one, two),
        readers("t", one, two) as heard,
    ):
        link = one._link
        assert isinstance(link, Link)
        slot = slot_of(one._keys.topic("t"))
        source = await clustered.owner(slot)
        target = next(node for node in clustered.nodes if node is not source)
        gone = [slot for slot in range(16_384) if link._owners[slot] == ("127.0.0.1", source.port)]
        async with publishing(one, "t") as sent:
            await hand_over(clustered, source, target, gone)
            await until(lambda: ("127.0.0.1", source.port) not in link._nodes, within=10.0, what="a node that is left")
            await hand_over(clustered, target, source, gone)
            await until(lambda: ("127.0.0.1", source.port) in link._nodes, within=10.0, what="a node that is used")
            await more(sent, 100)
        await all_was_heard(heard, sent)


async def hand_over(clustered: Cluster, source: Server, target: Server, slots: list[int]) -> None:
    """Give a range of slots away; only those that have keys take a migration."""
    for slot in {slot_of(key) for key in await source.command("KEYS", "*")} & set(slots):
        await clustered.move_slot(slot, target)
    first, last = slots[0], slots[-1]
    for node in clustered.nodes:
        await node.command("CLUSTER", "DELSLOTSRANGE", first, last)
    await target.command("CLUSTER", "ADDSLOTSRANGE", first, last)
    await target.command("CLUSTER", "BUMPEPOCH")
    await clustered.ok()


async def test_a_master_whose_replica_takes_over_loses_nothing_that_was_replicated(replicated: Cluster) -> None:
    async with running(replicated, 2) as (one, two), readers("t", one, two, two) as heard:
        slot = slot_of(one._keys.topic("t"))
        shard = replicated.nodes.index(await replicated.owner(slot))
        async with publishing(one, "t") as sent:
            await more(sent, 100)
        await replicated.linked()
        async with publishing(two, "t") as later:
            await replicated.kill_master(shard)
            await more(later, within=15.0)
        await caught_up(heard, one, "t")
        for reader in heard:
            whole(reader, sent)
            whole(reader, later)
            assert len(reader.gaps) <= 1


async def test_a_failover_by_command_in_a_cluster_loses_nothing(replicated: Cluster) -> None:
    async with running(replicated, 2) as (one, two), readers("t", one, two, two) as heard:
        slot = slot_of(one._keys.topic("t"))
        shard = replicated.nodes.index(await replicated.owner(slot))
        async with publishing(one, "t") as sent:
            await more(sent, 100)
            await replicated.failover(shard)
            await more(sent, 100)
        await all_was_heard(heard, sent)
