"""The socket of one exchange: a task that reads, one that writes, and an end that waits for nobody."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

from starlette_realtime.client.exchange import Exchange
from starlette_realtime.client.links import Link, Opener
from starlette_realtime.client.tasks import Tasks
from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConnectionClosed

__all__ = ["CLOSING", "Socket"]

AGAIN: Final = 4000
"""Close code of a link that another one follows: the server lets presence linger, as it does not for 1000."""

CLOSING: Final = 6.0
"""Seconds that a goodbye may take."""


class Socket:
    """Opens a link at once, and feeds the exchange from it until either ends."""

    def __init__(self, url: str, exchange: Exchange, *, opener: Opener, tasks: Tasks, clock: Clock) -> None:
        self._url = url
        self._exchange = exchange
        self._opener = opener
        self._clock = clock
        self._frames: deque[str] = deque()
        self._waiting = 0
        self._something = asyncio.Event()
        self._over = asyncio.Event()
        self._code = AGAIN
        self._tasks = tasks
        self.task = tasks.start(self._run())

    @property
    def waiting(self) -> int:
        """Characters that were not written yet."""
        return self._waiting

    def write(self, text: str) -> None:
        """Write a frame, later."""
        self._frames.append(text)
        self._waiting += len(text)
        self._something.set()

    def drop(self, code: int, reason: str) -> None:
        """Close without waiting."""
        if code == 1000:
            self._code = code
        self._over.set()
        self._something.set()

    async def _run(self) -> None:
        serving = self._tasks.start(self._serve())
        over = self._tasks.start(self._over.wait())
        try:
            await asyncio.wait((serving, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            serving.cancel()
            await asyncio.wait((serving, over))

    async def _serve(self) -> None:
        try:
            link = await self._opener(self._url)
        except ConnectionClosed as exc:
            self._exchange.end(exc.code, exc.reason, _said(exc.__cause__))
            return
        except Exception as exc:  # whatever it is: the next try may be luckier, and the application is told
            self._exchange.end(1006, "connect_failed", _said(exc))
            return
        writer = self._tasks.start(self._write(link))
        try:
            self._exchange.opened()
            while True:
                self._exchange.received(await self._read(link))
        except ConnectionClosed as exc:
            self._exchange.end(exc.code, exc.reason, _said(exc.__cause__))
        finally:
            self._exchange.end(1006, "failed")  # whatever happened, a link that nobody reads is over
            await self._goodbye(link, writer)

    async def _read(self, link: Link) -> str:
        try:
            return await link.recv()
        except OSError as exc:
            raise ConnectionClosed(1006, "connection_lost") from exc

    async def _goodbye(self, link: Link, writer: "asyncio.Task[None]") -> None:
        try:
            with suppress(TimeoutError):
                async with self._clock.timeout(CLOSING):
                    if self._code == 1000:
                        await asyncio.wait((writer,))  # what was sent last goes out
                    writer.cancel()
                    await link.close(self._code)
        finally:
            writer.cancel()

    async def _write(self, link: Link) -> None:
        with suppress(ConnectionClosed, OSError):
            while True:
                while self._frames:
                    text = self._frames.popleft()
                    await link.send(text)
                    self._waiting -= len(text)
                if self._over.is_set():
                    return
                self._something.clear()
                await self._something.wait()


def _said(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}" if error is not None else ""
