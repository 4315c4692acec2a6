"""Joining and leaving: who is let in, by what, and what a refusal, a kick or the server's own join leaves."""

import asyncio
from typing import Any

import pytest

from starlette_realtime import ConfigurationError, Connection, Member, Realtime, Refused, Room
from starlette_realtime.testing import settle
from tests.rooms.support import Failed, World, connection_options, serving
from tests.support.waiting import until


async def test_a_name_belongs_to_the_declared_pattern_or_is_refused(world: World) -> None:
    ada = await world.enter("ada")
    for name in ("chat:0", "chat:7", "chat:123456789"):
        await ada.join(name)
    for name in ("chat:", "chat:01", "chat:-1", "chat:1:2", "chat:٤", "chat:1 ", "Chat:1", "", "x" * 200, "chat:\x00"):
        with pytest.raises(Failed) as failed:
            await ada.join(name)
        assert failed.value.code == "unknown_room"
    assert set(world.store.backend.topics) - {"rt:processes", "rt:revocations"} == {
        "chat:0",
        "chat:7",
        "chat:123456789",
        "user:ada",
    }


@pytest.mark.parametrize(
    ("answer", "admitted"), [(True, True), (False, False), (None, False), (1, False), ("yes", False)]
)
async def test_only_true_admits(answer: object, admitted: bool) -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.authorize
        async def may(member: Member) -> object:
            return answer

    async with serving(declare) as world:
        ada = await world.enter("ada")
        before = world.realtime.gauges()
        if admitted:
            assert (await ada.join("chat:1"))["recovered"] is False
        else:
            with pytest.raises(Failed) as failed:
                await ada.join("chat:1")
            assert failed.value.code == "forbidden"
            assert world.realtime.gauges() == before


async def test_authorize_sees_who_asks_and_for_what_and_may_be_a_plain_function() -> None:
    asked: list[Any] = []

    def declare(realtime: Realtime) -> None:
        room = realtime.room("doc:{team}:{doc_id:int}")

        @room.authorize
        def may(doc_id: int, member: Member, team: str, connection: Connection) -> bool:
            asked.append((team, doc_id, member.user, member.room, connection is member.connection))
            return team == "red"

    async with serving(declare) as world:
        ada = await world.enter("ada")
        await ada.join("doc:red:7")
        with pytest.raises(Failed):
            await ada.join("doc:blue:7")
        assert asked == [("red", 7, "ada", "doc:red:7", True), ("blue", 7, "ada", "doc:blue:7", True)]


async def test_authorize_may_refuse_with_words_of_its_own_and_its_failure_refuses() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.authorize
        async def may(room_id: int) -> bool:
            if room_id == 1:
                raise Refused("members_only", "pay first")
            raise RuntimeError("secret")

    async with serving(declare) as world:
        ada = await world.enter("ada")
        before = world.realtime.gauges()
        for room, code in (("chat:1", "members_only"), ("chat:2", "internal")):
            with pytest.raises(Failed) as failed:
                await ada.join(room)
            assert failed.value.code == code
        assert world.realtime.gauges() == before


async def test_an_anonymous_connection_joins_public_rooms_only() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat")
        realtime.room("hall", public=True)

    async with serving(declare, anonymous=True) as world:
        client = await world.client().__aenter__()
        await client.auth()
        await client.join("hall")
        with pytest.raises(Failed) as failed:
            await client.join("chat")
        assert failed.value.code == "unauthenticated"


async def test_commands_before_auth_are_refused(world: World) -> None:
    client = await world.client().__aenter__()
    for kind, fields in (
        ("join", {"room": "chat:1"}),
        ("event", {"event": "say", "room": "chat:1"}),
        ("status", {"status": "away"}),
        ("leave", {"room": "chat:1"}),
    ):
        with pytest.raises(Failed) as failed:
            await client.call(kind, **fields)
        assert failed.value.code == "unauthenticated"
    await client.auth("ada")
    await client.join("chat:1")


async def test_a_room_that_was_made_alone_is_added_once_and_works() -> None:
    room = Room("chat:{room_id:int}")

    @room.on("double")
    async def double(number: int) -> int:
        return 2 * number

    with pytest.raises(ConfigurationError, match=r"realtime\.add"):
        room.at(room_id=1)

    def declare(realtime: Realtime) -> None:
        assert realtime.add(room) is room
        with pytest.raises(ConfigurationError, match="already"):
            realtime.add(room)

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1")
        assert await ada.event("double", 21) == 42


async def test_after_leaving_nothing_is_heard(world: World) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
    assert await ada.call("leave", room="chat:1") == {}
    await bob.event("say", "alone")
    assert await ada.heard() == []
    with pytest.raises(Failed) as failed:
        await ada.event("say", "still here?")
    assert failed.value.code == "not_joined"


async def test_a_kick_removes_all_of_a_users_connections_who_may_come_again(world: World) -> None:
    ada = await world.enter("ada", "chat:1", "chat:2")
    bobs = [await world.enter("bob", "chat:1", "chat:2") for _ in range(2)]
    await world.realtime.at("chat:1").kick(user="bob", code="muted")
    for bob in bobs:
        assert await bob.expect("left") == {"type": "left", "room": "chat:1", "code": "muted"}
    await ada.event("say", "gone")
    for bob in bobs:
        assert await bob.heard() == []
        with pytest.raises(Failed):
            await bob.event("say", "here")
    await bobs[0].event("say", "other room", "chat:2")
    assert await bobs[1].heard() == ["other room"]
    assert world.chat.departures == ["bob"]
    assert [frame["code"] for frame in ada.take("left")] == []
    await bobs[0].join("chat:1")
    assert await bobs[0].event("say", "back") == 3


async def test_a_kick_removes_one_connection(world: World) -> None:
    first, second = await world.enter("bob", "chat:1"), await world.enter("bob", "chat:1")
    await world.realtime.at("chat:1").kick(connection=first.id)
    await settle()
    assert [frame["code"] for frame in first.take("left")] == ["forbidden"]
    assert second.take("left") == []
    assert world.chat.departures == []
    for wrong in ({}, {"user": "a", "connection": "b"}):
        with pytest.raises(TypeError):
            await world.realtime.at("chat:1").kick(**wrong)


async def test_what_was_published_right_after_a_kick_is_not_heard(world: World) -> None:
    bob = await world.enter("bob", "chat:1")
    room = world.realtime.at("chat:1")
    await room.broadcast("said", 1)
    await room.kick(user="bob")
    await room.broadcast("said", 2)
    assert await bob.heard() == [1]


async def test_a_kick_reaches_whoever_is_about_to_join() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}", presence=True)

        @room.authorize
        async def may(member: Member) -> bool:
            asked.set()
            await go.wait()
            return True

    async with serving(declare) as world:
        bob = await world.enter("bob")
        joining = await bob.command("join", room="chat:1")
        await asked.wait()
        await world.realtime.at("chat:1").kick(user="bob")
        go.set()
        await settle()
        await world.realtime.at("chat:1").broadcast("said", "secret")
        assert "secret" not in await bob.heard()
        with pytest.raises(Failed) as failed:
            await bob.answer(joining)
        assert failed.value.code == "forbidden"
        assert world.entries == 0


async def test_a_kick_is_not_lost_while_the_process_repairs(world: World) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
    world.store.faults.stall()
    other = World(store=world.store.sibling(), clock=world.clock)
    other.realtime.room("chat:{room_id:int}", presence=True)
    async with other:
        await other.realtime.at("chat:1").kick(user="bob")
        world.store.faults.resume()
        await world.clock.advance(1.0)
    await ada.event("say", "after")
    assert "after" not in await bob.heard()


async def test_a_member_leaves_by_the_servers_will() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}", presence=True)

        @room.on("go")
        async def go(member: Member) -> str:
            await member.leave(code="bored")
            return "bye"

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1")
        assert await ada.event("go") == "bye"
        assert ada.take("left") == [{"type": "left", "room": "chat:1", "code": "bored"}]
        with pytest.raises(Failed):
            await ada.event("go")


async def test_the_server_joins_a_connection_without_asking_authorize() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}", presence=True)

        @room.authorize
        async def never() -> bool:
            return False

        @realtime.on_connect
        async def enter(connection: Connection) -> None:
            await connection.join("chat:1", meta={"by": "server"})

        @realtime.on("go")
        async def go(connection: Connection, room: str) -> None:
            await connection.leave(room, code="over")

        @realtime.on("elsewhere")
        async def elsewhere(connection: Connection) -> None:
            await connection.join("user:somebody else")

    async with serving(declare) as world:
        ada = await world.client().__aenter__()
        await ada.auth("ada")
        joined = await ada.expect("joined", room="chat:1")
        assert joined["members"]["list"][0]["meta"] == {"by": "server"}
        await world.realtime.at("chat:1").broadcast("said", 1)
        assert await ada.heard() == [1]
        with pytest.raises(Failed) as failed:
            await ada.event("elsewhere", room=None)
        assert failed.value.code == "unknown_room"
        await ada.event("go", "chat:1", room=None)
        assert (await ada.expect("left"))["code"] == "over"
        with pytest.raises(Failed):
            await ada.event("go", "chat:1", room=None)


async def test_rooms_that_the_server_joins_are_resumed_by_auth_and_the_others_are_over() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}")

        @realtime.on_connect
        async def enter(connection: Connection) -> None:
            await connection.join("chat:1")

    async with serving(declare) as world:
        ada = await world.client().__aenter__()
        await ada.auth("ada")
        position = (await ada.expect("joined", room="chat:1"))["position"]
        await ada.peer.lose()
        await world.realtime.at("chat:1").broadcast("said", 1)
        again = await world.client().__aenter__()
        await again.auth("ada", since={"chat:1": position, "chat:2": position})
        joined = await again.expect("joined", room="chat:1")
        assert joined["recovered"] is True
        assert [event["data"] for event in joined["events"]] == [1]
        assert await again.expect("left") == {"type": "left", "room": "chat:2", "code": "not_joined"}


async def test_too_many_rooms_are_refused_and_the_servers_own_do_not_count() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}")

        @realtime.on_connect
        async def enter(connection: Connection) -> None:
            await connection.join("chat:100")

    async with serving(declare, connection=connection_options(rooms=3)) as world:
        ada = await world.enter("ada")
        numbers = [await ada.command("join", room=f"chat:{number}") for number in range(5)]
        codes = []
        for number in numbers:
            try:
                await ada.answer(number)
            except Failed as failed:
                codes.append(failed.code)
        assert codes == ["too_many_rooms"] * 2
        await ada.call("leave", room="chat:0")
        await ada.join("chat:4")


async def test_on_connect_refuses_and_on_disconnect_follows_every_auth() -> None:
    calls: list[Any] = []

    def declare(realtime: Realtime) -> None:
        @realtime.on_connect
        async def enter(connection: Connection) -> None:
            calls.append(("connect", connection.user))
            if connection.user == "eve":
                raise Refused("banned", "go away", retry_after=3.0)
            if connection.user == "bug":
                raise RuntimeError("secret")

        @realtime.on_disconnect
        async def leave(connection: Connection) -> None:
            calls.append(("disconnect", connection.user, connection.closed))

        @realtime.on_disconnect
        def leave_too(connection: Connection) -> None:
            raise RuntimeError("harmless")

    async with serving(declare) as world:
        nobody = await world.client().__aenter__()
        await nobody.peer.disconnect()
        for user, code, error in (("eve", 4403, "banned"), ("bug", 1013, "unavailable")):
            client = await world.client().__aenter__()
            await client.command("auth", token=user)
            closed = await client.closed()
            assert (closed.code, client.log[-1]["code"]) == (code, error)
            assert "secret" not in str(client.log)
            await client.peer.ended()
        ada = await world.enter("ada")
        await ada.peer.disconnect()
        await until(lambda: len(calls) >= 6, what="the last end to be told")
        await settle()
        assert calls == [
            ("connect", "eve"),
            ("disconnect", "eve", True),
            ("connect", "bug"),
            ("disconnect", "bug", True),
            ("connect", "ada"),
            ("disconnect", "ada", True),
        ]


async def test_a_refresh_authorises_the_rooms_again_and_keeps_the_user() -> None:
    banned = False

    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}", presence=True)

        @room.authorize
        async def may(room_id: int) -> bool:
            if room_id == 3 and banned:
                raise RuntimeError("broken")
            return not (banned and room_id == 1)

    async with serving(declare) as world:
        ada = await world.enter("ada+60", "chat:1", "chat:2", "chat:3")
        banned = True
        data = await ada.auth("ada+600")
        assert data["expires_in"] == 600.0
        await settle()
        left = {frame["room"]: frame["code"] for frame in ada.take("left")}
        assert left == {"chat:1": "forbidden", "chat:3": "internal"}
        with pytest.raises(Failed) as failed:
            await ada.auth("bob")
        assert failed.value.code == "forbidden"
        await ada.call("status", room="chat:2")
        assert ada.peer.closed is None
        assert world.entries == 1


async def test_credentials_that_expire_warn_and_then_close(world: World) -> None:
    ada = await world.enter("ada+0.8", "chat:1")
    await world.clock.advance(0.3)
    assert ada.take("expiring") == []
    await world.clock.advance(0.15)
    assert [frame["expires_in"] for frame in ada.take("expiring")] == [pytest.approx(0.4)]
    await world.clock.advance(0.4)
    closed = await ada.closed()
    assert (closed.code, closed.reason) == (4401, "expired")


async def test_a_refresh_in_time_keeps_the_connection(world: World) -> None:
    ada = await world.enter("ada+80", "chat:1")
    await world.clock.advance(54.9)
    assert ada.take("expiring") == []
    await world.clock.advance(0.2)
    assert ada.take("expiring") == [{"type": "expiring", "expires_in": 25.0}]
    await ada.auth("ada+600")
    await world.clock.advance(500.0)
    assert ada.peer.closed is None
    with pytest.raises(Failed) as failed:
        await ada.auth("ada+1")
    assert failed.value.code == "expired"
    assert (await ada.auth())["expires_in"] == pytest.approx(44.9)  # nothing new, except the session
    await world.clock.advance(101.0)
    assert (await ada.closed()).code == 4401


async def test_who_does_not_authenticate_in_time_is_closed() -> None:
    async with serving(connection=connection_options(auth_timeout=0.3)) as world:
        client = await world.client().__aenter__()
        await world.clock.advance(0.2)
        assert client.peer.closed is None
        await world.clock.advance(0.2)
        assert (await client.closed()).code == 4404


async def test_who_authenticates_with_nonsense_is_told_and_closed(world: World) -> None:
    client = await world.client().__aenter__()
    with pytest.raises(Failed) as failed:
        await client.auth("")
    assert failed.value.code in {"unauthenticated", "bad_frame"}
    client = await world.client().__aenter__()
    with pytest.raises(Failed) as failed:
        await client.auth("ada+-5")
    assert failed.value.code == "expired"
    assert (await client.closed()).code == 4401


async def test_a_user_is_disconnected_everywhere(world: World) -> None:
    first, second = await world.enter("ada"), await world.enter("ada", "chat:1")
    bob = await world.enter("bob", "chat:1")
    await world.realtime.disconnect_user("ada", code=4450, error="revoked")
    for client in (first, second):
        assert (await client.closed()).code == 4450
    await settle()
    assert bob.peer.closed is None
    assert world.chat.departures == ["ada"]


async def test_a_join_that_is_cut_short_leaves_nothing(world: World) -> None:
    baseline = world.realtime.gauges()
    for moment in range(6):
        client = await world.enter("ada")
        await client.command("join", room="chat:1")
        for _ in range(moment):
            await asyncio.sleep(0)
        await client.peer.lose()
    await world.clock.advance(100.0)
    now = world.realtime.gauges()
    assert {name: (baseline[name], now[name]) for name in now if now[name] != baseline[name]} == {}
    assert world.chat.arrivals == world.chat.departures
