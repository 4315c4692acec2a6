"""Recovering: many come back at once, and the store is asked once; nobody misses anything for it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Delivery, Entry, Gap, History, Position, PresenceDiff, Publication, Recovery
from starlette_realtime.replay import Replay
from starlette_realtime.store import Store
from starlette_realtime.testing import FakeClock, StoreContract, settle
from starlette_realtime.testing.contract import Heard
from tests.store.remote import RemoteStore

KEPT = History(size=64, ttl=60.0)


class TestRemoteStore(StoreContract):
    """A store that keeps rings keeps the contract."""

    async def make_stores(self, count: int, clock: FakeClock) -> Sequence[Store]:
        first = RemoteStore(clock=clock)
        return [first, *(first.sibling() for _ in range(count - 1))]


@asynccontextmanager
async def processes(count: int = 2, **options: object) -> AsyncIterator[Sequence[RemoteStore]]:
    first = RemoteStore(clock=FakeClock(), **options)
    stores = [first, *(first.sibling() for _ in range(count - 1))]
    for store in stores:
        await store.__aenter__()
    yield stores
    for store in stores:
        await store.__aexit__(None, None, None)
        gauges = store.gauges()
        assert [gauges[name] for name in ("feeds", "recoveries", "ring_publications", "ring_bytes")] == [0] * 4


async def publish(store: Store, count: int, topic: str = "t", history: History = KEPT) -> list[Position]:
    return [await store.publish(topic, b"%d" % number, history=history) for number in range(count)]


async def recover(store: Store, since: Position | None, limit: int = 512, history: History | None = KEPT) -> Recovery:
    return await store.recover("t", since=since, limit=limit, history=history)


async def test_a_join_of_a_topic_that_is_live_asks_nobody() -> None:
    async with processes(1) as (store,):
        positions = await publish(store, 3)
        await store.subscribe("t", Heard())
        store.reset()
        assert await recover(store, None) == Recovery((), positions[-1], complete=True)
        assert await recover(store, positions[-1]) == Recovery((), positions[-1], complete=True)
        assert not store.asked


async def test_what_was_heard_is_answered_from_memory() -> None:
    async with processes() as (one, two):
        (before,) = await publish(one, 1)
        await two.subscribe("t", Heard())
        positions = await publish(one, 5)
        two.reset()
        for since in (before, *positions):
            assert await recover(two, since) == await one.read("t", since=since, limit=512)
        assert (await recover(two, before, limit=3)).reason == "too_many"
        assert not two.asked


async def test_those_who_come_back_at_once_cost_one_read() -> None:
    async with processes() as (one, two):
        start = (await one.read("t", since=None, limit=0)).position
        positions = [start, *await publish(one, 40)]
        await two.subscribe("t", Heard())
        two.reset()
        found = await asyncio.gather(*(recover(two, positions[number % 41]) for number in range(1_000)))
        assert two.asked == {"page": 1}
        for number, recovery in enumerate(found):
            assert recovery.complete
            assert [row.position for row in recovery.publications] == positions[number % 41 + 1 :]
        for since in positions:
            await recover(two, since)
        assert two.asked == {"page": 1}


async def test_those_who_come_back_one_by_one_cost_two() -> None:
    async with processes() as (one, two):
        positions = await publish(one, 40)
        await two.subscribe("t", Heard())
        two.reset()
        for since in reversed(positions):
            recovery = await recover(two, since)
            assert recovery == await one.read("t", since=since, limit=512)
        assert two.asked == {"read": 1, "page": 1}


async def test_those_who_were_away_for_too_long_are_told_so_without_asking_each_time() -> None:
    async with processes() as (one, two):
        short = History(size=4, ttl=60.0)
        positions = await publish(one, 30, history=short)
        await two.subscribe("t", Heard())
        two.reset()
        found = await asyncio.gather(*(recover(two, since, history=short) for since in positions))
        assert found == [await one.read("t", since=since, limit=512) for since in positions]
        assert {recovery.reason for recovery in found[:20]} == {"trimmed"}
        assert two.asked == {"page": 1}


async def test_whoever_is_ahead_of_this_process_gets_the_stores_word() -> None:
    async with processes() as (one, two):
        heard = Heard()
        await two.subscribe("t", heard)
        positions = await publish(one, 3)
        two.faults.drop(2)
        positions += await publish(one, 2)
        assert two.position("t") == positions[2]
        ahead = await recover(two, positions[4])
        assert ahead == Recovery((), positions[4], complete=True)
        one_behind = await recover(two, positions[3])
        assert [row.position for row in one_behind.publications] == positions[4:]
        assert [row.position for row in (await recover(two, positions[1])).publications] == positions[2:3]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("live", [False, True])
async def test_a_position_that_never_was_gets_the_stores_word(many: bool, live: bool) -> None:
    async with processes() as (one, two):
        positions = await publish(one, 5)
        if live:
            await two.subscribe("t", Heard())
        epoch = positions[0].epoch
        wrong = [
            Position("another", 3, positions[2].id),
            Position(epoch, 3, "another"),
            Position(epoch, 5, "another"),
            Position(epoch, 9, "another"),
            Position(epoch, 0, "another"),
        ]
        expected = [await one.read("t", since=since, limit=512) for since in wrong]
        if many:
            assert list(await asyncio.gather(*(recover(two, since) for since in wrong))) == expected
        else:
            assert [await recover(two, since) for since in wrong] == expected


async def test_a_topic_that_was_wound_back_is_no_false_memory() -> None:
    async with processes() as (one, two):
        await two.subscribe("t", Heard())
        positions = await publish(one, 4)
        one.faults.rewind("t", 2)
        another = await publish(one, 1)
        await settle()
        assert (await recover(two, positions[3])).reason == "rewound"
        assert (await recover(two, positions[1])).publications[0].position == another[0]


async def test_a_history_that_is_over_is_told_as_the_store_tells_it() -> None:
    async with processes() as (one, two):
        brief = History(size=64, ttl=5.0)
        await two.subscribe("t", Heard())
        positions = await publish(one, 3, history=brief)
        await one.clock.advance(5.0)  # type: ignore[attr-defined]
        for since in positions:
            assert await recover(two, since, history=brief) == await one.read("t", since=since, limit=512)
        assert two.gauges()["ring_publications"] == 0


async def test_who_asks_while_a_read_is_under_way_gets_nothing_older_than_its_question() -> None:
    async with processes() as (one, two):
        positions = await publish(one, 3)
        two.held = asyncio.Event()
        early = [asyncio.ensure_future(recover(two, since)) for since in positions]
        await settle()
        assert two.asked["page"] == 1
        positions += await publish(one, 3)  # the page that is under way doesn't have them
        late = [asyncio.ensure_future(recover(two, since)) for since in positions]
        await settle()
        assert two.asked["page"] == 1
        two.held.set()
        assert [recovery.position for recovery in await asyncio.gather(*early)] == [positions[2]] * 3
        found = await asyncio.gather(*late)
        assert [recovery.position for recovery in found] == [positions[5]] * 6
        assert two.asked["page"] == 2


async def test_one_who_gives_up_leaves_the_read_to_the_others() -> None:
    async with processes() as (one, two):
        positions = await publish(one, 3)
        two.held = asyncio.Event()
        asking = [asyncio.ensure_future(recover(two, since)) for since in positions]
        await settle()
        asking[0].cancel()
        await settle()
        assert asking[0].cancelled()
        two.held.set()
        assert [len((await task).publications) for task in asking[1:]] == [1, 0]
        assert two.asked["page"] == 1


async def test_all_who_asked_may_give_up() -> None:
    async with processes() as (one, two):
        positions = await publish(one, 3)
        two.held = asyncio.Event()
        asking = [asyncio.ensure_future(recover(two, since)) for since in positions]
        await settle()
        for task in asking:
            task.cancel()
        two.held.set()
        await settle()
        assert two.gauges()["recoveries"] == 0
        assert (await recover(two, positions[0])).complete


async def test_all_who_ask_hear_that_the_store_is_away() -> None:
    async with processes() as (one, two):
        positions = await publish(one, 30)
        two.broken = True
        found = await asyncio.gather(*(recover(two, since) for since in positions), return_exceptions=True)
        assert {type(error) for error in found} == {StoreError}
        assert len({id(error) for error in found}) == 30
        assert two.asked["page"] == 1
        two.broken = False
        assert (await recover(two, positions[0])).complete


async def test_a_store_that_is_closed_refuses_whoever_waits() -> None:
    async with processes() as (one, two):
        positions = await publish(one, 3)
        two.held = asyncio.Event()
        asking = [asyncio.ensure_future(recover(two, since)) for since in (*positions, None)]
        await settle()
        await two.__aexit__(None, None, None)
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(error) for error in found} == {StoreError}
        await two.__aenter__()


async def test_a_store_without_rings_is_simply_read() -> None:
    class Plain(RemoteStore):
        _rings = False

    store = Plain(clock=FakeClock())
    positions = await publish(store, 3)
    await store.subscribe("t", Heard())
    assert (await recover(store, positions[0])).position == positions[-1]
    assert store.asked["read"] == 1
    assert store.gauges()["ring_bytes"] == 0
    await store.publish("t", b"x", history=KEPT)
    assert store.gauges()["ring_bytes"] == 0


async def test_many_reads_at_once_wait_in_line() -> None:
    async with processes() as (one, two):
        positions = {f"t{number}": (await publish(one, 3, f"t{number}"))[0] for number in range(200)}
        two.reset()
        found = await asyncio.gather(
            *(two.recover(topic, since=since, limit=9) for topic, since in positions.items()),
        )
        assert all(len(recovery.publications) == 2 for recovery in found)
        assert two.at_once == 64


async def test_a_link_that_comes_back_repairs_so_many_topics_at_once_and_no_more() -> None:
    async with processes() as (one, two):
        heards = {f"t{number}": Heard() for number in range(300)}
        for topic, heard in heards.items():
            await two.subscribe(topic, heard)
        two.faults.stall()
        for topic in heards:
            await publish(one, 2, topic)
        two.reset()
        two.faults.resume()
        await settle(5_000)
        assert all(heard.data == [b"0", b"1"] for heard in heards.values())
        assert two.at_once == 64
        assert two.asked["read"] == 300


async def test_repairs_that_wait_in_line_fail_with_the_one_that_finds_the_store_away() -> None:
    async with processes() as (_, two):
        heards = {f"t{number}": Heard() for number in range(300)}
        for topic, heard in heards.items():
            await two.subscribe(topic, heard)
        two.broken = True
        two.reset()
        two._interrupted()
        await settle(5_000)
        assert two.asked["read"] == 64
        assert two.gauges()["repairs"] == 300
        two.broken = False
        await two.clock.advance(5.0)  # type: ignore[attr-defined]
        assert two.gauges()["repairs"] == 0


async def test_what_all_repairs_hold_back_is_bounded_and_nothing_is_lost() -> None:
    async with processes(replay_total_bytes=10_000) as (one, two):
        heards = {f"t{number}": Heard() for number in range(20)}
        for topic, heard in heards.items():
            await two.subscribe(topic, heard)
            await publish(one, 1, topic)
        two.held = asyncio.Event()
        two._interrupted()
        await settle()
        for topic in heards:
            await publish(one, 5, topic)
        gauges = two.gauges()
        assert 0 < gauges["held_bytes"] + 400 * gauges["held_publications"] <= 10_000
        two.held.set()
        await settle(5_000)
        for heard in heards.values():
            assert heard.data == [b"0", b"0", b"1", b"2", b"3", b"4"]
            assert not heard.gaps
        assert two._feeds._budget.left == 10_000


async def test_the_check_asks_for_many_topics_at_once() -> None:
    async with processes() as (one, two):
        heards = {f"t{number}": Heard() for number in range(600)}
        for topic, heard in heards.items():
            await two.subscribe(topic, heard)
        await publish(one, 2, "t7")
        two.faults.drop(1)
        await publish(one, 1, "t9")
        two.reset()
        await two.clock.advance(10.1)  # type: ignore[attr-defined]
        await settle(5_000)
        assert heards["t9"].data == [b"0"]
        assert two.asked["where"] == 3 + 1  # and the one repair
        assert two.asked["read"] == 1


@pytest.mark.parametrize("error", [StoreError("away"), ValueError("a bug")])
async def test_a_check_that_fails_begins_the_repair_of_what_it_asked_for(error: Exception) -> None:
    async with processes() as (one, two):
        heards = {f"t{number}": Heard() for number in range(300)}
        for topic, heard in heards.items():
            await two.subscribe(topic, heard)
        where, asked = two._where, list[int]()

        async def away(topics: Sequence[str]) -> Sequence[tuple[Position, int]]:
            asked.append(len(topics))
            raise error

        two._where = away  # type: ignore[method-assign]
        await two.clock.advance(10.0)  # type: ignore[attr-defined]
        assert asked[0] == 256
        assert two.gauges()["repairs"] == 256
        two._where = where  # type: ignore[method-assign]
        await publish(one, 1, "t7")
        await two.clock.advance(5.0)  # type: ignore[attr-defined]
        assert two.gauges()["repairs"] == 0
        assert heards["t7"].data == [b"0"]


async def test_an_answer_that_diffs_overtake_costs_no_snapshot() -> None:
    """What was entered between the store's answer and its arrival is no sign of a loss."""
    async with processes() as (one, two):
        heard = Heard()
        await two.subscribe("t", heard)
        await one.enter("t", [Entry("a", "u:a")])
        where = two._where

        async def slow(topics: Sequence[str]) -> Sequence[tuple[Position, int]]:
            found = await where(topics)
            await one.enter("t", [Entry("b", "u:b")])
            return found

        two._where = slow  # type: ignore[method-assign]
        await two.clock.advance(10.1)  # type: ignore[attr-defined]
        await settle()
        assert [(diff.prev, diff.seq) for diff in heard.diffs] == [(0, 1), (1, 2)]

        async def early(topics: Sequence[str]) -> Sequence[tuple[Position, int]]:
            feed = two._feeds._feeds["t"]
            found = [(position, sequence + 1) for position, sequence in await where(topics)]
            asyncio.get_running_loop().call_later(
                0, feed.deliver, PresenceDiff(feed.presence, feed.presence + 1, left=("b",))
            )
            asyncio.get_running_loop().call_later(0, setattr, feed, "presence", feed.presence + 1)
            return found

        two._where = early  # type: ignore[method-assign]
        await two.clock.advance(10.3)  # type: ignore[attr-defined]
        await settle()
        await two.clock.advance(0.3)  # type: ignore[attr-defined]
        assert [(diff.prev, diff.seq) for diff in heard.diffs] == [(0, 1), (1, 2), (2, 3)]


class Reader:
    """Somebody who joins: holds back what it hears until it has recovered, and then goes on."""

    def __init__(self, store: Store, since: Position | None) -> None:
        self.store = store
        self.replay = Replay(since)
        self.heard: list[Publication | Gap] = []

    def hear(self, delivery: Delivery) -> None:
        if isinstance(delivery, Publication):
            self.heard += self.replay.live(delivery)
        elif isinstance(delivery, Gap):
            self.replay.interrupted()

    async def join(self) -> None:
        await self.store.subscribe("t", self.hear)
        while self.replay.needs_read:
            recovery = await recover(self.store, self.replay.position)
            self.heard += self.replay.recovered(recovery)


async def test_whoever_recovers_under_load_misses_nothing_and_gets_nothing_twice() -> None:
    async with processes() as (one, two):
        start = (await one.read("t", since=None, limit=0)).position
        positions = [start, *await publish(one, 20)]
        await two.subscribe("t", Heard())
        readers: list[Reader] = []
        joins: list[asyncio.Task[None]] = []
        for number in range(30):
            if number % 7 == 3:
                two.faults.drop(1)
            if number % 11 == 5:
                two._interrupted()
            for back in (0, 1, 3, 12):
                reader = Reader(two, positions[-1 - back])
                readers.append(reader)
                joins.append(asyncio.ensure_future(reader.join()))
            if number % 3 == 0:
                await asyncio.sleep(0)
            positions += await publish(one, 1)
        await settle()
        positions += await publish(one, 1)
        await settle()
        await asyncio.gather(*joins)
        for reader, since in zip(readers, [p for n in range(30) for p in _sinces(positions, n)], strict=True):
            expected = positions[positions.index(since) + 1 :]
            assert [each.position for each in reader.heard] == expected
            await two.unsubscribe("t", reader.hear)


def _sinces(positions: Sequence[Position], number: int) -> list[Position]:
    there = positions[: 21 + number]
    return [there[-1 - back] for back in (0, 1, 3, 12)]
