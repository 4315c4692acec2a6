"""Leases in Redis: who is alive, who is not, and who must not say so yet."""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, StoreError
from starlette_realtime.store.redis.lease import Every
from starlette_realtime.store.redis.mending import Mending
from starlette_realtime.testing import FakeClock
from starlette_realtime.testing.contract.presence import entry, names
from tests.store.redis.support import SHORT, processes, stores
from tests.support.redis import Server, server
from tests.support.waiting import until

LEASE, SWEEP = SHORT["lease"], SHORT["sweep"]
FROZEN = Path(__file__).with_name("frozen.py")


@pytest.mark.parametrize("periods", [{"lease": 1.0, "beat": 1.0}, {"lease": 1.0, "beat": 0.0}])
async def test_a_lease_that_no_beat_could_renew_is_refused(running: Server, periods: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="set lease > beat > 0"):
        async with stores(running, 1, **periods):
            pass


async def test_a_lease_that_would_outlive_the_tombstones_is_refused(running: Server) -> None:
    with pytest.raises(ConfigurationError, match="300 seconds at most"):
        async with stores(running, 1, lease=301.0):
            pass


async def test_a_process_is_judged_by_its_own_lease_and_not_by_that_of_another(running: Server) -> None:
    async with AsyncExitStack() as stack:
        prefix = uuid4().hex
        (hasty,) = await stack.enter_async_context(processes(running, 1, prefix=prefix, lease=0.6, beat=0.2))
        (calm,) = await stack.enter_async_context(processes(running, 1, prefix=prefix, lease=8.0, beat=3.0))
        told = list[str]()
        hasty.on_presence(lambda topic, joined, left: told.extend(entry.connection for entry in left))
        await calm.enter("t", [entry("a")])
        ages = list[float]()
        while max(ages, default=0.0) < 0.6 + 4 * SWEEP:  # silent for longer than the other one's lease, and looked at
            ages.extend(node.age for node in await hasty.nodes() if node.id == calm.node)
            assert await hasty._process.lease.dead([calm.node]) == []
            await asyncio.sleep(0.05)
        assert told == []
        assert names((await hasty.members("t", limit=9)).entries) == ("a",)


async def test_a_beat_that_the_server_refuses_makes_another_process_of_it(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        node, told = one.node, list[str]()
        one.on_presence(lambda topic, joined, left: told.append(topic))
        await one.enter("t", [entry("a")])
        await two._link.call(b"ZREM", two._keys.nodes, node.encode(), key=two._keys.nodes)
        await until(lambda: one.node != node)
        await until(lambda: one.gauges()["presence_mending"] == 0)
        assert {each.id for each in await two.nodes()} == {one.node, two.node}
        assert names((await two.members("t", limit=9)).entries) == ("a",)
        assert told == []  # it was there all the time
        assert names(await one.leave("t", ["a"])) == ("a",)


async def test_nobody_is_declared_dead_after_the_server_was_away_for_a_while() -> None:
    async with server() as own, processes(own, 3) as stores_:
        told = list[str]()
        for number, store in enumerate(stores_):
            store.on_presence(lambda topic, joined, left: told.append(topic))
            await store.enter("t", [entry(f"c{number}")])
        before = {store.node for store in stores_}
        await own.save()
        await own.kill()
        await asyncio.sleep(LEASE + SWEEP)  # all leases are over by the server's time
        await own.start()
        await until(lambda: not before & {store.node for store in stores_}, within=10.0)
        await until(lambda: all(store.gauges()["presence_mending"] == 0 for store in stores_))
        members = await stores_[0].members("t", limit=9)
        assert sorted(names(members.entries)) == ["c0", "c1", "c2"]

        async def cleared() -> None:
            while await stores_[0]._process.lease.known() & before:
                await asyncio.sleep(0.05)

        await asyncio.wait_for(cleared(), LEASE * 2 + SWEEP * 4 + 3.0)
        assert (await stores_[0].members("t", limit=9)).entries == members.entries
        assert told == []


async def test_nobody_is_declared_dead_by_a_server_that_was_frozen(running: Server) -> None:
    async with server() as own, processes(own, 3) as stores_:
        told = list[str]()
        for number, store in enumerate(stores_):
            store.on_presence(lambda topic, joined, left: told.append(topic))
            await store.enter("t", [entry(f"c{number}")])
        before = {store.node for store in stores_}
        own.pause()
        await asyncio.sleep(LEASE + SWEEP)
        own.resume()
        await until(lambda: not before & {store.node for store in stores_}, within=10.0)
        await until(lambda: all(store.gauges()["presence_mending"] == 0 for store in stores_))
        assert sorted(names((await stores_[0].members("t", limit=9)).entries)) == ["c0", "c1", "c2"]
        assert told == []


async def test_a_process_that_has_just_begun_declares_nobody_dead(running: Server) -> None:
    async with AsyncExitStack() as stack:
        (dead,) = await stack.enter_async_context(processes(running, 1))
        await dead.enter("t", [entry("a")])
        dead.cut()
        await asyncio.sleep(LEASE + SWEEP)
        (late,) = await stack.enter_async_context(processes(running, 1, prefix=dead._keys.prefix))
        began = late.clock.now()
        left = list[float]()
        late.on_presence(lambda topic, joined, left_: left.append(late.clock.now()))
        assert (await late.members("t", limit=9)).total == 1
        assert {node.id for node in await late.nodes()} == {late.node}
        await until(lambda: left, within=LEASE + SWEEP + 3.0)
        assert left[0] - began >= LEASE * 0.9


async def test_only_who_is_certainly_not_alive_is_dead(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        lease = one._process.lease
        assert await lease.dead([two.node, "gone"]) == ["gone"]
        # Within a second of the last look a process may have come that it did not see.
        assert await lease.dead([two.node, "new"]) == []
        await asyncio.sleep(1.0)
        assert await lease.dead(["new", two.node]) == ["new"]


async def test_a_frozen_process_writes_nothing_under_its_old_id(running: Server) -> None:
    async with processes(running, 1, prefix=uuid4().hex) as (one,):
        told = list[tuple[int, int]]()
        one.on_presence(lambda topic, joined, left: told.append((len(joined), len(left))))
        records = one._keys.topic("t") + b":pe"
        frozen = await asyncio.create_subprocess_exec(
            sys.executable,
            str(FROZEN),
            running.url,
            one._keys.prefix,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        assert frozen.stdin is not None
        assert frozen.stdout is not None
        try:

            async def line() -> list[str]:
                assert frozen.stdout is not None
                async with asyncio.timeout(15.0):
                    return (await frozen.stdout.readline()).decode().split()

            first = (await line())[1]

            async def owners() -> set[str]:
                found = await one._link.call(b"HVALS", records, key=records)
                return {value.split(b" ")[0].decode() for value in found}

            async def until_owned(by: set[str]) -> None:
                async with asyncio.timeout(LEASE + SWEEP + 10.0):
                    while await owners() != by:
                        await asyncio.sleep(0.005)

            await until_owned({first})
            frozen.send_signal(signal.SIGSTOP)
            await until_owned(set())
            assert told == [(0, 1)]
            frozen.send_signal(signal.SIGCONT)
            answer = await line()
            while answer[0] != "node":
                answer = await line()
            second = answer[1]
            assert second != first
            seen = set[str]()
            async with asyncio.timeout(10.0):
                while seen != {second} or (await one.members("t", limit=0)).total < 5:
                    seen |= await owners()
                    assert first not in seen
            frozen.stdin.close()
            assert await asyncio.wait_for(frozen.wait(), 10.0) == 0
            assert (await one.members("t", limit=0)).total == 0
        finally:
            if frozen.returncode is None:
                frozen.kill()
                await frozen.wait()


async def test_nothing_piles_up_that_is_done_again_and_again() -> None:
    clock = FakeClock()
    going, running_now, most = asyncio.Event(), 0, 0

    async def slow() -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        try:
            await going.wait()
        finally:
            running_now -= 1

    every = Every(1.0, slow, clock)
    every.start()
    for _ in range(10):
        await clock.advance(1.0)
    assert (running_now, most) == (1, 1)
    going.set()
    await until(lambda: running_now == 0)
    going.clear()
    await clock.advance(1.0)
    assert running_now == 1
    await every.stop()
    assert (running_now, clock.timers) == (0, 0)


async def test_what_is_done_again_and_again_survives_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    clock, calls = FakeClock(), list[int]()

    async def fail() -> None:
        calls.append(1)
        raise StoreError("away") if len(calls) % 2 else RuntimeError("a fault")

    every = Every(1.0, fail, clock)
    every.start()
    for count in range(1, 5):
        await clock.advance(1.0)
        assert len(calls) == count
    await every.stop()
    assert [record.levelname for record in caplog.records if record.levelname == "ERROR"] == ["ERROR"] * 2


async def test_what_could_not_be_mended_is_tried_again() -> None:
    clock, away, mended = FakeClock(), {"b"}, list[str]()

    async def mend(name: str) -> None:
        if name in away:
            raise StoreError("away")
        mended.append(name)

    mending = Mending(mend, clock=clock, retry=1.0)
    mending.soon(["a", "b", "c"])
    await until(lambda: len(mended) == 2)
    mending.soon(["d"])
    await clock.advance(0.5)
    assert (mended, len(mending)) == (["a", "c"], 2)
    away.clear()
    await clock.advance(0.5)
    await until(lambda: len(mended) == 4)
    assert (mended, len(mending), clock.timers) == (["a", "c", "b", "d"], 0, 0)


async def test_a_fault_in_mending_is_logged_and_is_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    mended = list[str]()

    async def mend(name: str) -> None:
        if name == "a":
            raise RuntimeError("a fault")
        mended.append(name)

    mending = Mending(mend, clock=Clock(), retry=1.0)
    mending.soon(str(number) for number in range(20))
    mending.soon(["a", "z"])
    await until(lambda: len(mended) == 21)
    assert [record.levelname for record in caplog.records if record.name.startswith("starlette_realtime")] == ["ERROR"]
    await mending.end()


async def test_mending_ends_in_the_middle() -> None:
    never, clock = asyncio.Event(), FakeClock()

    async def mend(name: str) -> None:
        await never.wait()

    mending = Mending(mend, clock=clock, retry=1.0)
    mending.soon(["a"])
    await asyncio.sleep(0)
    mending.soon(["b"])
    await mending.end()
    assert (len(mending), clock.timers) == (0, 0)
    mending.soon(["c"])
    await mending.end()


async def test_a_process_that_ends_after_its_lease_takes_no_other(running: Server) -> None:
    async with processes(running, 1) as (one,):
        async with stores(running, 1, prefix=one._keys.prefix) as (late,), late:
            await late.enter("t", [entry("a")])
            node, left = late.node, list[str]()
            one.on_presence(lambda topic, joined, gone: left.extend(names(gone)))
            late._process.lease.missed(node)
        assert late.node == node
        await until(lambda: left == ["a"], within=LEASE + SWEEP + 3.0)
        assert {each.id for each in await one.nodes()} == {one.node}
