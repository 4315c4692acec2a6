"""Rooms that are not for this client, or not at all, are refused: nothing is left behind, and the client goes on."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from starlette_realtime import Connection, Forbidden, Member, Realtime
from starlette_realtime.testing import FakeClock
from tests.server.support import AT_ONCE, CALM, Frame, Peer, Site, declare, new_tokens, running
from tests.support.waiting import until


@pytest.fixture(scope="module")
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    clock = FakeClock()
    realtime = Realtime(authenticate=new_tokens(clock), anonymous=True, connection=CALM, options=AT_ONCE, clock=clock)
    declare(realtime)
    realtime.room("open:{name}", public=True)
    asked = realtime.room("asked:{answer}")

    @asked.authorize
    async def may_join(member: Member, connection: Connection, answer: str) -> object:
        if answer == "raises":
            raise RuntimeError("a secret detail")
        if answer == "forbids":
            raise Forbidden("not on Sundays")
        return {"yes": True, "no": False, "nothing": None, "one": 1, "text": "yes"}[answer]

    async with running(realtime=realtime, clock=clock) as site:
        yield site


@pytest.fixture
async def peer(site: Site) -> AsyncIterator[Peer]:
    async with site.peer("alice") as peer:
        yield peer


@pytest.fixture
async def witness(site: Site) -> AsyncIterator[Peer]:
    async with site.peer("bob", "chat:1") as witness:
        yield witness


UNKNOWN = [
    "",
    "nope",
    "chat",
    "chat:",
    "chat:x",
    "CHAT:1",
    "Chat:1",
    "chat:1:2",
    "chat:1/",
    "chat::1",
    # one authorisation must not be several topics
    "chat:042",
    "chat:00",
    "chat:-1",
    "chat:-0",
    "chat:+1",
    "chat: 1",
    "chat:1 ",
    "chat:1.0",
    "chat:1e3",
    "chat:1_000",
    "chat:0x10",
    "chat:" + "1" * 19,
    "chat:٤٢",
    "chat:４２",
    "chat:४२",
    "chat:²",
    "chat:{room_id}",
    # control characters, and what looks like something else
    "chat:1\n",
    "chat:1\r\n",
    "chat:1\x00",
    "\x00chat:1",
    "named:a\x00b",
    "named:a\tb",
    "named:\x1b[2J",
    "named:a\x7f",
    "named:a\x85b",
    "named:a\u2028b",
    "named:a\u202eb",
    "named:a\u200fb",
    "named:\u2066a",
    # not NFC: refused, not repaired
    "named:cafe\u0301",
    "named:\u212b",
    "named:s\u0307\u0323",
    # separators and lengths
    "named:",
    "named:a:b",
    "named:a/b",
    "named:a,b",
    "named:a?b",
    "named:" + "n" * 123,
    "named:" + "é" * 123,
    "named:" + "n" * 60_000,
    # the server's own
    "rt:nodes",
    "rt:revocations",
    "rt:",
]

FOREIGN = ["user:", "user:bob", "user:%61lice", "user:alice\n", "user:bob:1", "user:" + "b" * 5000]


def _name(room: str) -> str:
    return ascii(room)[:40]


@pytest.mark.parametrize(
    ("room", "code"),
    [*((room, "unknown_room") for room in UNKNOWN), *((room, "forbidden") for room in FOREIGN)],
    ids=_name,
)
async def test_a_join_of_such_a_room_is_refused_and_leaves_nothing(
    site: Site, peer: Peer, witness: Peer, room: str, code: str
) -> None:
    await until(lambda: site.realtime.gauges()["connections"] == 2, what="earlier tests' connections to be gone")
    await asyncio.sleep(0)
    before = site.realtime.gauges()
    error = await peer.refused("join", room=room)
    assert error["code"] == code
    assert not error.get("retry_after")
    assert room == "" or room not in error["message"]
    await until(lambda: site.realtime.gauges() == before, what="what the refused join held to be given back")
    await site.realtime.at("chat:1").broadcast("news", 1)
    await witness.expect("event", event="news")
    await peer.do("join", room="chat:1")
    assert not witness.heard("error")


@pytest.mark.parametrize(
    ("type", "fields"),
    [
        ("leave", {}),
        ("event", {"event": "message", "data": {"text": "x"}}),
        ("status", {"status": "away"}),
        ("history", {}),
        ("members", {}),
    ],
)
@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("nope", "unknown_room"),
        ("chat:042", "unknown_room"),
        ("named:cafe\u0301", "unknown_room"),
        ("rt:nodes", "unknown_room"),
        ("chat:1", "not_joined"),
        ("user:bob", "not_joined"),
        ("user:%61lice", "not_joined"),
    ],
    ids=_name,
)
async def test_no_command_reaches_a_room_that_the_client_is_not_in(
    peer: Peer, witness: Peer, type: str, fields: Frame, room: str, code: str
) -> None:
    if type == "leave":
        code = "forbidden" if room.startswith("user:") else "not_joined"
    assert (await peer.refused(type, room=room, **fields))["code"] == code
    before = len(witness.frames)
    await witness.sync()
    assert [frame["type"] for frame in witness.frames[before:]] == ["reply"]
    await peer.sync()


async def test_a_refusal_without_an_id_is_an_error_frame(peer: Peer) -> None:
    await peer.send("join", room="nope")
    assert (await peer.expect("error"))["code"] == "unknown_room"
    await peer.sync()


@pytest.mark.parametrize("answer", ["no", "nothing", "one", "text", "forbids"])
async def test_only_true_lets_in(peer: Peer, answer: str) -> None:
    error = await peer.refused("join", room=f"asked:{answer}")
    assert error["code"] == "forbidden"
    assert error["message"] == ("not on Sundays" if answer == "forbids" else "not allowed")
    await peer.do("join", room="asked:yes")


async def test_an_authorize_that_fails_lets_nobody_in_and_tells_nothing(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    error = await peer.refused("join", room="asked:raises")
    assert error == {"code": "internal", "message": "the server failed"}
    assert "a secret detail" in caplog.text
    await peer.do("join", room="asked:yes")


async def test_a_user_cannot_reach_what_is_sent_to_another(site: Site, peer: Peer) -> None:
    async with site.peer("bob") as bob:
        await bob.expect("joined", room="user:bob")
        for room in ("user:bob", "user:b%6Fb"):
            await peer.refused("join", room=room)
            await peer.refused("history", room=room)
            await peer.refused("event", event="message", room=room, data={"text": "x"})
        await site.realtime.send_to_user("bob", "secret", 1)
        await bob.expect("event", event="secret", room="user:bob")
    await peer.sync()
    assert not peer.heard("event")


async def test_ones_own_user_room_is_the_servers_to_write_to(site: Site, peer: Peer) -> None:
    await peer.expect("joined", room="user:alice")
    assert (await peer.refused("event", event="message", room="user:alice"))["code"] == "unknown_event"
    assert (await peer.refused("members", room="user:alice"))["code"] == "forbidden"
    await site.realtime.send_to_user("alice", "news", 1)
    history = await peer.do("history", room="user:alice")
    assert history["events"][-1]["event"] == "news"


@pytest.mark.parametrize("user", ["a:b", "a/b", "josé", "a b", "%61", "💥", "a,b?c"])
async def test_users_with_odd_names_have_rooms_of_their_own(site: Site, user: str) -> None:
    async with site.peer(user) as peer:
        room = (await peer.expect("joined"))["room"]
        assert room.isascii()
        assert not set(room.removeprefix("user:")) & set(":/,? ")
        await site.realtime.send_to_user(user, "news", user)
        assert (await peer.expect("event", room=room))["data"] == user


async def test_anonymous_clients_are_let_into_public_rooms_alone(site: Site) -> None:
    async with site.peer() as stranger:
        assert (await stranger.auth())["user"] is None
        assert (await stranger.refused("join", room="chat:1"))["code"] == "unauthenticated"
        assert (await stranger.refused("join", room="user:"))["code"] == "forbidden"
        assert (await stranger.refused("join", room="user:None"))["code"] == "forbidden"
        await stranger.do("join", room="open:house")
        assert not stranger.heard("joined")


async def test_ones_own_room_may_be_joined_again_to_go_back_to_where_one_was(site: Site, peer: Peer) -> None:
    await peer.expect("joined", room="user:alice")
    begun = (await peer.do("join", room="user:alice"))["position"]
    await site.realtime.send_to_user("alice", "note", 1)
    again = await peer.do("join", room="user:alice", since=begun)
    assert again["recovered"] is True
    assert [event["data"] for event in again["events"]] == [1]
