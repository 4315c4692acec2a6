"""The Python client talks to an application in the same process, over links that a test breaks."""

import asyncio

import pytest

from starlette_realtime.client import Link as ClientLink
from starlette_realtime.client import Opener, connect
from starlette_realtime.errors import ConnectionClosed
from starlette_realtime.testing import AppOpener, FakeClock, Link, Processes, running, settle
from starlette_realtime.types import Receive, Scope, Send
from tests.testing.support import make_app


async def test_the_client_comes_back_over_a_link_that_was_cut() -> None:
    clock = FakeClock()
    app, link = make_app(clock=clock), Link()
    opener: Opener = AppOpener(app, link=link)
    async with running(app, clock=clock):
        async with connect("http://testserver/realtime", token="ann", opener=opener, clock=clock) as client:
            room = await clock.run(client.join("chat:1"))
            link.cut()
            await app.state.realtime.at("chat:1").broadcast("said", "meanwhile")
            await clock.advance(1.0)
            link.restore()
            events = aiter(room)
            event = await clock.run(anext(events))
            assert event.data == "meanwhile"  # type: ignore[union-attr]
        await settle()  # the application hears of it a moment later
        assert link.open == 0


async def test_the_client_is_moved_to_another_process() -> None:
    async with Processes(make_app, 2) as processes:
        one, two = processes
        clock, opener = processes.clock, AppOpener(one)
        async with connect("http://testserver/realtime", token="ann", opener=opener, clock=clock) as client:
            await clock.run(client.join("chat:1"))
            await one.kill()
            opener.app = two
            assert await clock.run(client.send("whoami")) == "ann"
            assert len(opener.peers) == 1


async def test_the_adapter_is_a_link() -> None:
    app = make_app()
    async with running(app):
        link: ClientLink = await AppOpener(app)("ws://testserver/realtime/ws?a=b")
        assert '"welcome"' in await link.recv()
        await link.send("[")
        assert '"bad_frame"' in await link.recv()
        receiving = asyncio.ensure_future(link.recv())
        await link.close(1000, "bye")
        for closed in (receiving, link.send("more")):
            with pytest.raises(ConnectionClosed) as error:
                await closed
            assert (error.value.code, error.value.reason) == (1000, "bye")


@pytest.mark.parametrize(
    ("status", "retry_after", "code", "reason"),
    [
        (401, None, 4401, "unauthenticated"),
        (404, "soon", 4403, "forbidden"),
        (429, "12", 4429, "rate_limited;12"),
        (503, "5", 1013, "unavailable;5"),
        (500, None, 1006, "http_500"),
    ],
)
async def test_a_refused_handshake_means_a_close_code(
    status: int, retry_after: str | None, code: int, reason: str
) -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"retry-after", retry_after.encode())] if retry_after else []
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b""})

    with pytest.raises(ConnectionClosed) as closed:
        await AppOpener(refuse)("ws://testserver/ws")
    assert (closed.value.code, closed.value.reason) == (code, reason)
