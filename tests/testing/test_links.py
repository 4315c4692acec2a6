"""Links fail as networks do: cut, half-open, or slow."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from starlette_realtime.testing import FakeClock, Link, Peer, settle


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    heard = websocket.app.state.heard
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        heard.append(message["text"])
        if message["text"] == "close":
            await websocket.close(4403)
        else:
            await websocket.send_text(message["text"])
    heard.append(message["code"])


@pytest.fixture
def app() -> Starlette:
    app = Starlette(routes=[WebSocketRoute("/ws", echo)])
    app.state.heard = []
    return app


async def test_a_cut_is_noticed_by_both_ends_and_by_all_that_the_link_carries(app: Starlette) -> None:
    link = Link()
    async with Peer(app, link=link) as one, Peer(app, link=link) as two, Peer(app) as other:
        assert link.open == 2
        await one.send("hello")
        await settle()
        link.cut()
        for peer in (one, two):
            assert (await peer.wait_closed()).code == 1006
            await peer.ended()
        assert link.open == 0
        assert other.closed is None
        assert app.state.heard == ["hello", 1006, 1006]
        with pytest.raises(ConnectionRefusedError):
            await Peer(app, link=link).connect()
        link.restore()
        async with Peer(app, link=link) as again:
            await again.send("again")
            assert await again.receive() == "again"
        assert one.waiting() == ["hello"]


async def test_nothing_gets_through_a_half_open_link_until_it_is_whole_again(app: Starlette) -> None:
    async with Peer(app) as peer:
        await peer.send("one")
        assert await peer.receive() == "one"
        peer.link.half_open()
        await peer.send("two")
        await peer.send("three")
        await settle()
        assert (app.state.heard, peer.waiting(), peer.closed) == (["one"], [], None)
        peer.link.restore()
        assert [await peer.receive(), await peer.receive()] == ["two", "three"]


async def test_what_is_on_its_way_is_lost_when_a_half_open_link_is_cut(app: Starlette) -> None:
    async with Peer(app) as peer:
        peer.link.half_open()
        await peer.send("lost")
        peer.link.cut()
        await peer.ended()
        assert app.state.heard == [1006]


async def test_a_half_open_link_fills_the_backlog_of_who_goes_on_sending(app: Starlette) -> None:
    async with Peer(app, backlog=2, timeout=0.02) as peer:
        peer.link.half_open()
        await peer.send("one")
        await peer.send("two")
        with pytest.raises(TimeoutError, match="the application's reading did not come within"):
            await peer.send("three")
        peer.link.restore()
        await peer.send("three")


async def test_the_application_waits_when_nothing_gets_through_to_the_peer() -> None:
    sent = 0

    async def chatter(websocket: WebSocket) -> None:
        nonlocal sent
        await websocket.accept()
        while True:
            await websocket.send_text("")
            sent += 1

    app = Starlette(routes=[WebSocketRoute("/ws", chatter)])
    async with Peer(app, backlog=3) as peer:
        await settle()
        peer.link.half_open()
        peer.waiting()
        await settle()
        assert sent == 6
        await peer.cancel()


async def test_a_delay_keeps_the_order_and_waits_for_the_clock(app: Starlette) -> None:
    clock = FakeClock()
    link = Link(clock=clock, delay=0.25)
    peer = Peer(app, link=link)
    await clock.run(peer.connect())
    assert clock.now() == 1_000.5  # there and back
    await peer.send("one")
    link.delay(0.0)
    await peer.send("two")
    await clock.advance(0.25)
    assert app.state.heard == ["one", "two"]
    assert await peer.receive() == "one"
    assert await peer.receive() == "two"
    link.delay(1.0)
    await peer.send("close")
    await clock.advance(1.5)
    assert peer.closed is None
    await clock.advance(0.5)
    assert (await peer.wait_closed()).code == 4403
    await peer.ended()
    assert (clock.timers, link.open) == (0, 0)


async def test_a_delay_in_real_time_needs_no_fake_clock(app: Starlette) -> None:
    async with Peer(app, link=Link(delay=0.001)) as peer:
        await peer.send("one")
        assert await peer.receive() == "one"


async def test_the_end_of_a_block_does_not_wait_for_a_link_that_lets_nothing_through(app: Starlette) -> None:
    clock = FakeClock()
    link = Link(clock=clock)
    async with Peer(app, link=link) as slow, Peer(app) as stuck:
        link.delay(5.0)
        stuck.link.half_open()
        await slow.send("late")
    assert app.state.heard == [1006, 1006]
    assert clock.timers == 0


async def test_a_handshake_does_not_get_through_a_half_open_link(app: Starlette) -> None:
    link = Link()
    link.half_open()
    peer = Peer(app, link=link, timeout=0.02)
    with pytest.raises(TimeoutError, match="an answer to the handshake did not come"):
        await peer.connect()
    assert (peer.task, link.open) == (None, 0)
    late = Peer(app, link=link)
    connecting = asyncio.ensure_future(late.connect())
    await settle()
    link.cut()
    with pytest.raises(ConnectionResetError):
        await connecting
    assert (late.task, app.state.heard) == (None, [])


async def test_what_the_application_said_before_it_ended_still_arrives() -> None:
    async def brief(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("last words")

    clock = FakeClock()
    app = Starlette(routes=[WebSocketRoute("/ws", brief)])
    peer = Peer(app, link=Link(clock=clock, delay=1.0))
    connecting = asyncio.ensure_future(peer.connect())
    await clock.advance(2.0)
    await connecting
    assert peer.task is not None
    assert peer.task.done()
    assert await clock.run(peer.receive()) == "last words"
    assert (await peer.wait_closed()).code == 1006
