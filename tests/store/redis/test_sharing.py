"""Slots, claims, revocations and inboxes in Redis: what came of lost answers, and what bounds them."""

import asyncio

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.store.inbox import INBOX_BYTES, INBOX_ENTRIES
from starlette_realtime.store.redis.revocations import Revocations
from starlette_realtime.store.redis.slots import claim
from tests.store.redis.support import SHORT, FaultyStore, processes
from tests.support.redis import Server, server
from tests.support.waiting import until

LEASE, SWEEP = SHORT["lease"], SHORT["sweep"]


async def slots(store: FaultyStore, key: str) -> dict[bytes, bytes]:
    """Slot → who holds it."""
    name = store._keys.of("slots", key)
    found = await store._link.call(b"HGETALL", name, key=name)
    return dict(zip(found[::2], found[1::2], strict=True))


async def until_slots(store: FaultyStore, key: str, expected: set[bytes]) -> None:
    async with asyncio.timeout(5.0):
        while set(await slots(store, key)) != expected:
            await asyncio.sleep(0.01)


async def test_a_slot_whose_answer_was_lost_is_held_once(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        one.lose_reply(b"slot-a")
        assert await one.admit("k", "slot-a", limit=1)
        one.lose_reply(b"slot-b")
        assert not await one.admit("k", "slot-b", limit=1)
        one.lose_reply(b"slot-a")
        await one.release("k", "slot-a")
        assert await two.admit("k", "b", limit=1)
        assert sum(proxy.dropped for proxy in one.proxies.values()) == 3


async def test_a_slot_that_was_given_up_on_is_free_again(running: Server) -> None:
    async with processes(running, 2, lease=30.0) as (one, two):
        assert await one.admit("k", "a", limit=9)
        for proxy in one.proxies.values():
            proxy.drop_replies()
        with pytest.raises(StoreError):
            await one.admit("k", "b", limit=9)
        assert set(await slots(two, "k")) == {b"a", b"b"}  # it was made
        one.restore()
        one.cut_links()
        await until_slots(two, "k", {b"a"})


async def test_a_request_for_a_slot_that_arrives_too_late_is_not_met(running: Server) -> None:
    async with processes(running, 2, lease=30.0) as (one, two):
        assert await one.admit("k", "a", limit=9)
        one.half_open()
        with pytest.raises(StoreError):
            await one.admit("k", "b", limit=9)
        one.restore()  # the network delivers now what it has held back
        assert await one.admit("k", "c", limit=9)
        await until_slots(two, "k", {b"a", b"c"})
        await until(lambda: one.gauges()["slots_mending"] == 0)
        assert set(await slots(two, "k")) == {b"a", b"c"}


async def test_an_order_that_comes_after_things_were_put_right_is_refused(running: Server) -> None:
    async with processes(running, 1) as (one,):
        held = one._process.slots
        assert await one.admit("k", "a", limit=9)
        for _ in range(3):
            await held._mend("k")
        held._number = 0  # as if it had been sent long before
        assert await held._run("release", "k", one.node, (b"", b"a")) == 0
        assert await held._run("admit", "k", one.node, (b"b", b"9", b"60000")) == 0
        assert set(await slots(one, "k")) == {b"a"}
        held._number = 2  # the first attempt comes too late, and is made again
        assert await one.admit("k", "c", limit=9)
        assert set(await slots(one, "k")) == {b"a", b"c"}


async def test_a_release_that_failed_is_made_up_for(running: Server) -> None:
    async with processes(running, 2, lease=30.0) as (one, two):
        assert await one.admit("k", "a", limit=1)
        one.half_open()
        with pytest.raises(StoreError):
            await one.release("k", "a")
        one.restore()
        await until_slots(two, "k", set())
        assert await two.admit("k", "b", limit=1)
        await until(lambda: one.gauges()["slot_keys"] == 0)


async def test_slots_are_held_through_a_restart_that_lost_everything() -> None:
    async with server() as own, processes(own, 2) as (one, two):
        assert await one.admit("k", "a", limit=2)
        assert await two.admit("k", "b", limit=2)
        await own.kill()
        await own.start()
        await until_slots(one, "k", {b"a", b"b"})
        assert not await one.admit("k", "c", limit=2)


async def test_the_slots_of_who_is_gone_are_found_when_there_are_no_others(running: Server) -> None:
    async with processes(running, 3, sweep=60.0) as (one, two, dead):
        assert await dead.admit("k", "a", limit=2)
        assert await two.admit("k", "b", limit=2)
        dead.cut()
        assert not await one.admit("k", "c", limit=2)
        await asyncio.sleep(LEASE + 1.0)
        assert await one.admit("k", "c", limit=2)  # nobody has cleared anything away
        assert not await one.admit("k", "d", limit=2)
        assert set(await slots(one, "k")) == {b"b", b"c"}


async def test_slots_are_refreshed_before_they_expire(running: Server) -> None:
    async with processes(running, 1) as (one,):
        assert await one.admit("k", "a", limit=2)
        name = one._keys.of("slots", "k")
        assert await running.command("PEXPIRE", name, 60_000) == 1
        one._process.slots._held["k"].refreshed -= 3_600.0
        async with asyncio.timeout(5.0):
            while await running.command("PTTL", name) <= 60_000:
                await asyncio.sleep(0.02)


async def test_many_connections_come_and_go(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        for _ in range(2):
            admitted = await asyncio.gather(
                *((one, two)[number % 2].admit("k", str(number), limit=30) for number in range(100))
            )
            assert admitted.count(True) == 30
            await asyncio.gather(*((one, two)[number % 2].release("k", str(number)) for number in range(100)))
            assert await slots(one, "k") == {}
        assert one.gauges()["slot_keys"] == two.gauges()["slot_keys"] == 0


async def test_a_claim_whose_answer_was_lost_is_the_callers(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        one.lose_reply(b"ticket-1")
        assert await one.claim("ticket-1", ttl=60.0)
        assert not await two.claim("ticket-1", ttl=60.0)
        assert not await one.claim("ticket-1", ttl=60.0)
        assert sum(proxy.dropped for proxy in one.proxies.values()) == 1
        assert await claim(one._link, one._keys, one._rng, "ticket-2", 0.0)


async def test_revocations_are_read_again_only_when_they_changed(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        for number in range(2_500):
            await one._revocations.add(f"u:{number}", 1_000.25 + number)
        found = await two.revocations()
        assert found == {f"u:{number}": 1_000.25 + number for number in range(2_500)}
        await running.command("CONFIG", "RESETSTAT")
        assert await two.revocations() is found
        await one._revocations.add("u:1", 7.0)  # an older one changes nothing
        assert await two.revocations() is found
        assert "cmdstat_hscan" not in await running.info("commandstats")
        await one.revoke("новый {}", issued_before=1.0)
        assert (await two.revocations())["новый {}"] == 1.0
        with pytest.raises(TypeError):
            found["u:1"] = 2.0  # type: ignore[index]


async def test_revocations_lapse(running: Server) -> None:
    async with processes(running, 1, revocation_life=0.4) as (one,):
        await one.revoke("u:a", issued_before=1.0)
        assert await one.revocations() == {"u:a": 1.0}
        async with asyncio.timeout(5.0):
            while await one.revocations():
                await asyncio.sleep(0.02)
        await one.revoke("u:b", issued_before=1.0)
        assert await one.revocations() == {"u:b": 1.0}


async def test_too_many_revocations_are_refused(running: Server) -> None:
    async with processes(running, 1) as (one,):
        few = Revocations(one._link, one._keys, life=60.0, most=2)
        await few.add("u:a", 1.0)
        await few.add("u:b", 1.0)
        with pytest.raises(StoreError, match="over 2 revocations"):
            await few.add("u:c", 1.0)
        await few.add("u:b", 2.0)
        assert await one.revocations() == {"u:a": 1.0, "u:b": 2.0}


async def test_what_is_sent_arrives_once_and_in_order_over_a_bad_link(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        heard: list[bytes] = []
        await two.receive(heard.append)
        for number in range(30):
            if number % 5 == 0:
                one.lose_reply(b"message")
            if number % 7 == 0:
                two.lose_reply(b":in")
            if number % 10 == 0:
                two.cut_subscriptions()
            await one.send(two.node, b"message %d" % number)
        await until(lambda: len(heard) >= 30)
        await until(lambda: two._process.inbox._task is None)
        assert heard == [b"message %d" % number for number in range(30)]


async def test_what_is_sent_waits_for_a_receiver_and_is_bounded(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        for number in range(INBOX_ENTRIES):
            await one.send(two.node, b"%d" % number)
        with pytest.raises(StoreError, match="full"):
            await one.send(two.node, b"one more")
        heard: list[bytes] = []
        await two.receive(heard.append)
        await until(lambda: len(heard) == INBOX_ENTRIES)
        assert heard == [b"%d" % number for number in range(INBOX_ENTRIES)]
        await two.ignore(heard.append)


async def test_the_bytes_that_wait_are_bounded(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        half = b"x" * (INBOX_BYTES // 2)
        await one.send(two.node, half)
        await one.send(two.node, half)
        with pytest.raises(StoreError, match="full"):
            await one.send(two.node, b"x")
        heard: list[bytes] = []
        await two.receive(heard.append)
        await until(lambda: len(heard) == 2)
        for _ in range(5):
            await one.send(two.node, half)
            await until(lambda: heard.pop() == half if len(heard) > 2 else False)
        inbox = [two._keys.node(two.node, kind) for kind in ("in", "size")]

        async with asyncio.timeout(5.0):
            while await running.command("EXISTS", *inbox):
                await asyncio.sleep(0.01)


async def test_a_receiver_that_stops_in_the_middle_loses_nothing(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        heard: list[bytes] = []

        def one_only(data: bytes) -> None:
            heard.append(data)
            two._receivers.remove(one_only)

        for number in range(5):
            await one.send(two.node, b"%d" % number)
        for number in range(5):
            await two.receive(one_only)
            await until(lambda number=number: len(heard) > number)  # type: ignore[misc]
        assert heard == [b"0", b"1", b"2", b"3", b"4"]


async def test_what_was_sent_to_an_earlier_id_still_arrives(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        before = two.node
        await one.send(before, b"1")
        await two._link.call(b"ZREM", two._keys.nodes, before.encode(), key=two._keys.nodes)
        await until(lambda: two.node != before)
        await one.send(two.node, b"2")
        heard: list[bytes] = []
        await two.receive(heard.append)
        await until(lambda: len(heard) == 2)
        assert heard == [b"1", b"2"]
        await one.send(two.node, b"3")
        await until(lambda: len(heard) == 3)


async def test_a_message_is_found_at_the_next_beat_when_the_call_was_lost(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        heard: list[bytes] = []
        await two.receive(heard.append)
        await until(lambda: two._process.inbox._task is None)
        two._link.unsubscribe(two._wake)
        await one.send(two.node, b"1")
        await until(lambda: heard == [b"1"])
