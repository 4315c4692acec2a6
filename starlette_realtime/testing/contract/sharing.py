"""The contract, part four: slots, claims, revocations, and what processes say to each other."""

import asyncio
import json

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.store.base import REVOCATIONS, Store
from starlette_realtime.testing.contract.harness import KEPT, Heard, StoreHarness

__all__ = ["SharingContract"]


class SharingContract(StoreHarness):
    """Whatever processes share besides topics."""

    async def test_slots_are_counted_over_all_processes(self) -> None:
        async with self.nodes(2) as (one, two):
            key = self.name()
            assert await one.admit(key, "a", limit=2)
            assert await two.admit(key, "b", limit=2)
            assert not await one.admit(key, "c", limit=2)
            assert await one.admit(self.name(), "c", limit=2)
            await two.release(key, "b")
            assert await one.admit(key, "c", limit=2)

    async def test_a_slot_is_taken_over_and_its_old_holder_cannot_free_it(self) -> None:
        async with self.nodes(2) as (one, two):
            key = self.name()
            assert await one.admit(key, "a", limit=1)
            assert await two.admit(key, "a", limit=1)
            await one.release(key, "a")
            assert not await one.admit(key, "b", limit=1)
            assert await two.admit(key, "a", limit=1)  # the same session again, before the old connection is gone
            await two.release(key, "a")
            assert not await one.admit(key, "b", limit=1)
            await two.release(key, "a")
            assert await one.admit(key, "b", limit=1)

    async def test_the_slots_of_a_dead_process_are_free(self) -> None:
        async with self.nodes(2) as (one, dead):
            key = self.name()
            assert await dead.admit(key, "a", limit=1)
            await self.kill(dead)
            assert not await one.admit(key, "b", limit=1)
            await self.advance(self.lease + self.sweep * 2)
            assert await one.admit(key, "b", limit=1)

    async def test_a_frozen_process_takes_its_slots_with_it(self) -> None:
        async with self.nodes(2) as (one, frozen):
            key = self.name()
            assert await frozen.admit(key, "a", limit=1)
            await self.stall(frozen)
            await self.advance(self.lease + self.sweep * 2)
            await self.resume(frozen)
            await self.advance(self.lease / 2)
            assert not await one.admit(key, "b", limit=1)
            await frozen.release(key, "a")
            assert await one.admit(key, "b", limit=1)

    async def test_a_slot_whose_answer_was_lost_is_held_once_and_given_back(self) -> None:
        async with self.nodes(2) as (one, two):
            key = self.name()
            await self.lose_answers(one, 1)
            assert await self.repeated(lambda: one.admit(key, "a", limit=1))
            assert not await two.admit(key, "b", limit=1)
            await self.lose_answers(one, 1)
            await self.repeated(lambda: one.release(key, "a"))
            assert await self.repeated(lambda: two.admit(key, "b", limit=1))

    async def test_one_caller_claims(self) -> None:
        async with self.nodes(2) as stores:
            key = self.name()
            claims = await asyncio.gather(*(stores[number % 2].claim(key, ttl=2.0) for number in range(8)))
            assert sorted(claims) == [False] * 7 + [True]
            await self.advance(1.0)
            assert not await stores[0].claim(key, ttl=2.0)
            await self.advance(1.5)
            assert await stores[1].claim(key, ttl=2.0)

    async def test_a_revocation_stands_and_is_told(self) -> None:
        async with self.nodes(2) as (one, two):
            subject, heard = self.name("user"), Heard()
            await two.subscribe(REVOCATIONS, heard)
            await one.revoke(subject, issued_before=1_000.5)
            await one.revoke(subject, issued_before=900.0)  # an older one takes nothing back
            assert (await two.revocations())[subject] == 1_000.5
            await one.revoke(subject, issued_before=1_100.0)
            assert (await two.revocations())[subject] == 1_100.0
            await self.until(lambda: len(heard) >= 3)
            assert json.loads(heard.data[0]) == [subject, 1_000.5]

    async def test_a_revocation_whose_answer_was_lost_stands(self) -> None:
        async with self.nodes(2) as (one, two):
            subject, heard = self.name("user"), Heard()
            await two.subscribe(REVOCATIONS, heard)
            await self.lose_answers(one, 1)
            await self.repeated(lambda: one.revoke(subject, issued_before=1_000.5))
            assert (await two.revocations())[subject] == 1_000.5
            await self.until(lambda: bool(heard))
            assert json.loads(heard.data[0]) == [subject, 1_000.5]

    async def test_processes_send_to_each_other_in_order(self) -> None:
        async with self.nodes(2) as (one, two):
            heard: list[bytes] = []
            await two.receive(heard.append)
            for number in range(5):
                await one.send(two.node, b"%d" % number)
            await self.until(lambda: len(heard) >= 5)
            assert heard == [b"0", b"1", b"2", b"3", b"4"]
            await one.send(one.node, b"itself is quiet")
            await self.quiet()
            assert len(heard) == 5

    async def test_a_failing_receiver_harms_no_other(self) -> None:
        async with self.nodes(2) as (one, two):
            heard: list[bytes] = []

            def fail(data: bytes) -> None:
                raise RuntimeError("a receiver's own fault")

            await two.receive(fail)
            await two.receive(heard.append)
            await one.send(two.node, b"1")
            await one.send(two.node, b"2")
            await self.until(lambda: heard == [b"1", b"2"])
            await two.ignore(fail)

    async def test_what_is_sent_to_nobody_is_refused(self) -> None:
        async with self.nodes(2) as (one, two):
            with pytest.raises(StoreError):
                await one.send("nobody", b"1")
            await self.kill(two)
            await self.advance(self.lease + self.sweep * 2)
            with pytest.raises(StoreError):
                await one.send(two.node, b"1")

    async def test_the_living_processes_are_known(self) -> None:
        async with self.nodes(3) as stores:
            nodes = await stores[0].nodes()
            assert {node.id for node in nodes} == {store.node for store in stores}
            assert all(0 <= node.age <= self.lease for node in nodes)

    async def test_a_store_that_is_away_refuses_in_time(self) -> None:
        async with self.node() as store:
            topic, heard = self.name(), Heard()
            await store.publish(topic, b"1", history=KEPT)
            await self.stall(store)
            calls = [
                store.publish(topic, b"2", history=KEPT),
                store.publish_volatile(topic, b"2"),
                store.read(topic, since=None, limit=0),
                store.page(topic, before=None, limit=1),
                store.subscribe(topic, heard),
                store.members(topic, limit=1),
                store.admit(topic, "a", limit=1),
                store.claim(topic, ttl=1.0),
                store.revocations(),
                store.nodes(),
            ]
            tasks = [asyncio.ensure_future(call) for call in calls]
            await self.until(lambda: all(task.done() for task in tasks), seconds=self.stale_after * 3)
            assert [type(task.exception()) for task in tasks] == [StoreError] * len(tasks)
            await self.resume(store)
            await self.until(lambda: store.gauges()["feeds"] == 0)
            await store.publish(topic, b"3", history=KEPT)
            assert heard == []

    async def test_after_all_have_gone_nothing_is_left(self) -> None:
        async with self.nodes(2) as (one, two):
            before = self._local(one)
            heards = [(self.name(), Heard()) for _ in range(20)]
            for topic, heard in heards:
                await one.subscribe(topic, heard)
            await self.drop(one, 5)
            for topic, _ in heards:
                await two.publish(topic, b"x", history=KEPT)
            for topic, heard in heards:
                await one.unsubscribe(topic, heard)
            assert self._local(one) == before

    @staticmethod
    def _local(store: Store) -> dict[str, int]:
        return {name: value for name, value in store.gauges().items() if name in LOCAL_GAUGES}


LOCAL_GAUGES = (
    "feeds",
    "subscribers",
    "waiting_subscribers",
    "repairs",
    "held_publications",
    "held_bytes",
    "recoveries",
    "ring_publications",
    "ring_bytes",
)
