"""A process dies, and everybody comes back at once: the store is asked a few times, and nobody misses anything."""

import asyncio

from starlette_realtime.messages import Entry
from starlette_realtime.testing import FakeClock, settle
from tests.rooms.conftest import Chat
from tests.rooms.support import World
from tests.store.remote import RemoteStore

PEOPLE = 60


def two_processes() -> tuple[World, World]:
    store = RemoteStore(clock=FakeClock())
    here, there = World(clock=store.clock, store=store), World(clock=store.clock, store=store.sibling())
    for world in (here, there):
        world.chat = Chat(world.realtime)
    return here, there


async def test_resumes_into_one_room_cost_one_read_of_its_history() -> None:
    here, there = two_processes()
    async with here, there:
        speaker = await here.enter("speaker", "chat:1")
        for number in range(PEOPLE):
            await speaker.event("say", f"{number}")
        room = here.realtime.at("chat:1")
        positions = [event.position for event in (await room.history(limit=PEOPLE)).events]
        clients = [await there.enter(f"u{number}") for number in range(PEOPLE)]
        assert isinstance(there.store, RemoteStore)
        there.store.reset()
        sent = [
            await client.command(
                "join", room="chat:1", since={"epoch": at.epoch, "offset": at.offset, "id": at.id} if at else None
            )
            for client, at in zip(clients, positions, strict=True)
        ]
        for number, client in enumerate(clients):
            joined = await client.answer(sent[number])
            assert joined["recovered"]
            assert [event["data"] for event in joined["events"]] == [
                f"{missed}" for missed in range(number + 1, PEOPLE)
            ]
        assert there.store.asked["page"] + there.store.asked["read"] <= 3
        assert there.store.asked["members"] <= 2
        await speaker.event("say", "all here?")
        for client in clients:
            assert (await client.heard())[-1] == "all here?"


async def test_joins_into_a_full_room_read_its_members_once() -> None:
    here, there = two_processes()
    async with here, there:
        await there.store.enter("chat:1", [Entry(f"c{number}", f"u:c{number}") for number in range(1_000)])
        clients = [await here.enter(f"u{number}") for number in range(PEOPLE)]
        assert isinstance(here.store, RemoteStore)
        here.store.reset()
        sent = [await client.command("join", room="chat:1") for client in clients]
        for client, number in zip(clients, sent, strict=True):
            assert (await client.answer(number))["members"]["total"] > 1_000
        assert here.store.asked["members"] == 1


async def test_who_comes_while_their_records_are_late_waits_for_them_and_reads_nothing() -> None:
    here, there = two_processes()
    async with here, there:
        await here.enter("ada", "chat:1")
        clients = [await here.enter(f"u{number}") for number in range(10)]
        assert isinstance(here.store, RemoteStore)
        late = here.store.hold_deliveries()
        here.store.reset()
        sent = [await client.command("join", room="chat:1") for client in clients]
        await settle()
        late()
        for client, number in zip(clients, sent, strict=True):
            await client.answer(number)
        assert here.store.asked["members"] == 0


async def test_those_whose_records_never_come_share_a_snapshot() -> None:
    here, there = two_processes()
    async with here, there:
        await here.enter("ada", "chat:1")
        clients = [await here.enter(f"u{number}") for number in range(10)]
        assert isinstance(here.store, RemoteStore)
        here.store.faults.drop(10)
        here.store.reset()
        sent = [await client.command("join", room="chat:1") for client in clients]
        await here.clock.advance(0.6)
        for client, number in zip(clients, sent, strict=True):
            assert (await client.answer(number))["members"]["total"] == 11
        assert here.store.asked["members"] <= 2


async def test_those_who_wait_for_a_snapshot_are_refused_together() -> None:
    here, there = two_processes()
    async with here, there:
        await here.enter("ada", "chat:1")
        clients = [await here.enter(f"u{number}") for number in range(10)]
        here.store.faults.drop(10)
        sent = [await client.command("join", room="chat:1") for client in clients]
        await settle()
        here.store.faults.stall()
        await here.clock.advance(0.5 + 2.1)
        refused = [frame for client in clients for frame in client.take("reply")]
        assert [frame["error"]["code"] for frame in refused] == ["unavailable"] * 10
        assert len(sent) == 10
        here.store.faults.resume()
        await asyncio.sleep(0)
