"""The store is away: clients are told, commands are refused for now, and what is owed is made up for."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from starlette_realtime import MemoryStore, Unavailable
from starlette_realtime.testing import FakeClock, settle
from tests.rooms.conftest import Chat
from tests.rooms.support import Client, Failed, World
from tests.store.remote import RemoteStore


async def refused(world: World, client: Client, kind: str, **fields: Any) -> Failed:
    """The error of a command that the store's time limit ends."""
    number = await client.command(kind, **fields)
    await world.clock.advance(2.1)
    with pytest.raises(Failed) as failed:
        await client.answer(number)
    return failed.value


async def test_members_are_told_that_the_store_is_away_and_back(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    world.store.faults.stall()
    await world.clock.advance(1.9)
    assert ada.take() == []
    await world.clock.advance(0.3)
    assert {frame["room"] for frame in ada.take("stale")} == {"chat:1", "user:ada"}
    world.store.faults.resume()
    await world.clock.advance(3.0)
    assert {frame["room"] for frame in ada.take("fresh")} == {"chat:1", "user:ada"}
    await ada.event("say", "on we go")
    assert await ada.heard() == ["on we go"]


async def test_what_others_published_meanwhile_comes_before_fresh() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    here, there = World(clock=clock, store=store), World(clock=clock, store=store.sibling())
    for world in (here, there):
        world.chat = Chat(world.realtime)
    async with here, there:
        ada, bob = await here.enter("ada", "chat:1"), await there.enter("bob", "chat:1")
        here.store.faults.stall()
        await clock.advance(3.0)
        assert await bob.event("say", "one") == 1
        assert await bob.event("say", "two") == 2
        here.store.faults.resume()
        await clock.advance(3.0)
        kinds = [frame["data"] if frame["type"] == "event" else frame["type"] for frame in ada.take()]
        kinds = [kind for kind in kinds if kind != "presence"]
        assert kinds.index("one") < kinds.index("two")
        assert "stale" in kinds
        assert "fresh" in kinds


async def test_commands_are_refused_for_now_and_the_connection_lives(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    before = {**world.realtime.gauges()}
    world.store.faults.stall()
    for kind, fields in (
        ("join", {"room": "chat:2"}),
        ("event", {"room": "chat:1", "event": "say", "data": "lost?"}),
        ("event", {"room": "chat:1", "event": "wave", "data": "lost"}),
        ("history", {"room": "chat:1"}),
        ("status", {"room": "chat:1", "status": "away"}),
    ):
        failed = await refused(world, ada, kind, **fields)
        assert failed.code == "unavailable"
        assert failed.error["retry_after"] > 0
    world.store.faults.resume()
    await world.clock.advance(70.0)
    assert ada.peer.closed is None
    await ada.event("say", "on we go")
    await ada.join("chat:2")
    await ada.call("leave", room="chat:2")
    await world.clock.advance(70.0)
    after = world.realtime.gauges()
    different = {name for name in after if after[name] != before[name]}
    assert different <= {"store.publications", "store.publication_bytes", "store.timers"}


async def test_who_connects_meanwhile_is_told_to_come_back(world: World) -> None:
    world.store.faults.stall()
    client = await world.client().__aenter__()
    await client.command("auth", token="ada")
    await world.clock.advance(2.1)
    closed = await client.closed()
    assert closed.code == 1013
    world.store.faults.resume()
    await world.enter("ada", "chat:1")


async def test_members_who_leave_meanwhile_leave_when_the_store_is_back(world: World) -> None:
    ada, bob, eve = [await world.enter(user, "chat:1") for user in ("ada", "bob", "eve")]
    world.store.faults.stall()
    await bob.peer.disconnect()
    await eve.peer.lose()
    leaving = await ada.command("leave", room="chat:1")
    await world.clock.advance(8.0)
    world.store.faults.resume()
    await world.clock.advance(8.0)
    await settle()
    assert await ada.answer(leaving) == {}
    assert world.entries == 0
    assert sorted(world.chat.departures) == ["ada", "bob", "eve"]


async def test_a_failed_leave_still_stops_what_the_member_hears(world: World) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
    world.store.faults.stall()
    await ada.command("leave", room="chat:1")
    await world.clock.advance(3.0)
    world.store.faults.resume()
    await world.clock.advance(3.0)
    await bob.event("say", "alone")
    assert "alone" not in await ada.heard()


async def test_a_frozen_process_comes_back_with_its_members() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    here, there = World(clock=clock, store=store), World(clock=clock, store=store.sibling())
    for world in (here, there):
        world.chat = Chat(world.realtime)
    async with here, there:
        ada, bob = await here.enter("ada", "chat:1"), await there.enter("bob", "chat:1")
        here.store.faults.stall()
        await clock.advance(30.0)
        members = await bob.call("members", room="chat:1")
        assert [member["user"] for member in members["list"]] == ["bob"]
        here.store.faults.resume()
        await clock.advance(10.0)
        members = await bob.call("members", room="chat:1")
        assert sorted(member["user"] for member in members["list"]) == ["ada", "bob"]
        assert here.chat.arrivals == ["ada", "ada"]
        assert sorted(here.chat.departures + there.chat.departures) == ["ada"]
        await bob.event("say", "welcome back")
        assert "welcome back" in await ada.heard()


async def test_an_answer_that_was_lost_is_repeated_with_the_same_key(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    world.store.faults.unanswered(1)
    with pytest.raises(Failed) as failed:
        await ada.event("say", "once", key="k")
    assert failed.value.code == "unavailable"
    assert await ada.event("say", "once", key="k") == 1
    assert await ada.heard() == ["once"]


async def test_a_shutdown_while_the_store_is_away_ends_and_leaves_no_task() -> None:
    clock = FakeClock()
    world = World(clock=clock, store=MemoryStore(clock=clock))
    world.chat = Chat(world.realtime)
    tasks = asyncio.all_tasks()
    await world.realtime.__aenter__()
    await world.enter("ada", "chat:1")
    bob = await world.enter("bob", "chat:1")
    world.store.faults.stall()
    await bob.peer.lose()
    await clock.advance(7.0)
    stopping = asyncio.ensure_future(world.realtime.__aexit__(None, None, None))
    await clock.advance(30.0)
    assert stopping.done()
    await stopping
    assert asyncio.all_tasks() == tasks
    assert world.realtime.gauges()["tasks"] == 0


async def test_what_could_not_be_published_is_heard_by_nobody_until_it_is(world: World) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
    world.store.faults.stall()
    failed = await refused(world, ada, "event", room="chat:1", event="say", data="hello", key="k")
    assert failed.code == "unavailable"
    assert await bob.heard() == []
    world.store.faults.resume()
    await world.clock.advance(3.0)
    assert await bob.heard() == []
    await ada.event("say", "hello", key="k")
    assert await bob.heard() == ["hello"]


async def test_the_servers_own_publications_are_refused_in_time(world: World) -> None:
    await world.enter("ada", "chat:1")
    room = world.realtime.at("chat:1")
    world.store.faults.stall()
    calls = [
        asyncio.ensure_future(call)
        for call in (
            room.broadcast("said", "x"),
            room.broadcast_volatile("waved", "x"),
            room.send_to("nobody", "said", "x"),
            room.history(),
            room.members(),
            world.realtime.send_to_user("ada", "said", "x"),
            room.kick(user="eve"),
        )
    ]
    await world.clock.advance(2.1)
    for call in calls:
        with pytest.raises(Unavailable):
            await call


async def test_a_resume_is_refused_and_brings_everything_when_it_is_repeated(world: World) -> None:
    bob = await world.enter("bob", "chat:1")
    await bob.event("say", "heard")
    await settle()
    position = bob.take("event")[-1]["position"]
    await bob.peer.lose()
    await world.realtime.at("chat:1").broadcast("said", "missed")
    again = await world.enter("bob")
    world.store.faults.stall()
    failed = await refused(world, again, "join", room="chat:1", since=position)
    assert failed.code == "unavailable"
    assert failed.error["retry_after"] > 0
    world.store.faults.resume()
    await world.clock.advance(3.0)
    joined = await again.join("chat:1", since=position)
    assert (joined["recovered"], [event["data"] for event in joined["events"]]) == (True, ["missed"])


async def test_who_resumes_a_joined_room_meanwhile_keeps_it_or_is_sent_back_with_a_word(world: World) -> None:
    bob = await world.enter("bob", "chat:1")
    await bob.event("say", "heard")
    await settle()
    position = bob.take("event")[-1]["position"]
    world.store.faults.stall()
    await bob.command("join", room="chat:1", since=position)
    await world.clock.advance(2.1)
    closed = await bob.closed()
    assert closed.code == 4441  # what it holds back meanwhile is lost to it: it comes back and resumes


async def test_presence_is_frozen_and_told_to_be_stale(world: World) -> None:
    clock = world.clock
    other = World(clock=clock, store=world.store.sibling())
    other.chat = Chat(other.realtime)
    async with other:
        ada, bob = await world.enter("ada", "chat:1"), await other.enter("bob", "chat:1")
        await clock.advance(1.0)
        ada.take()
        other.store.faults.stall()
        world.store.faults.stall()
        await bob.peer.disconnect()
        await clock.advance(1.0)
        members = await ada.call("members", room="chat:1")
        assert members["total"] == 2
        await clock.advance(1.5)
        assert [frame["room"] for frame in ada.take("stale") if frame["room"] == "chat:1"] == ["chat:1"]
        failed = await refused(world, ada, "members", room="chat:1")
        assert failed.code == "unavailable"
        assert ada.take("presence") == []
        world.store.faults.resume()
        other.store.faults.resume()
        await clock.advance(8.0)
        assert (await ada.call("members", room="chat:1"))["total"] == 1
        assert ada.take("fresh")


async def test_a_second_device_of_a_user_who_is_there_is_not_let_in_on_memory_alone(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    world.store.faults.stall()
    await world.clock.advance(3.0)
    second = await world.client().__aenter__()
    await second.command("auth", token="ada")
    await world.clock.advance(2.1)
    closed = await second.closed()
    assert closed.code == 1013
    assert [frame["code"] for frame in second.take("error")] == ["unavailable"]
    assert second.log[-1]["retry_after"] > 0
    assert ada.peer.closed is None


async def test_a_refresh_meanwhile_keeps_the_connection_and_its_rooms(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    world.store.faults.stall()
    await ada.call("auth", token="ada")
    await world.clock.advance(3.0)
    assert ada.peer.closed is None
    world.store.faults.resume()
    await world.clock.advance(3.0)
    await ada.event("say", "still here")
    assert await ada.heard() == ["still here"]


async def test_a_kick_meanwhile_removes_who_is_here_and_says_that_it_may_not_be_everywhere(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    world.store.faults.stall()
    kicking = asyncio.ensure_future(world.realtime.at("chat:1").kick(user="ada"))
    await settle()
    assert [frame["room"] for frame in ada.take("left")] == ["chat:1"]
    await world.clock.advance(2.1)
    with pytest.raises(Unavailable):
        await kicking


class TestAStoreOnAServer:
    """The same, where those who join may be answered from memory."""

    @pytest.fixture
    async def world(self) -> AsyncIterator[World]:
        world = World(store=RemoteStore(clock=FakeClock()))
        world.clock = world.store.clock
        world.chat = Chat(world.realtime)
        async with world:
            yield world

    async def test_joins_are_refused_while_it_is_away(self, world: World) -> None:
        ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob")
        world.store.faults.stall()
        for number in ("1", "2"):
            failed = await refused(world, bob, "join", room=f"chat:{number}")
            assert failed.code == "unavailable"
        world.store.faults.resume()
        await world.clock.advance(3.0)
        await bob.join("chat:1")
        await ada.event("say", "on we go")
        assert await bob.heard() == ["on we go"]

    async def test_resumes_are_refused_while_it_is_away_and_exact_afterwards(self, world: World) -> None:
        speaker, bob = await world.enter("ada", "chat:1"), await world.enter("bob")
        for text in ("1", "2", "3"):
            await speaker.event("say", text)
        await settle()
        first = speaker.take("event")[0]["position"]
        world.store.faults.stall()
        await world.clock.advance(3.0)
        failed = await refused(world, bob, "join", room="chat:1", since=first)
        assert failed.code == "unavailable"
        world.store.faults.resume()
        await world.clock.advance(3.0)
        joined = await bob.join("chat:1", since=first)
        assert [event["data"] for event in joined["events"]] == ["2", "3"]
