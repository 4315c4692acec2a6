"""The TCP proxy fails as networks fail, and otherwise isn't noticed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.proxy import CHUNK, CHUNKS, Proxy
from tests.support.waiting import until


class EchoServer:
    """Answers with what it gets, and notes how each connection ended."""

    def __init__(self) -> None:
        self.port = 0
        self.received = 0
        self.ends: list[str] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.reads.wait()
            while data := await reader.read(CHUNK):
                self.received += len(data)
                writer.write(data)
                await writer.drain()
            self.ends.append("finished")
        except ConnectionResetError:
            self.ends.append("reset")
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[EchoServer]:
    echo = EchoServer()
    server = await asyncio.start_server(echo.talk, "127.0.0.1", 0, limit=CHUNK)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()
    await server.wait_closed()


@pytest.fixture
async def proxy(echo: EchoServer) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", echo.port) as proxy:
        yield proxy


class Client:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await asyncio.wait_for(self.reader.readexactly(len(data)), 5)


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def test_what_is_sent_arrives_both_ways(proxy: Proxy) -> None:
    async with connected(proxy) as one, connected(proxy) as other:
        assert await one.ask(b"hello") == b"hello"
        assert await other.ask(b"hi") == b"hi"
        assert proxy.connections == proxy.open == 2


async def test_an_end_is_passed_on_after_all_that_was_sent(proxy: Proxy, echo: EchoServer) -> None:
    async with connected(proxy) as client:
        client.writer.write(b"the last words")
        client.writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(), 5) == b"the last words"
        await until(lambda: not proxy.open, what="the link's end")
    assert echo.ends == ["finished"]


async def test_a_cut_resets_both_sides(proxy: Proxy, echo: EchoServer) -> None:
    async with connected(proxy) as client:
        await client.ask(b"hello")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(), 5)
        await until(lambda: echo.ends == ["reset"] and not proxy.open, what="the reset at the server")


async def test_a_connection_that_is_cut_before_it_began_is_reset(proxy: Proxy) -> None:
    async with connected(proxy) as client:
        await until(lambda: proxy.connections == 1)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(), 5)


async def test_nobody_connects_after_a_cut_until_it_is_restored(proxy: Proxy) -> None:
    proxy.cut()
    port = proxy.port
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
    assert proxy.connections == 0
    proxy.restore()
    async with connected(proxy) as client:
        assert await client.ask(b"back") == b"back"
    assert (proxy.port, proxy.connections) == (port, 1)


async def test_a_half_open_link_is_silent_and_stays_open(proxy: Proxy, echo: EchoServer) -> None:
    async with connected(proxy) as client:
        await client.ask(b"hello")
        proxy.half_open()
        client.writer.write(b"anybody there?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.1)
        assert echo.received == len(b"hello")
        assert echo.ends == []
        proxy.restore()
        assert await asyncio.wait_for(client.reader.readexactly(14), 5) == b"anybody there?"


async def test_a_half_open_proxy_accepts_and_says_nothing(proxy: Proxy, echo: EchoServer) -> None:
    proxy.half_open()
    async with connected(proxy) as client:
        await until(lambda: proxy.connections == 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ask(b"hello"), 0.1)
        assert echo.received == 0
        proxy.restore()
        assert await asyncio.wait_for(client.reader.readexactly(5), 5) == b"hello"


async def test_half_open_links_can_be_cut(proxy: Proxy, echo: EchoServer) -> None:
    async with connected(proxy) as client:
        await client.ask(b"hello")
        proxy.half_open()
        proxy.cut()
        await until(lambda: echo.ends == ["reset"] and not proxy.open)


async def test_a_delay_applies_each_way(proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    async with connected(proxy) as client:
        await client.ask(b"hello")
        proxy.delay(0.1)
        started = loop.time()
        for chunk in (b"a", b"b", b"c"):
            client.writer.write(chunk)
            await client.writer.drain()
        assert await asyncio.wait_for(client.reader.readexactly(3), 5) == b"abc"
        assert loop.time() - started >= 0.2


async def test_a_server_that_is_away_resets_the_client() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with Proxy("127.0.0.1", port) as proxy, connected(proxy) as client:
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(), 5)
        await until(lambda: not proxy.open)


async def test_a_reader_that_does_not_read_stops_its_sender(proxy: Proxy, echo: EchoServer) -> None:
    echo.reads.clear()
    sent = 0
    async with connected(proxy) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                while sent < 64 * CHUNK * CHUNKS:
                    client.writer.write(bytes(CHUNK))
                    await client.writer.drain()
                    sent += CHUNK
        # The kernel's buffers come on top of the proxy's own.
        assert sent < 32 * CHUNK * CHUNKS
        echo.reads.set()
        received = 0
        while received < sent:
            received += len(await asyncio.wait_for(client.reader.read(CHUNK), 5))


async def test_the_end_of_the_block_leaves_nothing_behind(echo: EchoServer) -> None:
    before = asyncio.all_tasks()
    async with Proxy("127.0.0.1", echo.port) as proxy, connected(proxy) as client:
        await client.ask(b"hello")
    assert proxy.open == 0
    await until(lambda: echo.ends == ["reset"])
    await until(lambda: asyncio.all_tasks() <= before, what="the end of all tasks")
