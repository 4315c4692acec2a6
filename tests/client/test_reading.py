"""Reading: iterating, handlers, questions, types, readers that lag, the end of a room."""

import asyncio
import json
from typing import Any

import pytest

from starlette_realtime import (
    ConfigurationError,
    History,
    InvalidPayload,
    NotJoined,
    Position,
    RealtimeError,
    Refused,
)
from starlette_realtime.client import (
    Change,
    Closed,
    Event,
    Reset,
    Room,
    StateChange,
)
from starlette_realtime.client.tasks import NOTICES
from starlette_realtime.messages import NULL
from starlette_realtime.messages import Event as Frame
from starlette_realtime.testing import settle
from tests.client.site import Site, Text, reported, some


async def test_join_send_and_read(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        assert (client.state, client.user, room.state) == ("online", "ann", "joined")
        assert room.position is not None
        assert room.position.offset == 0
        answer = await room.send("message", {"text": "hi"}, returns=Position)
        event = await anext(aiter(room))
        assert isinstance(event, Event)
        assert (event.event, event.data, event.room, event.recovered) == ("message", {"text": "hi"}, "chat:1", False)
        assert event.sender is not None
        assert (event.sender.user, event.sender.connection) == ("ann", client.connection)
        assert answer == event.position == room.position
        assert client.rooms == {"chat:1": room}
        assert repr(room) == "<Room chat:1 joined>"
        assert repr(client) == "<Client online>"
    assert client.state == "closed"


async def test_what_was_missed_comes_once_and_in_order_and_what_is_lost_is_a_reset(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        await site.room.broadcast("message", 1)
        assert await some(room, 1) == [1]
        await site.relink(client, message=[2, 3])
        await site.room.broadcast("message", 4)
        assert await some(room, 3) == [(2,), (3,), 4]
        await site.relink(client, message=range(5, 12))
        assert await some(room, 1) == ["reset: trimmed"]
        await site.room.broadcast("message", 12)
        assert await some(room, 1) == [12]


async def test_a_position_that_was_kept_continues_in_another_life(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        for number in range(4):
            await site.room.broadcast("message", number)
        assert await some(room, 2) == [0, 1]
        kept = room.position
    async with site.client() as client:
        room = await client.join("chat:1", since=kept)
        assert room.position == kept
        assert await some(room, 2) == [(2,), (3,)]


async def test_data_is_decoded_into_a_declared_type_and_what_does_not_fit_harms_only_itself(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        for data in ({"text": "a"}, {"text": 5}, {"text": "b"}):
            await site.room.broadcast("message", data)
        events = room.events(type=Text)
        first = await anext(events)
        with pytest.raises(InvalidPayload) as refused:
            await anext(events)
        assert "no Text" in refused.value.message
        third = await anext(events)
        assert [item.data.text for item in (first, third) if isinstance(item, Event)] == ["a", "b"]
        with pytest.raises(InvalidPayload):
            await room.send("message", 1, returns=Text)


async def test_a_step_that_is_cancelled_loses_nothing(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        for number in range(3):
            step = asyncio.ensure_future(anext(aiter(room)))
            await settle()
            step.cancel()
            await site.room.broadcast("message", number)
            await settle()
            assert step.cancelled()
            assert await some(room, 1) == [number]


async def test_one_reader_or_handlers(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        step = asyncio.ensure_future(anext(aiter(room)))
        await settle()
        with pytest.raises(ConfigurationError, match="another task"):
            await anext(aiter(room))
        with pytest.raises(ConfigurationError, match="iterates"):
            room.on("message")(print)
        step.cancel()
        await settle()
        early = aiter(room)
        room.on_left(lambda error: None)
        for late in (early, None):
            with pytest.raises(ConfigurationError, match="has handlers"):
                await anext(late or aiter(room))


async def test_handlers_get_events_in_order_one_at_a_time(site: Site) -> None:
    heard: list[Any] = []
    gate = asyncio.Event()
    async with site.client() as client, reported() as errors:
        room = client.join("chat:1")

        @room.on("message", type=int)
        async def message(event: Event[int]) -> None:
            heard.append(event.data)
            if event.data == 1:
                await gate.wait()
            if event.data == 2:
                raise ValueError("handler")

        @room.on()
        def whatever(event: Event[Any]) -> None:
            heard.append(event.event)

        @room.on_reset
        async def reset(reset: Reset) -> None:
            heard.append(reset.reason)

        @room.on_left
        def left(error: Exception | None) -> None:
            heard.append(error)

        await room
        for value in (1, 2, "three"):
            await site.room.broadcast("message", value)
        await settle()
        assert heard == [1]
        gate.set()
        await settle()
        assert heard == [1, "message", 2, "message", "message"]
        assert [type(error) for error in errors] == [ValueError, InvalidPayload]
        await site.relink(client, other=range(9))
        await room.leave()
        await settle()
        assert heard[5:] == ["trimmed", None]


async def test_a_room_that_the_server_ends_raises_after_its_events(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        await site.room.broadcast("message", 1)
        await site.room.kick(user="ann", code="banned")
        assert await some(room, 1) == [1]
        for _ in range(2):
            with pytest.raises(Refused, match="banned"):
                await some(room, 1)
        assert room.state == "left"
        assert client.rooms == {}


async def test_after_leaving_the_loop_ends(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        await site.room.broadcast("message", 1)
        await room.leave()
        assert [event async for event in room if isinstance(event, Reset) or event.data != 1] == []
        with pytest.raises(NotJoined):
            room.send("message", 1)
        assert (await site.room.members()).total == 0, "the server knows"
        await room.leave()


async def test_a_reader_that_lags_misses_nothing(site: Site) -> None:
    long = site.realtime.room("long", history=History(size=100, ttl=600.0))
    async with site.client(inbox=4) as client:
        room = await client.join("long")
        for number in range(50):
            await long.at().broadcast("message", number)
            await settle()
        assert len(client._core.rooms["long"].inbox) == 4
        assert (await room.history(limit=1)).more, "replies don't wait for the reader"
        heard = await some(room, 50)
        assert [value[0] if isinstance(value, tuple) else value for value in heard] == list(range(50))


async def test_a_reader_that_lags_too_far_is_told(site: Site) -> None:
    async with site.client(inbox=3) as client:
        room = await client.join("chat:1")
        for number in range(8):
            await site.room.broadcast("message", number)
            await settle()
        assert await some(room, 3) == [0, 1, "reset: trimmed"]


async def test_refused_rooms_raise(site: Site) -> None:
    async with site.client() as client:
        for name, code in (("locked", "forbidden"), ("nowhere", "unknown_room")):
            with pytest.raises(Refused, match=code):
                await client.join(name)
            room = client.join(name)
            with pytest.raises(Refused, match=code):
                await some(room, 1)


async def test_a_refusal_that_nobody_waits_for_is_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with site.client() as client:
        client.join("locked")
        await settle()
        assert "locked was refused: forbidden" in caplog.text
        errors: list[RealtimeError] = []
        client.on_error(errors.append)
        client.join("locked")
        await settle()
        assert [str(error) for error in errors] == ["locked was refused: forbidden: not allowed"]


async def test_the_client_hears_what_is_sent_to_it_and_to_the_user(site: Site) -> None:
    served: list[Room] = []
    async with site.client() as client:
        client.on_joined(served.append)
        await client.send("serve")
        await site.realtime.send_to_user("ann", "note", 1)
        assert await some(client, 2) == [{"text": "you"}, 1]
        assert [room.name for room in served] == ["served"], "the user's own room is the client"
        site.link.cut()
        await settle()
        await site.realtime.send_to_user("ann", "note", 2)
        site.link.restore()
        await site.clock.until(lambda: client.state == "online")
        assert await some(client, 1) == [(2,)]


async def test_a_reader_that_lags_misses_nothing_of_what_is_sent_to_the_user(site: Site) -> None:
    async with site.client(inbox=4) as client:
        await client.wait_online()
        await settle()
        for number in range(50):
            await site.realtime.send_to_user("ann", "note", number)
            await settle()
        found = await some(client, 50)
        assert [item[0] if isinstance(item, tuple) else item for item in found] == list(range(50))
        await site.realtime.send_to_user("ann", "note", "more")
        assert await some(client, 1) == ["more"]


async def test_questions_are_answered_beside_the_events(site: Site) -> None:
    async with site.client() as client, reported() as errors:
        room = await client.join("chat:1")

        @room.answer("question", type=int)
        async def question(event: Event[int]) -> int:
            if event.data == 0:
                raise ValueError("no")
            if event.data == 1:
                raise Refused("busy", "not now")
            return event.data * 2

        reading = asyncio.ensure_future(some(room, 1))
        assert await room.send("ask", 4) == 8
        for data, code in ((0, "internal"), (1, "busy"), ("text", "invalid_payload")):
            with pytest.raises(Refused) as refused:
                await room.send("ask", data)
            assert refused.value.code == code
        assert [type(error) for error in errors] == [ValueError]
        reading.cancel()
        other = await client.join("chat:2")
        with pytest.raises(Refused, match="unknown_event"):
            await other.send("ask", 1)


async def test_at_most_sixteen_questions_are_answered_at_a_time(site: Site) -> None:
    async with site.client() as client:
        gate = asyncio.Event()
        answered: list[tuple[Any, Any]] = []
        room = await client.join("chat:1")
        room.answer("q")(lambda event: gate.wait())
        stay = client._core.rooms["chat:1"]
        for number in range(20):
            client._port.question(
                stay, Frame(event="q", data=NULL, room="chat:1", id=number), lambda *done: answered.append(done)
            )
        await settle()
        assert [error.code for _, error in answered] == ["unavailable"] * 4
        gate.set()
        await settle()
        assert [data for data, _ in answered[4:]] == [True] * 16


async def test_presence_is_folded_and_told(site: Site) -> None:
    changes: list[Change] = []
    async with site.client() as client:
        room = await client.join("chat:1", meta={"colour": "teal"})
        room.on_presence(changes.append)
        await settle()
        assert [person.user for person in changes[0].joined] == ["ann"], "first everybody who is there"
        assert room.members["ann"].meta == {"colour": "teal"}
        async with site.client(token=site.token("bob")) as bob:
            (await bob.join("chat:1")).set_status("away")
            await site.clock.until(lambda: "bob" in room.members and room.members["bob"].status == "away")
            assert room.presence.total == 2
            await room.set_status(meta={"colour": "red"})
            await site.clock.until(lambda: room.members["ann"].meta == {"colour": "red"})
        await site.clock.until(lambda: "bob" not in room.members)
        await settle()
        assert [person.user for person in changes[-1].left] == ["bob"]
        await client.set_status("away")
        await site.clock.until(lambda: room.members["ann"].status == "away")
        await site.relink(client)
        await site.clock.until(lambda: room.members["ann"].status == "away")


async def test_history_is_paged_backwards(site: Site) -> None:
    async with site.client() as client:
        room = await client.join("chat:1")
        for number in range(5):
            await site.room.broadcast("message", number)
        page = await room.history(limit=2)
        older = await room.history(before=page.events[0].position, limit=10)
        assert [event.data for event in older.events + page.events] == [0, 1, 2, 3, 4]
        assert (page.more, older.more, older.truncated) == (True, False, False)


async def test_the_state_is_told(site: Site) -> None:
    states: list[StateChange] = []
    client = site.client()
    client.on_state(states.append)
    async with client:
        await client.wait_online()
        site.link.cut()
        await settle()
        with pytest.raises(TimeoutError, match="ConnectionRefusedError"):
            waiting = asyncio.ensure_future(client.wait_online(timeout=3.0))
            await site.clock.advance(3.1)
            await waiting
        site.link.restore()
        await site.clock.until(lambda: client.state == "online")
    assert [change.state for change in states if change.state != "connecting"][:2] == ["online", "waiting"]
    assert [change.state for change in states[-2:]] == ["online", "closed"]


async def test_an_address_that_cannot_be_reached_is_told_once_and_tried_again(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.link.cut()
    async with site.client() as client:
        await site.clock.advance(30.0)
        assert caplog.text.count("the link is cut") == 1
        site.link.restore()
        await site.clock.until(lambda: client.state == "online")


async def test_whoever_is_not_let_in_is_told_why(site: Site) -> None:
    errors: list[RealtimeError] = []
    client = site.client(token="no token")
    client.on_error(errors.append)
    async with client:
        room = client.join("chat:1")
        waiting = [asyncio.ensure_future(client.wait_online()), asyncio.ensure_future(some(room, 1))]
        await site.clock.advance(60.0)
        for future in waiting:
            with pytest.raises(Closed, match=r"4401, unauthenticated"):
                await future
        with pytest.raises(Closed):
            client.send("message", 1)
        assert client.closed is not None
        assert client.closed.code == 4401
        with pytest.raises(Closed):
            await client.join("chat:1")
    assert [getattr(error, "code", "") for error in errors] == ["unauthenticated"] * 2


async def test_stale_and_limits_are_told(site: Site) -> None:
    told: list[Any] = []
    async with site.client() as client:
        await client.wait_online()
        client.on_stale(told.append)
        client.on_limits(told.append)
        assert client._core.dialer.link is not None
        for frame in ({"type": "stale"}, {"type": "limits", "remaining": 3, "retry_after": 0}, {"type": "fresh"}):
            client._core.dialer.link.received(json.dumps(frame))
        await settle()
        assert told[::2] == [True, False]
        assert told[1].remaining == 3


async def test_a_flood_of_notices_is_bounded_and_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()
    async with site.client() as client:
        await client.wait_online()
        client.on_stale(lambda away: gate.wait())
        for _ in range(NOTICES + 10):
            client._port.stale(None, True)
        assert "too slow" in caplog.text
        gate.set()
        await settle()


async def test_a_listener_that_fails_is_reported_and_harms_nobody(site: Site) -> None:
    heard: list[StateChange] = []
    client = site.client()

    @client.on_state
    async def fails(change: StateChange) -> None:
        raise ValueError("listener")

    client.on_state(heard.append)
    async with reported() as errors:
        async with client:
            await client.wait_online()
            await settle()
        assert len(heard) == len(errors) == 3
