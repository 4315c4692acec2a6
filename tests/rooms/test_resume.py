"""Resuming: exactly what was missed, or the plain word that something is lost."""

import asyncio
from typing import Any

import pytest

from starlette_realtime import History, Member, Position, Realtime, RoomsOptions
from starlette_realtime.testing import settle
from tests.rooms.support import Client, World, connection_options, serving


async def publish(world: World, *numbers: Any, room: str = "chat:1") -> None:
    for number in numbers:
        await world.realtime.at(room).broadcast("said", number)


async def resume(world: World, position: Any, **fields: Any) -> tuple[Client, Any]:
    client = await world.enter("bob", **fields)
    return client, await client.join("chat:1", since=position)


def data(joined: Any) -> list[Any]:
    return [event["data"] for event in joined["events"]]


async def leave_at(world: World, *numbers: Any) -> Any:
    """Publish, and tell the position of somebody who heard all of it and then lost the connection."""
    client = await world.enter("bob", "chat:1")
    await publish(world, *numbers)
    await settle()
    position = client.take("event")[-1]["position"]
    await client.peer.lose()
    return position


async def test_a_resume_brings_exactly_what_was_missed_and_then_what_follows(world: World) -> None:
    position = await leave_at(world, 1, 2)
    await publish(world, 3, 4, 5)
    client, joined = await resume(world, position)
    assert joined["recovered"] is True
    assert "reason" not in joined
    assert data(joined) == [3, 4, 5]
    assert joined["position"] == joined["events"][-1]["position"]
    assert all(event["room"] == "chat:1" for event in joined["events"])
    await publish(world, 6)
    assert await client.heard() == [6]


async def test_a_resume_without_a_miss_is_a_recovery_too(world: World) -> None:
    position = await leave_at(world, 1)
    _, joined = await resume(world, position)
    assert (joined["recovered"], data(joined), joined["position"]) == (True, [], position)


async def test_a_resume_before_the_first_event_works(world: World) -> None:
    client = await world.enter("bob")
    position = (await client.join("chat:1"))["position"]
    assert position["offset"] == 0
    await client.peer.lose()
    await publish(world, 1)
    _, joined = await resume(world, position)
    assert (joined["recovered"], data(joined)) == (True, [1])


async def test_a_join_without_a_position_starts_where_the_room_is(world: World) -> None:
    await publish(world, 1, 2)
    client = await world.enter("bob")
    joined = await client.join("chat:1")
    assert (joined["recovered"], data(joined), joined["position"]["offset"]) == (False, [], 2)
    assert "reason" not in joined


@pytest.mark.parametrize(
    ("reason", "break_it"),
    [
        ("forgotten", lambda world: world.store.faults.lose("chat:1")),
        ("rewound", lambda world: world.store.faults.rewind("chat:1", 2)),
    ],
)
async def test_a_position_that_is_no_more_is_told_with_the_reason(world: World, reason: str, break_it: Any) -> None:
    position = await leave_at(world, 1, 2)
    break_it(world)
    await publish(world, "a", "b", "c")
    client, joined = await resume(world, position)
    assert (joined["recovered"], joined["reason"], data(joined)) == (False, reason, [])
    await publish(world, "d")
    assert await client.heard() == ["d"]
    assert client.log[-1]["position"]["offset"] == joined["position"]["offset"] + 1


async def test_a_position_that_reuses_an_offset_is_not_taken_for_the_same(world: World) -> None:
    position = await leave_at(world, 1, 2, 3)
    world.store.faults.rewind("chat:1", 1)
    await publish(world, "other third", "fourth")
    _, joined = await resume(world, position)
    assert (joined["recovered"], joined["reason"], data(joined)) == (False, "rewound", [])


@pytest.mark.parametrize("field", ["epoch", "id", "offset"])
async def test_a_made_up_position_recovers_nothing(world: World, field: str) -> None:
    position = await leave_at(world, 1, 2)
    await publish(world, 3)
    made_up = {**position, field: position[field] + 1000 if field == "offset" else "nonsense"}
    _, joined = await resume(world, made_up)
    assert (joined["recovered"], data(joined)) == (False, [])
    assert joined["reason"]


async def test_what_the_history_has_dropped_cannot_be_recovered() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}", history=History(size=3, ttl=10.0))

    async with serving(declare) as world:
        position = await leave_at(world, 1)
        await publish(world, 2, 3, 4)
        _, joined = await resume(world, position)
        assert (joined["recovered"], data(joined)) == (True, [2, 3, 4])
        await publish(world, 5)
        _, joined = await resume(world, position)
        assert (joined["recovered"], joined["reason"], data(joined)) == (False, "trimmed", [])
        position = joined["position"]
        await publish(world, 6)
        await world.clock.advance(10.1)
        _, joined = await resume(world, position)
        assert (joined["recovered"], joined["reason"]) == (False, "trimmed")


async def test_a_resume_is_bounded_in_events_and_in_bytes() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}")

    options = RoomsOptions(missed=5, missed_bytes=1_000)
    async with serving(declare, options=options) as world:
        position = await leave_at(world, 0)
        await publish(world, *range(1, 6))
        _, joined = await resume(world, position)
        assert data(joined) == [1, 2, 3, 4, 5]
        await publish(world, 6)
        _, joined = await resume(world, position)
        assert (joined["recovered"], data(joined)) == (False, [])
        assert joined["reason"] in {"too_many", "too_much"}
        position = joined["position"]
        await publish(world, "x" * 600, "y" * 600)
        _, joined = await resume(world, position)
        assert (joined["recovered"], data(joined)) == (False, [])
        assert joined["reason"] in {"too_many", "too_much"}


async def test_a_recovery_does_not_count_against_what_may_wait_for_a_client() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}")

    options = connection_options(outbox_bytes=2_000, outbox_entries=10)
    async with serving(declare, connection=options) as world:
        position = await leave_at(world, 0)
        await publish(world, *("x" * 500 for _ in range(50)))
        client, joined = await resume(world, position)
        assert len(data(joined)) == 50
        await publish(world, "next")
        assert await client.heard() == ["next"]


async def test_one_recovery_at_a_time_is_on_its_way_to_a_client() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}")

    async with serving(declare, connection=connection_options(send_timeout=1_000.0)) as world:
        positions = {}
        first = await world.enter("bob")
        for number in range(1, 5):
            positions[number] = (await first.join(f"chat:{number}"))["position"]
            await publish(world, *range(20), room=f"chat:{number}")
        await first.peer.lose()
        client = await world.enter("bob")
        client.peer.stall()
        numbers = [await client.command("join", room=f"chat:{room}", since=positions[room]) for room in positions]
        await settle()
        (connection,) = [each for each in world.realtime.connections if each.id == client.id]
        assert len(connection.rooms) == 2  # the user's and the first
        client.peer.flow()
        for number in numbers:
            assert len((await client.answer(number))["events"]) == 20


async def test_others_only_leaves_the_session_out_of_its_own_recovery_too(world: World) -> None:
    bob = await world.enter("bob", "chat:1")
    position = (await bob.join("chat:1"))["position"]
    session = bob.session
    await bob.event("say_others", "mine")
    await bob.event("say", "all")
    await bob.peer.lose()
    _, joined = await resume(world, position, session=session)
    assert data(joined) == ["all"]
    _, joined = await resume(world, position)
    assert data(joined) == ["mine", "all"]


async def test_what_is_published_while_somebody_resumes_comes_once_and_in_order(world: World) -> None:
    for moment in range(12):
        position = await leave_at(world, "seen")
        await publish(world, *range(5))
        client = await world.enter("bob")
        number = await client.command("join", room="chat:1", since=position)
        for _ in range(moment):
            await asyncio.sleep(0)
        await publish(world, 5, 6)
        joined = await client.answer(number)
        await publish(world, 7)
        assert data(joined) + await client.heard() == list(range(8))
        await client.peer.disconnect()


async def test_what_is_lost_for_a_process_is_told_to_its_members(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    await publish(world, 1, 2)
    world.store.faults.lose("chat:1")
    await publish(world, 3)
    reset = await ada.expect("reset")
    assert reset["room"] == "chat:1"
    assert reset["reason"] == "forgotten"
    await publish(world, 4)
    frame = await ada.expect("event", data=4)
    assert frame["position"]["epoch"] == reset["position"]["epoch"]
    assert frame["position"]["offset"] == reset["position"]["offset"] + 1


async def test_a_delivery_that_was_lost_is_made_up_for_and_one_that_came_twice_is_heard_once(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    world.store.faults.drop(2)
    await publish(world, 1, 2, 3)
    assert await ada.heard() == [1, 2, 3]
    world.store.faults.duplicate(3)
    await publish(world, 4, 5, 6)
    assert await ada.heard() == [4, 5, 6]
    world.store.faults.drop(1)
    await publish(world, 7)
    assert await ada.heard() == []
    await world.clock.advance(11.0)
    assert await ada.heard() == [7]
    assert "reset" not in str(ada.log)


async def test_who_joins_ahead_of_its_process_hears_what_follows_once(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    world.store.faults.drop(2)
    await publish(world, 1, 2)
    bob = await world.enter("bob")
    joined = await bob.join("chat:1")
    assert joined["position"]["offset"] == 2
    await publish(world, 3)
    assert await bob.heard() == [3]
    assert await ada.heard() == [1, 2, 3]


async def test_who_joins_ahead_of_its_process_is_not_left_behind_by_what_clients_do_not_hear(world: World) -> None:
    await world.enter("ada", "chat:1")
    world.store.faults.drop(1)
    await world.realtime.at("chat:1").kick(user="nobody")
    bob = await world.enter("bob", "chat:1")
    await publish(world, 1)
    await publish(world, 2)
    assert await bob.heard() == [1, 2]


async def test_a_resume_never_brings_the_kits_own_publications(world: World) -> None:
    position = await leave_at(world, 1)
    await world.realtime.at("chat:1").kick(user="nobody")
    await publish(world, 2)
    _, joined = await resume(world, position)
    assert (joined["recovered"], data(joined)) == (True, [2])
    page = await world.realtime.at("chat:1").history()
    assert [bytes(event.data) for event in page.events] == [b"1", b"2"]


async def test_a_recovery_that_cannot_be_written_leaves_no_join_behind(world: World) -> None:
    position = await leave_at(world, 1)
    await publish(world, 2)
    client = await world.enter("bob")
    client.peer.stall()
    await client.command("join", room="chat:1", since=position)
    await settle()
    await client.peer.lose()
    await settle()
    assert world.realtime.gauges()["endings"] == 0
    await world.clock.advance(6.0)
    assert world.chat.arrivals == world.chat.departures


async def test_positions_from_the_servers_side_page_the_history(world: World) -> None:
    await publish(world, 1, 2, 3)
    page = await world.realtime.at("chat:1").history(limit=1)
    (event,) = page.events
    assert isinstance(event.position, Position)
    page = await world.realtime.at("chat:1").history(before=event.position)
    assert [bytes(each.data) for each in page.events] == [b"1", b"2"]


async def test_nothing_comes_before_the_answer_to_a_join_or_after_that_to_a_leave() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}", presence=True)

        @room.on_join
        async def greet(member: Member) -> None:
            await member.broadcast("hello", member.user)

    async with serving(declare) as world:
        await world.enter("ada", "chat:1")
        bob = await world.enter("bob")
        for _ in range(5):
            join = await bob.command("join", room="chat:1")
            await publish(world, "x")
            await bob.answer(join)
            leave = await bob.command("leave", room="chat:1")
            await publish(world, "y")
            await bob.answer(leave)
            await publish(world, "z")
            await settle()
        bob.take()
        inside = False
        replies = iter(range(10_000))
        for frame in bob.log[2:]:
            if frame["type"] == "reply":
                inside = next(replies) % 2 == 0
            elif frame.get("room") == "chat:1":
                assert inside
