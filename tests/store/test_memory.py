"""What is the memory store's own: its bounds, what it forgets and when, and its life without being entered."""

import asyncio
import logging

import pytest

from starlette_realtime.errors import ConfigurationError, StoreError
from starlette_realtime.messages import Entry, History, Position
from starlette_realtime.store import MemoryStore
from starlette_realtime.store.backend import REAP_STEP
from starlette_realtime.store.inbox import INBOX_BYTES, INBOX_ENTRIES
from starlette_realtime.testing import FakeClock
from starlette_realtime.testing.contract import Heard

HISTORY = History(size=8, ttl=60.0)
HOUR = 3_600.0


def used(store: MemoryStore) -> dict[str, int]:
    """What is not zero."""
    return {name: value for name, value in store.gauges().items() if value}


async def epoch(store: MemoryStore, topic: str) -> str:
    """The topic's epoch, as a reader sees it."""
    return (await store.read(topic, since=None, limit=0)).position.epoch


async def test_it_works_without_being_entered_and_leaves_nothing() -> None:
    store, heard = MemoryStore(clock=(clock := FakeClock())), Heard()
    await store.subscribe("t", heard)
    await store.publish("t", b"1", history=HISTORY, key="k")
    await store.enter("t", [Entry("c", "u:a")])
    assert await store.admit("k", "s", limit=1)
    assert await store.claim("ticket", ttl=30.0)
    assert [node.id for node in await store.nodes()] == [store.node]
    await clock.advance(HOUR)
    assert (await store.members("t", limit=1)).total == 1  # no lease, no ghost
    assert heard.data == [b"1"]
    await store.leave("t", ["c"])
    await store.release("k", "s")
    await store.unsubscribe("t", heard)
    await clock.advance(25 * HOUR)
    assert used(store) == {"nodes": 1}


async def test_it_works_on_the_system_clock() -> None:
    store, heard = MemoryStore(), Heard()
    async with store:
        await store.subscribe("t", heard)
        await store.publish("t", b"1", history=HISTORY)
        assert heard.data == [b"1"]
    assert used(store).keys() <= {"topics", "publications", "publication_bytes", "timers"}


async def test_a_position_is_kept_for_a_day_from_the_last_publication() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    first = await store.publish("t", b"1", history=HISTORY)
    await clock.advance(23 * HOUR)
    await store.publish("t", b"2", history=HISTORY)
    await clock.advance(23 * HOUR)
    assert await epoch(store, "t") == first.epoch
    await clock.advance(2 * HOUR)
    assert await epoch(store, "t") != first.epoch


async def test_a_long_history_keeps_its_position_ten_times_as_long() -> None:
    store, long = MemoryStore(clock=(clock := FakeClock())), History(size=8, ttl=12 * HOUR)
    first = await store.publish("t", b"1", history=long)
    await clock.advance(100 * HOUR)
    assert await epoch(store, "t") == first.epoch
    await clock.advance(21 * HOUR)
    assert await epoch(store, "t") != first.epoch


async def test_a_topic_that_was_only_read_is_forgotten_after_a_minute() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    before = await epoch(store, "t")
    await clock.advance(59.0)
    assert await epoch(store, "t") == before
    await clock.advance(61.0)
    assert "topics" not in used(store)
    assert await epoch(store, "t") != before


async def test_a_topic_is_never_forgotten_while_somebody_listens_or_is_there() -> None:
    store, heard = MemoryStore(clock=(clock := FakeClock())), Heard()
    await store.subscribe("t", heard)
    first = await store.publish("t", b"1", history=HISTORY)
    await clock.advance(100 * HOUR)
    await store.enter("t", [Entry("c", "u:a")])
    await store.unsubscribe("t", heard)
    await clock.advance(100 * HOUR)
    await store.leave("t", ["c"])
    await clock.advance(30.0)
    second = await store.publish("t", b"2", history=HISTORY)
    assert (second.epoch, second.offset) == (first.epoch, 2)
    assert heard.gaps == []


async def test_an_old_history_takes_no_memory() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    for _ in range(4):
        await store.publish("t", b"x" * 10, history=HISTORY)
        await clock.advance(50.0)
    assert store.gauges()["publication_bytes"] == 40
    await clock.advance(10.0)
    assert (store.gauges()["publications"], store.gauges()["publication_bytes"]) == (0, 0)
    assert store.gauges()["topics"] == 1


async def test_a_history_is_bounded_in_bytes() -> None:
    store, long = MemoryStore(clock=FakeClock(), history_bytes=100), History(size=512, ttl=60.0)
    positions = [await store.publish("t", b"x" * 30, history=long) for _ in range(10)]
    assert store.gauges()["publications"] == 3
    assert (await store.read("t", since=positions[6], limit=9)).complete
    assert (await store.read("t", since=positions[5], limit=9)).reason == "trimmed"


async def test_idempotency_keys_are_bounded_and_the_oldest_goes_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore(clock=(clock := FakeClock()), max_keys=10)
    with caplog.at_level(logging.WARNING):
        for number in range(25):
            await store.publish("t", b"", history=HISTORY, key=f"k{number}")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "max_keys" in caplog.text
    assert store.gauges()["dedupe_keys"] == 10
    assert (await store.publish("t", b"", history=HISTORY, key="k24")).offset == 25
    assert (await store.publish("t", b"", history=HISTORY, key="k0")).offset == 26
    await clock.advance(120.0)
    assert store.gauges()["dedupe_keys"] == 0


async def test_claims_and_revocations_are_bounded_and_expire() -> None:
    store = MemoryStore(clock=(clock := FakeClock()), max_keys=2, revocation_life=100.0)
    for name in "ab":
        assert await store.claim(name, ttl=10.0)
        await store.revoke(name, issued_before=1.0)
    with pytest.raises(StoreError, match="max_keys"):
        await store.claim("c", ttl=10.0)
    with pytest.raises(StoreError, match="max_keys"):
        await store.revoke("c", issued_before=1.0)
    await clock.advance(60.0)
    await store.revoke("a", issued_before=2.0)
    assert await store.claim("c", ttl=10.0)
    await clock.advance(60.0)
    assert await store.revocations() == {"a": 2.0}
    await clock.advance(60.0)
    assert await store.revocations() == {}


async def test_an_inbox_is_bounded_and_says_so() -> None:
    async with MemoryStore(clock=FakeClock()) as one, one.sibling() as two:
        await one.nodes()
        for _ in range(INBOX_ENTRIES):
            await one.send(two.node, b"")
        with pytest.raises(StoreError, match="full"):
            await one.send(two.node, b"")
        heard: list[bytes] = []
        await two.receive(heard.append)
        await asyncio.sleep(0)
        assert len(heard) == INBOX_ENTRIES
        with pytest.raises(StoreError, match="full"):
            await one.send(two.node, b"x" * (INBOX_BYTES + 1))
        assert used(one).get("inbox") is None


async def test_a_publication_whose_answer_was_lost_is_repeated_with_its_key() -> None:
    store, heard = MemoryStore(clock=FakeClock()), Heard()
    await store.subscribe("t", heard)
    store.faults.unanswered(1)
    with pytest.raises(StoreError):
        await store.publish("t", b"1", history=HISTORY, key="k")
    assert (await store.publish("t", b"1", history=HISTORY, key="k")).offset == 1
    assert heard.data == [b"1"]


async def test_what_was_wound_back_or_lost_may_be_published_again_with_its_key() -> None:
    store = MemoryStore(clock=FakeClock())
    await store.publish("t", b"0", history=HISTORY)
    await store.publish("t", b"1", history=HISTORY, key="k")
    store.faults.rewind("t", 1)
    assert (await store.publish("t", b"1", history=HISTORY, key="k")).offset == 2
    before = await epoch(store, "t")
    store.faults.lose("t")
    after = await store.publish("t", b"1", history=HISTORY, key="k")
    assert (after.offset, after.epoch != before) == (1, True)
    with pytest.raises(ValueError, match="cannot be taken back"):
        store.faults.rewind("t", 2)


async def test_a_crowd_is_reaped_in_steps() -> None:
    clock, crowd = FakeClock(), REAP_STEP * 2 + 10
    async with MemoryStore(clock=clock) as one:
        dead = await one.sibling().__aenter__()
        await dead.enter("t", [Entry(f"c{number}", "u:a") for number in range(crowd)])
        heard, left = Heard(), list[int]()
        await one.subscribe("t", heard)
        one.on_presence(lambda topic, joined, gone: left.append(len(gone)))
        dead.faults.kill()
        await clock.advance(18.0)
        assert [len(diff.left) for diff in heard.diffs] == [REAP_STEP, REAP_STEP, 10]
        assert left == [1]
        assert (await one.members("t", limit=1)).total == 0


async def test_a_killed_process_is_silent() -> None:
    async with MemoryStore(clock=(clock := FakeClock())) as one:
        dead, heard = one.sibling(), Heard()
        async with dead:
            await dead.subscribe("t", heard)
            dead.faults.kill()
            await one.publish("t", b"1", history=HISTORY)
            with pytest.raises(StoreError, match="killed"):
                await dead.publish("t", b"2", history=HISTORY)
            await clock.advance(60.0)
            assert heard == []
            assert dead.gauges()["feeds"] == 0


async def test_leaving_the_store_ends_every_timer_and_task() -> None:
    clock = FakeClock()
    store, heard = MemoryStore(clock=clock), Heard()
    tasks = asyncio.all_tasks()
    async with store, store:
        await store.subscribe("t", heard)
        await store.enter("t", [Entry("c", "u:a")])
        await store.admit("k", "s", limit=1)
        await store.receive(lambda data: None)
        store.faults.stall()
        await clock.advance(1.0)
        assert len(asyncio.all_tasks()) > len(tasks)
        store.faults.resume()
    assert asyncio.all_tasks() == tasks
    assert used(store) == {"topics": 1, "timers": 1}
    await store.unsubscribe("t", heard)
    await clock.advance(60.0)
    assert used(store) == {}


async def test_a_subscriber_that_waits_is_refused_when_the_store_is_left() -> None:
    async with MemoryStore(clock=(clock := FakeClock())) as store:
        store.faults.stall()
        task = asyncio.ensure_future(store.subscribe("t", Heard()))
        await clock.advance(0.5)
    with pytest.raises(StoreError, match="closed"):
        await task


async def test_it_can_be_entered_again() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    for _ in range(2):
        async with store:
            await store.enter("t", [Entry("c", "u:a")])
            await clock.advance(100.0)
            assert (await store.members("t", limit=1)).total == 1
        assert (await store.members("t", limit=1)).total == 0


def test_a_store_serves_one_event_loop_at_a_time() -> None:
    store = MemoryStore()

    async def use() -> Position:
        await store.subscribe("t", Heard())
        return await store.publish("t", b"1", history=HISTORY)

    async def meddle() -> None:
        await use()
        with pytest.raises(ConfigurationError, match="one event loop"):
            await asyncio.to_thread(asyncio.run, store.subscribe("t", Heard()))

    asyncio.run(use())
    asyncio.run(meddle())  # the first loop has ended


@pytest.mark.parametrize(("lease", "beat"), [(5.0, 5.0), (1.0, 2.0), (1.0, 0.0)])
def test_a_lease_shorter_than_its_beat_is_refused(lease: float, beat: float) -> None:
    with pytest.raises(ConfigurationError, match="lease"):
        MemoryStore(lease=lease, beat=beat)


async def test_a_crowd_of_topics_leaves_nothing() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    for number in range(300):
        topic, heard = f"t{number}", Heard()
        await store.subscribe(topic, heard)
        await store.publish(topic, b"1", history=HISTORY, key="k")
        await store.enter(topic, [Entry("c", "u:a")])
        await store.leave(topic, ["c"])
        await store.unsubscribe(topic, heard)
    await clock.advance(25 * HOUR)
    assert used(store) == {"nodes": 1}
