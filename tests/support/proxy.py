"""A TCP proxy on loopback whose links a test cuts, leaves half-open or delays."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK = 64 * 1024  # bytes read at once, and what a stream buffers before it stops reading
CHUNKS = 16  # that may wait, for one direction of one link, before the proxy stops reading from the sender
RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no seconds: closing sends RST and drops what was not sent


class Proxy:
    """
    Pass TCP connections on to `host:port`, and fail in the ways that networks fail.

    `async with Proxy("127.0.0.1", 8000) as proxy:` listens on `127.0.0.1:{proxy.port}` for as long as the block
    lasts. What it buffers is bounded, and a slow reader slows down its sender. All links fail together, at once.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.port = 0
        self.connections = 0  # links accepted since the start
        self._delay = 0.0
        self._flowing = asyncio.Event()
        self._links: dict[_Link, asyncio.Task[None]] = {}
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
        for link, task in self._links.items():
            link.reset()
            task.cancel()

    def half_open(self) -> None:
        """
        Leave all sockets open and forward nothing, either way; new connections are accepted and hear nothing.

        What was sent meanwhile arrives after `restore()`, as it does when a network comes back in time.
        """
        self.restore()
        self._flowing.clear()

    def restore(self) -> None:
        """Accept and forward again, after `cut()` or `half_open()`. Links that were cut stay dead."""
        if not self._listening:
            assert self._listener is not None
            self._listener.listen(128)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)
            self._listening = True
        self._flowing.set()

    def delay(self, seconds: float) -> None:
        """Let whatever is read from now on arrive `seconds` later, each way; throughput stays as it is."""
        self._delay = seconds

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
        link = _Link(accepted, self.target, flowing=self._flowing, delay=lambda: self._delay)
        task = asyncio.create_task(link.run())
        self._links[link] = task
        task.add_done_callback(lambda _: self._forget(link))

    def _forget(self, link: "_Link") -> None:
        del self._links[link]
        link.accepted.close()  # a link that was cut before it began has nobody else to do it


class _Link:
    """One accepted connection and its counterpart at the target."""

    def __init__(
        self,
        accepted: socket.socket,
        target: tuple[str, int],
        *,
        flowing: asyncio.Event,
        delay: Callable[[], float],
    ) -> None:
        self.accepted = accepted
        self.target = target
        self.flowing = flowing
        self.delay = delay
        self.writers: list[asyncio.StreamWriter] = []

    async def run(self) -> None:
        """Forward both ways until both sides have finished, or one of them broke."""
        try:
            client_reader, client_writer = await asyncio.open_connection(sock=self.accepted, limit=CHUNK)
            self.writers.append(client_writer)
            await self.flowing.wait()
            server_reader, server_writer = await asyncio.open_connection(*self.target, limit=CHUNK)
            self.writers.append(server_writer)
            async with asyncio.TaskGroup() as pumps:
                for reader, writer in ((client_reader, server_writer), (server_reader, client_writer)):
                    chunks = asyncio.Queue[tuple[float, bytes]](CHUNKS)
                    pumps.create_task(self.take(reader, chunks))
                    pumps.create_task(self.give(chunks, writer))
        except (OSError, ExceptionGroup) as error:
            if isinstance(error, ExceptionGroup) and error.split(OSError)[1] is not None:
                raise
            self.reset()  # one side broke: so does the other, as it would without a proxy between
        finally:
            for writer in self.writers:
                writer.close()
            for writer in self.writers:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def take(self, reader: asyncio.StreamReader, chunks: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Read what one side sends, and note when it is due. No bytes are the end."""
        loop = asyncio.get_running_loop()
        data = b"more"
        while data:
            await self.flowing.wait()
            data = await reader.read(CHUNK)
            await chunks.put((loop.time() + self.delay(), data))

    async def give(self, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        """Write to the other side what is due."""
        loop = asyncio.get_running_loop()
        while True:
            due, data = await chunks.get()
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            await self.flowing.wait()
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    def reset(self) -> None:
        """Send RST to both sides, and drop what is on the way."""
        if self.accepted.fileno() >= 0:
            self.accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for writer in self.writers:
            link = writer.get_extra_info("socket")
            if link.fileno() >= 0:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
