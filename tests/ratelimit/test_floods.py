"""A flood on one socket is limited, under a real server, and the neighbours don't notice."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.server import Running, serve_process

FROM = {"x-forwarded-for": "203.0.113.7"}
FLOOD = 10_000  # frames a second
WITHIN = 3.0  # seconds that a neighbour's next tick may take; they come every hundredth


def frames(count: int) -> bytes:
    """So many masked text frames of one byte, as a client sends them (RFC 6455 section 5.2)."""
    mask = os.urandom(4)
    return (b"\x81\x81" + mask + bytes((ord("x") ^ mask[0],))) * count


@asynccontextmanager
async def watched(server: Running) -> AsyncIterator[list[float]]:
    """A neighbour that is told ticks meanwhile, none of which may be missing; gives the pauses between them."""
    loop = asyncio.get_running_loop()
    pauses: list[float] = []

    async def watch(socket: ClientConnection) -> None:
        last, number = loop.time(), 0
        async for text in socket:
            assert int(text) == number
            pauses.append(loop.time() - last)
            last, number = loop.time(), number + 1

    async with connect(f"{server.ws_url}/ticks", additional_headers={"x-forwarded-for": "203.0.113.99"}) as socket:
        watching = asyncio.ensure_future(watch(socket))
        try:
            yield pauses
            before = len(pauses)
            async with asyncio.timeout(WITHIN):
                while len(pauses) == before:
                    await asyncio.sleep(0.001)
        finally:
            watching.cancel()
            await asyncio.wait((watching,))
        assert watching.cancelled()


async def flood(socket: ClientConnection, seconds: float) -> int:
    """Send 10,000 frames a second until the socket is closed; tells how many that were."""
    loop = asyncio.get_running_loop()
    begun, sent = loop.time(), 0
    while loop.time() - begun < seconds and not socket.transport.is_closing():
        due = int((loop.time() - begun + 0.01) * FLOOD) - sent
        socket.transport.write(frames(max(0, due)))
        sent += max(0, due)
        await asyncio.sleep(0.005)
    return sent


async def gauges(server: Running) -> Any:
    """What the application tells."""
    async with httpx2.AsyncClient(base_url=server.url) as client:
        return (await client.get("/gauges")).json()


@asynccontextmanager
async def application() -> AsyncIterator[Running]:
    """The application that is flooded, which takes addresses from the test."""
    async with serve_process("tests.ratelimit.flooded:app", "--forwarded-allow-ips=127.0.0.1") as server:
        yield server


async def test_a_flood_is_closed_and_a_neighbours_delivery_goes_on() -> None:
    async with application() as server, watched(server) as pauses:
        for number in range(1, 5):
            async with connect(f"{server.ws_url}/close", additional_headers=FROM) as socket:
                await flood(socket, 1.0)
                with pytest.raises(ConnectionClosed) as closed:
                    async with asyncio.timeout(5.0):
                        await socket.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4429
                assert closed.value.rcvd.reason.startswith("rate_limited;0.")
            assert (await gauges(server))["heard"]["/close"] <= number * (20 + 20)
        told = await gauges(server)
        assert told["closing"]["slots"] == 1  # the neighbour's
        assert told["closing"]["buckets"] <= 2
        assert max(pauses) < WITHIN
        assert len(pauses) > 10


async def test_a_flood_that_has_to_wait_is_heard_at_its_rate_while_a_neighbours_delivery_goes_on() -> None:
    loop = asyncio.get_running_loop()
    async with application() as server, watched(server) as pauses:
        begun = loop.time()
        async with connect(f"{server.ws_url}/wait", additional_headers=FROM, ping_interval=None) as socket:
            sent = await flood(socket, 2.0)
            assert sent >= FLOOD
            heard = (await gauges(server))["heard"]["/wait"]
            assert 20 <= heard <= 20 + 20 * (loop.time() - begun) + 1
            assert max(pauses) < WITHIN
            socket.transport.abort()


async def test_a_flood_of_handshakes_is_refused_and_others_come_in() -> None:
    loop = asyncio.get_running_loop()
    async with application() as server:
        begun, let_in, refused = loop.time(), 0, list[InvalidStatus]()
        while not refused and let_in < 500:
            try:
                async with connect(f"{server.ws_url}/close", additional_headers=FROM):
                    let_in += 1
            except InvalidStatus as error:
                refused.append(error)
        assert 20 <= let_in <= 20 + 5 * (loop.time() - begun) + 1
        assert refused[0].response.status_code == 429
        assert int(refused[0].response.headers["retry-after"]) == 1
        async with connect(f"{server.ws_url}/close", additional_headers={"x-forwarded-for": "203.0.113.8"}) as socket:
            await socket.send("x")
            await (await socket.ping())
