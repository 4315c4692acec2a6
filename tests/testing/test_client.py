"""The client for tests hides nothing, waits for no longer than it may, and says what came instead."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette

from starlette_realtime import Member, Realtime, Refused
from starlette_realtime.testing import Client, Closed, FakeClock, Link, Rejected, get, running, settle
from starlette_realtime.testing.rooms import brief
from starlette_realtime.types import Receive, Scope, Send
from tests.testing.support import make_app, make_realtime


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def app(clock: FakeClock) -> AsyncIterator[Starlette]:
    app = make_app(clock=clock)
    async with running(app, clock=clock):
        yield app


async def test_an_event_goes_from_one_to_the_other(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann") as ann, Client(app, "/realtime", token="bob") as bob:
        room, other = await ann.join("chat:1"), await bob.join("chat:1")
        assert await room.send("say", "hello", key="k") == 1
        heard = await other.event("said")
        assert (heard.data, heard.room, heard.recovered) == ("hello", "chat:1", False)
        assert heard.position is not None
        assert heard.position.offset == 1
        assert heard.sender is not None
        assert (heard.sender.connection, heard.sender.user) == (ann.id, "ann")
        assert heard.at == 1_800_000_000_000
        assert (ann.user, bob.user) == ("ann", "bob")
        assert ann.session
        assert (await get(app, "/rooms")).json() == {"connections": 2}


async def test_a_realtime_may_be_asked_without_a_mount() -> None:
    realtime = make_realtime()
    async with realtime, Client(realtime, "", token="ann") as ann:
        assert await ann.send("whoami") == "ann"


async def test_events_are_taken_by_name_and_room_and_the_others_stay(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann") as ann, Client(app, "/realtime", token="bob") as bob:
        first, second = await ann.join("chat:1"), await ann.join("chat:2")
        await bob.join("chat:1")
        room = await bob.join("chat:2")
        await first.send("say", "one")
        await second.send("wave")
        await second.send("say", "two")
        await second.send("say", "three")
        assert (await room.event("said")).data == "two"
        assert (await bob.event("waved")).data == "ann"
        assert (await bob.event(room="chat:2")).data == "three"
        assert (await bob.event()).data == "one"
        await bob.nothing()
        await first.nothing("waved")


async def test_something_where_nothing_was_to_come_is_named(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann") as ann:
        room = await ann.join("chat:1")
        await room.send("say", "hello")
        await room.nothing("waved")
        await ann.nothing(room="chat:2")
        for nothing in (ann.nothing, room.nothing):
            with pytest.raises(AssertionError, match="there is event 'said' 'hello' in chat:1"):
                await nothing()
        with pytest.raises(AssertionError, match="said"):
            await room.nothing("said", "waved")


async def test_refusals_are_raised_with_their_code(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann") as ann:
        with pytest.raises(Refused) as refused:
            await ann.join("locked")
        assert refused.value.code == "forbidden"
        assert "locked" not in ann.rooms
        with pytest.raises(Refused, match="unknown_event"):
            await (await ann.join("chat:1")).send("shout")
        with pytest.raises(Refused) as refused:
            await ann.send("say", 1, room="chat:1")
        assert refused.value.code == "invalid_payload"
        assert refused.value.fields
        await ann.join("chat:1")


async def test_who_is_not_known_is_refused_and_a_foreign_page_is_shut_out(app: Starlette) -> None:
    with pytest.raises(Refused) as refused:
        await Client(app, "/realtime", token="nobody").connect()
    assert refused.value.code == "unauthenticated"
    with pytest.raises(Rejected) as rejected:
        await Client(app, "/realtime", headers=[("authorization", "Bearer nobody")]).connect()
    assert rejected.value.status == 401
    with pytest.raises(Closed) as closed:
        await Client(app, "/realtime", token="ann", origin="https://evil.example").connect()
    assert closed.value.code == 4403


async def test_the_first_frame_may_be_left_to_the_test(app: Starlette) -> None:
    async with Client(app, "/realtime", auth=False) as client:
        with pytest.raises(Refused, match="unauthenticated"):
            await client.join("chat:1")
        assert (await client.auth("ann"))["user"] == "ann"
        await client.join("chat:1")


async def test_what_came_instead_is_named_with_the_clock_that_stands_still(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann", timeout=0.02) as ann:
        room = await ann.join("chat:1")
        for number in range(10):
            await app.state.realtime.at("chat:1").broadcast("said", f"{'long ' * 40}{number}")
        await settle()
        with pytest.raises(TimeoutError) as error:
            await room.event("waved")
        said = str(error.value)
        assert said.startswith("the event 'waved' in chat:1 did not come within 0.02 s; what came instead: … ")
        assert said.count("event 'said' 'long long") == 8
        assert "a fake clock stands still, and its next timer is due in" in said


async def test_frames_of_any_type_can_be_expected_and_taken(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann") as ann:
        assert (await ann.expect("joined", room="user:ann"))["recovered"] is False
        number = await ann.command("event", event="whoami")
        assert await ann.answer(number) == "ann"
        await ann.peer.send({"type": "nonsense"})
        assert (await ann.expect("error"))["code"] == "bad_frame"
        await ann.peer.send({"type": "nonsense"})
        await settle()
        assert [frame["type"] for frame in ann.take("error")] == ["error"]
        assert ann.take() == []


async def test_pings_are_answered_and_a_client_that_does_not_read_is_given_up(app: Starlette, clock: FakeClock) -> None:
    async with Client(app, "/realtime", token="ann") as ann, Client(app, "/realtime", token="bob") as bob:
        bob.peer.stall()
        await clock.advance(120.0)
        assert ann.closed is None
        assert bob.closed is not None


async def test_questions_of_the_server_are_answered(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann") as ann:
        room = await ann.join("chat:1")
        asked = await ann.command("event", event="ask", room="chat:1")
        question = await room.event("question")
        await ann.reply(question, {"answer": 42})
        assert await ann.answer(asked) == {"answer": 42}
        asked = await ann.command("event", event="ask", room="chat:1")
        await ann.refuse(await ann.event("question"), "too_hard")
        assert await ann.answer(asked) == {"refused": "too_hard"}

        @ann.on("question")
        def question_of(data: dict[str, str]) -> int:
            if room.roster is None:
                raise Refused("later")
            return len(data["of"])

        assert await room.send("ask") == 4
        room.roster = None
        assert await room.send("ask") == {"refused": "later"}


async def test_presence_is_asked_for_and_heard(app: Starlette, clock: FakeClock) -> None:
    async with Client(app, "/realtime", token="ann") as ann, Client(app, "/realtime", token="bob") as bob:
        room = await ann.join("chat:1", meta={"from": "here"})
        assert room.roster is not None
        assert room.roster["total"] == 1
        other = await bob.join("chat:1", status="away")
        assert await room.users() == {"ann", "bob"}
        await clock.advance(0.1)
        change = await room.presence()
        assert [member["user"] for member in change["joined"]] == ["bob"]
        await other.set_status("online", meta="back")
        members = {member["user"]: member for member in await room.members()}
        assert members["bob"]["status"] == "online"
        assert (members["bob"]["meta"], members["ann"]["meta"]) == ("back", {"from": "here"})
        await other.leave()
        assert await room.users() == {"ann"}
        assert set(bob.rooms) == {"user:bob"}


async def test_history_is_read(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann") as ann:
        room = await ann.join("chat:1")
        for text in ("one", "two", "three"):
            await room.send("say", text)
        events = await room.history(limit=2)
        assert [event.data for event in events] == ["two", "three"]
        assert [event.data for event in await room.history(before=events[0].position)] == ["one"]


async def test_a_room_that_the_server_joined_is_known(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann") as ann:
        await ann.send("invite")
        assert set(ann.rooms) == {"user:ann", "chat:7"}
        assert ann.rooms["chat:7"].served
        await app.state.realtime.at("chat:7").kick(user="ann")
        assert (await ann.expect("left"))["room"] == "chat:7"
        assert "chat:7" not in ann.rooms


async def test_a_resume_brings_what_was_missed_and_nothing_else(app: Starlette) -> None:
    realtime = app.state.realtime
    async with Client(app, "/realtime", token="ann") as ann, Client(app, "/realtime", token="bob") as bob:
        mine, theirs = await ann.join("chat:1"), await bob.join("chat:1")
        await theirs.send("say", "before")
        await ann.drop()
        await ann.drop()
        await theirs.send("say", "meanwhile")
        await realtime.send_to_user("ann", "mail", "for you")
        await ann.resume()
        await theirs.send("say", "after")
        heard = [await mine.event("said") for _ in range(3)]
        assert [event.data for event in heard] == ["before", "meanwhile", "after"]
        assert [event.recovered for event in heard] == [False, True, False]
        assert (mine.recovered, mine.reason) == (True, "")
        assert (await ann.event("mail")).recovered
        await ann.nothing()


async def test_a_resume_that_comes_too_late_says_so(app: Starlette, clock: FakeClock) -> None:
    async with Client(app, "/realtime", token="ann") as ann, Client(app, "/realtime", token="bob") as bob:
        mine, theirs = await ann.join("chat:1"), await bob.join("chat:1")
        await ann.drop()
        await theirs.send("say", "lost")
        await clock.advance(301.0)
        await ann.resume(token="ann")
        assert not mine.recovered
        assert await mine.reset() == mine.reason == "trimmed"
        await ann.nothing("said")


async def test_a_client_that_is_closed_says_how(app: Starlette) -> None:
    async with Client(app, "/realtime", token="ann") as ann:
        await app.state.realtime.disconnect_user("ann")
        assert (await ann.wait_closed()).code == 4403
        with pytest.raises(Closed):
            await ann.event()
        with pytest.raises(Closed):
            await ann.send("whoami")
        await ann.resume()
        assert await ann.send("whoami") == "ann"
        await ann.close()
        assert ann.closed is not None
        assert ann.closed.code == 1000


async def test_a_client_may_come_back_over_another_link_while_nobody_noticed(app: Starlette, clock: FakeClock) -> None:
    async with Client(app, "/realtime", token="ann") as ann:
        room = await ann.join("chat:1")
        ann.peer.link.half_open()
        await app.state.realtime.at("chat:1").broadcast("said", "into the void")
        await ann.drop()
        assert len(app.state.realtime.connections) == 1
        await ann.resume(link=Link())
        assert (await room.event("said")).data == "into the void"
        await ann.nothing()


async def test_more_than_the_backlog_makes_the_application_wait(app: Starlette, clock: FakeClock) -> None:
    async with (
        Client(app, "/realtime", token="ann", backlog=4) as ann,
        Client(app, "/realtime", token="bob") as bob,
    ):
        mine, _ = await ann.join("chat:1"), await bob.join("chat:1")
        ann.take()
        for number in range(20):
            await app.state.realtime.at("chat:1").broadcast("said", str(number))
        await settle()
        assert len(ann._unread) == 4
        heard = [(await mine.event("said")).data for _ in range(20)]
        assert heard == [str(number) for number in range(20)]


async def test_what_the_application_raised_meanwhile_is_raised_by_drop() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": '{"type":"welcome","connection":"c"}'})
        raise ZeroDivisionError

    client = await Client(broken, "", auth=False).connect()
    with pytest.raises(ZeroDivisionError):
        await client.drop()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ({"type": "reply", "id": 1, "data": 2}, "reply 1: 2"),
        ({"type": "reply", "id": 1, "error": {"code": "forbidden"}}, "reply 1: forbidden"),
        ({"type": "error", "code": "bad_frame"}, "error: bad_frame"),
        ({"type": "left", "room": "chat:1", "code": "forbidden"}, "left: forbidden in chat:1"),
        ({"type": "reset", "room": "chat:1", "reason": "trimmed"}, "reset: trimmed in chat:1"),
        ({"type": "event", "event": "say"}, "event 'say' None"),
        ({"type": "stale"}, "stale"),
    ],
)
def test_frames_are_named_in_few_words(frame: dict[str, Any], said: str) -> None:
    assert brief(frame) == said


async def test_a_room_that_the_server_took_back_while_it_was_joined_is_refused() -> None:
    realtime = Realtime(anonymous=True)
    room = realtime.room("door", public=True)

    @room.on_join
    async def arrived(member: Member) -> None:
        await member.leave(code="full")

    async with realtime, Client(realtime, "") as client:
        with pytest.raises(Refused, match="removed the client from door"):
            await client.join("door")
