"""Presence when a master goes with what it had acknowledged: whoever came and went is told of once all the same."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry
from starlette_realtime.store.redis import told
from starlette_realtime.store.redis.told import Gone
from starlette_realtime.testing import FakeClock
from starlette_realtime.testing.contract.presence import entry, names
from tests.store.redis.support import FaultyStore, processes
from tests.support.redis import BINARIES, Binary, Server, server
from tests.support.waiting import until

LONG: dict[str, Any] = {"lease": 30.0, "beat": 0.2}
SHORT: dict[str, Any] = {"lease": 1.5, "beat": 0.2, "sweep": 0.2}

__all__ = ["SHORT", "Log", "Pair", "pair"]


class Log:
    """What processes tell of who came and went."""

    def __init__(self, *stores: FaultyStore) -> None:
        self.lines: list[str] = []
        self.balance: Counter[str] = Counter()
        for store in stores:
            store.on_presence(lambda topic, joined, left: self.tell(joined, left))

    def tell(self, joined: Sequence[Entry], left: Sequence[Entry]) -> None:
        """Take it in."""
        self.lines += [f"+{one.who}" for one in joined] + [f"-{one.who}" for one in left]
        self.balance.update(one.who for one in joined)
        self.balance.subtract(one.who for one in left)

    async def enter(self, store: FaultyStore, *entries: Entry) -> None:
        """Enter, and hear who joined."""
        self.tell(await store.enter("t", entries), ())

    async def leave(self, store: FaultyStore, *connections: str) -> None:
        """Leave, and hear who left."""
        self.tell((), await store.leave("t", connections))


class Pair:
    """A master, and another one that takes over with what the first had when it was copied."""

    def __init__(self, old: Server, new: Server) -> None:
        self.old = old
        self.new = new

    async def part(self) -> None:
        """From now on nothing is replicated any more."""
        await self.new.restore(await self.old.snapshot())

    def move(self, *stores: FaultyStore) -> None:
        """The new master is the master for these processes."""
        for store in stores:
            for proxy in store.proxies.values():
                proxy.target = ("127.0.0.1", self.new.port)
                proxy.cut_links()

    async def there(self, store: FaultyStore, *, members: Sequence[str]) -> None:
        """Wait until nothing is to be mended and these are present."""

        async def found() -> bool:
            try:
                present = sorted(names((await store.members("t", limit=99)).entries))
            except StoreError:
                return False
            return present == sorted(members)

        async with asyncio.timeout(10.0):
            while not await found():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def pair(binary: Binary = BINARIES[0]) -> AsyncIterator[Pair]:
    """Two servers; processes that are made for the first come to the second by `move`."""
    async with server(binary) as old, server(binary) as new:
        yield Pair(old, new)


async def moved(*stores: FaultyStore) -> None:
    """Wait until they have looked what the new master has."""
    for store in stores:

        def looked(store: FaultyStore = store) -> bool:
            rooms = store._process.presence._rooms
            since = store._link.steady_since(store._keys.topic("t"))
            return (
                since is not None
                and all(room.steady == since for room in rooms.values() if room.mine)
                and store.gauges()["presence_mending"] == 0
                and not any(room.users for room in rooms.values())
            )

        await until(looked, within=8.0)


async def test_who_came_to_a_lost_master_is_told_once() -> None:
    async with pair() as servers, processes(servers.old, 2, **LONG) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("early"))
        await servers.part()
        await log.enter(one, entry("a"), entry("b1", "u:b"), entry("b2", "u:b"))
        servers.move(one, two)
        await servers.there(two, members=["early", "a", "b1", "b2"])
        await moved(one, two)
        assert log.lines == ["+u:early", "+u:a", "+u:b"]
        await log.leave(one, "a", "b1")
        await log.leave(one, "b2")
        assert log.balance == Counter({"u:early": 1, "u:a": 0, "u:b": 0})


async def test_who_came_to_a_lost_master_and_comes_again_is_told_once() -> None:
    async with pair() as servers, processes(servers.old, 2, lease=30.0, beat=20.0) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("a1", "u:a"))
        await servers.part()
        await log.enter(one, entry("b1", "u:b"))
        servers.move(one, two)
        await log.enter(one, entry("b2", "u:b"))  # before anybody has looked what the new one has
        assert log.lines == ["+u:a", "+u:b"]
        await log.leave(one, "b2")
        one._process.presence.refresh()
        await servers.there(two, members=["a1", "b1"])
        assert log.balance == Counter({"u:a": 1, "u:b": 1})


async def test_who_came_to_a_lost_master_and_goes_is_told_to_have_gone() -> None:
    async with pair() as servers, processes(servers.old, 2, lease=30.0, beat=20.0) as (one, two):
        log = Log(one, two)
        await log.enter(two, entry("a"))
        await servers.part()
        await log.enter(one, entry("b1", "u:b"), entry("b2", "u:b"), entry("a2", "u:a"))
        servers.move(one, two)
        await log.leave(one, "b1", "a2")
        assert log.balance["u:b"] == 1
        await log.leave(one, "b2")
        one._process.presence.refresh()
        await servers.there(two, members=["a"])
        await moved(one)
        assert log.lines == ["+u:a", "+u:b", "-u:b"]


async def test_who_came_to_a_lost_master_and_goes_while_there_is_none_is_told_to_have_gone() -> None:
    async with pair() as servers, processes(servers.old, 2, **LONG) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("a"))
        await servers.part()
        await log.enter(one, entry("b"))
        one.cut()
        with pytest.raises(StoreError):
            await log.leave(one, "b")
        servers.move(one, two)
        one.restore()
        await until(lambda: log.balance["u:b"] == 0)
        await moved(one)
        await servers.there(two, members=["a"])
        assert log.lines == ["+u:a", "+u:b", "-u:b"]


async def test_who_left_a_lost_master_is_told_once() -> None:
    async with pair() as servers, processes(servers.old, 2, **LONG) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("a"), entry("b1", "u:b"), entry("b2", "u:b"), entry("stays"))
        await log.enter(two, entry("c"))
        await servers.part()
        await log.leave(one, "a", "b1")
        await log.leave(one, "b2")
        await log.leave(two, "c")
        servers.move(one, two)
        await servers.there(two, members=["stays"])
        await moved(one, two)
        assert log.lines == ["+u:a", "+u:b", "+u:stays", "+u:c", "-u:a", "-u:b", "-u:c"]


async def test_who_left_a_lost_master_and_is_still_there_is_told_to_have_come() -> None:
    async with pair() as servers, processes(servers.old, 2, **LONG) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("a1", "u:a"))
        await servers.part()
        await log.leave(one, "a1")
        servers.move(two)
        await log.enter(two, entry("a2", "u:a"))  # it was there already, on this side
        servers.move(one)
        await servers.there(two, members=["a2"])
        await until(lambda: log.balance["u:a"] == 1)
        await log.leave(two, "a2")
        assert log.lines == ["+u:a", "-u:a", "+u:a", "-u:a"]


async def test_who_was_told_to_leave_because_another_connection_was_lost_is_told_to_come_again() -> None:
    async with pair() as servers, processes(servers.old, 2, **LONG) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("a1", "u:a"))
        await servers.part()
        await log.enter(two, entry("a2", "u:a"))  # where it came to; the first connection ends
        servers.move(one)
        await log.leave(one, "a1")
        servers.move(two)
        await servers.there(one, members=["a2"])
        await until(lambda: log.balance["u:a"] == 1)
        await log.leave(two, "a2")
        assert log.lines == ["+u:a", "-u:a", "+u:a", "-u:a"]


async def test_a_server_that_lost_everything_is_no_reason_to_tell_again() -> None:
    async with pair() as servers, processes(servers.old, 2, **LONG) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("a"), entry("b1", "u:b"), entry("b2", "u:b"))
        await log.enter(two, entry("c"))
        servers.move(one, two)
        await servers.there(two, members=["a", "b1", "b2", "c"])
        await moved(one, two)
        await log.leave(one, "a", "b1", "b2")
        assert log.lines == ["+u:a", "+u:b", "+u:c", "-u:a", "-u:b"]


async def test_who_was_declared_dead_by_the_other_side_comes_again() -> None:
    async with pair() as servers, processes(servers.old, 2, **SHORT) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("a"))
        await log.enter(two, entry("b"))
        await servers.part()
        servers.move(one)
        await until(lambda: log.balance["u:b"] == 0, within=10.0)
        two.cut()  # it has not declared the other one dead, on its own side
        servers.move(two)
        two.restore()
        await until(lambda: log.balance["u:b"] == 1)
        await servers.there(one, members=["a", "b"])
        assert [line for line in log.lines if line.endswith("b")] == ["+u:b", "-u:b", "+u:b"]


async def test_of_those_who_went_only_the_latest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "NAMES", 2)
    clock = FakeClock()
    gone = Gone(clock=clock, keep=10.0)
    for number in range(3):
        gone.add("t", entry(f"c{number}"), b"%d" % number)
    assert [gone.get("t", f"c{number}") for number in range(3)] == [None, (b"1", entry("c1")), (b"2", entry("c2"))]
    gone.discard("t", "c2")
    assert gone.get("t", "c2") is None
    await clock.advance(11.0)
    assert gone.get("t", "c1") is None
    gone.add("t", entry("c3"), b"3")
    assert gone.get("t", "c3") == (b"3", entry("c3"))
