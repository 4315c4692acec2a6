"""The TCP proxy fails as networks fail, and otherwise isn't noticed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.certificate import Certificate, certificate
from tests.support.proxy import CHUNK, CHUNKS, Link, Proxy
from tests.support.redis import Server, server
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


async def test_links_that_are_cut_leave_the_door_open(proxy: Proxy, echo: EchoServer) -> None:
    for _ in range(3):
        async with connected(proxy) as client:
            await client.ask(b"hello")
            assert proxy.cut_links() == 1
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(client.reader.read(), 5)
    await until(lambda: echo.ends == ["reset"] * 3 and not proxy.open)
    async with connected(proxy) as client:
        assert await client.ask(b"back") == b"back"


async def test_only_the_links_that_are_picked_are_cut(proxy: Proxy) -> None:
    async with connected(proxy) as first, connected(proxy) as second, connected(proxy) as third:
        for client, words in ((first, b"one"), (second, b"two"), (third, b"one")):
            await client.ask(words)
        before = 2
        assert proxy.cut_links(lambda link: link.sent(b"one") and link.number > before) == 1
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(third.reader.read(), 5)
        assert await first.ask(b"still") == await second.ask(b"still") == b"still"


async def test_a_link_remembers_only_how_it_began(proxy: Proxy) -> None:
    links: list[Link] = []
    async with connected(proxy) as client:
        await client.ask(b"first")
        for _ in range(5):
            await client.ask(bytes(1000))
        await client.ask(b"last")
        proxy.cut_links(lambda link: links.append(link))  # picks none
    (link,) = links
    assert link.sent(b"first")
    assert not link.sent(b"last")


async def test_one_link_can_be_half_open_among_others(proxy: Proxy, echo: EchoServer) -> None:
    async with connected(proxy) as silent, connected(proxy) as other:
        await silent.ask(b"quiet")
        proxy.half_open(lambda link: link.sent(b"quiet"))
        silent.writer.write(b"anybody there?")
        assert await other.ask(b"hello") == b"hello"
        async with connected(proxy) as third:
            assert await third.ask(b"hi") == b"hi"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silent.reader.read(1), 0.1)
        proxy.restore()
        assert await asyncio.wait_for(silent.reader.readexactly(14), 5) == b"anybody there?"


async def test_who_is_half_open_can_change(proxy: Proxy) -> None:
    async with connected(proxy) as one, connected(proxy) as two:
        await one.ask(b"one")
        await two.ask(b"two")
        proxy.half_open()
        one.writer.write(b"a")
        two.writer.write(b"b")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.reader.read(1), 0.1)
        proxy.half_open(lambda link: link.sent(b"two"))
        assert await asyncio.wait_for(one.reader.read(1), 5) == b"a"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(two.reader.read(1), 0.1)
        proxy.half_open(lambda link: link.sent(b"one"))
        assert await asyncio.wait_for(two.reader.read(1), 5) == b"b"


async def test_answers_are_dropped_while_requests_arrive(proxy: Proxy, echo: EchoServer) -> None:
    async with connected(proxy) as client:
        await client.ask(b"hello")
        proxy.drop_replies()
        client.writer.write(b"lost")
        await until(lambda: proxy.dropped == 1)
        assert echo.received == len(b"hello" + b"lost")
        proxy.restore()
        assert await client.ask(b"heard") == b"heard"
        assert proxy.dropped == 1


async def test_as_many_answers_are_dropped_as_were_told(proxy: Proxy) -> None:
    async with connected(proxy) as client, connected(proxy) as other:
        await client.ask(b"mine")
        proxy.drop_replies(2, lambda link: link.sent(b"mine"))
        client.writer.write(b"lost")
        await until(lambda: proxy.dropped == 1)
        assert await other.ask(b"hello") == b"hello"
        client.writer.write(b"lost")
        await until(lambda: proxy.dropped == 2)
        assert await client.ask(b"heard") == b"heard"
        assert proxy.dropped == 2


@pytest.fixture(scope="module")
async def redis(anyio_backend: str) -> AsyncIterator[Server]:
    async with server() as redis:
        yield redis


@pytest.fixture
async def redis_proxy(redis: Server) -> AsyncIterator[Proxy]:
    await redis.command("FLUSHALL")
    async with Proxy("127.0.0.1", redis.port) as proxy:
        yield proxy


@asynccontextmanager
async def redis_client(port: int, *, ca: Path | None = None) -> AsyncIterator[Redis]:
    """A client that gives up at once; over TLS, believing only `ca`, where that is given."""
    url = f"redis://127.0.0.1:{port}" if ca is None else f"rediss://127.0.0.1:{port}?ssl_ca_certs={ca}"
    async with Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=5) as client:
        yield client


async def test_a_request_whose_reply_is_lost_was_done_once(redis: Server, redis_proxy: Proxy) -> None:
    async with redis_client(redis_proxy.port) as client:
        await client.ping()
        redis_proxy.lose_reply(b"INCR")
        await client.ping()
        assert redis_proxy.dropped == 0
        with pytest.raises(RedisConnectionError):
            await client.incr("done")
        assert redis_proxy.dropped == 1
        assert await redis.command("GET", "done") == b"1"
        assert await client.incr("done") == 2


async def test_a_reply_is_lost_on_the_link_that_is_picked(redis: Server, redis_proxy: Proxy) -> None:
    async with redis_client(redis_proxy.port) as one, redis_client(redis_proxy.port) as other:
        await one.ping()
        redis_proxy.lose_reply(where=lambda link: link.number > 1)
        await one.incr("one")
        with pytest.raises(RedisConnectionError):
            await other.incr("other")  # its first words already: they say who it is
        assert await other.incr("other") == 1


async def test_only_subscriptions_are_cut(redis: Server, redis_proxy: Proxy) -> None:
    async with redis_client(redis_proxy.port) as client, client.pubsub() as subscription:
        await client.set("key", "value")
        await subscription.subscribe("channel")
        assert (await subscription.get_message(timeout=5) or {})["type"] == "subscribe"
        assert redis_proxy.cut_links(lambda link: link.sent(b"SUBSCRIBE")) == 1

        async with asyncio.timeout(5):
            while await redis.command("PUBSUB", "NUMSUB", "channel") != [b"channel", 0]:
                await asyncio.sleep(0.005)
        assert await client.get("key") == b"value"
        assert redis_proxy.connections == 2


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("certificate"))


async def test_a_proxy_ends_tls_for_a_server_that_has_none(redis: Server, papers: Certificate) -> None:
    async with Proxy("127.0.0.1", redis.port, tls=papers.server_context()) as proxy:
        async with redis_client(proxy.port, ca=papers.ca_path) as client:
            big = bytes(3 * CHUNK)
            await client.set("key", big)
            assert await client.get("key") == big
        async with redis_client(proxy.port) as plain:
            with pytest.raises(RedisConnectionError):
                await plain.ping()
        await until(lambda: not proxy.open, what="the end of all links")


async def test_faults_are_the_same_over_tls(redis: Server, papers: Certificate) -> None:
    await redis.command("DEL", "done")
    async with (
        Proxy("127.0.0.1", redis.port, tls=papers.server_context()) as proxy,
        redis_client(proxy.port, ca=papers.ca_path) as client,
    ):
        await client.ping()
        proxy.lose_reply(b"INCR")
        with pytest.raises(RedisConnectionError):
            await client.incr("done")
        assert await client.incr("done") == 2
        proxy.cut()
        with pytest.raises(RedisConnectionError):
            await client.incr("done")
        await until(lambda: not proxy.open)
        proxy.restore()
        assert await client.incr("done") == 3


async def test_an_end_is_passed_on_over_tls(echo: EchoServer, papers: Certificate) -> None:
    trusting = ssl.create_default_context(cafile=str(papers.ca_path))
    async with Proxy("127.0.0.1", echo.port, tls=papers.server_context()) as proxy:
        reader, writer = await asyncio.open_connection("localhost", proxy.port, ssl=trusting)
        assert await Client(reader, writer).ask(b"hello") == b"hello"
        writer.close()
        await writer.wait_closed()
        await until(lambda: echo.ends == ["finished"] and not proxy.open, what="the end at the server")


async def test_a_certificate_is_for_loopback_alone(echo: EchoServer, papers: Certificate) -> None:
    trusting = ssl.create_default_context(cafile=str(papers.ca_path))
    async with Proxy("127.0.0.1", echo.port, tls=papers.server_context()) as proxy:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", proxy.port, ssl=trusting, server_hostname="example.org")
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", proxy.port, ssl=ssl.create_default_context())
        await until(lambda: not proxy.open)
