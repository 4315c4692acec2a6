"""Joining twice, leaving what the server joined, and handlers that take their time: nothing lost, nothing escaped."""

import asyncio
from typing import Any

import pytest

from starlette_realtime import ConfigurationError, Connection, Member, Realtime
from starlette_realtime.testing import settle
from tests.rooms.support import Failed, World, connection_options, serving


async def test_a_second_join_with_a_position_brings_what_came_after_it(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    view = world.realtime.at("chat:1")
    for number in (1, 2, 3):
        await view.broadcast("said", number)
    await settle()
    since = ada.take("event")[0]["position"]
    joined = await ada.join("chat:1", since=since)
    assert (joined["recovered"], [event["data"] for event in joined["events"]]) == (True, [2, 3])
    await view.broadcast("said", 4)
    assert await ada.heard() == [4]


async def test_a_second_join_with_a_strange_position_is_no_recovery(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    await world.realtime.at("chat:1").broadcast("said", 1)
    joined = await ada.join("chat:1", since={"epoch": "nonsense", "offset": 0, "id": ""})
    assert (joined["recovered"], joined["reason"], joined["events"]) == (False, "forgotten", [])


async def test_a_room_that_the_server_joins_as_well_is_resumed_by_the_client() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("news")

        @realtime.on_connect
        async def connect(connection: Connection) -> None:
            await connection.join("news")

    async with serving(declare) as world:
        ada = await world.enter("ada")
        position = (await ada.join("news"))["position"]
        await ada.peer.lose()
        for number in (1, 2, 3):
            await world.realtime.at("news").broadcast("said", number)
        ada = await world.enter("ada")
        joined = await ada.join("news", since=position)
        assert (joined["recovered"], [event["data"] for event in joined["events"]]) == (True, [1, 2, 3])


async def test_what_is_published_while_a_second_join_reads_is_heard_once(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    view = world.realtime.at("chat:1")
    await view.broadcast("said", 1)
    await settle()
    since = ada.take("event")[0]["position"]
    world.store.faults.stall()
    joining = asyncio.ensure_future(ada.join("chat:1", since=since))
    await settle()
    publishing = asyncio.ensure_future(view.broadcast("said", 2))
    await settle()
    world.store.faults.resume()
    joined = await joining
    await publishing
    assert [event["data"] for event in joined["events"]] + await ada.heard() == [2]


async def test_a_second_join_that_the_store_cannot_serve_ends_the_connection_to_resume_it(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    await world.realtime.at("chat:1").broadcast("said", 1)
    await settle()
    since = ada.take("event")[0]["position"]
    world.store.faults.stall()
    await ada.command("join", room="chat:1", since=since)
    await world.clock.advance(2.1)
    assert (await ada.closed()).code == 4441
    world.store.faults.resume()


async def test_a_user_can_not_leave_the_user_room_and_a_ban_reaches_all_connections(world: World) -> None:
    mallory, other = await world.enter("mallory", "chat:1"), await world.enter("mallory")
    with pytest.raises(Failed) as failed:
        await mallory.call("leave", room="user:mallory")
    assert failed.value.code == "forbidden"
    await world.realtime.disconnect_user("mallory")
    assert [(await each.closed()).code for each in (mallory, other)] == [4403, 4403]


@pytest.mark.parametrize("code", [999, 1000, 4999])
async def test_a_connection_is_closed_with_codes_of_the_table_only(world: World, code: int) -> None:
    await world.enter("ada")
    with pytest.raises(ConfigurationError, match="close code"):
        await world.realtime.disconnect_user("ada", code=code)
    (connection,) = world.realtime.connections
    with pytest.raises(ConfigurationError, match="close code"):
        connection.close(code)


async def test_coming_and_going_of_a_user_never_overlap_in_the_handlers() -> None:
    log: list[str] = []
    gate = asyncio.Event()

    def declare(realtime: Realtime) -> None:
        room = realtime.room("r", linger=0.0)

        @room.on_join
        async def came(member: Member) -> None:
            log.append("comes")
            await gate.wait()
            log.append("came")

        @room.on_leave
        async def went(member: Member) -> None:
            log.append("goes")
            await gate.wait()
            log.append("went")

    async with serving(declare) as world:
        ada = await world.enter("ada")
        await ada.command("join", room="r")
        await settle()
        await ada.peer.disconnect()
        again = await world.enter("ada")
        await again.command("join", room="r")
        await settle()
        assert log == ["comes"]
        gate.set()
        await settle()
        assert log == ["comes", "came", "goes", "went", "comes", "came"]


async def test_a_handler_that_hangs_holds_up_its_user_for_half_a_minute_at_most() -> None:
    log: list[str] = []

    def declare(realtime: Realtime) -> None:
        room = realtime.room("r", linger=0.0)

        @room.on_join
        async def came(member: Member) -> None:
            log.append("comes")
            await asyncio.Event().wait()

        @room.on_leave
        async def went(member: Member) -> None:
            log.append("went")

    async with serving(declare) as world:
        ada = await world.enter("ada")
        await ada.command("join", room="r")
        await settle()
        await ada.peer.disconnect()
        await world.clock.advance(29.0)
        assert log == ["comes"]
        await world.clock.advance(1.1)
        assert log == ["comes", "went"]
        assert world.realtime.gauges()["telling"] == 0


async def test_a_reply_that_is_too_large_is_an_error_and_not_a_slow_consumer() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("r")

        @room.on("reply")
        async def reply(member: Member) -> str:
            return "x" * 1_200_000

        @room.on("send")
        async def send(member: Member) -> None:
            await member.send("large", "x" * 1_200_000)

        @room.on("ask")
        async def ask(member: Member) -> None:
            await member.request("large", "x" * 1_200_000)

    async with serving(declare) as world:
        ada = await world.enter("ada", "r")
        for event in ("reply", "send", "ask"):
            with pytest.raises(Failed) as failed:
                await ada.call("event", event=event, room="r")
            assert failed.value.code == "too_large"
        assert ada.peer.closed is None


def test_a_room_shows_no_more_members_than_fit_into_an_outbox() -> None:
    realtime = Realtime(anonymous=True)
    with pytest.raises(ConfigurationError, match="at most 500"):
        realtime.room("r", presence=True, shown=2000)


async def test_what_is_published_before_the_start_is_an_error_and_not_a_silence() -> None:
    realtime = Realtime(anonymous=True)
    room = realtime.room("r")
    for publish in (room.at().broadcast("said", 1), realtime.send_to_user("ada", "said", 1)):
        with pytest.raises(ConfigurationError, match=r"lifespan=realtime\.lifespan"):
            await publish


async def test_a_session_counts_from_its_last_use() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("r", public=True)

        @room.on("say")
        async def say(member: Member, text: str) -> int:
            return (await member.broadcast("said", text)).offset

    async with serving(declare, anonymous=True, authenticate=()) as world:
        nobody = await world.client().__aenter__()
        session = (await nobody.auth(None))["session"]
        await nobody.join("r")
        for _ in range(25):
            await world.clock.advance(3600.0)
            nobody.take()
            await nobody.command("pong")
        said: dict[str, Any] = {"event": "say", "room": "r", "data": "hi", "key": "k"}
        assert await nobody.call("event", **said) == 1
        await nobody.peer.lose()
        for seconds, offset in ((60.0, 1), (130.0, 2)):
            await world.clock.advance(seconds)
            again = await world.client().__aenter__()
            await again.auth(None, session=session)
            await again.join("r")
            assert await again.call("event", **said) == offset
            await again.peer.lose()


async def test_a_room_whose_members_outgrow_the_outbox_can_be_joined() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("r", presence=True)

    options = connection_options(outbox_bytes=16_384)
    async with serving(declare, connection=options) as world:
        for number in range(20):
            member = await world.enter(f"user{number}")
            await member.join("r", meta={"text": "x" * 1000})
        ada = await world.enter("ada")
        joined = await ada.join("r")
        assert joined["members"]["total"] == 21
        assert len(joined["members"]["list"]) == 21
        assert ada.peer.closed is None
