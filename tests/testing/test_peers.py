"""Peers behave as an ASGI server's WebSocket does, and never wait for ever."""

import asyncio
import inspect
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from starlette_realtime.testing import Closed, Peer, Rejected, Stream, settle
from starlette_realtime.testing.http import RequestOptions
from starlette_realtime.testing.peers import PeerOptions
from starlette_realtime.types import Receive, Scope, Send


async def echo(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                websocket.app.state.left = (message["code"], message["reason"])
                return
            if message.get("text") == "close":
                await websocket.close(4403, "enough")
                return
            await websocket.send({**message, "type": "websocket.send"})
    except WebSocketDisconnect:
        pass


@pytest.fixture
def app() -> Starlette:
    return Starlette(routes=[WebSocketRoute("/ws", echo)])


async def test_frames_go_both_ways_in_order(app: Starlette) -> None:
    async with Peer(app, subprotocols=["a", "b"]) as peer:
        assert peer.subprotocol == "a"
        await peer.send("one")
        await peer.send(b"two")
        await peer.send({"three": 3})
        assert [await peer.receive(), await peer.receive()] == ["one", b"two"]
        assert await peer.receive_json() == {"three": 3}


async def test_what_has_arrived_can_be_taken_at_once(app: Starlette) -> None:
    async with Peer(app) as peer:
        await peer.send("one")
        await peer.send("two")
        await settle()
        assert peer.waiting() == ["one", "two"]
        assert peer.waiting() == []


async def test_a_receive_that_gets_nothing_ends_in_time(app: Starlette) -> None:
    async with Peer(app, timeout=0.02) as peer:
        with pytest.raises(TimeoutError, match=r"a frame did not come within 0\.02 s"):
            await peer.receive()
        with pytest.raises(TimeoutError, match=r"0\.01 s"):
            await peer.receive(timeout=0.01)
        with pytest.raises(TimeoutError, match="close"):
            await peer.wait_closed()


async def test_the_application_closes_with_a_code_after_what_it_said(app: Starlette) -> None:
    async with Peer(app) as peer:
        await peer.send("last words")
        await peer.send("close")
        closed = await peer.wait_closed()
        assert (closed.code, closed.reason) == (4403, "enough")
        assert await peer.receive() == "last words"
        with pytest.raises(Closed):
            await peer.receive()
        with pytest.raises(Closed):
            await peer.send("more")


@pytest.mark.parametrize("code", [1000, 1001, 4000])
async def test_the_application_hears_how_the_peer_left(app: Starlette, code: int) -> None:
    async with Peer(app) as peer:
        await peer.disconnect(code, "bye")
    assert app.state.left == (code, "bye")


async def test_a_lost_connection_has_no_close_frame(app: Starlette) -> None:
    async with Peer(app) as peer:
        await peer.lose()
        assert peer.closed is not None
        assert peer.closed.code == 1006
    assert app.state.left == (1006, "")


async def test_sending_to_a_peer_that_has_gone_raises_what_a_server_raises() -> None:
    errors: list[BaseException] = []

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        while True:
            try:
                await send({"type": "websocket.send", "text": "tick"})
            except OSError as exc:
                errors.append(exc)
                return
            await asyncio.sleep(0)

    async with Peer(deaf) as peer:
        assert await peer.receive() == "tick"
    assert len(errors) == 1


async def test_a_stalled_reader_holds_up_the_application_until_it_reads_again(app: Starlette) -> None:
    async with Peer(app) as peer:
        peer.stall()
        await peer.send("one")
        await settle()
        assert peer.waiting() == []
        peer.flow()
        assert await peer.receive() == "one"


async def test_a_full_backlog_holds_up_the_application() -> None:
    sent = 0

    async def chatter(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "text": ""})
            sent += 1

    async with Peer(chatter, backlog=3) as peer:
        await settle()
        assert sent == 3
        await peer.receive()
        await settle()
        assert sent == 4
        await peer.cancel()


async def test_a_peer_that_writes_more_than_is_read_waits() -> None:
    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    async with Peer(deaf, backlog=2, timeout=0.02) as peer:
        await peer.send("one")
        await peer.send("two")
        with pytest.raises(TimeoutError, match="reading"):
            await peer.send("three")
        await peer.cancel()


async def test_a_call_that_does_not_end_is_told() -> None:
    async def stays(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    peer = Peer(stays, timeout=0.02)
    await peer.connect()
    with pytest.raises(TimeoutError, match="did not end"):
        await peer.disconnect()
    await peer.cancel()


async def test_what_the_application_raises_is_raised() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Peer(broken).connect()
    peer = Peer(breaks)
    await peer.connect()
    assert (await peer.wait_closed()).code == 1006
    with pytest.raises(ZeroDivisionError):
        await peer.ended()


async def test_a_refused_handshake_tells_the_status_and_what_came_with_it() -> None:
    async def refuse(websocket: WebSocket) -> None:
        response = JSONResponse({"why": "no"}, 401, headers={"www-authenticate": "Bearer"})
        await websocket.send_denial_response(response)

    async def close(websocket: WebSocket) -> None:
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/refuse", refuse), WebSocketRoute("/close", close)])
    with pytest.raises(Rejected) as rejected:
        await Peer(app, "/refuse").connect()
    assert rejected.value.status == 401
    assert rejected.value.headers["www-authenticate"] == "Bearer"
    assert rejected.value.body == b'{"why":"no"}'
    with pytest.raises(Rejected) as rejected:
        await Peer(app, "/close", denial=False).connect()
    assert rejected.value.status == 403


async def test_the_handshake_says_what_it_was_given() -> None:
    seen: dict[str, Any] = {}

    async def look(websocket: WebSocket) -> None:
        seen.update(
            headers=websocket.headers.items(),
            cookies=websocket.cookies,
            query=dict(websocket.query_params),
            url=str(websocket.url),
            client=websocket.client,
        )
        await websocket.accept()
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/a b", look)])
    peer = Peer(
        app,
        "/a%20b?c=d",
        headers=[("X-Twice", "1"), ("X-Twice", "2")],
        origin="https://testserver",
        cookies={"e": "f", "g": "h"},
        secure=True,
        client=("192.0.2.1", 1),
    )
    async with peer:
        await peer.wait_closed()
    assert ("origin", "https://testserver") in seen["headers"]
    assert [value for name, value in seen["headers"] if name == "x-twice"] == ["1", "2"]
    assert seen["cookies"] == {"e": "f", "g": "h"}
    assert seen["query"] == {"c": "d"}
    assert seen["url"] == "wss://testserver/a b?c=d"
    assert tuple(seen["client"]) == ("192.0.2.1", 1)


async def test_a_message_out_of_place_is_the_applications_mistake() -> None:
    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.send", "text": "early"})

    with pytest.raises(RuntimeError, match=r"websocket\.send is not allowed now"):
        await Peer(early).connect()


async def test_a_peer_connects_once(app: Starlette) -> None:
    async with Peer(app) as peer:
        with pytest.raises(RuntimeError, match="once"):
            await peer.connect()


async def test_a_frame_may_be_taken_as_it_comes(app: Starlette) -> None:
    heard: list[str | bytes] = []

    def arrived(frame: str | bytes) -> bool:
        heard.append(frame)
        return frame == "mine"

    async with Peer(app, arrived=arrived) as peer:
        await peer.send("mine")
        await peer.send("yours")
        assert await peer.receive() == "yours"
        assert heard == ["mine", "yours"]


async def test_an_application_that_is_surprised_by_the_end_did_nothing_wrong() -> None:
    async def surprised(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()

    async def mistaken(websocket: WebSocket) -> None:
        await websocket.accept()
        raise WebSocketDisconnect

    app = Starlette(routes=[WebSocketRoute("/ws", surprised), WebSocketRoute("/mistaken", mistaken)])
    async with Peer(app) as peer:
        peer.leave()
    with pytest.raises(WebSocketDisconnect):
        async with Peer(app, "/mistaken"):
            await settle()


async def test_a_connection_that_has_ended_takes_nothing_more(app: Starlette) -> None:
    peer = Peer(app)
    await peer.ended()
    await peer.cancel()
    async with peer:
        await peer.lose()
        peer.push("into the void")
        peer.lost()
    assert app.state.left == (1006, "")


@pytest.mark.parametrize(("kind", "options"), [(Peer, PeerOptions), (Stream, RequestOptions)])
def test_options_that_are_passed_on_are_those_that_there_are(kind: type, options: type) -> None:
    parameters = inspect.signature(kind).parameters.values()
    own = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY} - {"arrived"}
    assert own == set(options.__annotations__)
