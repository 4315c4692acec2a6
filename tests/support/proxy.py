"""A TCP proxy on loopback whose links a test cuts, leaves half-open or delays, or whose answers it loses."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK = 64 * 1024  # bytes read at once, and what a stream buffers before it stops reading
CHUNKS = 16  # that may wait, for one direction of one link, before the proxy stops reading from the sender
OPENING = 4096  # bytes kept of what a client sent first
RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no seconds: closing sends RST and drops what was not sent
Chunk = tuple[float, bytes]  # when it is due, by the event loop's clock, and what


class Proxy:
    """
    Pass TCP connections on to `host:port`, and fail in the ways that networks fail.

    `async with Proxy("127.0.0.1", 8000) as proxy:` listens on `127.0.0.1:{proxy.port}` for as long as the block
    lasts. What it buffers is bounded, and a slow reader slows down its sender. A fault hits all links at once, or
    those that its `where` picks; `where` is asked again for every chunk, so that it may depend on what was sent.
    With `tls` the proxy speaks TLS to its clients and plain TCP to the target, which sees what they encrypted.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.target = (host, port)
        self.tls = tls
        self.port = 0
        self.connections = 0  # links accepted since the start
        self.dropped = 0  # chunks of answers that were swallowed since the start
        self._delay = 0.0
        self._flowing = asyncio.Event()
        self._held: Where = everywhere  # which links do not flow while `_flowing` is clear
        self._mute: Where | None = None
        self._mute_left: int | None = None  # chunks
        self._losing: tuple[bytes, Where] | None = None
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._listener: socket.socket | None = None
        self._listening = False

    async def __aenter__(self) -> Self:
        self._bind()
        self.restore()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ending = list(self._links.values())
        self.cut()
        assert self._listener is not None
        self._listener.close()
        for outcome in await asyncio.gather(*ending, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    @property
    def open(self) -> int:
        """How many links there are now."""
        return len(self._links)

    def cut(self) -> None:
        """Reset every link (RST, without a goodbye) and refuse new ones until `restore()`."""
        if self._listening:
            assert self._listener is not None
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listening = False
            self._bind()  # but not listening: the port stays ours, and whoever connects is refused
        self.cut_links()

    def cut_links(self, where: "Where | None" = None) -> int:
        """Reset the present links, or those that `where` picks, and tell how many; new ones are welcome at once."""
        cut = [link for link in self._links if where is None or where(link)]
        for link in cut:
            self._reset(link)
        return len(cut)

    def half_open(self, where: "Where | None" = None) -> None:
        """
        Leave all sockets open and forward nothing, either way; new connections are accepted and hear nothing.

        What was sent meanwhile arrives after `restore()`, as it does when a network comes back in time. With `where`
        only the links that it picks are silent.
        """
        self._listen()
        self._flowing.set()  # wakes whom an earlier call held: this one may hold others
        self._held = where or everywhere
        self._flowing.clear()

    def drop_replies(self, count: int | None = None, where: "Where | None" = None) -> None:
        """
        Pass on what clients send and swallow what the target answers: the next `count` chunks, or until `restore()`.

        A chunk is what arrived at once. What was read before, and is on its way, still arrives.
        """
        self._mute, self._mute_left = where or everywhere, count

    def lose_reply(self, request: bytes = b"", where: "Where | None" = None) -> None:
        """
        Let the next chunk with `request` in it through to the target, swallow the answer, and reset that link.

        The client cannot know whether its request was done: it was. Just one link is hit, once; `dropped` counts it.
        While older requests of the same link are unanswered, it may be an answer to those that is swallowed.
        """
        self._losing = (request, where or everywhere)

    def restore(self) -> None:
        """Accept and forward again, after any fault. Links that were cut stay dead, and swallowed answers lost."""
        self._listen()
        self._mute = self._losing = None
        self._flowing.set()

    def delay(self, seconds: float) -> None:
        """Let whatever is read from now on arrive `seconds` later, each way; throughput stays as it is."""
        self._delay = seconds

    def _listen(self) -> None:
        if not self._listening:
            assert self._listener is not None
            self._listener.listen(128)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)
            self._listening = True

    def _bind(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind(("127.0.0.1", self.port))
        except OSError:
            listener.close()
            raise
        self._listener, self.port = listener, listener.getsockname()[1]

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # whoever it was has gone again
        accepted.setblocking(False)
        self.connections += 1
        link = Link(self, accepted, self.connections)
        task = asyncio.create_task(link.run())
        self._links[link] = task
        task.add_done_callback(lambda _: self._forget(link))

    def _forget(self, link: "Link") -> None:
        del self._links[link]
        link.accepted.close()  # a link that was cut before it began has nobody else to do it

    def _reset(self, link: "Link") -> None:
        link.reset()
        self._links[link].cancel()

    async def _flow(self, link: "Link") -> None:
        while not self._flowing.is_set() and self._held(link):
            await self._flowing.wait()

    def _requested(self, link: "Link", data: bytes) -> None:
        """Note that the target got `data` from the client of `link`."""
        if self._losing is not None and self._losing[0] in data and self._losing[1](link):
            self._losing, link.loses = None, True

    def _swallows(self, link: "Link") -> bool:
        """Whether a chunk from the target to the client of `link` is lost."""
        if link.loses:
            self._reset(link)
        elif self._mute is not None and self._mute(link):
            if self._mute_left is not None:
                self._mute_left -= 1
                if self._mute_left <= 0:
                    self._mute = None
        else:
            return False
        self.dropped += 1
        return True


class Link:
    """One accepted connection and its counterpart at the target."""

    def __init__(self, proxy: Proxy, accepted: socket.socket, number: int) -> None:
        self.proxy = proxy
        self.accepted = accepted
        self.number = number  # the first link of a proxy is 1
        self.loses = False  # its next answer, and then itself
        self._opening = b""
        self._connected: socket.socket | None = None  # to the target
        self._writers: list[asyncio.StreamWriter] = []

    def sent(self, data: bytes) -> bool:
        """Whether `data` is in the first `OPENING` bytes that the client sent."""
        return data in self._opening

    async def run(self) -> None:
        """Forward both ways until both sides have finished, or one of them broke."""
        try:
            await self.proxy._flow(self)
            client_reader, client_writer = await self._open()
            server_reader, server_writer = await asyncio.open_connection(*self.proxy.target, limit=CHUNK)
            self._writers.append(server_writer)
            self._connected = server_writer.get_extra_info("socket")
            requests, answers = asyncio.Queue[Chunk](CHUNKS), asyncio.Queue[Chunk](CHUNKS)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._take(client_reader, requests, answers=False))
                pumps.create_task(self._give(requests, server_writer, answers=False))
                pumps.create_task(self._take(server_reader, answers, answers=True))
                pumps.create_task(self._give(answers, client_writer, answers=True))
        except (OSError, ExceptionGroup) as error:
            if isinstance(error, ExceptionGroup) and error.split(OSError)[1] is not None:
                raise
            self.reset()  # one side broke: so does the other, as it would without a proxy between
        finally:
            for writer in self._writers:
                writer.close()
            for writer in self._writers:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.proxy.tls is None:
            reader, writer = await asyncio.open_connection(sock=self.accepted, limit=CHUNK)
        else:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(limit=CHUNK)
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, self.accepted, ssl=self.proxy.tls, ssl_shutdown_timeout=1.0
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._writers.append(writer)
        return reader, writer

    async def _take(self, reader: asyncio.StreamReader, chunks: asyncio.Queue[Chunk], *, answers: bool) -> None:
        """Read what one side sends, and note when it is due. No bytes are the end."""
        loop = asyncio.get_running_loop()
        data = b"more"
        while data:
            await self.proxy._flow(self)
            data = await reader.read(CHUNK)
            if not answers:
                self._opening += data[: OPENING - len(self._opening)]
            elif data and self.proxy._swallows(self):
                continue
            await chunks.put((loop.time() + self.proxy._delay, data))

    async def _give(self, chunks: asyncio.Queue[Chunk], writer: asyncio.StreamWriter, *, answers: bool) -> None:
        """Write to the other side what is due."""
        loop = asyncio.get_running_loop()
        while True:
            due, data = await chunks.get()
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            await self.proxy._flow(self)
            if not data:
                break
            if not answers:
                self.proxy._requested(self, data)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()  # TLS knows no end of one direction alone

    def reset(self) -> None:
        """Send RST to both sides, and drop what is on the way."""
        for side in (self.accepted, self._connected):
            if side is not None and side.fileno() >= 0:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for writer in self._writers:
            writer.transport.abort()


Where = Callable[[Link], object]  # picks links: whatever is true picks


def everywhere(link: Link) -> bool:
    """Pick every link."""
    return True
