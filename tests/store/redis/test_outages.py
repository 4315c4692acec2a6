"""Real faults between processes and one server: nothing acknowledged is lost, told twice, or left out in silence."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Fresh, History, Position, Stale
from starlette_realtime.store.redis import RedisStore
from tests.store.redis.load import WIDE, Sent, all_was_heard, more, offsets, publishing, readers, running, told
from tests.store.redis.support import SHORT, FaultyStore
from tests.support.proxy import Link
from tests.support.redis import BINARIES, Binary, Server, server
from tests.support.waiting import until


@pytest.fixture(params=BINARIES, ids=str)
async def single(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    binary: Binary = request.param
    async with server(binary) as alone:
        yield alone


def listens(link: Link) -> bool:
    """Whether channels come over this link."""
    return link.sent(b"SUBSCRIBE")


def commands(link: Link) -> bool:
    """Whether commands go over this link."""
    return not link.sent(b"SUBSCRIBE")


def links(store: FaultyStore) -> int:
    """How many connections a process has made."""
    return sum(proxy.connections for proxy in store.proxies.values())


async def refused(sent: Sent, count: int) -> None:
    """Wait until so many were refused."""
    await until(lambda: len(sent.refused) >= count, what=f"{count} refusals")


async def publish(store: RedisStore, topic: str, *data: bytes) -> list[Position]:
    """Publish one after the other."""
    return [await store.publish(topic, each, history=WIDE) for each in data]


# --- connections that are cut ---


async def test_subscriptions_cut_every_200_ms_under_load_lose_nothing(single: Server) -> None:
    async with running(single, 2) as (one, two), readers("t", one, two, two) as heard:
        before = links(one), links(two)
        async with publishing(one, "t") as sent:
            for turn in range(50):
                await asyncio.sleep(0.2)
                if turn % 5 == 4:
                    await single.command("CLIENT", "KILL", "TYPE", "pubsub")
                else:
                    one.cut_subscriptions()
                    two.cut_subscriptions()
        assert len(sent.acknowledged) > 1_000
        await all_was_heard(heard, sent)
        assert min(links(one) - before[0], links(two) - before[1]) > 40, "hardly anything was cut"
        assert [told(reader, Stale) for reader in heard] == [0, 0, 0]


async def test_whatever_is_cut_an_acknowledged_publication_comes_once(single: Server) -> None:
    chance = random.Random(4)
    async with running(single, 2) as (one, two), readers("t", one, two, two) as heard:
        async with publishing(one, "t") as sent:
            for _ in range(40):
                await asyncio.sleep(chance.uniform(0.02, 0.15))
                fault = chance.randrange(5)
                if fault == 0:
                    one.lose_reply(b"EVALSHA")
                elif fault == 1:
                    for proxy in one.proxies.values():
                        proxy.cut_links(commands)
                elif fault == 2:
                    chance.choice((one, two)).cut_links()
                elif fault == 3:
                    await single.command("CLIENT", "KILL", "TYPE", "normal")
                else:  # answers are lost for a while, and then the link
                    for proxy in one.proxies.values():
                        proxy.drop_replies(where=commands)
                    await asyncio.sleep(0.1)
                    one.cut_links()
                    one.restore()
        await all_was_heard(heard, sent)
        assert sent.refused == set()
        again = {
            data: await one.publish("t", data, history=WIDE, producer="u", key=data.decode())
            for data in list(sent.acknowledged)[-50:]
        }
        assert again.items() <= sent.acknowledged.items()
        await all_was_heard(heard, sent)


async def test_what_was_refused_comes_at_most_once(single: Server) -> None:
    async with running(single, 2, timeout=0.3) as (one, two), readers("t", one, two) as heard:
        async with publishing(one, "t", repeat=False) as sent:
            for turn in range(4):
                for proxy in one.proxies.values():  # done, but nobody learns of it
                    proxy.drop_replies(where=commands)
                await refused(sent, 10 * (turn + 1))
                one.cut_links()
                one.restore()
                await more(sent, 1)
        assert sent.refused
        await all_was_heard(heard, sent)
        for data in list(sent.refused)[:20]:  # under its key it is the same, made or not
            first = await one.publish("t", data, history=WIDE, producer="u", key=data.decode())
            assert await two.publish("t", data, history=WIDE, producer="u", key=data.decode()) == first
            sent.acknowledged[data] = first
        await all_was_heard(heard, sent)


async def test_a_reply_that_was_lost_is_made_up_for_without_a_key(single: Server) -> None:
    async with running(single, 1) as (store,), readers("t", store) as (reader,):
        await publish(store, "t", b"0")
        store.lose_reply(b"EVALSHA")
        position = await store.publish("t", b"1", history=WIDE)
        assert position.offset == 2
        assert (await store.publish("t", b"2", history=WIDE)).offset == 3
        await until(lambda: reader.data == [b"0", b"1", b"2"])


async def test_a_scripts_text_is_sent_once_to_a_server_that_has_forgotten_it(single: Server) -> None:
    async with running(single, 1) as (store,), readers("t", store) as (reader,):
        await publish(store, "t", b"0")
        await single.command("SCRIPT", "FLUSH")
        await single.command("CONFIG", "RESETSTAT")
        sent = [store.publish(f"t {number}", b"1", history=WIDE) for number in range(200)]
        assert {position.offset for position in await asyncio.gather(*sent)} == {1}
        stats = await single.info("commandstats")
        assert stats["cmdstat_eval"].startswith("calls=1,")
        await publish(store, "t", b"2")
        await until(lambda: reader.data == [b"0", b"2"])


async def test_a_volatile_publication_is_not_sent_twice(single: Server) -> None:
    async with running(single, 1) as (store,), readers("t", store) as (reader,):
        store.lose_reply(b"EVAL")
        with pytest.raises(StoreError, match="lost"):
            await store.publish_volatile("t", b"once")
        await publish(store, "t", b"end")
        await until(lambda: b"end" in reader.data)
        assert reader.data.count(b"once") <= 1  # delivered, unless a repair was due


async def test_after_an_outage_a_connection_is_kept_whatever_has_waited_for_it(single: Server) -> None:
    async with running(single, 1) as (store,), readers("t", store) as heard:
        async with publishing(store, "t") as sent:
            await more(sent, 100)
            store.cut()
            await asyncio.sleep(SHORT["timeout"] * 2)  # so that something is overdue at every moment
            made = links(store)
            store.restore()
            await more(sent, 200, within=2.0)
        await all_was_heard(heard, sent)
        assert links(store) - made == 2  # one for commands, one for channels, which may have come after the commands


# --- a server that is set back ---


async def test_a_server_set_back_to_a_snapshot_is_one_gap_for_each_subscriber_and_room(single: Server) -> None:
    async with (
        running(single, 2) as (one, two),
        readers("past", one, two, two) as past,
        readers("reused", one, two, two) as reused,
        readers("quiet", one, two, two) as quiet,
    ):
        for topic in ("past", "reused", "quiet"):
            await publish(one, topic, *(b"%d" % n for n in range(5)))
        snapshot = await single.snapshot()
        lost = {
            topic: (await publish(two, topic, *(b"lost%d" % n for n in range(4))))[-1] for topic in ("past", "reused")
        }
        await until(lambda: all(len(reader.data) == 9 for reader in past + reused))
        await until(lambda: all(len(reader.data) == 5 for reader in quiet))
        one.cut()
        two.cut()
        await single.restore(snapshot)
        prefix = one._keys.prefix
        async with RedisStore(single.url, prefix=prefix, **SHORT) as another:  # the lost offsets are somebody else's
            new = await publish(another, "reused", *(b"new%d" % n for n in range(6)))
        assert new[3].offset == lost["reused"].offset
        one.restore()
        two.restore()
        await until(lambda: all(reader.gaps for reader in past + reused), within=10.0, what="gaps")
        for store, topic in ((one, "past"), (two, "reused"), (one, "quiet")):
            await publish(store, topic, b"after")
        await until(lambda: all(reader.data[-1] == b"after" for reader in past + reused + quiet))
        await asyncio.sleep(SHORT["check_interval"] * 2)  # no second gap turns up
        for reader in past:
            assert [(gap.position.offset, gap.reason) for gap in reader.gaps] == [(5, "rewound")]
            assert reader.data[9:] == [b"after"]
        for reader in reused:
            assert [(gap.position, gap.reason) for gap in reader.gaps] == [(new[-1], "rewound")]
            assert reader.data[9:] == [b"after"]
        for reader in quiet:
            assert reader.gaps == []
        for topic, since in lost.items():
            for store in (one, two):
                assert not (await store.read(topic, since=since, limit=100)).complete
                recovery = await store.recover(topic, since=since, limit=100)
                assert (recovery.complete, recovery.publications) == (False, ())


async def test_reused_positions_are_not_taken_for_old_ones_under_load(single: Server) -> None:
    async with running(single, 2) as (one, two), readers("t", one, two, two) as heard:
        await publish(one, "t", b"first")
        snapshot = await single.snapshot()
        async with publishing(one, "t") as sent:
            await more(sent, 100)
            old = dict(sent.acknowledged)
            await single.restore(snapshot)
            await until(lambda: len(sent.acknowledged) > len(old) + 200, within=10.0, what="publications again")
        top = (await one.read("t", since=None, limit=0)).position
        await until(lambda: all(reader.publications[-1].position == top for reader in heard))
        for reader in heard:
            assert len(reader.gaps) == 1
            place = reader.index(reader.gaps[0])
            before, after = offsets(reader[:place]), offsets(reader[place:])
            assert before == list(range(1, len(before) + 1))
            start = reader.gaps[0].position.offset + 1
            assert after == list(range(start, top.offset + 1))
            assert before[-1] >= len(old), "what was acknowledged before was not told"
            assert len(set(reader.data)) == len(reader.data)
            told_after = {publication.data: publication.position for publication in reader.publications[len(before) :]}
            assert all(sent.acknowledged[data] == position for data, position in told_after.items())


async def test_a_server_that_lost_everything_is_one_gap(single: Server) -> None:
    async with running(single, 2) as (one, two), readers("t", one, two, two) as heard:
        positions = await publish(one, "t", b"0", b"1", b"2")
        await until(lambda: all(len(reader.data) == 3 for reader in heard))
        await single.kill()
        await single.start()
        await until(lambda: all(reader.gaps for reader in heard), within=10.0, what="gaps")
        await publish(two, "t", b"after")
        await until(lambda: all(reader.data[-1] == b"after" for reader in heard))
        for reader in heard:
            assert [(gap.position.offset, gap.reason) for gap in reader.gaps] == [(0, "forgotten")]
        recovery = await two.recover("t", since=positions[1], limit=10)
        assert (recovery.complete, recovery.reason) == (False, "forgotten")


async def test_a_server_that_comes_back_with_all_it_had_is_no_gap(single: Server) -> None:
    async with running(single, 2) as (one, two), readers("t", one, two, two) as heard:
        positions = await publish(one, "t", b"0", b"1", b"2")
        await single.save()
        await single.kill()
        await until(lambda: all(told(reader, Stale) for reader in heard), what="that the store is away")
        with pytest.raises(StoreError):
            await one.publish("t", b"refused", history=WIDE)
        await single.start()
        await until(lambda: all(told(reader, Fresh) for reader in heard), within=10.0, what="that the store is back")
        await publish(two, "t", b"3")
        await until(lambda: all(reader.data[-1] == b"3" for reader in heard))
        for reader in heard:
            assert reader.gaps == []
            assert reader.data == [b"0", b"1", b"2", b"3"]
        assert [each.data for each in (await two.recover("t", since=positions[0], limit=9)).publications] == [
            b"1",
            b"2",
            b"3",
        ]


# --- links that are half open ---


async def test_a_half_open_link_is_told_and_repaired_afterwards(single: Server) -> None:
    async with running(single, 2) as (one, two), readers("t", one, two) as (cut_off, fine):
        await publish(one, "t", b"0")
        await until(lambda: cut_off.data == [b"0"])
        one.half_open()
        within = SHORT["probe"] + SHORT["timeout"] + SHORT["stale_after"]
        await until(lambda: told(cut_off, Stale), within=within + 1.0, what="that the store is away")
        missed = await publish(two, "t", b"1", b"2")
        with pytest.raises(StoreError):
            await one.publish("t", b"refused", history=WIDE)
        one.restore()
        await until(lambda: told(cut_off, Fresh), within=10.0, what="that the store is back")
        await until(lambda: cut_off.data[:3] == [b"0", b"1", b"2"])
        await until(lambda: one.position("t") == missed[-1])
        assert cut_off.gaps == fine.gaps == []
        assert told(fine, Stale) == 0


async def test_subscriptions_that_died_without_a_word_are_replaced(single: Server) -> None:
    # Only the periodic check could tell otherwise.
    async with running(single, 2, check_interval=60.0) as (one, two), readers("t", one) as (reader,):
        made = links(one)
        for proxy in one.proxies.values():
            proxy.half_open(lambda link: listens(link) and link.number <= made)
        await publish(two, "t", b"0", b"1")
        await until(lambda: reader.data == [b"0", b"1"], within=SHORT["probe"] + SHORT["timeout"] + 2.0)
        assert reader.gaps == []
        await publish(two, "t", b"2")
        await until(lambda: reader.data[-1] == b"2")


async def test_a_server_that_hangs_refuses_in_time_and_takes_nothing_back(single: Server) -> None:
    loop = asyncio.get_running_loop()
    async with running(single, 2) as (one, two), readers("t", one, two) as heard:
        await publish(one, "t", b"0")
        single.pause()
        try:
            began = loop.time()
            with pytest.raises(StoreError):
                await one.publish("t", b"perhaps", history=WIDE)
            assert loop.time() - began < SHORT["timeout"] + 0.5
            await until(lambda: all(told(reader, Stale) for reader in heard), within=10.0)
        finally:
            single.resume()
        await until(lambda: all(told(reader, Fresh) for reader in heard), within=10.0)
        await publish(two, "t", b"1")
        await until(lambda: all(reader.data[-1] == b"1" for reader in heard))
        assert heard[0].data == heard[1].data
        assert heard[0].data in ([b"0", b"1"], [b"0", b"perhaps", b"1"])
        assert heard[0].gaps == heard[1].gaps == []


# --- a server that is administered ---


async def test_scripts_that_the_server_forgot_are_sent_again(single: Server) -> None:
    async with running(single, 2) as (one, two), readers("t", one, two) as heard, publishing(one, "t") as sent:
        for _ in range(5):
            await single.command("SCRIPT", "FLUSH")
            await more(sent, 20)
            await two.read("t", since=None, limit=0)
    await all_was_heard(heard, sent)
    assert sent.attempts == len(sent.acknowledged)


async def test_a_server_that_pauses_its_clients_is_waited_for(single: Server) -> None:
    async with running(single, 2) as (one, two), readers("t", one, two) as heard, publishing(one, "t") as sent:
        for kind in ("WRITE", "ALL"):
            await single.command("CLIENT", "PAUSE", 400, kind)
            await more(sent, 100)
    await all_was_heard(heard, sent)
    assert sent.attempts == len(sent.acknowledged)


async def test_a_server_that_loads_its_data_is_waited_for() -> None:
    slow = ["--key-load-delay", "4000", "--loading-process-events-interval-bytes", "1024"]
    async with server(args=slow) as single, running(single, 2, timeout=3.0) as (one, two), readers("t", one) as heard:
        await publish(one, "t", b"0")
        for number in range(200):
            await single.command("SET", f"other{number}", "x" * 64)
        await single.save()
        await single.kill()
        starting = asyncio.create_task(single.start())
        refusals = 0

        async def refused_as_loading() -> None:
            nonlocal refusals
            while not starting.done():
                try:
                    await single.command("PING")
                except Exception as exc:
                    refusals += "loading" in str(exc).lower()
                await asyncio.sleep(0.02)

        observing = asyncio.create_task(refused_as_loading())
        position = await two.publish("t", b"1", history=WIDE)
        await starting
        await observing
        assert refusals, "it was never loading"
        assert position.offset == 2
        await until(lambda: heard[0].data == [b"0", b"1"])
        assert heard[0].gaps == []


async def test_where_nothing_is_kept_what_was_missed_is_a_gap_and_not_silence(single: Server) -> None:
    nothing = History(size=0, ttl=60.0)
    async with running(single, 2) as (one, two), readers("t", one) as (reader,):
        await two.publish("t", b"0", history=nothing)
        await until(lambda: reader.data == [b"0"])
        one.cut()
        await two.publish("t", b"missed", history=nothing)
        one.restore()
        await until(lambda: reader.gaps, what="a gap")
        await two.publish("t", b"2", history=nothing)
        await until(lambda: reader.data == [b"0", b"2"])
        assert [gap.reason for gap in reader.gaps] == ["trimmed"]
