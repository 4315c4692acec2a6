"""Credentials that run out: refreshed in band, by the same user, with rooms asked again; else the connection ends."""

from collections.abc import AsyncIterator

import pytest

from starlette_realtime import Member, Realtime
from starlette_realtime.testing import FakeClock
from tests.server.support import AT_ONCE, CALM, Peer, Site, declare, new_tokens, running


class Club:
    """A room whose door one can close."""

    def __init__(self) -> None:
        self.open = True
        self.failing = False

    def admits(self, member: Member) -> bool:
        if self.failing:
            raise RuntimeError("the list of guests is lost")
        return self.open


@pytest.fixture
def club() -> Club:
    return Club()


@pytest.fixture
async def site(club: Club) -> AsyncIterator[Site]:
    clock = FakeClock()
    realtime = Realtime(authenticate=new_tokens(clock), anonymous=True, connection=CALM, options=AT_ONCE, clock=clock)
    declare(realtime)
    room = realtime.room("club", presence=True)
    room.authorize(club.admits)
    async with running(realtime=realtime, clock=clock) as site:
        yield site


@pytest.fixture
async def alice(site: Site) -> AsyncIterator[Peer]:
    """Somebody whose token is good for 60 s."""
    async with site.peer() as peer:
        assert (await peer.auth(site.token("alice", expires_in=60.0)))["expires_in"] == 60.0
        await peer.do("join", room="chat:1")
        await peer.do("join", room="club")
        yield peer


async def test_a_client_is_warned_and_then_closed_with_4401(site: Site, alice: Peer) -> None:
    async with site.peer("bob", "chat:1") as bob:
        await site.clock.advance(34.9)
        await alice.sync()
        assert not alice.heard("expiring")
        await site.clock.advance(0.1)
        assert (await alice.expect("expiring"))["expires_in"] == 25.0
        await site.clock.advance(24.9)
        await alice.sync()
        await site.clock.advance(0.1)
        assert (await alice.expect("error"))["code"] == "expired"
        assert await alice.closed() == (4401, "expired")
        await bob.do("event", event="message", room="chat:1", data={"text": "still here"})
        await bob.expect("event", event="message")


async def test_a_short_life_is_warned_of_at_its_half(site: Site) -> None:
    async with site.peer() as peer:
        await peer.auth(site.token("alice", expires_in=0.5))
        await site.clock.advance(0.25)
        assert (await peer.expect("expiring"))["expires_in"] == 0.25
        await site.clock.advance(0.25)
        assert await peer.closed() == (4401, "expired")


async def test_a_refresh_keeps_user_session_rooms_and_connection(site: Site, alice: Peer) -> None:
    (before,) = site.realtime.connections
    session = before.session
    await site.clock.advance(40.0)
    data = await alice.auth(site.token("alice", expires_in=60.0))
    assert (data["user"], data["expires_in"]) == ("alice", 60.0)
    await site.clock.advance(30.0)  # past the first token's end
    await alice.do("event", event="message", room="chat:1", data={"text": "hi"})
    await alice.expect("event", event="message")
    (after,) = site.realtime.connections
    assert after is before
    assert after.session == session
    assert len(alice.heard("joined")) == 1  # the user room, once
    assert not alice.heard("left")
    await site.clock.advance(30.0)
    assert await alice.closed() == (4401, "expired")


async def test_a_refresh_to_somebody_else_is_forbidden_and_changes_nothing(site: Site, alice: Peer) -> None:
    assert (await alice.refused("auth", token=site.token("mallory")))["code"] == "forbidden"
    await alice.do("event", event="message", room="chat:1", data={"text": "hi"})
    assert (await alice.expect("event", event="message"))["from"]["user"] == "alice"
    await site.clock.advance(60.0)
    assert await alice.closed() == (4401, "expired")


async def test_a_refresh_that_fails_changes_nothing(site: Site, alice: Peer) -> None:
    assert (await alice.refused("auth", token="nonsense"))["code"] == "unauthenticated"
    await alice.do("event", event="message", room="chat:1", data={"text": "hi"})
    await site.clock.advance(60.0)
    assert await alice.closed() == (4401, "expired")


async def test_a_stranger_cannot_become_somebody_in_band(site: Site) -> None:
    async with site.peer() as peer:
        await peer.auth()
        assert (await peer.refused("auth", token=site.token("alice")))["code"] == "forbidden"
        assert (await peer.refused("join", room="chat:1"))["code"] == "unauthenticated"


async def test_rooms_are_authorised_again_at_each_refresh(site: Site, alice: Peer, club: Club) -> None:
    async with site.peer("bob", "club", "chat:1") as bob:
        club.open = False
        await alice.auth(site.token("alice"))
        assert await alice.expect("left") == {"type": "left", "room": "club", "code": "forbidden"}
        assert (await bob.expect("presence", room="club", joined=[]))["left"]
        assert (await alice.refused("event", event="x", room="club"))["code"] == "not_joined"
        assert (await alice.refused("join", room="club"))["code"] == "forbidden"
        await site.realtime.at("club").broadcast("secret", 1)
        await bob.expect("event", event="secret")
        await alice.do("event", event="message", room="chat:1", data={"text": "hi"})
        await bob.expect("event", event="message")
        assert not alice.heard("event", event="secret")
        club.open = True
        await alice.do("join", room="club")


async def test_a_room_that_cannot_be_asked_at_a_refresh_is_left(
    site: Site, alice: Peer, club: Club, caplog: pytest.LogCaptureFixture
) -> None:
    club.failing = True
    await alice.auth(site.token("alice"))
    assert await alice.expect("left") == {"type": "left", "room": "club", "code": "internal"}
    assert "the list of guests is lost" in caplog.text
    assert "guests" not in "".join(alice.texts)
    await alice.sync()


async def test_commands_after_a_refresh_wait_for_it(site: Site, alice: Peer, club: Club) -> None:
    club.open = False
    await alice.send("auth", id=201, token=site.token("alice"))
    await alice.send("members", id=202, room="club")
    assert "data" in await alice.expect("reply", id=201)
    assert (await alice.expect("reply", id=202))["error"]["code"] == "not_joined"


async def test_a_token_without_an_end_is_never_warned_of() -> None:
    async with running(authenticate=lambda token: "alice") as site, site.peer() as peer:
        assert (await peer.auth("x"))["expires_in"] is None
        await site.clock.advance(1e5)
        await peer.sync()
        assert not peer.heard("expiring")


async def test_a_refresh_without_a_token_renews_the_session_alone(site: Site, alice: Peer) -> None:
    await site.clock.advance(20.0)
    answer = await alice.do("auth")
    assert (answer["user"], answer["expires_in"]) == ("alice", 40.0)
    await site.clock.advance(40.0)
    assert await alice.closed() == (4401, "expired")
