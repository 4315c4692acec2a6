"""A store that is away is looked for now and then, and limits are divided among those who serve rooms."""

import asyncio

from starlette_realtime.messages import Entry
from starlette_realtime.ratelimit import Rate
from starlette_realtime.store import PROCESSES
from starlette_realtime.testing import FakeClock, settle
from tests.ratelimit.support import Gone, Process, RemoteStore


async def test_a_store_that_fails_at_once_is_looked_for_once_a_second() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    process = Process(store, Rate(1_000, 1), "moving-window")
    store.remote.error = Gone()
    assert await process.take()
    await clock.advance(0.99)
    for _ in range(20):
        assert await process.take()
        await settle()
    assert store.remote.asked == 1
    for attempt in (2, 3):
        await clock.advance(1.0)
        for _ in range(20):
            assert await process.take()
            await settle()
        assert store.remote.asked == attempt


async def test_closing_ends_the_look_for_a_store_that_hangs() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    process = Process(store, Rate(1_000, 1), "moving-window")
    store.remote.error = Gone()
    assert await process.take()
    store.remote.error, store.remote.hangs = None, True
    await clock.advance(1.0)
    before = asyncio.all_tasks()
    assert await process.take()
    await settle()
    assert store.remote.asked == 2
    assert asyncio.all_tasks() - before
    await process.quotas.close()
    assert not asyncio.all_tasks() - before
    await process.quotas.close()


async def test_a_share_is_that_of_a_process_that_serves_rooms_where_any_does() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    process = Process(store, Rate(12, 10), "moving-window")
    others = [store.sibling() for _ in range(3)]
    async with store, others[0], others[1], others[2]:
        assert await process.take()
        await settle()
        assert process.quotas.nodes == 4
        for each in (store, others[0]):
            await each.enter(PROCESSES, [Entry(each.node, f"n:{each.node}")])
        await clock.advance(9.9)
        assert await process.take()
        await settle()
        assert process.quotas.nodes == 4, "they are counted now and then"
        await clock.advance(0.1)
        assert await process.take()
        await settle()
        assert process.quotas.nodes == 2
        store.remote.error = Gone()
        await clock.advance(20.0)
        assert [await process.take() for _ in range(12)].count(True) == 6
    await process.quotas.close()
