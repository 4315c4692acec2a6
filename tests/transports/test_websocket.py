"""The WebSocket transport: what a connection's end is taken for, and what it leaves."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from starlette_realtime.testing import Peer, settle
from starlette_realtime.types import Message, Receive, Scope, Send
from tests.rooms.support import SUBPROTOCOL, World
from tests.server.support import CALM, running
from tests.server.support import Peer as NetworkPeer
from tests.support.certificate import certificate
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("code", "clean"), [(1000, True), (1001, True), (1005, False), (1006, False), (1011, False), (4000, False)]
)
async def test_a_peer_that_leaves_on_purpose_leaves_cleanly(code: int, clean: bool) -> None:
    async with World() as world:
        client = await world.enter("ada")
        (connection,) = world.realtime.connections
        await client.peer.disconnect(code)
        assert connection.gone
        assert (connection.clean, connection.close_code) == (clean, code)


@pytest.mark.parametrize(
    ("code", "clean"), [(4403, True), (4450, True), (4400, True), (4401, False), (4408, False), (1012, False)]
)
async def test_who_may_not_come_back_has_left_for_good(code: int, clean: bool) -> None:
    async with World() as world:
        client = await world.enter("ada")
        (connection,) = world.realtime.connections
        connection.close(code)
        assert (await client.closed()).code == code
        await client.peer.ended()
        assert (connection.clean, connection.close_code) == (clean, code)


async def test_an_error_event_comes_before_every_close_and_the_reason_says_the_same() -> None:
    async with World() as world:
        client = await world.enter("ada")
        (connection,) = world.realtime.connections
        connection.close(4429, message="slower", retry_after=1.5)
        connection.close(4403)
        closed = await client.closed()
        assert client.log[-1] == {"type": "error", "code": "rate_limited", "message": "slower", "retry_after": 1.5}
        assert (closed.code, closed.reason) == (4429, "rate_limited;1.5")


async def test_a_peer_that_neither_reads_nor_closes_is_dropped_in_the_end() -> None:
    async with World() as world:
        client = await world.enter("ada")
        (connection,) = world.realtime.connections
        client.peer.stall()
        connection.close(4403)
        await world.clock.advance(10.1)
        assert client.peer.task is not None
        assert client.peer.task.done()
        assert world.realtime.connections == frozenset()


@pytest.mark.parametrize("error", [OSError, RuntimeError])
async def test_a_server_that_cannot_write_any_more_ends_the_connection(error: type[Exception]) -> None:
    async with World() as world:
        broken = False

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def breaking(message: Message) -> None:
                if broken:
                    raise error("gone")
                await send(message)

            await world.realtime(scope, receive, breaking)

        peer = Peer(app, subprotocols=[SUBPROTOCOL])
        await peer.connect()
        await peer.receive()
        broken = True
        await peer.send({"type": "auth", "id": 1, "token": "ada"})
        await peer.ended()
        assert world.realtime.connections == frozenset()


async def test_a_server_that_fails_otherwise_ends_the_connection_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with World() as world:

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def breaking(message: Message) -> None:
                if message["type"] == "websocket.send":
                    raise ZeroDivisionError
                await send(message)

            await world.realtime(scope, receive, breaking)

        peer = Peer(app)
        await peer.connect()
        await peer.ended()
        assert world.realtime.connections == frozenset()
    assert "ZeroDivisionError" in caplog.text


async def test_a_peer_that_has_gone_before_it_was_accepted_is_nothing() -> None:
    async with World() as world:

        async def gone(message: Message) -> None:
            raise OSError("gone")

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        peer = Peer(world.realtime)
        await world.realtime(peer.scope, receive, gone)
        assert world.realtime.connections == frozenset()


async def test_a_cancelled_call_is_cancelled_and_leaves_nothing() -> None:
    async with World() as world:
        for stalled in (False, True):
            client = await world.enter("ada")
            (connection,) = world.realtime.connections
            if stalled:
                client.peer.stall()
                await connection.send("hello")
                await settle()
            await client.peer.cancel()
            assert client.peer.task is not None
            assert client.peer.task.cancelled()
            assert not connection.clean
            assert world.realtime.connections == frozenset()


async def test_a_cancellation_while_it_closes_is_not_swallowed() -> None:
    async with World() as world:
        for spins in range(6):
            client = await world.enter("ada")
            (connection,) = world.realtime.connections
            connection.close(4403)
            for _ in range(spins):
                await asyncio.sleep(0)
            task = client.peer.task
            assert task is not None
            if not task.done():
                assert task.cancel()
                await asyncio.wait((task,))
                assert task.cancelled() or spins
            assert world.realtime.connections == frozenset()


async def test_binary_frames_count_as_bad_ones() -> None:
    async with World() as world:
        client = await world.enter("ada")
        await client.peer.send(b'{"type":"pong"}')
        assert (await client.expect("error"))["code"] == "bad_frame"
        for _ in range(9):
            await client.peer.send(b"x")
        assert (await client.closed()).code == 4400


@pytest.mark.parametrize("offered", [[], [SUBPROTOCOL], ["other", SUBPROTOCOL], ["other"]])
async def test_our_subprotocol_is_chosen_where_it_was_offered(offered: list[str]) -> None:
    async with World() as world, Peer(world.realtime, subprotocols=offered) as peer:
        assert peer.subprotocol == (SUBPROTOCOL if SUBPROTOCOL in offered else None)
        welcome: Any = await peer.receive_json()
        assert welcome["type"] == "welcome"
        assert (welcome["heartbeat"] > 0) == bool(offered)


async def test_two_messages_of_the_server_are_two_frames_in_order() -> None:
    async with World() as world:
        client = await world.enter("ada")
        (connection,) = world.realtime.connections
        for number in range(5):
            await connection.send("count", number)
        assert await client.heard() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("end", ["peer", "abort", "close"])
async def test_connections_over_tls_end_without_complaint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    made = certificate(tmp_path)
    options = {"ssl_certfile": str(made.path), "ssl_keyfile": str(made.key_path)}
    async with running(connection=CALM, server=options) as site:
        trusting = ssl.create_default_context(cafile=made.ca_path)
        address = f"wss://127.0.0.1:{site.server.port}/realtime/ws"
        websocket = await connect(address, ssl=trusting, proxy=None, ping_interval=None)
        async with NetworkPeer(websocket) as peer:
            await peer.auth(site.token("ada"))
            (connection,) = site.realtime.connections
            if end == "peer":
                await peer.websocket.close()
            elif end == "abort":
                connection.abort()
            else:
                connection.close(4403)
            await until(lambda: not site.realtime.connections, what="the end of the connection")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
