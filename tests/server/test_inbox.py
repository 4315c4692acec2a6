"""What a client sends faster than it is handled waits with the client; and requests go both ways meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from starlette_realtime import Connection, ConnectionClosed, Declined, Member, Realtime, Refused
from starlette_realtime.testing import FakeClock
from tests.server.support import AT_ONCE, Peer, Site, declare, new_tokens, relaxed, running
from tests.support.server import RunningServer
from tests.support.waiting import until

INBOX = 32


@dataclass
class Desk:
    """What the handlers of this file work with."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    done: list[int] = field(default_factory=list)
    outcomes: list[object] = field(default_factory=list)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def site(desk: Desk) -> AsyncIterator[Site]:
    clock = FakeClock()
    realtime = Realtime(
        authenticate=new_tokens(clock), limiter=relaxed(frames="100000/second"), options=AT_ONCE, clock=clock
    )
    declare(realtime)
    slow = realtime.room("slow:{number:int}")

    @slow.on("work")
    async def work(member: Member, number: int, item: int) -> int:
        desk.running += 1
        try:
            await desk.gate.wait()
        finally:
            desk.running -= 1
        desk.done.append(item)
        return item

    async def ask(connection: Connection, data: dict[str, Any]) -> object:
        try:
            answer: object = await connection.request("question", data.get("data"), timeout=data.get("timeout"))
        except (Refused, ConnectionClosed) as exc:
            desk.outcomes.append(exc)
            raise
        desk.outcomes.append(answer)
        return answer

    realtime.on("ask")(ask)

    @slow.on("ask")
    async def ask_here(member: Member) -> int:
        return await member.request("question", returns=int)

    async with running(realtime=realtime, clock=clock) as site:
        yield site
        desk.gate.set()  # nobody is to be waited for


@pytest.fixture
async def peer(site: Site) -> AsyncIterator[Peer]:
    async with site.peer("alice", *(f"slow:{number}" for number in range(4))) as peer:
        yield peer


def of(site: Site, user: str = "alice") -> Connection:
    (connection,) = [each for each in site.realtime.connections if each.user == user]
    return connection


# --- the bound --------------------------------------------------------------------------------------------------------


async def test_over_thirty_two_commands_wait_with_the_client_and_none_is_lost(
    site: Site, peer: Peer, desk: Desk
) -> None:
    for number in range(100):
        await peer.send("event", event="work", room=f"slow:{number % 4}", data=number, id=1000 + number)
    connection = of(site)
    await until(lambda: connection.paused, what="the reader to pause")
    assert connection.lanes.held == INBOX
    assert desk.running == 4  # one for each room
    async with site.peer("bob", "chat:1") as bob:  # others go on
        await bob.do("event", event="message", room="chat:1", data={"text": "hi"})
    assert (connection.lanes.held, desk.done) == (INBOX, [])
    desk.gate.set()
    for number in range(100):
        assert (await peer.expect("reply", id=1000 + number))["data"] == number
    assert connection.lanes.held == 0
    assert not connection.paused
    for room in range(4):
        assert [item for item in desk.done if item % 4 == room] == list(range(room, 100, 4))


async def test_what_waits_with_the_client_is_bounded_on_the_server(site: Site, peer: Peer, desk: Desk) -> None:
    for number in range(INBOX):
        await peer.send("event", event="work", room="slow:0", data=number)
    await until(lambda: of(site).lanes.held == INBOX, what="the inbox to be full")
    padding = "x" * 60_000
    connection, server = of(site), site.server
    assert isinstance(server, RunningServer)
    (protocol,) = server.server.server_state.connections

    async def flood() -> None:
        for _ in range(1000):  # 60 MB: far more than the two sockets hold
            await peer.send("event", event="echo", data=padding)

    def held_up() -> bool:
        """Whether nobody reads on the server, and the client's system takes no more."""
        reading = protocol.transport.is_reading()
        return connection.paused and not reading and peer.websocket.transport.get_write_buffer_size() > 0

    flooding = asyncio.create_task(flood())
    await until(lambda: flooding.done() or held_up(), what="the client to be held up")
    assert not flooding.done(), "the server took everything in"
    assert connection.lanes.held == INBOX
    flooding.cancel()
    await asyncio.wait([flooding])
    peer.lose()


async def test_hearts_rest_while_reading_is_paused(site: Site, peer: Peer, desk: Desk) -> None:
    for number in range(INBOX + 5):
        await peer.send("event", event="work", room="slow:0", data=number, id=1000 + number)
    await until(lambda: of(site).paused, what="the reader to pause")
    await site.clock.advance(100.0)
    desk.gate.set()
    for number in range(INBOX + 5):
        await peer.expect("reply", id=1000 + number)
    await peer.sync()


async def test_a_client_that_goes_while_its_inbox_is_full_leaves_nothing(site: Site, peer: Peer, desk: Desk) -> None:
    for number in range(100):
        await peer.send("event", event="work", room="slow:0", data=number)
    await until(lambda: of(site).paused, what="the reader to pause")
    peer.lose()
    desk.gate.set()
    await until(lambda: not site.realtime.connections and not desk.running, what="the connection to be forgotten")
    await site.clock.advance(10.0)
    await until(lambda: not site.realtime.gauges()["topics"], what="the topics to be given back")


async def test_running_handlers_have_ten_seconds_after_the_end(site: Site, peer: Peer, desk: Desk) -> None:
    for number in range(8):
        await peer.send("event", event="work", room=f"slow:{number % 4}", data=number)
    await until(lambda: desk.running == 4, what="the handlers to run")
    peer.lose()
    await until(lambda: not site.realtime.connections, what="the end to be noticed")
    await site.clock.advance(9.9)
    assert desk.running == 4
    await site.clock.advance(0.2)
    await until(lambda: desk.running == 0, what="the handlers to be cancelled")
    assert desk.done == []


# --- requests to the client -------------------------------------------------------------------------------------------


async def test_a_handler_that_waits_for_its_client_hears_it_behind_a_hundred_commands(
    site: Site, peer: Peer, desk: Desk
) -> None:
    await peer.send("event", event="ask", data={}, id=1)
    for number in range(100):  # in the lane that the handler holds up
        await peer.send("event", event="echo", data=number, id=1000 + number)
    question = await peer.expect("event", event="question")
    await peer.send("reply", id=question["id"], data="an answer")
    assert (await peer.expect("reply", id=1))["data"] == "an answer"
    answered = refused = 0
    for number in range(100):
        reply = await peer.expect("reply", id=1000 + number)
        if "error" in reply:
            assert reply["error"]["code"] == "rate_limited"
            assert reply["error"]["retry_after"] > 0
            refused += 1
        else:
            assert reply["data"] == number
            answered += 1
    assert answered >= INBOX - 1
    assert answered + refused == 100
    await peer.sync()


async def test_a_full_inbox_does_not_keep_an_answer_out_that_is_asked_for_later(
    site: Site, peer: Peer, desk: Desk
) -> None:
    for number in range(INBOX + 20):
        await peer.send("event", event="work", room="slow:0", data=number, id=1000 + number)
    await until(lambda: of(site).paused, what="the reader to pause")
    asking = asyncio.create_task(of(site).request("question"))
    question = await peer.expect("event", event="question")
    await peer.send("reply", id=question["id"], data=42)
    assert await asking == 42
    desk.gate.set()
    for number in range(INBOX + 20):
        await peer.expect("reply", id=1000 + number)


async def test_pongs_and_auth_pass_a_full_inbox_while_a_handler_waits_for_its_client(site: Site, peer: Peer) -> None:
    await peer.send("event", event="ask", data={}, id=1)
    for number in range(INBOX + 10):
        await peer.send("event", event="echo", data=number)
    await peer.send("pong")
    await peer.send("auth", token=site.token("alice"), id=2)
    question = await peer.expect("event", event="question")
    await peer.send("reply", id=question["id"], data=1)
    await peer.expect("reply", id=1)
    assert (await peer.expect("reply", id=2))["data"]["user"] == "alice"


async def test_a_request_in_a_room_names_the_room_and_validates_the_answer(peer: Peer) -> None:
    await peer.send("event", event="ask", room="slow:1", id=1)
    question = await peer.expect("event", event="question")
    assert question["room"] == "slow:1"
    await peer.send("reply", id=question["id"], data=7)
    assert (await peer.expect("reply", id=1))["data"] == 7
    await peer.send("event", event="ask", room="slow:1", id=2)
    question = await peer.expect("event", event="question")
    await peer.send("reply", id=question["id"], data="seven")
    assert (await peer.expect("reply", id=2))["error"]["code"] == "invalid_payload"


async def test_the_clients_refusal_is_the_handlers(peer: Peer, desk: Desk) -> None:
    await peer.send("event", event="ask", data={}, id=1)
    question = await peer.expect("event", event="question")
    await peer.send("reply", id=question["id"], error={"code": "busy", "message": "later", "retry_after": 2.5})
    error = (await peer.expect("reply", id=1))["error"]
    assert error["code"] == "declined"
    assert not error.keys() & {"retry_after", "fields"}
    (outcome,) = desk.outcomes
    assert isinstance(outcome, Declined)
    assert (outcome.answer.code, outcome.answer.message, outcome.answer.retry_after) == ("busy", "later", 2.5)


@pytest.mark.parametrize("timeout", [None, 0.05, 60.0])
async def test_a_request_that_is_not_answered_in_time_is_given_up(
    site: Site, peer: Peer, timeout: float | None
) -> None:
    await peer.send("event", event="ask", data={"timeout": timeout}, id=1)
    question = await peer.expect("event", event="question")
    limit = 10.0 if timeout is None else timeout
    await site.clock.advance(limit * 0.99)
    assert not peer.heard("reply", id=1)
    await site.clock.advance(limit * 0.02)
    assert (await peer.expect("reply", id=1))["error"]["code"] == "timeout"
    assert of(site).requests == 0
    await peer.send("reply", id=question["id"], data="too late")
    await peer.sync()


async def test_only_sixteen_requests_are_open(site: Site, peer: Peer) -> None:
    connection = of(site)
    asking = [asyncio.create_task(connection.request("question", number)) for number in range(16)]
    questions = [await peer.expect("event", event="question", data=number) for number in range(16)]
    with pytest.raises(Refused) as refusal:
        await connection.request("question", 17)
    assert refusal.value.code == "unavailable"
    for number in reversed(range(16)):
        await peer.send("reply", id=questions[number]["id"], data=number)
    assert await asyncio.gather(*asking) == list(range(16))
    again = asyncio.create_task(connection.request("question", 18))
    question = await peer.expect("event", event="question", data=18)
    await peer.send("reply", id=question["id"], data="ok")
    assert await again == "ok"


async def test_an_answer_counts_once_and_only_for_its_own_request(site: Site, peer: Peer) -> None:
    connection = of(site)
    async with site.peer("mallory") as mallory:
        asking = asyncio.create_task(connection.request("question"))
        question = await peer.expect("event", event="question")
        await mallory.send("reply", id=question["id"], data="forged")
        await mallory.sync()
        assert not asking.done()
        for data in ("first", "second"):
            await peer.send("reply", id=question["id"], data=data)
        assert await asking == "first"
        await peer.sync()


async def test_a_handler_that_waits_for_a_client_that_has_gone_is_told(site: Site, peer: Peer, desk: Desk) -> None:
    await peer.send("event", event="ask", data={})
    await peer.expect("event", event="question")
    peer.lose()
    await until(lambda: desk.outcomes, what="the handler to be told")
    assert isinstance(desk.outcomes[0], ConnectionClosed)
