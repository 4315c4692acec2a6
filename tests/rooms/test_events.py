"""Events: to all, to others, to one, to a user; kept and volatile; acknowledged, refused, failed."""

import logging
from typing import Any

import msgspec
import pytest

from starlette_realtime import (
    ConfigurationError,
    Connection,
    Forbidden,
    History,
    Member,
    Realtime,
    Refused,
    RoomsOptions,
)
from starlette_realtime.testing import settle
from tests.rooms.support import Failed, World, connection_options, serving


async def test_a_kept_event_reaches_all_members_in_one_order(world: World) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
    other = await world.enter("eve", "chat:2")
    assert await ada.event("say", "one") == 1
    assert await bob.event("say", "two") == 2
    for client in (ada, bob):
        await settle()
        events = client.take("event")
        assert [frame["data"] for frame in events] == ["one", "two"]
        assert [frame["position"]["offset"] for frame in events] == [1, 2]
        assert events[0]["from"] == {"connection": ada.id, "user": "ada"}
        assert events[0]["room"] == "chat:1"
        assert events[0]["at"] == 1_800_000_000_000
    assert await other.heard() == []


async def test_others_only_leaves_out_the_session_of_the_sender(world: World) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
    second = await world.enter("ada", "chat:1")
    await ada.event("say_others", "kept")
    await ada.event("wave_others", "volatile")
    assert await ada.heard() == []
    assert await bob.heard() == ["kept", "volatile"]
    assert await second.heard() == ["kept", "volatile"]


async def test_a_volatile_event_has_no_position_and_no_history(world: World) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
    assert await ada.event("wave", "hello") is None
    frame = await bob.expect("event")
    assert frame["event"] == "waved"
    assert "position" not in frame
    assert (await ada.call("history", room="chat:1"))["events"] == []


async def test_the_acknowledgement_comes_after_the_event_that_it_acknowledges(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    await ada.event("say", "one")
    assert [frame["type"] for frame in ada.log[-2:]] == ["event", "reply"]


async def test_a_lagging_member_misses_volatile_events_and_never_kept_ones() -> None:
    options = connection_options(outbox_entries=40, outbox_bytes=100_000, send_timeout=1_000.0, heartbeat=10_000.0)
    async with serving(_chatty, connection=options) as world:
        fast, slow = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
        slow.peer.stall()
        for number in range(60):
            await fast.event("wave", number)
        for number in range(20):
            await fast.event("say", number)
        await fast.event("wave", "late")
        slow.peer.flow()
        heard = await slow.heard()
        assert heard[-20:] == list(range(20))
        assert 0 < len(heard) < 60
        assert slow.peer.closed is None
        assert len(await fast.heard()) == 81


async def test_who_lags_too_far_behind_is_cut_off_and_told_so() -> None:
    options = connection_options(outbox_entries=10, send_timeout=50.0)
    async with serving(_chatty, connection=options) as world:
        fast, slow = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
        slow.peer.stall()
        for number in range(20):
            await fast.event("say", number)
        slow.peer.flow()
        closed = await slow.closed()
        assert closed.code == 4440
        assert slow.log[-1]["type"] == "error"
        assert slow.log[-1]["code"] == "slow_consumer"
        assert await fast.heard() == list(range(20))


async def test_a_peer_that_never_reads_is_dropped_after_the_time_limit_of_a_write() -> None:
    options = connection_options(send_timeout=0.5)
    async with serving(_chatty, connection=options) as world:
        fast, slow = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
        slow.peer.stall()
        await fast.event("say", 1)
        await world.clock.advance(0.4)
        assert not slow.peer.task.done()  # type: ignore[union-attr]
        await world.clock.advance(0.2)
        assert slow.peer.task.done()  # type: ignore[union-attr]
        assert await fast.event("say", 2) == 2


def _chatty(realtime: Realtime) -> None:
    room = realtime.room("chat:{room_id:int}", presence=False)

    @room.on("say")
    async def say(member: Member, number: Any) -> int:
        return (await member.broadcast("said", number)).offset

    @room.on("wave")
    async def wave(member: Member, number: Any) -> None:
        await member.broadcast_volatile("waved", number)


async def test_send_reaches_the_member_alone_and_send_to_one_connection() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.on("echo")
        async def echo(member: Member, text: str) -> None:
            await member.send("echoed", text)

        @room.on("whisper")
        async def whisper(member: Member, to: str) -> None:
            await member.send_to(to, "whispered", "psst")

    async with serving(declare) as world:
        ada, bob, eve = [await world.enter(user, "chat:1") for user in ("ada", "bob", "eve")]
        await ada.event("echo", "me")
        await ada.event("whisper", bob.id)
        await ada.event("whisper", "nobody-of-that-name")
        assert await ada.heard() == ["me"]
        assert await eve.heard() == []
        frame = await bob.expect("event", event="whispered")
        assert frame["from"] == {"connection": ada.id, "user": "ada"}


async def test_a_user_gets_what_is_sent_to_them_on_all_connections_in_or_out_of_rooms(world: World) -> None:
    first, second = await world.enter("ada", "chat:1"), await world.enter("ada")
    bob = await world.enter("bob", "chat:1")
    position = await world.realtime.send_to_user("ada", "mail", {"from": "the server"})
    assert position.offset == 1
    for client in (first, second):
        frame = await client.expect("event", event="mail")
        assert frame["room"] == "user:ada"
        assert frame["position"]["offset"] == 1
    assert await bob.heard() == []


async def test_a_member_sends_to_a_user_whose_name_needs_encoding() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.on("mail")
        async def mail(member: Member, to: str) -> int:
            return (await member.send_to_user(to, "mail", "hello")).offset

    async with serving(declare) as world:
        name = "Zoë / (home): 100%"
        zoe, ada = await world.enter(name), await world.enter("ada", "chat:1")
        assert await ada.event("mail", name) == 1
        frame = await zoe.expect("event", event="mail")
        assert frame["from"]["user"] == "ada"
        assert frame["room"].startswith("user:Zo%C3%AB%20%2F")


async def test_what_was_sent_to_a_user_who_was_away_comes_with_the_user_room(world: World) -> None:
    ada = await world.client().__aenter__()
    await ada.auth("ada")
    joined = await ada.expect("joined", room="user:ada")
    assert joined["recovered"] is False
    await world.realtime.send_to_user("ada", "mail", 1)
    position = (await ada.expect("event"))["position"]
    await ada.peer.lose()
    await world.realtime.send_to_user("ada", "mail", 2)
    await world.realtime.send_to_user("ada", "mail", 3)
    again = await world.client().__aenter__()
    await again.auth("ada", since={"user:ada": position})
    joined = await again.expect("joined", room="user:ada")
    assert joined["recovered"] is True
    assert [event["data"] for event in joined["events"]] == [2, 3]
    await world.realtime.send_to_user("ada", "mail", 4)
    assert await again.heard() == [4]


async def test_a_client_may_go_back_in_its_own_user_room_to_where_it_was(world: World) -> None:
    ada = await world.client().__aenter__()
    await ada.auth("ada")
    position = (await ada.expect("joined", room="user:ada"))["position"]
    await world.realtime.send_to_user("ada", "mail", 1)
    await ada.expect("event", event="mail")
    joined = await ada.join("user:ada", since=position)
    assert joined["recovered"] is True
    assert [event["data"] for event in joined["events"]] == [1]
    await world.realtime.send_to_user("ada", "mail", 2)
    assert await ada.heard() == [2]


async def test_an_anonymous_connection_has_no_user_room() -> None:
    async with serving(lambda realtime: realtime.room("hall", public=True), anonymous=True) as world:
        client = await world.client().__aenter__()
        assert (await client.auth())["user"] is None
        await settle()
        assert client.take("joined") == []


async def test_nobody_joins_a_user_room_by_hand(world: World) -> None:
    ada = await world.enter("ada")
    for name in ("user:bob", "user:", "user:a%62a"):
        with pytest.raises(Failed) as failed:
            await ada.join(name)
        assert failed.value.code == "forbidden"
    with pytest.raises(Failed) as failed:
        await ada.event("anything", room="user:bob")
    assert failed.value.code == "not_joined"


async def test_a_return_value_is_the_acknowledgement_whatever_it_is() -> None:
    values: list[object] = [None, 0, "", [], {"a": [1, None]}, True]

    def declare(realtime: Realtime) -> None:
        @realtime.on("give")
        async def give(number: int) -> object:
            return values[number]

    async with serving(declare) as world:
        ada = await world.enter("ada")
        for number, value in enumerate(values):
            assert await ada.event("give", number, room=None) == value


async def test_a_command_without_an_id_gets_no_reply(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    await ada.peer.send({"type": "event", "room": "chat:1", "event": "say", "data": "quiet"})
    await ada.peer.send({"type": "event", "room": "chat:1", "event": "nope"})
    await settle()
    assert [frame["type"] for frame in ada.take()] == ["event", "error"]


async def test_refused_is_an_error_reply_with_everything_it_says() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.on("no")
        async def no() -> None:
            raise Refused("sold_out", "come again", retry_after=2.5, fields={"a.b": "gone"})

        @room.on("not_you")
        async def not_you() -> None:
            raise Forbidden

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1")
        with pytest.raises(Failed) as failed:
            await ada.event("no")
        assert failed.value.error == {
            "code": "sold_out",
            "message": "come again",
            "retry_after": 2.5,
            "fields": {"a.b": "gone"},
        }
        with pytest.raises(Failed) as failed:
            await ada.event("not_you")
        assert failed.value.error == {"code": "forbidden", "message": "not allowed"}


async def test_a_handlers_failure_tells_nothing_and_the_connection_lives(caplog: pytest.LogCaptureFixture) -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.on("break")
        async def break_() -> None:
            raise RuntimeError("the password is swordfish")

        @room.on("unsendable")
        async def unsendable() -> object:
            return object()

        @room.on("infinite")
        async def infinite() -> float:
            return float("inf")

        @room.on("fine")
        async def fine() -> str:
            return "fine"

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1")
        for event in ("break", "unsendable", "infinite"):
            with pytest.raises(Failed) as failed:
                await ada.event(event)
            assert failed.value.error == {"code": "internal", "message": "the server failed"}
        assert await ada.event("fine") == "fine"
        assert "swordfish" not in str(ada.log)
        assert "swordfish" in caplog.text


async def test_unknown_events_and_rooms_that_were_not_joined_are_refused(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    for room, event, code in (
        ("chat:1", "nope", "unknown_event"),
        (None, "say", "unknown_event"),
        ("chat:2", "say", "not_joined"),
        ("shop:1", "say", "unknown_room"),
        ("chat:01", "say", "unknown_room"),
    ):
        with pytest.raises(Failed) as failed:
            await ada.event(event, "x", room=room)
        assert failed.value.code == code


async def test_an_ephemeral_room_takes_volatile_events_only() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("game:{id}", history=None)

        @room.on("move")
        async def move(member: Member, x: int) -> None:
            await member.broadcast_volatile("moved", x)

        @room.on("keep")
        async def keep(member: Member) -> None:
            with pytest.raises(ConfigurationError, match="broadcast_volatile"):
                await member.broadcast("kept", 1)

    async with serving(declare) as world:
        ada = await world.enter("ada")
        joined = await ada.join("game:a")
        assert joined == {"recovered": False, "events": []}
        await ada.event("move", 3, room="game:a")
        assert await ada.heard() == [3]
        await ada.event("keep", room="game:a")
        assert await ada.call("history", room="game:a") == {"events": [], "more": False, "truncated": False}
        since = {"epoch": "e", "offset": 1, "id": "i"}
        await ada.call("leave", room="game:a")
        joined = await ada.join("game:a", since=since)
        assert joined == {"recovered": False, "events": [], "reason": "ephemeral"}


async def test_publishing_from_anywhere_in_the_process(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    assert (await world.realtime.at("chat:1").broadcast("news", 1)).offset == 1
    assert (await world.chat.room.at(room_id=1).broadcast("news", 2)).offset == 2
    await world.realtime.at("chat:1").broadcast_volatile("news", 3)
    await world.realtime.at("chat:1").send_to(ada.id, "news", 4)
    assert await ada.heard() == [1, 2, 3, 4]
    assert all("from" not in frame for frame in ada.log if frame["type"] == "event")
    for name in ("shop:1", "chat:x", "user:ada"):
        with pytest.raises(Refused):
            world.realtime.at(name)


@pytest.mark.parametrize("event", ["rt:x", "", "connect", "disconnect", "x" * 129])
async def test_reserved_events_cannot_be_published(world: World, event: str) -> None:
    room = world.realtime.at("chat:1")
    with pytest.raises(ConfigurationError):
        await room.broadcast(event, 1)
    with pytest.raises(ConfigurationError):
        await room.broadcast_volatile(event, 1)
    with pytest.raises(ConfigurationError):
        await world.realtime.send_to_user("ada", event, 1)


@pytest.mark.parametrize("event", ["rt:x", "", "connect", "x" * 129])
async def test_reserved_events_cannot_be_sent_to_a_connection(event: str) -> None:
    failures: list[type[BaseException]] = []

    def declare(realtime: Realtime) -> None:
        @realtime.on("try")
        async def attempt(connection: Connection) -> None:
            for act in (connection.send, connection.request):
                try:
                    await act(event, 1)
                except ConfigurationError as exc:
                    failures.append(type(exc))

    async with serving(declare) as world:
        ada = await world.enter("ada")
        await ada.event("try", room=None)
        assert failures == [ConfigurationError, ConfigurationError]


async def test_an_event_that_is_too_large_is_refused_and_the_room_lives() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.on("say")
        async def say(member: Member, size: int) -> None:
            await member.broadcast("said", "x" * size)

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1")
        with pytest.raises(Failed) as failed:
            await ada.event("say", 300_000)
        assert failed.value.code == "too_large"
        await ada.event("say", 3)
        assert await ada.heard() == ["xxx"]


async def test_history_is_paged_backwards(world: World) -> None:
    ada = await world.enter("ada", "chat:1")
    for number in range(1, 8):
        await ada.event("say", str(number))
    page = await ada.call("history", room="chat:1", limit=3)
    assert [event["data"] for event in page["events"]] == ["5", "6", "7"]
    assert page["more"] is True
    page = await ada.call("history", room="chat:1", limit=3, before=page["events"][0]["position"])
    assert [event["data"] for event in page["events"]] == ["2", "3", "4"]
    page = await ada.call("history", room="chat:1", limit=3, before=page["events"][0]["position"])
    assert [event["data"] for event in page["events"]] == ["1"]
    assert (page["more"], page["truncated"]) == (False, False)


async def test_a_page_of_history_is_bounded_and_says_what_the_history_has_dropped() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}", history=History(size=5, ttl=60.0))

    options = RoomsOptions(history_page=4)
    async with serving(declare, options=options) as world:
        ada = await world.enter("ada", "chat:1")
        for number in range(9):
            await world.realtime.at("chat:1").broadcast("said", number)
        page = await ada.call("history", room="chat:1", limit=1000)
        assert [event["data"] for event in page["events"]] == [5, 6, 7, 8]
        assert page["more"] is True
        page = await ada.call("history", room="chat:1", before=page["events"][0]["position"])
        assert [event["data"] for event in page["events"]] == [4]
        assert (page["more"], page["truncated"]) == (False, True)


async def test_a_handler_pages_history_and_sees_members() -> None:
    seen: dict[str, Any] = {}

    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}", presence=True)

        @room.on("look")
        async def look(member: Member) -> None:
            seen["history"] = [bytes(event.data) for event in (await member.history(limit=2)).events]
            seen["members"] = [entry.user for entry in (await member.members()).entries]

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1")
        await world.enter("bob", "chat:1")
        for number in range(3):
            await world.realtime.at("chat:1").broadcast("said", number)
        await ada.event("look")
        assert seen == {"history": [b"1", b"2"], "members": ["ada", "bob"]}


async def test_history_is_for_members(world: World) -> None:
    ada = await world.enter("ada")
    for kind in ("history", "members", "leave"):
        with pytest.raises(Failed) as failed:
            await ada.call(kind, room="chat:1")
        assert failed.value.code == "not_joined"


async def test_a_repeat_with_the_same_key_is_published_once_with_the_first_answer(world: World) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
    assert [await ada.event("say", "hello", key="k1") for _ in range(3)] == [1, 1, 1]
    assert await ada.event("say", "hello", key="k2") == 2
    assert await bob.event("say", "hello", key="k1") == 3  # somebody else's key
    again = await world.enter("ada", "chat:1")
    assert await again.event("say", "hello", key="k1") == 1  # the same user, another session
    await world.clock.advance(121.0)
    assert await again.event("say", "hello", key="k1") == 4  # too late to be known
    assert len(await bob.heard()) == 4


async def test_each_publication_of_a_handler_has_its_own_place_under_one_key() -> None:
    repeat = False

    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.on("say")
        async def say(member: Member) -> list[int]:
            first = await member.broadcast("said", "a")
            second = await member.broadcast("said", "b")
            sent = await member.send_to_user("bob", "mail", "c")
            assert member.key == "k"
            return [first.offset, second.offset, sent.offset]

    async with serving(declare) as world:
        ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
        assert await ada.event("say", key="k") == [1, 2, 1]
        assert await ada.event("say", key="k") == [1, 2, 1]
        assert await bob.heard() == ["a", "b", "c"]
    assert not repeat


async def test_an_anonymous_sessions_keys_are_its_own() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("hall", public=True)

        @room.on("say")
        async def say(member: Member, text: str) -> int:
            return (await member.broadcast("said", text)).offset

    async with serving(declare, anonymous=True) as world:
        first, second = await world.enter(None, "hall"), await world.enter(None, "hall")
        assert await first.event("say", "x", "hall", key="k") == 1
        assert await second.event("say", "x", "hall", key="k") == 2
        session = first.session
        await first.peer.lose()
        again = await world.enter(None, "hall", session=session)
        assert await again.event("say", "x", "hall", key="k") == 1


async def test_a_handlers_own_limit_is_per_connection_and_says_when() -> None:
    def declare(realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}")

        @room.on("say", limit="2/second")
        async def say() -> None: ...

        @room.on("other")
        async def other() -> None: ...

    async with serving(declare) as world:
        ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob", "chat:1")
        await ada.event("say")
        await ada.event("say")
        with pytest.raises(Failed) as failed:
            await ada.event("say")
        assert failed.value.code == "rate_limited"
        assert failed.value.error["retry_after"] == pytest.approx(0.5)
        await ada.event("other")
        await bob.event("say")
        await world.clock.advance(0.5)
        await ada.event("say")


@pytest.mark.parametrize(
    "data", [b"not ours", b'["said","\xff"]', b'["\xff",1]', b'["said",1,{"connection":"\xff"}]', b'["rt:kick","\xff"]']
)
async def test_a_publication_that_no_room_made_is_left_out(
    world: World, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    ada, bob = await world.enter("ada", "chat:1"), await world.enter("bob")
    before = await world.realtime.at("chat:1").broadcast("said", "before")
    await ada.heard()
    with caplog.at_level(logging.ERROR):
        await world.store.publish("chat:1", data, history=History())
    await ada.event("say", "ours")
    assert await ada.heard() == ["ours"]
    assert "left out" in caplog.text
    assert "Traceback" not in caplog.text
    page = await ada.call("history", room="chat:1")
    assert [event["data"] for event in page["events"]] == ["before", "ours"]
    joined = await bob.join("chat:1", since=msgspec.to_builtins(before))
    assert (joined["recovered"], [event["data"] for event in joined["events"]]) == (True, ["ours"])
