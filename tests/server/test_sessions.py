"""Sessions: who comes back is the same to the others, and a session is worth nothing to anybody else."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from starlette_realtime import Member, Realtime
from starlette_realtime.testing import FakeClock
from tests.server.support import AT_ONCE, CALM, Frame, Peer, Site, declare, new_tokens, running
from tests.support.waiting import until


@pytest.fixture
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    clock = FakeClock()
    realtime = Realtime(authenticate=new_tokens(clock), anonymous=True, connection=CALM, options=AT_ONCE, clock=clock)
    declare(realtime)
    realtime.room("wall", public=True, presence=True)
    den = realtime.room("den")

    @den.on_join
    async def came(member: Member) -> None:
        await member.broadcast("came", member.user)

    @den.on_leave
    async def went(member: Member) -> None:
        await member.broadcast("went", member.user)

    async with running(realtime=realtime, clock=clock) as site:
        yield site


async def gone(site: Site, connections: int = 1) -> None:
    """Wait until the server knows who is left."""
    await until(lambda: len(site.realtime.connections) == connections, what="the lost connection to be noticed")
    await asyncio.sleep(0)


class Attendance:
    """Who a peer has been told is in its room, change by change."""

    def __init__(self, peer: Peer, members: list[Frame]) -> None:
        self._peer = peer
        self._users = {member["connection"]: member["user"] for member in members}
        self._read = 0

    def counts(self) -> list[Counter[str]]:
        """How many connections each user had, after each change that came since the last call."""
        changes = self._peer.heard("presence")
        counted = []
        for change in changes[self._read :]:
            for member in change.get("joined", ()):
                self._users[member["connection"]] = member["user"]
            for connection in change.get("left", ()):
                del self._users[connection]
            counted.append(Counter(self._users.values()))
        self._read = len(changes)
        return counted


@pytest.fixture
async def bob(site: Site) -> AsyncIterator[Peer]:
    async with site.peer("bob") as bob:
        yield bob


@pytest.fixture
async def attendance(bob: Peer) -> Attendance:
    """What bob hears."""
    return Attendance(bob, (await bob.do("join", room="chat:1"))["members"]["list"])


async def test_who_comes_back_within_the_linger_was_never_away(site: Site, bob: Peer, attendance: Attendance) -> None:
    async with site.peer() as alice:
        session = (await alice.auth(site.token("alice")))["session"]
        await alice.do("join", room="chat:1")
        await bob.sync()
        assert attendance.counts() == [{"bob": 1, "alice": 1}]
        alice.lose()
        await gone(site)
    await site.clock.advance(4.9)
    async with site.peer("alice", session=session) as again:
        members = (await again.do("join", room="chat:1"))["members"]
        assert members["total"] >= 2
        await site.clock.advance(10.0)
        members = await bob.do("members", room="chat:1")
        assert sorted(member["user"] for member in members["list"]) == ["alice", "bob"]
        counts = attendance.counts()
        assert counts[-1] == {"bob": 1, "alice": 1}
        assert all(count["alice"] >= 1 for count in counts), "at no point was she away"


async def test_who_does_not_come_back_has_left_after_the_linger(site: Site, bob: Peer, attendance: Attendance) -> None:
    async with site.peer("alice", "chat:1") as alice:
        alice.lose()
        await gone(site)
    await site.clock.advance(4.9)
    await bob.sync()
    assert attendance.counts() == [{"bob": 1, "alice": 1}]
    await site.clock.advance(0.1)
    await bob.sync()
    assert attendance.counts() == [{"bob": 1}]


async def test_on_join_and_on_leave_do_not_hear_of_a_link_that_comes_back(site: Site, bob: Peer) -> None:
    await bob.do("join", room="den")
    async with site.peer() as alice:
        session = (await alice.auth(site.token("alice")))["session"]
        await alice.do("join", room="den")
        await bob.expect("event", event="came", data="alice")
        alice.lose()
        await gone(site)
    async with site.peer("alice", "den", session=session) as again:
        await site.clock.advance(10.0)
        await again.sync()
    await bob.expect("event", event="went", data="alice")
    heard = [(event["event"], event["data"]) for event in bob.heard("event")]
    assert heard == [("came", "bob"), ("came", "alice"), ("went", "alice")]


@pytest.mark.parametrize("code", [1000, 1001])
async def test_who_leaves_on_purpose_has_left_at_once(site: Site, bob: Peer, attendance: Attendance, code: int) -> None:
    async with site.peer("alice", "chat:1") as alice:
        await alice.websocket.close(code)
    await gone(site)
    await bob.sync()
    assert attendance.counts() == [{"bob": 1, "alice": 1}, {"bob": 1}]


async def test_the_session_is_renewed_with_each_auth_and_stays_the_same(site: Site) -> None:
    sids = set()
    session = None
    for _ in range(3):
        async with site.peer() as alice:
            session = (await alice.auth(site.token("alice"), **({"session": session} if session else {})))["session"]
            sids.add(next(iter(site.realtime.connections)).session)
        await gone(site, 0)
        await site.clock.advance(13 * 3600.0)
    assert len(sids) == 1


async def test_a_session_that_was_not_used_for_a_day_is_another_one(site: Site) -> None:
    async with site.peer() as alice:
        session = (await alice.auth(site.token("alice")))["session"]
        (first,) = site.realtime.connections
        await alice.websocket.close()
        await gone(site, 0)
    await site.clock.advance(24 * 3600.0)
    async with site.peer("alice", session=session):
        (second,) = site.realtime.connections
        assert second.session != first.session


@pytest.mark.parametrize("user", ["mallory", None])
async def test_the_session_of_another_user_is_ignored(site: Site, user: str | None) -> None:
    async with site.peer() as alice:
        session = (await alice.auth(site.token("alice")))["session"]
        await alice.do("join", room="chat:1")
        async with site.peer() as mallory:
            data = await mallory.auth(site.token(user) if user else None, session=session)
            assert data["user"] == user
            assert data["session"] != session
            first, second = site.realtime.connections
            assert first.session != second.session
            # and alice is neither replaced nor left out of what the other one says
            if user is not None:
                await mallory.do("join", room="chat:1")
                await mallory.do("event", event="aside", room="chat:1", data={"text": "psst"})
                await alice.expect("event", event="message", data={"text": "psst"})
            await alice.sync()


@pytest.mark.parametrize("session", ["", "nonsense", "x" * 8193, 5])
async def test_a_session_that_is_none_does_not_keep_anybody_out(site: Site, session: object) -> None:
    async with site.peer() as alice:
        reply = await alice.ask("auth", token=site.token("alice"), session=session)
        if session == "nonsense":
            assert reply["data"]["user"] == "alice"
        else:
            assert reply["error"]["code"] == "bad_frame"
            await alice.auth(site.token("alice"))


async def test_a_session_authenticates_nobody(site: Site) -> None:
    async with site.peer() as alice:
        session = (await alice.auth(site.token("alice")))["session"]
    async with site.peer() as peer:
        assert (await peer.auth(session=session))["user"] is None
        assert (await peer.refused("join", room="chat:1"))["code"] == "unauthenticated"
    async with site.peer() as peer:
        assert (await peer.refused("auth", token=session))["code"] == "unauthenticated"


async def test_a_session_that_comes_again_replaces_its_connection(site: Site) -> None:
    async with site.peer() as first:
        session = (await first.auth(site.token("alice")))["session"]
        async with site.peer("alice", session=session) as second:
            assert (await first.expect("error"))["code"] == "forbidden"
            assert await first.closed() == (4403, "forbidden")
            await second.sync()


async def test_others_only_leaves_out_the_session_in_a_recovery_too(site: Site) -> None:
    async with site.peer("bob", "chat:1") as bob, site.peer() as alice:
        session = (await alice.auth(site.token("alice")))["session"]
        position = (await alice.do("join", room="chat:1"))["position"]
        await alice.do("event", event="aside", room="chat:1", data={"text": "mine, live"})
        await bob.do("event", event="aside", room="chat:1", data={"text": "bob's"})
        await bob.expect("event", event="message", data={"text": "mine, live"})
        await alice.expect("event", event="message", data={"text": "bob's"})
        assert not alice.heard("event", data={"text": "mine, live"})
        alice.lose()
        await gone(site)

        async with site.peer("alice", session=session) as again:
            recovered = await again.do("join", room="chat:1", since=position)
            assert recovered["recovered"]
            assert [event["data"]["text"] for event in recovered["events"]] == ["bob's"]
        async with site.peer("alice") as another:  # the same user, but not the same session
            recovered = await another.do("join", room="chat:1", since=position)
            assert [event["data"]["text"] for event in recovered["events"]] == ["mine, live", "bob's"]


async def test_strangers_have_sessions_too(site: Site) -> None:
    async with site.peer() as watcher, site.peer() as stranger:
        await watcher.auth()
        await watcher.do("join", room="wall")
        session = (await stranger.auth())["session"]
        await stranger.do("join", room="wall")
        await watcher.expect("presence")
        stranger.lose()
        await gone(site)
        async with site.peer() as again:
            await again.auth(session=session)
            members = (await again.do("join", room="wall"))["members"]
            assert members["total"] == 2
