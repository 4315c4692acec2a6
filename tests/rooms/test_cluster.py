"""What all processes together know: connections of a user, those in a room, counts; and who did not answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from starlette_realtime import History, MemoryStore, Realtime, RoomRouter, StoreError, Unavailable
from starlette_realtime.messages import ConnectionInfo, Entry, ProcessCounts
from starlette_realtime.rooms.census import ANSWER, ANSWER_BYTES, OPEN, Census
from starlette_realtime.store import PROCESSES
from starlette_realtime.testing import FakeClock, settle
from tests.rooms.support import World


def declare(realtime: Realtime) -> None:
    realtime.room("chat:{room_id:int}", presence=True)
    realtime.room("quiet")


@asynccontextmanager
async def processes(count: int) -> AsyncIterator[Sequence[World]]:
    """So many processes on one store and one clock."""
    clock = FakeClock()
    first = MemoryStore(clock=clock)
    async with AsyncExitStack() as stack:
        worlds = []
        for number in range(count):
            world = World(clock=clock, store=first if number == 0 else first.sibling())
            declare(world.realtime)
            worlds.append(await stack.enter_async_context(world))
        yield worlds


async def test_a_users_connections_are_found_on_all_processes() -> None:
    async with processes(3) as (one, two, three):
        first = await one.enter("ann", "chat:1")
        await one.clock.advance(2.0)
        second = await two.enter("ann", "chat:2", "quiet")
        await three.enter("bob", "chat:1")
        found = await three.realtime.connections_of("ann")
        at = 1_800_000_000_000
        assert sorted(found.connections, key=lambda connection: connection.since) == [
            ConnectionInfo(first.id, one.store.node, "ann", at, ("chat:1",)),
            ConnectionInfo(second.id, two.store.node, "ann", at + 2_000, ("chat:2", "quiet")),
        ]
        assert (found.total, found.missing) == (2, ())
        assert (await one.realtime.connections_of("eve")).total == 0


async def test_the_connections_in_a_room_are_found_without_presence_too() -> None:
    async with processes(2) as (one, two):
        ann, bob = await one.enter("ann", "quiet"), await two.enter("bob", "quiet")
        await two.enter("eve", "chat:1")
        found = await two.realtime.at("quiet").connections()
        assert {connection.connection for connection in found.connections} == {ann.id, bob.id}
        assert found.total == 2
        few = await two.realtime.at("quiet").connections(limit=0)
        assert (few.connections, few.total) == ((), 2)


async def test_everything_is_counted_by_process() -> None:
    async with processes(2) as (one, two):
        for user, rooms in (("ann", ("chat:1", "chat:2")), ("ann", ("chat:1",)), ("bob", ())):
            await one.enter(user, *rooms)
        await two.enter("ann", "chat:1")
        counts = await one.realtime.count()
        assert counts.connections == 4
        assert counts.processes == {one.store.node: ProcessCounts(3, 2, 2), two.store.node: ProcessCounts(1, 1, 1)}
        assert counts.missing == ()
        assert counts == msgspec.structs.replace(await two.realtime.count(), processes=counts.processes)
        assert {node.id for node in await two.realtime.nodes()} == {one.store.node, two.store.node}


async def test_who_closes_is_counted_no_more() -> None:
    async with processes(2) as (one, two):
        ann = await one.enter("ann")
        ann.peer.stall()
        await two.realtime.disconnect_user("ann")
        await settle()
        assert (await two.realtime.count()).connections == 0


async def test_a_process_alone_asks_nobody() -> None:
    async with processes(1) as (one,):
        await one.enter("ann")
        before = one.clock.now()
        assert (await one.realtime.count()).connections == 1
        assert one.clock.now() == before


async def test_a_frozen_process_is_named_and_a_dead_one_is_asked_until_its_lease_is_over() -> None:
    async with processes(3) as (one, frozen, dead):
        for world in (one, frozen, dead):
            await world.enter("ann")
        frozen.store.faults.stall()
        dead.store.faults.kill()
        asking = asyncio.ensure_future(one.realtime.connections_of("ann"))
        await one.clock.advance(0.9)
        assert not asking.done()
        await one.clock.advance(0.2)
        found = await asking
        assert [connection.node for connection in found.connections] == [one.store.node]
        assert (found.total, set(found.missing)) == (1, {frozen.store.node, dead.store.node})
        asking_briefly = asyncio.ensure_future(one.realtime.count(timeout=0.1))
        await one.clock.advance(0.1)
        assert set((await asking_briefly).missing) == set(found.missing)
        frozen.store.faults.resume()
        await one.clock.advance(20.0)
        found = await one.realtime.connections_of("ann")
        assert {connection.node for connection in found.connections} == {one.store.node, frozen.store.node}
        assert found.missing == ()
        assert {node.id for node in await one.realtime.nodes()} == {one.store.node, frozen.store.node}


async def test_a_process_that_missed_its_lease_is_known_by_its_new_name() -> None:
    async with processes(2) as (one, two):
        await two.enter("ann")
        before = two.store.node
        two.store.faults.stall()
        await one.clock.advance(20.0)
        assert (await one.realtime.count()).missing == ()
        two.store.faults.resume()
        await one.clock.advance(6.0)
        assert two.store.node != before
        (found,) = (await one.realtime.connections_of("ann")).connections
        assert found.node == two.store.node
        await settle()
        two.store.faults.stall()
        asking = asyncio.ensure_future(one.realtime.count())
        await one.clock.advance(1.0)
        assert (await asking).missing == (two.store.node,)


async def test_who_stops_in_order_is_not_asked() -> None:
    async with processes(1) as (one,):
        other = World(clock=one.clock, store=one.store.sibling())
        async with other:
            assert len((await one.realtime.count()).processes) == 2
        counts = await one.realtime.count()
        assert (len(counts.processes), counts.missing) == (1, ())
        assert len((await one.store.members(PROCESSES, limit=10)).entries) == 1


async def test_a_store_that_is_used_for_something_else_is_not_waited_for() -> None:
    async with processes(1) as (one,), one.store.sibling():
        assert (await one.realtime.count()).missing == ()
        assert len(await one.realtime.nodes()) == 2


async def test_two_routers_in_one_process_are_one_process() -> None:
    async with processes(1) as (one,):
        await one.enter("ann")
        second = World(clock=one.clock, store=one.store)
        async with second:
            await second.enter("ann")
            counts = await one.realtime.count()
            assert counts.processes == {one.store.node: ProcessCounts(2, 2, 0)}
            assert (await second.realtime.connections_of("ann")).total == 2


async def test_when_the_store_is_away_it_is_unavailable() -> None:
    async with processes(2) as (one, _):
        one.store.faults.stall()
        for ask in (one.realtime.count(), one.realtime.connections_of("ann"), one.realtime.nodes()):
            asking = asyncio.ensure_future(ask)
            await one.clock.advance(3.0)
            with pytest.raises(Unavailable):
                await asking


async def test_what_cannot_be_read_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async with processes(2) as (one, two):
        await two.enter("ann")
        for data in (b"no json", b'{"id":1}', b'{"id":"\xff"}'):
            await one.store.publish_volatile(PROCESSES, data)
        await one.store.publish(PROCESSES, b"{", history=History())
        assert (await one.realtime.count()).connections == 1  # and it listens to answers from now on
        for data in (
            b"something else",
            ANSWER + b"no json",
            ANSWER + b'{"question":"q","process":"p","node":1}',
            ANSWER + b'"\xff',
        ):
            await two.store.send(one.store.node, data)
        await settle()
        assert (await one.realtime.count()).connections == 1
    assert "could not be read" in caplog.text
    assert "Traceback" not in caplog.text


async def test_an_answer_counts_once_and_only_for_its_question() -> None:
    async with processes(2) as (one, two):
        await two.enter("ann")
        two.store.faults.duplicate(1)
        assert (await one.realtime.count()).connections == 1
        late = b'{"question":"over","process":"p","node":"n","total":7}'
        await two.store.send(one.store.node, ANSWER + late)
        await settle()
        assert (await one.realtime.count()).connections == 1


async def test_only_so_many_questions_are_open() -> None:
    async with processes(2) as (one, two):
        two.store.faults.stall()
        asking = [asyncio.ensure_future(one.realtime.count()) for _ in range(OPEN)]
        await settle()
        with pytest.raises(Unavailable, match="are open"):
            await one.realtime.count()
        await one.clock.advance(1.0)
        assert {(await each).missing for each in asking} == {(two.store.node,)}


async def test_who_stops_while_it_answers_does_so_in_order() -> None:
    async with processes(1) as (one,):
        other = World(clock=one.clock, store=one.store.sibling())
        async with other:
            asking = asyncio.ensure_future(one.realtime.count())
            other.store.faults.stall()
            await settle()
            other.store.faults.resume()
        await one.clock.advance(1.0)
        assert (await asking).connections == 0


async def test_only_so_many_questions_are_answered_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with processes(2) as (one, two):
        for number in range(OPEN + 1):
            question = {"id": str(number), "asker": "somebody", "node": "nowhere"}
            await one.store.publish_volatile(PROCESSES, msgspec.json.encode(question))
        await settle()
        assert caplog.text.count("one is not answered") == 2
        assert caplog.text.count("was not answered: there is no process nowhere") == 2 * OPEN
        assert (await two.realtime.count()).missing == ()


async def test_who_stops_while_the_store_is_away_waits_no_longer_than_it() -> None:
    async with processes(1) as (one,):
        store = one.store.sibling()
        async with store:
            census = Census(store, one.clock, connections=list)
            await census.__aenter__()
            question = {"id": "1", "asker": "somebody", "node": one.store.node}
            await one.store.publish_volatile(PROCESSES, msgspec.json.encode(question))
            store.faults.stall()
            await settle()
            stopping = asyncio.ensure_future(census.__aexit__(None, None, None))
            await one.clock.advance(4.0)
            assert stopping.done()
            store.faults.resume()
            await one.clock.advance(5.0)
        assert len((await one.store.members(PROCESSES, limit=10)).entries) == 1


async def test_who_cannot_say_that_it_is_there_does_not_start() -> None:
    class Full(MemoryStore):
        async def enter(self, topic: str, entries: Sequence[Entry]) -> tuple[Entry, ...]:
            raise StoreError("full")

    store = Full(clock=FakeClock())
    world = World(clock=store.clock, store=store)
    with pytest.raises(StoreError, match="full"):
        await world.realtime.__aenter__()
    assert store.gauges()["subscribers"] == 0
    assert world.store.gauges()["nodes"] == 0


async def test_a_process_that_does_not_say_its_name_is_named_all_the_same() -> None:
    async with processes(1) as (one,), one.store.sibling() as other:
        unreadable = Entry("another", "n:another", meta=msgspec.Raw(b'"\xff"'))
        await other.enter(PROCESSES, (Entry("somebody", "n:somebody"), unreadable))
        asking = asyncio.ensure_future(one.realtime.count())
        await one.clock.advance(1.0)
        assert sorted((await asking).missing) == ["another", "somebody"]


async def test_a_router_as_middleware_answers_too() -> None:
    async with processes(1) as (one,):
        router = RoomRouter(path="/rooms", store=one.store.sibling(), clock=one.clock, secret="x" * 32)
        async with router:
            assert len((await router.count()).processes) == 2


class Crowd:
    """So many connections as a census sees them."""

    def __init__(self, count: int, rooms: Sequence[str]) -> None:
        self.connections = [_Seat(f"c{number}", rooms, float(number)) for number in range(count)]


class _Seat:
    closed = False
    user = "ann"

    def __init__(self, id: str, rooms: Sequence[str], opened: float) -> None:
        self.id, self.rooms, self.opened = id, dict.fromkeys(rooms), opened


@pytest.mark.parametrize(("count", "rooms", "least", "most"), [(1_500, 1, 1_000, 1_000), (900, 40, 20, 100)])
async def test_an_answer_is_bounded(count: int, rooms: int, least: int, most: int) -> None:
    async with processes(1) as (one,):
        crowd = Crowd(count, [f"{number:0>64}" for number in range(rooms)])
        store = one.store.sibling()
        census = Census(store, one.clock, connections=lambda: crowd.connections)  # type: ignore[arg-type,return-value]
        async with store, census:
            found = await one.realtime.connections_of("ann", limit=5_000)
            assert found.total == count
            assert least <= len(found.connections) <= most
            assert len(msgspec.json.encode(found)) < 2 * ANSWER_BYTES
            assert [connection.connection for connection in found.connections[:2]] == ["c0", "c1"]
