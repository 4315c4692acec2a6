"""Presence: snapshots and diffs fold to one truth; users with several connections; status, meta, linger, batches."""

import asyncio
import itertools
from typing import Any

import pytest

from starlette_realtime import ConfigurationError, Connection, Member, MemoryStore, Realtime
from starlette_realtime.testing import settle
from tests.rooms.support import Client, Failed, World, serving


class Fold:
    """What a client makes of a snapshot and the diffs after it, by the rules of the protocol."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self.seq: int = snapshot["seq"]
        self.members = {member["connection"]: member for member in snapshot["list"]}
        self.gaps = 0

    def apply(self, frame: dict[str, Any]) -> None:
        if frame["seq"] <= self.seq:
            return
        if frame["prev"] > self.seq:
            self.gaps += 1
            return
        for member in itertools.chain(frame.get("joined", ()), frame.get("updated", ())):
            self.members[member["connection"]] = member
        for connection in frame.get("left", ()):
            self.members.pop(connection, None)
        self.seq = frame["seq"]


async def follow(client: Client, room: str, snapshot: dict[str, Any]) -> Fold:
    """The fold of everything that the client has heard of the room's members."""
    await settle()
    fold = Fold(snapshot)
    for frame in client.take("presence"):
        assert frame["room"] == room
        fold.apply(frame)
    return fold


async def test_a_join_shows_who_is_there_itself_included(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    await world.clock.advance(1.5)
    bob = await world.enter("bob")
    members = (await bob.join("chat:1", meta={"colour": "red"}, status="away"))["members"]
    assert members["total"] == 2
    assert members["list"] == [
        {"connection": ada.id, "user": "ada", "status": "online", "since": 1_800_000_000_000},
        {
            "connection": bob.id,
            "user": "bob",
            "status": "away",
            "meta": {"colour": "red"},
            "since": 1_800_000_001_500,
        },
    ]
    frame = await ada.expect("presence")
    assert [member["connection"] for member in frame["joined"]] == [bob.id]
    assert frame["joined"][0] == members["list"][1]
    assert (frame["seq"], frame["prev"]) == (2, 1)


async def test_a_snapshot_and_the_diffs_after_it_fold_to_the_members(world: World) -> None:
    ada = await world.enter("ada")
    joined = await ada.join("chat:1")
    clients = []
    for number in range(6):
        clients.append(await world.enter(f"user{number % 4}", "chat:1"))
        await world.clock.advance(0.03)
    await clients[0].peer.disconnect()
    await clients[1].peer.lose()
    await clients[2].call("leave", room="chat:1")
    await clients[3].call("status", status="away", room="chat:1")
    await world.clock.advance(5.2)
    fold = await follow(ada, "chat:1", joined["members"])
    now = await ada.call("members", room="chat:1")
    assert fold.gaps == 0
    assert fold.seq == now["seq"]
    assert list(fold.members.values()) == now["list"]
    assert {member["connection"] for member in now["list"]} == {ada.id, *(client.id for client in clients[3:])}


async def test_changes_within_a_tenth_of_a_second_come_together(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    await world.clock.advance(1.0)
    ada.take()
    first = await world.enter("bob", "chat:1")  # the first change goes out at once
    await settle()
    assert len(ada.take("presence")) == 1
    others = [await world.enter(f"user{number}", "chat:1") for number in range(5)]
    await others[0].peer.disconnect()
    await others[1].call("status", status="away")
    await settle()
    assert ada.take("presence") == []
    await world.clock.advance(0.1)
    (frame,) = ada.take("presence")
    assert [member["connection"] for member in frame["joined"]] == [client.id for client in others[1:]]
    assert frame["joined"][0]["status"] == "away"
    assert frame["prev"] == 2
    assert frame["seq"] == 9
    assert first.id not in str(frame)


async def test_a_user_comes_with_the_first_connection_and_goes_with_the_last(world: World) -> None:
    chat = world.chat
    first = await world.enter("ada", "chat:1")
    second = await world.enter("ada", "chat:1")
    assert (chat.arrivals, chat.departures) == (["ada"], [])
    assert len((await second.call("members", room="chat:1"))["list"]) == 2
    await first.peer.disconnect()
    await settle()
    assert chat.departures == []
    await second.call("leave", room="chat:1")
    assert (chat.arrivals, chat.departures) == (["ada"], ["ada"])
    await second.join("chat:1")
    assert (chat.arrivals, chat.departures) == (["ada", "ada"], ["ada"])


async def test_leaving_without_a_word_lingers_and_leaving_with_one_does_not(world: World) -> None:
    chat = world.chat
    ada, bob, eve = [await world.enter(user, "chat:1") for user in ("ada", "bob", "eve")]
    await bob.peer.disconnect(1001)
    await settle()
    assert chat.departures == ["bob"]
    await eve.peer.lose()
    await world.clock.advance(4.9)
    assert chat.departures == ["bob"]
    assert {member["user"] for member in (await ada.call("members", room="chat:1"))["list"]} == {"ada", "eve"}
    await world.clock.advance(0.2)
    assert chat.departures == ["bob", "eve"]


async def test_a_session_that_comes_back_in_time_was_never_away(world: World) -> None:
    chat = world.chat
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
    await world.clock.advance(1.0)
    ada.take()
    await bob.peer.lose()
    await world.clock.advance(2.0)
    again = await world.enter("bob", session=bob.session)
    await again.join("chat:1")
    await world.clock.advance(10.0)
    assert (chat.arrivals, chat.departures) == (["ada", "bob"], [])
    members = await ada.call("members", room="chat:1")
    assert [member["connection"] for member in members["list"]] == [ada.id, again.id]
    seen = ada.take("presence")
    users = {member["connection"]: member["user"] for frame in seen for member in frame["joined"]}
    assert users == {again.id: "bob"}
    gone = [connection for frame in seen for connection in frame["left"]]
    assert gone == [bob.id]
    # At no point was the user without a connection, as far as anybody was told.
    assert seen[0]["joined"]


async def test_a_session_that_takes_over_from_a_link_that_seems_alive_was_never_away(world: World) -> None:
    chat = world.chat
    bob = await world.enter("bob", "chat:1")
    again = await world.enter("bob", session=bob.session)  # the server has not noticed that the first link is dead
    assert (await bob.closed()).code == 4403
    await bob.peer.ended()
    await settle()
    assert chat.departures == []
    await again.join("chat:1")
    await world.clock.advance(10.0)
    assert (chat.arrivals, chat.departures) == (["bob"], [])
    members = await again.call("members", room="chat:1")
    assert [member["connection"] for member in members["list"]] == [again.id]


async def test_an_anonymous_session_that_comes_back_in_time_was_never_away() -> None:
    came: list[Any] = []

    def declare(realtime: Realtime) -> None:
        room = realtime.room("hall", public=True, presence=True, linger=0.5)

        @room.on_join
        async def join(member: Member) -> None:
            came.append("join")

        @room.on_leave
        async def leave(member: Member) -> None:
            came.append("leave")

    async with serving(declare, anonymous=True) as world:
        first = await world.enter(None, "hall")
        await first.peer.lose()
        await world.clock.advance(0.4)
        again = await world.enter(None, "hall", session=first.session)
        await world.clock.advance(1.0)
        assert came == ["join"]
        members = await again.call("members", room="hall")
        assert [set(member) for member in members["list"]] == [{"connection", "status", "since"}]
        await again.peer.lose()
        await world.clock.advance(0.6)
        assert came == ["join", "leave"]


async def test_another_users_session_is_not_continued(world: World) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob")
    eve = await world.enter("eve", session=ada.session)
    assert eve.session != ada.session
    assert ada.peer.closed is None
    assert bob.peer.closed is None


async def test_status_and_meta_change_in_one_room_or_in_all(world: World) -> None:
    ada = await world.enter("ada", "chat:1", "chat:2")

    async def record(room: str) -> tuple[Any, Any]:
        (member,) = (await ada.call("members", room=room))["list"]
        return member["status"], member.get("meta")

    await ada.call("status", status="away")
    assert [await record("chat:1"), await record("chat:2")] == [("away", None)] * 2
    await ada.call("status", meta={"typing": True}, room="chat:1")
    assert [await record("chat:1"), await record("chat:2")] == [("away", {"typing": True}), ("away", None)]
    await ada.call("status", status="online")
    assert await record("chat:1") == ("online", {"typing": True})
    await ada.call("status", meta=None, room="chat:1")
    assert await record("chat:1") == ("online", None)
    await ada.join("chat:1", meta=[1], status="away")
    assert await record("chat:1") == ("away", [1])
    with pytest.raises(Failed) as failed:
        await ada.call("status", status="away", room="chat:3")
    assert failed.value.code == "not_joined"


async def test_joining_again_tells_where_the_room_is(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    await ada.event("say", "one")
    joined = await ada.join("chat:1")
    assert joined["recovered"] is False  # there was nothing to recover from
    assert joined["events"] == []
    assert joined["position"]["offset"] == 1
    assert joined["members"]["total"] == 1
    assert world.chat.arrivals == ["ada"]
    assert world.chat.departures == []


async def test_a_large_room_tells_totals_and_a_sample() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("hall", presence=True, shown=30, linger=0.0)

    async with serving(declare) as world:
        watcher = await world.enter("watcher", "hall")
        clients = [await world.enter(f"user{number}", "hall") for number in range(40)]
        await world.clock.advance(1.0)
        frames = watcher.take("presence")
        last = frames[-1]
        assert set(last) == {"type", "room", "seq", "total", "sample"}
        assert last["total"] == 41
        assert len(last["sample"]) == 20
        snapshot = await watcher.call("members", room="hall")
        assert snapshot["total"] == 41
        assert len(snapshot["list"]) == 20
        for client in clients[:35]:
            await client.peer.disconnect()
        await world.clock.advance(1.0)
        last = watcher.take("presence")[-1]
        assert last["total"] == 6
        assert "sample" not in last
        snapshot = await watcher.call("members", room="hall")
        assert len(snapshot["list"]) == 6


async def test_a_room_without_presence_shows_nobody() -> None:
    came: list[Any] = []

    def declare(realtime: Realtime) -> None:
        realtime.room("quiet")
        room = realtime.room("counted", linger=0.0)

        @room.on_join
        async def join(member: Member) -> None:
            came.append((member.user, "join"))

        @room.on_leave
        async def leave(member: Member) -> None:
            came.append((member.user, "leave"))

    async with serving(declare) as world:
        ada = await world.enter("ada")
        for room in ("quiet", "counted"):
            assert "members" not in await ada.join(room)
            with pytest.raises(Failed) as failed:
                await ada.call("members", room=room)
            assert failed.value.code == "forbidden"
        bob = await world.enter("bob", "quiet", "counted")
        await bob.peer.lose()
        await world.clock.advance(1.0)
        assert ada.take("presence") == []
        assert world.entries == 1
        assert came == [("ada", "join"), ("bob", "join"), ("bob", "leave")]


async def test_handlers_without_annotations_are_refused() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("hall")
        with pytest.raises(ConfigurationError, match="Annotate what is injected"):
            room.on_join(lambda member: None)

    async with serving(declare):
        pass


async def test_users_are_hidden_in_a_public_room_unless_it_shows_them() -> None:
    def declare(realtime: Realtime) -> None:
        for name, options in (("hidden", {}), ("shown", {"show_users": True})):
            room = realtime.room(name, public=True, presence=True, **options)  # type: ignore[arg-type]

            @room.on("say")
            async def say(member: Member) -> str | None:
                await member.broadcast("said", 1)
                return member.user

    async with serving(declare, anonymous=True) as world:
        ada = await world.enter("ada")
        for room, user in (("hidden", None), ("shown", "ada")):
            joined = await ada.join(room)
            assert joined["members"]["list"][0].get("user") == user
            assert await ada.event("say", room=room) == "ada"
            assert (await ada.expect("event", room=room))["from"].get("user") == user


async def test_lost_presence_diffs_are_made_up_for_by_the_check(world: World) -> None:
    ada = await world.enter("ada")
    joined = await ada.join("chat:1")
    world.store.faults.drop(1)
    entering = asyncio.ensure_future(world.enter("bob", "chat:1"))
    await world.clock.advance(0.4)
    assert not entering.done()  # what it entered may be under way
    await world.clock.advance(11.0)
    bob = await entering
    fold = await follow(ada, "chat:1", joined["members"])
    assert list(fold.members) == [ada.id, bob.id]
    assert fold.gaps == 0


async def test_a_lost_diff_is_made_up_for_as_soon_as_the_next_one_shows_it(world: World) -> None:
    ada = await world.enter("ada")
    joined = await ada.join("chat:1")
    await world.clock.advance(1.0)
    world.store.faults.drop(1)
    entering = asyncio.ensure_future(world.enter("bob", "chat:1"))
    await settle()
    eve = await world.enter("eve", "chat:1")
    bob = await entering
    await world.clock.advance(0.2)
    fold = await follow(ada, "chat:1", joined["members"])
    assert list(fold.members) == [ada.id, bob.id, eve.id]
    assert fold.gaps == 0


async def test_the_departed_cannot_be_sent_to_and_can_still_speak_to_the_room() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}", presence=True)

        @room.on_leave
        async def leave(member: Member, connection: Connection, room_id: int) -> None:
            assert connection.closed
            assert room_id == 1
            await member.send("bye", 1)
            await member.broadcast("left", member.user)

    async with serving(declare) as world:
        ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
        await bob.peer.disconnect()
        assert await ada.heard() == ["bob"]


async def test_an_arrival_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("hall", presence=True)

        @room.on_join
        async def break_(member: Member) -> None:
            raise RuntimeError("no")

        @room.on_leave
        async def break_too(member: Member) -> None:
            raise RuntimeError("no")

    async with serving(declare) as world:
        ada = await world.enter("ada", "hall")
        await ada.call("leave", room="hall")
        assert ada.peer.closed is None
    assert "a handler of hall failed" in caplog.text


async def test_an_arrival_hears_of_itself_after_the_join(world: World) -> None:
    ada = await world.enter("ada")
    await ada.join("chat:1")
    kinds = [frame["type"] for frame in ada.log]
    assert "presence" not in kinds[: kinds.index("reply", kinds.index("reply") + 1)]


async def test_who_comes_while_somebody_joins_is_in_what_that_one_hears(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked, go = MemoryStore.read, asyncio.Event(), asyncio.Event()

    async def slow(self: MemoryStore, *args: Any, **options: Any) -> Any:
        answer = await read(self, *args, **options)
        asked.set()
        await go.wait()
        return answer

    eve, ada, bob = await world.enter("eve", "chat:1"), await world.enter("ada"), await world.enter("bob")
    await world.clock.advance(1.0)
    monkeypatch.setattr(MemoryStore, "read", slow)
    number = await ada.command("join", room="chat:1")
    await asked.wait()
    monkeypatch.undo()
    await bob.join("chat:1")
    await world.clock.advance(1.0)
    go.set()
    joined = await ada.answer(number)
    await world.clock.advance(1.0)
    fold = await follow(ada, "chat:1", joined["members"])
    assert set(fold.members) == {eve.id, ada.id, bob.id}


async def test_users_are_told_once_over_all_their_connections(world: World) -> None:
    one, _ = await world.enter("ada", "chat:1"), await world.enter("ada", "chat:1")
    bob = await world.enter("bob", "chat:1")
    await one.call("status", room="chat:1", status="away")
    await bob.call("status", room="chat:1", status="away", meta={"where": "out"})
    ada, also = await world.realtime.at("chat:1").users()
    assert (ada.user, ada.status, len(ada.connections)) == ("ada", "online", 2)
    assert (also.user, also.status, also.meta) == ("bob", "away", {"where": "out"})


async def test_on_join_may_send_somebody_away_at_once() -> None:
    told: list[str] = []

    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}", presence=True)

        @room.on_join
        async def arrived(member: Member) -> None:
            told.append("arrived")
            await asyncio.gather(member.leave(code="full"))
            told.append("sent away")

        @room.on_leave
        async def departed(member: Member) -> None:
            told.append("departed")

    async with serving(declare) as world:
        ada = await world.enter("ada")
        await ada.command("join", room="chat:1")
        await settle()
        assert told == ["arrived", "sent away", "departed"]
        (left,) = ada.take("left")
        assert left["code"] == "full"
        assert (await world.realtime.at("chat:1").members()).total == 0
