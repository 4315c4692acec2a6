"""The contract, part two: subscribing, one order for all, and no gap and no repeat, whatever happens to the link."""

import asyncio

from starlette_realtime.messages import Delivery, Fresh, Gap, History, Publication, Stale
from starlette_realtime.testing.contract.harness import KEPT, Heard, StoreHarness

__all__ = ["DeliveryContract"]


def follow_each_other(heard: Heard) -> bool:
    """Whether nothing is left out or repeated, except where a gap says so."""
    last = None
    for delivery in heard:
        if isinstance(delivery, Gap):
            last = delivery.position
        elif isinstance(delivery, Publication) and delivery.position is not None:
            position = delivery.position
            if last is not None and (position.epoch, position.offset, delivery.previous) != (
                last.epoch,
                last.offset + 1,
                last.id,
            ):
                return False
            last = position
    return True


class DeliveryContract(StoreHarness):
    """Subscribers, and the faults they must not notice, or be told of."""

    async def test_every_process_hears_everything_in_one_order(self) -> None:
        async with self.nodes(3) as stores:
            topic = self.name()
            heards = [Heard() for _ in stores]
            for store, heard in zip(stores, heards, strict=True):
                await store.subscribe(topic, heard)
            sent = [b"%d" % number for number in range(30)]
            await asyncio.gather(
                *(stores[number % 3].publish(topic, data, history=KEPT) for number, data in enumerate(sent))
            )
            await self.until(lambda: all(len(heard) >= 30 for heard in heards))
            assert heards[0] == heards[1] == heards[2]
            assert sorted(heards[0].data) == sorted(sent)
            assert follow_each_other(heards[0])

    async def test_a_subscriber_hears_what_comes_after_it_until_it_leaves(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, early, late = self.name(), Heard(), Heard()
            await one.publish(topic, b"before", history=KEPT)
            await one.subscribe(topic, early)
            await two.publish(topic, b"1", history=KEPT)
            await self.until(lambda: early.data == [b"1"])
            await one.subscribe(topic, late)
            await two.publish(topic, b"2", history=KEPT)
            await self.until(lambda: late.data == [b"2"])
            await one.unsubscribe(topic, early)
            await two.publish(topic, b"3", history=KEPT)
            await self.until(lambda: late.data == [b"2", b"3"])
            await one.unsubscribe(topic, late)
            await two.publish(topic, b"4", history=KEPT)
            await self.quiet()
            assert (early.data, late.data) == ([b"1", b"2"], [b"2", b"3"])
            assert one.gauges()["feeds"] == 0

    async def test_a_subscriber_who_returns_starts_afresh(self) -> None:
        async with self.node() as store:
            topic, heard = self.name(), Heard()
            for number in range(3):
                await store.subscribe(topic, heard)
                await store.publish(topic, b"in %d" % number, history=KEPT)
                await self.until(lambda number=number: len(heard) == number + 1)  # type: ignore[misc]
                await store.unsubscribe(topic, heard)
                await store.publish(topic, b"out", history=KEPT)
            assert heard.data == [b"in 0", b"in 1", b"in 2"]

    async def test_two_first_subscribers_at_once_both_hear(self) -> None:
        async with self.node() as store:
            for _ in range(5):
                topic, heards = self.name(), [Heard() for _ in range(4)]
                await asyncio.gather(*(store.subscribe(topic, heard) for heard in heards))
                await store.publish(topic, b"1", history=KEPT)
                await self.until(lambda heards=heards: all(heard.data == [b"1"] for heard in heards))  # type: ignore[misc]
                await asyncio.gather(*(store.unsubscribe(topic, heard) for heard in heards))
            assert store.gauges()["feeds"] == 0

    async def test_the_last_may_leave_while_the_first_comes(self) -> None:
        async with self.node() as store:
            topic, old, new = self.name(), Heard(), Heard()
            await store.subscribe(topic, old)
            for number in range(10):
                await asyncio.gather(store.unsubscribe(topic, old), store.subscribe(topic, new))
                await store.publish(topic, b"%d" % number, history=KEPT)
                await self.until(lambda number=number, new=new: new.data[-1:] == [b"%d" % number])  # type: ignore[misc]
                old, new = new, old
            await store.unsubscribe(topic, old)
            assert store.gauges()["feeds"] == 0

    async def test_a_cancelled_subscriber_leaves_nothing(self) -> None:
        async with self.node() as store:
            topic, heard = self.name(), Heard()
            for rounds in range(6):
                task = asyncio.ensure_future(store.subscribe(topic, heard))
                for _ in range(rounds):
                    await asyncio.sleep(0)
                cancelled = task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    assert not cancelled or task.exception() is None
                    await store.unsubscribe(topic, heard)
                await self.until(lambda: store.gauges()["feeds"] == 0)
                await store.publish(topic, b"1", history=KEPT)
            await self.quiet()
            assert heard == []

    async def test_a_cancelled_unsubscribe_goes_on(self) -> None:
        async with self.node() as store:
            topic, heard = self.name(), Heard()
            for rounds in range(4):
                await store.subscribe(topic, heard)
                task = asyncio.ensure_future(store.unsubscribe(topic, heard))
                for _ in range(rounds + 1):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                await self.until(lambda: store.gauges()["feeds"] == 0)

    async def test_a_failing_subscriber_harms_no_other(self) -> None:
        async with self.node() as store:
            topic, before, after = self.name(), Heard(), Heard()

            def fail(delivery: Delivery) -> None:
                raise RuntimeError("a subscriber's own fault")

            for subscriber in (before, fail, after):
                await store.subscribe(topic, subscriber)
            await store.publish(topic, b"1", history=KEPT)
            await store.publish(topic, b"2", history=KEPT)
            await self.until(lambda: len(after) == 2)
            assert before.data == after.data == [b"1", b"2"]

    async def test_a_subscriber_may_leave_from_its_callback(self) -> None:
        async with self.node() as store:
            topic, heard, tasks = self.name(), Heard(), list[asyncio.Task[None]]()

            def once(delivery: Delivery) -> None:
                heard(delivery)
                tasks.append(asyncio.ensure_future(store.unsubscribe(topic, once)))

            await store.subscribe(topic, once)
            await store.publish(topic, b"1", history=KEPT)
            await self.until(lambda: bool(tasks) and tasks[0].done())
            await store.publish(topic, b"2", history=KEPT)
            await self.quiet()
            assert heard.data == [b"1"]
            assert store.gauges()["feeds"] == 0

    async def test_the_same_subscriber_twice_hears_once(self) -> None:
        async with self.node() as store:
            topic, heard = self.name(), Heard()
            await store.subscribe(topic, heard)
            await store.subscribe(topic, heard)
            await store.publish(topic, b"1", history=KEPT)
            await self.until(lambda: bool(heard))
            await self.quiet()
            assert heard.data == [b"1"]

    async def test_a_lost_delivery_is_made_up_for(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            await two.subscribe(topic, heard)
            await one.publish(topic, b"1", history=KEPT)
            await self.until(lambda: len(heard) == 1)
            await self.drop(two, 3)
            for number in range(2, 7):
                await one.publish(topic, b"%d" % number, history=KEPT)
            await self.until(lambda: len(heard) >= 6)
            assert heard.data == [b"1", b"2", b"3", b"4", b"5", b"6"]
            assert heard.gaps == []

    async def test_a_last_delivery_that_was_lost_is_found_by_the_check(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            await two.subscribe(topic, heard)
            await self.drop(two, 2)
            await one.publish(topic, b"1", history=KEPT)
            await one.publish(topic, b"2", history=KEPT)
            await self.until(lambda: len(heard.data) >= 2, seconds=self.check_interval * 2)
            assert heard.data == [b"1", b"2"]

    async def test_what_the_history_has_lost_is_told_as_a_gap(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard, short = self.name(), Heard(), History(size=2, ttl=60.0)
            await two.subscribe(topic, heard)
            await one.publish(topic, b"1", history=short)
            await self.until(lambda: len(heard) == 1)
            await self.drop(two, 4)
            for number in range(2, 7):
                await one.publish(topic, b"%d" % number, history=short)
            await self.until(lambda: bool(heard.gaps))
            top = (await one.read(topic, since=None, limit=0)).position
            assert heard.gaps == [Gap(top, "trimmed")]
            await one.publish(topic, b"7", history=short)
            await self.until(lambda: heard.data == [b"1", b"7"])

    async def test_what_comes_twice_is_heard_once(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            await two.subscribe(topic, heard)
            await self.duplicate(two, 3)
            for number in range(5):
                await one.publish(topic, b"%d" % number, history=KEPT)
            await self.until(lambda: len(heard) >= 5)
            await self.quiet()
            assert heard.data == [b"0", b"1", b"2", b"3", b"4"]
            assert heard.gaps == []

    async def test_a_topic_that_was_wound_back_is_told_as_a_gap(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            await two.subscribe(topic, heard)
            for number in range(4):
                await one.publish(topic, b"%d" % number, history=KEPT)
            await self.until(lambda: len(heard) == 4)
            await self.rewind(one, topic, 2)
            position = await one.publish(topic, b"another 2", history=KEPT)
            assert position.offset == 3
            await self.until(lambda: bool(heard.gaps))
            assert [gap.reason for gap in heard.gaps] == ["rewound"]
            await one.publish(topic, b"another 3", history=KEPT)
            await self.until(lambda: heard.data[-1] == b"another 3")
            assert follow_each_other(heard)

    async def test_a_topic_that_was_wound_back_in_silence_is_found_by_the_check(self) -> None:
        async with self.node() as store:
            topic, heard = self.name(), Heard()
            await store.subscribe(topic, heard)
            for number in range(4):
                await store.publish(topic, b"%d" % number, history=KEPT)
            await self.rewind(store, topic, 1)
            await self.until(lambda: bool(heard.gaps), seconds=self.check_interval * 2)
            assert heard.gaps[0].position.offset == 3

    async def test_a_topic_that_was_lost_is_told_as_a_gap(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            await two.subscribe(topic, heard)
            before = await one.publish(topic, b"1", history=KEPT)
            await self.until(lambda: len(heard) == 1)
            await self.lose(one, topic)
            after = await one.publish(topic, b"2", history=KEPT)
            assert after.epoch != before.epoch
            await self.until(lambda: bool(heard.gaps))
            assert [gap.reason for gap in heard.gaps] == ["forgotten"]
            await one.publish(topic, b"3", history=KEPT)
            await self.until(lambda: heard.data[-1] == b"3")
            assert follow_each_other(heard)

    async def test_whoever_is_cut_off_is_told_and_misses_nothing(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            await two.subscribe(topic, heard)
            await one.publish(topic, b"1", history=KEPT)
            await self.until(lambda: len(heard) == 1)
            await self.stall(two)
            await self.until(lambda: Stale() in heard, seconds=self.stale_after * 2 + 1)
            for number in range(2, 6):
                await one.publish(topic, b"%d" % number, history=KEPT)
            await self.quiet()
            assert heard.data == [b"1"]
            await self.resume(two)
            await self.until(lambda: Fresh() in heard)
            assert heard.data == [b"1", b"2", b"3", b"4", b"5"]  # first what was missed, then the good news
            assert heard.count(Stale()) == heard.count(Fresh()) == 1
            assert heard.gaps == []
