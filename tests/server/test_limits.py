"""How much one client may ask: what is over a limit is refused with the time to wait, and who goes on is closed."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from starlette_realtime import Connection, ConnectionOptions, Limit, Member, Realtime
from starlette_realtime.testing import FakeClock
from tests.server.support import AT_ONCE, CALM, Peer, Site, declare, new_tokens, relaxed, running

BURST = 40
RATE = 20.0


@pytest.fixture(scope="module")
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    clock = FakeClock()
    realtime = Realtime(authenticate=new_tokens(clock), connection=CALM, options=AT_ONCE, clock=clock)
    declare(realtime)
    limited = realtime.room("limited:{name}")

    @limited.on("five", limit="5/second")
    async def five(member: Member) -> None: ...

    @limited.on("free")
    async def free(member: Member) -> None: ...

    @realtime.on("one", limit="1/2 seconds")
    async def one(connection: Connection) -> None: ...

    async with running(realtime=realtime, clock=clock) as site:
        yield site


@pytest.fixture
async def peer(site: Site) -> AsyncIterator[Peer]:
    """A client that has asked for nothing lately."""
    async with site.peer("alice") as peer:
        await site.clock.advance(60.0)
        yield peer


async def fill(peer: Peer, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Send so many events at once, and give back the replies."""
    for number in range(1000, 1000 + count):
        await peer.send("event", **{"event": "echo", "data": number, "id": number, **fields})
    return [await peer.expect("reply", id=number) for number in range(1000, 1000 + count)]


def refusals(replies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(reply["error"]["code"] == "rate_limited" for reply in replies if "error" in reply)
    return [reply["error"] for reply in replies if "error" in reply]


# --- messages ---------------------------------------------------------------------------------------------------------


async def test_forty_commands_at_once_pass_and_the_next_is_told_when_to_come_again(site: Site, peer: Peer) -> None:
    assert not refusals(await fill(peer, BURST))
    error = await peer.refused("event", event="echo")
    assert (error["code"], error["retry_after"]) == ("rate_limited", pytest.approx(1 / RATE))
    await site.clock.advance(error["retry_after"])
    await peer.sync()
    await peer.refused("event", event="echo")
    await site.clock.advance(2.0)
    assert not refusals(await fill(peer, BURST))


async def test_in_the_long_run_twenty_commands_a_second_pass(site: Site, peer: Peer) -> None:
    passed = 0
    for _ in range(20):
        replies = await fill(peer, 15)
        passed += len(replies) - len(refusals(replies))
        await site.clock.advance(0.5)
    assert passed == BURST + RATE * 0.5 * 19


@pytest.mark.parametrize(
    ("type", "fields"),
    [
        ("leave", {"room": "chat:1"}),
        ("event", {"event": "nope"}),
        ("status", {"status": "away"}),
        ("history", {"room": "chat:1"}),
        ("members", {"room": "chat:1"}),
    ],
)
async def test_every_kind_of_command_counts(peer: Peer, type: str, fields: dict[str, Any]) -> None:
    assert not refusals(await fill(peer, BURST - 1))
    await peer.ask(type, **fields)
    assert (await peer.refused(type, **fields))["code"] == "rate_limited"


async def test_refreshes_have_a_limit_of_their_own_since_each_asks_every_room(site: Site, peer: Peer) -> None:
    for _ in range(5):
        assert (await peer.refused("auth", token="nonsense"))["code"] == "unauthenticated"
    error = await peer.refused("auth", token="nonsense")
    assert (error["code"], error["retry_after"]) == ("rate_limited", pytest.approx(6.0))
    await site.clock.advance(6.0)
    await peer.do("auth")


async def test_a_refusal_without_an_id_has_the_time_to_wait_too(peer: Peer) -> None:
    await fill(peer, BURST)
    await peer.send("event", event="echo")
    error = await peer.expect("error")
    assert (error["code"], error["retry_after"]) == ("rate_limited", pytest.approx(1 / RATE))


async def test_who_goes_on_regardless_is_closed_with_the_time_to_wait(site: Site, peer: Peer) -> None:
    async with site.peer("bob", "chat:1") as bob:
        for number in range(200):
            await peer.send("event", event="echo", id=number)
        code, reason = await peer.closed()
        assert code == 4429
        assert re.fullmatch(r"rate_limited;\d+(\.\d+)?", reason)
        last = peer.frames[-1]
        assert (last["type"], last["code"]) == ("error", "rate_limited")
        assert last["retry_after"] > 0
        assert len([reply for reply in peer.heard("reply") if "error" in reply]) == BURST
        await bob.do("event", event="message", room="chat:1", data={"text": "hi"})
        await bob.expect("event", event="message")


async def test_who_waits_as_told_is_never_closed(site: Site, peer: Peer) -> None:
    for _ in range(5):
        replies = await fill(peer, BURST)
        refused = refusals(replies)
        await site.clock.advance(max((error["retry_after"] for error in refused), default=0.0) * max(len(refused), 1))
    await peer.sync()


async def test_others_of_the_same_user_have_limits_of_their_own(site: Site, peer: Peer) -> None:
    await fill(peer, BURST)
    async with site.peer("alice") as other:
        await other.sync()


@pytest.mark.parametrize(
    "frame", ["{}", '{"type":"shout","id":1}', '{"type":"join"}', '{"type":"pong"}', '{"type":"reply","id":7}']
)
async def test_what_is_no_command_counts_in_the_end(site: Site, peer: Peer, frame: str) -> None:
    for _ in range(200):
        await peer.text(frame)
    code, reason = await peer.closed()
    assert (code, reason.partition(";")[0]) == (4429, "rate_limited")
    assert len(peer.heard("error", code="bad_frame")) + len(peer.heard("reply")) <= 2 * BURST
    async with site.peer("bob") as bob:
        await bob.sync()


async def test_pongs_and_answers_pass_when_commands_may_not(site: Site, peer: Peer) -> None:
    await fill(peer, BURST)
    await peer.send("pong")
    assert (await peer.refused("event", event="echo"))["code"] == "rate_limited"


# --- limits of handlers -----------------------------------------------------------------------------------------------


async def test_a_handlers_limit_is_its_own(site: Site, peer: Peer) -> None:
    await peer.do("join", room="limited:a")
    five = {"event": "five", "room": "limited:a"}
    assert not refusals(await fill(peer, 5, **five))
    error = await peer.refused("event", **five)
    assert (error["code"], error["retry_after"]) == ("rate_limited", pytest.approx(0.2))
    await peer.do("event", event="free", room="limited:a")
    await site.clock.advance(0.2)
    await peer.do("event", **five)
    await peer.refused("event", **five)


async def test_a_handlers_limit_is_for_each_connection(site: Site, peer: Peer) -> None:
    await peer.do("join", room="limited:a")
    await fill(peer, 6, event="five", room="limited:a")
    async with site.peer("bob", "limited:a") as bob:
        assert not refusals(await fill(bob, 5, event="five", room="limited:a"))


async def test_a_handlers_limit_is_not_for_each_room(peer: Peer) -> None:
    for name in "ab":
        await peer.do("join", room=f"limited:{name}")
    assert not refusals(await fill(peer, 5, event="five", room="limited:a"))
    await peer.refused("event", event="five", room="limited:b")


async def test_handlers_of_the_connection_may_have_limits(site: Site, peer: Peer) -> None:
    await peer.do("event", event="one")
    assert (await peer.refused("event", event="one"))["retry_after"] == pytest.approx(2.0)
    await site.clock.advance(2.0)
    await peer.do("event", event="one")


# --- joins and rooms --------------------------------------------------------------------------------------------------


async def join(peer: Peer, rooms: range) -> list[dict[str, Any]]:
    for number in rooms:
        await peer.send("join", id=number, room=f"named:{number}")
    return [await peer.expect("reply", id=number) for number in rooms]


async def test_a_hundred_rooms_are_joined_at_once_and_the_next_is_one_too_many(peer: Peer) -> None:
    assert not [reply for reply in await join(peer, range(1000, 1100)) if "error" in reply]


async def test_over_a_hundred_rooms_are_too_many(site: Site, peer: Peer) -> None:
    await join(peer, range(1000, 1100))
    await site.clock.advance(60.0)
    error = await peer.refused("join", room="named:more")
    assert error["code"] == "too_many_rooms"
    await peer.do("join", room="named:1000")  # again
    await peer.do("leave", room="named:1000")
    await peer.do("join", room="named:more")
    assert (await peer.refused("join", room="named:1000"))["code"] == "too_many_rooms"
    assert (await peer.expect("welcome"))["limits"] == {"message_bytes": 65536, "rooms": 100}


async def test_joins_that_failed_take_no_place() -> None:
    async with running(connection=replace(CALM, rooms=2)) as site, site.peer("alice") as peer:
        for number in range(1, 20):
            await peer.refused("join", room=f"nope:{number}")
        await peer.do("join", room="chat:1")
        await peer.do("join", room="chat:2")
        assert (await peer.refused("join", room="chat:3"))["code"] == "too_many_rooms"


async def test_joins_that_race_are_counted(site: Site) -> None:
    async with running(connection=replace(CALM, rooms=3)) as site, site.peer("alice") as peer:
        replies = await join(peer, range(1000, 1010))
        assert [reply["error"]["code"] for reply in replies if "error" in reply] == ["too_many_rooms"] * 7


async def test_joins_have_a_limit_of_their_own(site: Site, peer: Peer) -> None:
    await join(peer, range(1000, 1100))
    error = await peer.refused("join", room="named:more")
    assert (error["code"], error["retry_after"]) == ("rate_limited", pytest.approx(0.2))
    await peer.sync()
    await site.clock.advance(0.2)
    assert (await peer.refused("join", room="named:more"))["code"] == "too_many_rooms"


# --- connections ------------------------------------------------------------------------------------------------------


async def test_a_process_that_is_full_says_when_to_come_back() -> None:
    async with running(max_connections=1) as site, site.peer("alice") as alice:
        async with site.peer(origin=site.server.url) as page:
            code, reason = await page.closed()
            assert (code, reason) == (1013, "unavailable;5")
            assert [(frame["type"], frame["code"]) for frame in page.frames] == [("error", "unavailable")]
        await alice.sync()


async def test_limits_are_options_below_one_second_too() -> None:
    limiter = relaxed(frames=Limit("1000/second", burst=3), joins=Limit("100/second", burst=1))
    options = ConnectionOptions(heartbeat=1e6, rooms=5, message_bytes=200)
    async with running(limiter=limiter, connection=options) as site, site.peer("alice") as peer:
        await site.clock.advance(1.0)
        assert [error["retry_after"] for error in refusals(await fill(peer, 4))] == [pytest.approx(0.001)]
        await site.clock.advance(1.0)
        await peer.do("join", room="named:a")
        assert (await peer.refused("join", room="named:b"))["retry_after"] == pytest.approx(0.01)
        await peer.text("x" * 201)
        assert await peer.closed() == (1009, "too_large")
