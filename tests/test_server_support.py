"""The servers that the tests use are real ones, and say so when they don't start."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from tests.support.server import StartupFailed, serve, serve_process


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{os.environ.get('GREETING', 'hello')} from {os.getpid()}")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


app = Starlette(routes=[Route("/", hello), WebSocketRoute("/ws", echo)])


async def test_an_app_is_served_on_the_tests_own_loop() -> None:
    async with serve(app) as server:
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"{server.url}/")).text == f"hello from {os.getpid()}"
        async with connect(f"{server.ws_url}/ws") as websocket:
            await websocket.send("hi")
            assert await websocket.recv() == "hi"


async def test_the_lifespan_runs_and_ends_with_the_block() -> None:
    events = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        events.append("started")
        yield
        events.append("ended")

    async with serve(Starlette(lifespan=lifespan)):
        assert events == ["started"]
    assert events == ["started", "ended"]


async def test_a_failed_start_names_the_apps_error() -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, str]]:
        yield {"secret": os.environ["NO_SUCH_SECRET"]}

    with pytest.raises(StartupFailed, match="NO_SUCH_SECRET") as failure:
        async with serve(Starlette(lifespan=lifespan)):
            pytest.fail("it must not get here")
    assert isinstance(failure.value.__cause__, KeyError)


async def test_the_tests_signal_handlers_stay_as_they_are() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with serve(app):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_a_server_comes_back_on_the_port_it_had() -> None:
    async with serve(app) as first:
        pass
    async with serve(app, port=first.port) as second, connect(f"{second.ws_url}/ws") as websocket:
        await websocket.send("again")
        assert await websocket.recv() == "again"


async def test_a_shutdown_closes_the_connections_that_are_open() -> None:
    async with serve(app) as server:
        websocket = await connect(f"{server.ws_url}/ws")
    await asyncio.wait_for(websocket.wait_closed(), 5)
    assert websocket.close_code == 1012


async def test_an_app_is_served_by_a_process_with_its_own_environment() -> None:
    module = "tests.test_server_support:app"
    async with serve_process(module, env={"GREETING": "good day"}) as server, httpx2.AsyncClient() as client:
        assert (await client.get(f"{server.url}/")).text == f"good day from {server.process.pid}"
    assert server.process.returncode in (0, -signal.SIGTERM)


async def test_a_process_may_have_several_workers() -> None:
    module = "tests.test_server_support:app"
    async with serve_process(module, "--workers", "2") as server, httpx2.AsyncClient() as client:
        answer = (await client.get(f"{server.url}/")).text
    assert answer.startswith("hello from ")
    assert answer != f"hello from {server.process.pid}"


async def test_a_process_that_does_not_start_shows_what_it_said() -> None:
    with pytest.raises(StartupFailed, match='Attribute "missing" not found'):
        async with serve_process("tests.test_server_support:missing"):
            pytest.fail("it must not get here")
