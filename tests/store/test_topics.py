"""The memory store's topics are bounded in number and bytes: who is forgotten, who is refused, and what is told."""

import logging

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry, Gap, History, Position
from starlette_realtime.store import MemoryStore
from starlette_realtime.store.topics import FORGET_STEP
from starlette_realtime.testing import FakeClock
from starlette_realtime.testing.contract import Heard

HISTORY = History(size=8, ttl=60.0)


def known(store: MemoryStore) -> str:
    """The topics that there are; those of these tests have names of one letter."""
    return "".join(sorted(store.backend.topics))


# --- how many ---


async def test_over_the_bound_the_longest_unused_topic_is_forgotten_and_its_readers_are_told() -> None:
    store = MemoryStore(clock=FakeClock(), max_topics=3)
    positions = {topic: await store.publish(topic, b"1", history=HISTORY) for topic in "abc"}
    await store.publish("d", b"1", history=HISTORY)
    assert known(store) == "bcd"
    assert (await store.read("b", since=positions["b"], limit=9)).complete
    late = await store.read("a", since=positions["a"], limit=9)
    assert (late.complete, late.reason, late.publications) == (False, "forgotten", ())
    assert known(store) == "abd"  # reading `b` was a use of it


async def test_to_publish_or_read_or_page_or_leave_is_a_use() -> None:
    store, heard = MemoryStore(clock=FakeClock(), max_topics=4), Heard()
    await store.subscribe("e", heard)
    for topic in "abc":
        await store.publish(topic, b"1", history=HISTORY)
    await store.unsubscribe("e", heard)
    await store.page("a", before=None, limit=1)
    await store.publish("b", b"2", history=HISTORY)
    await store.read("c", since=None, limit=1)
    for topic, there in (("f", "abcf"), ("g", "bcfg"), ("h", "cfgh"), ("i", "fghi")):
        await store.publish(topic, b"1", history=HISTORY)
        assert known(store) == there


async def test_rooms_that_were_only_met_leave_no_more_than_the_bound() -> None:
    clock = FakeClock()
    store, heard = MemoryStore(clock=clock, max_topics=50), Heard()
    for number in range(500):
        topic = f"doc:{number}"
        await store.subscribe(topic, heard)
        await store.publish(topic, b"x" * 10, history=HISTORY)
        await store.unsubscribe(topic, heard)
        await store.publish(f"user:{number}", b"x" * 10, history=HISTORY)
    gauges = store.gauges()
    assert (gauges["topics"], gauges["timers"], gauges["publications"]) == (50, 50, 50)
    assert gauges["publication_bytes"] == 500
    await clock.advance(90_000.0)
    assert not any(store.gauges().values())


async def test_a_topic_that_somebody_holds_is_never_forgotten() -> None:
    store, heard = MemoryStore(clock=FakeClock(), max_topics=3), Heard()
    await store.subscribe("a", heard)
    await store.enter("b", [Entry("c", "u:x")])
    for number in range(50):
        await store.publish(f"t{number}", b"1", history=HISTORY)
    await store.publish("a", b"1", history=HISTORY)
    assert set(store.backend.topics) == {"a", "b", "t49"}
    assert (heard.data, heard.gaps) == ([b"1"], [])
    assert (await store.members("b", limit=1)).total == 1


async def test_where_all_topics_are_held_a_further_one_is_refused_and_leaves_nothing() -> None:
    store, heard = MemoryStore(clock=FakeClock(), max_topics=2), Heard()
    await store.subscribe("a", heard)
    await store.enter("b", [Entry("c", "u:x")])
    before = store.gauges()
    with pytest.raises(StoreError, match="max_topics"):
        await store.publish("d", b"1", history=HISTORY, key="k")
    with pytest.raises(StoreError, match="max_topics"):
        await store.read("d", since=None, limit=1)
    with pytest.raises(StoreError, match="max_topics"):
        await store.page("d", before=None, limit=1)
    with pytest.raises(StoreError, match="max_topics"):
        await store.subscribe("d", heard)
    with pytest.raises(StoreError, match="max_topics"):
        await store.enter("d", [Entry("c", "u:x")])
    await store.publish_volatile("d", b"1")
    assert store.gauges() == before
    await store.publish("a", b"1", history=HISTORY)  # those that there are go on
    await store.unsubscribe("a", heard)
    assert (await store.publish("d", b"1", history=HISTORY, key="k")).offset == 1
    assert known(store) == "bd"


async def test_a_refused_member_is_not_announced_later() -> None:
    clock = FakeClock()
    async with MemoryStore(clock=clock, max_topics=1) as store:
        heard = Heard()
        await store.subscribe("a", heard)
        with pytest.raises(StoreError, match="max_topics"):
            await store.enter("b", [Entry("c", "u:x")])
        await store.unsubscribe("a", heard)
        store.faults.stall()
        await clock.advance(20.0)
        store.faults.resume()
        await clock.advance(20.0)
        assert (await store.members("b", limit=1)).total == 0


async def test_members_that_are_announced_anew_are_not_refused() -> None:
    clock = FakeClock()
    async with MemoryStore(clock=clock, max_topics=2) as one, one.sibling() as two:
        heard = Heard()
        await two.enter("a", [Entry("c", "u:x")])
        two.faults.stall()
        await clock.advance(30.0)  # it has been reaped, and others take all that there is
        await one.subscribe("x", heard)
        await one.subscribe("y", heard)
        assert known(one) == "xy"
        two.faults.resume()
        assert (await one.members("a", limit=1)).total == 1
        await two.leave("a", ["c"])
        await one.unsubscribe("y", heard)
        await one.publish("z", b"1", history=HISTORY)
        assert known(one) == "xz"  # and the bound holds again


async def test_a_key_is_known_though_its_topic_was_forgotten_early() -> None:
    store = MemoryStore(clock=(clock := FakeClock()), max_topics=1)
    first = await store.publish("a", b"1", history=HISTORY, key="k")
    second = await store.publish("b", b"1", history=HISTORY)
    assert await store.publish("a", b"1", history=HISTORY, key="k") == first
    assert known(store) == "b"  # nothing was made for it
    assert await store.publish("b", b"2", history=HISTORY) == Position(
        second.epoch, 2, store.backend.topics["b"].stream.id
    )
    await clock.advance(120.0)
    assert (await store.publish("a", b"1", history=HISTORY, key="k")).epoch != first.epoch


# --- how much ---


async def test_over_the_bytes_the_longest_unused_topics_that_have_any_are_forgotten() -> None:
    store = MemoryStore(clock=FakeClock(), total_bytes=100)
    await store.read("r", since=None, limit=1)  # has no data, so that it would not help
    positions = {topic: await store.publish(topic, b"x" * 30, history=HISTORY) for topic in "abc"}
    await store.publish("a", b"x" * 10, history=HISTORY)
    assert store.gauges()["publication_bytes"] == 100
    await store.publish("d", b"x", history=HISTORY)
    assert (known(store), store.gauges()["publication_bytes"]) == ("acdr", 71)
    assert (await store.read("b", since=positions["b"], limit=9)).reason == "forgotten"
    assert [len(row.data) for row in (await store.read("a", since=positions["a"], limit=9)).publications] == [10]


async def test_where_all_is_held_the_oldest_publications_of_the_publishing_topic_go() -> None:
    store = MemoryStore(clock=FakeClock(), total_bytes=100)
    heard = {topic: Heard() for topic in "ab"}
    for topic, each in heard.items():
        await store.subscribe(topic, each)
    kept = await store.publish("b", b"x" * 40, history=HISTORY)
    positions = [await store.publish("a", b"%d" % number * 20, history=HISTORY) for number in range(5)]
    assert store.gauges()["publication_bytes"] == 100
    assert (await store.read("a", since=positions[1], limit=9)).complete
    late = await store.read("a", since=positions[0], limit=9)
    assert (late.complete, late.reason) == (False, "trimmed")
    assert await store.read("b", since=kept, limit=9) == await store.read("b", since=None, limit=9)
    assert [len(each.publications) for each in heard.values()] == [5, 1]  # whoever listens hears all of it
    assert not any(each.gaps for each in heard.values())


async def test_a_listener_that_missed_what_was_dropped_is_told() -> None:
    store, heard = MemoryStore(clock=(clock := FakeClock()), total_bytes=100), Heard()
    await store.subscribe("a", heard)
    await store.publish("a", b"x" * 40, history=HISTORY)
    store.faults.drop(2)
    for _ in range(4):
        top = await store.publish("a", b"x" * 40, history=HISTORY)
    await clock.advance(1.0)
    assert heard.gaps == [Gap(top, "trimmed")]


async def test_a_publication_larger_than_the_bound_is_delivered_and_not_kept() -> None:
    store, heard = MemoryStore(clock=FakeClock(), total_bytes=100), Heard()
    await store.subscribe("a", heard)
    first = await store.publish("a", b"x", history=HISTORY)
    second = await store.publish("a", b"x" * 101, history=HISTORY)
    assert [len(data) for data in heard.data] == [1, 101]
    assert (second.epoch, second.offset) == (first.epoch, 2)
    assert store.gauges()["publication_bytes"] == 0
    assert (await store.read("a", since=first, limit=9)).reason == "trimmed"


async def test_a_topic_alone_keeps_its_newest() -> None:
    store = MemoryStore(clock=FakeClock(), total_bytes=100)
    first = await store.publish("a", b"x" * 40, history=HISTORY)
    for _ in range(3):
        last = await store.publish("a", b"x" * 40, history=HISTORY)
    assert (last.epoch, last.offset) == (first.epoch, 4)
    assert [row.position for row in (await store.page("a", before=None, limit=9)).publications][-1] == last
    assert store.gauges()["publications"] == 2


async def test_one_publication_forgets_only_so_many_topics() -> None:
    crowd = FORGET_STEP * 3
    store = MemoryStore(clock=FakeClock(), total_bytes=crowd)
    for number in range(crowd):
        await store.publish(f"t{number}", b"x", history=HISTORY)
    await store.publish("a", b"x" * (FORGET_STEP * 2), history=HISTORY)
    gauges = store.gauges()
    assert (gauges["topics"], gauges["publication_bytes"]) == (crowd - FORGET_STEP + 1, crowd - FORGET_STEP)
    await store.publish("a", b"x" * FORGET_STEP, history=HISTORY)
    assert store.gauges()["publication_bytes"] == crowd
    assert len((await store.page("a", before=None, limit=9)).publications) == 1


# --- said once ---


async def test_a_warning_names_each_option_once(caplog: pytest.LogCaptureFixture) -> None:
    store, heard = MemoryStore(clock=FakeClock(), max_topics=3, total_bytes=100), Heard()
    with caplog.at_level(logging.WARNING):
        for topic in "abc":
            await store.publish(topic, b"x" * 30, history=HISTORY)
        assert caplog.records == []
        for number in range(20):
            await store.publish(f"t{number}", b"x" * 20, history=HISTORY)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "max_topics" in caplog.text
        for _ in range(20):
            await store.publish("a", b"x" * 20, history=HISTORY)
        await store.subscribe("a", heard)
        await store.publish("a", b"x" * 90, history=HISTORY)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "total_bytes" in caplog.records[1].message
