"""Line: one connection to a server that is made again whenever it is lost, written to in batches, read in order."""

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from starlette_realtime.clock import Clock

__all__ = ["Connect", "Line", "pack"]

logger = logging.getLogger("starlette_realtime.store")

Connect = Callable[[], Awaitable[AbstractConnection]]
"""Makes and opens a connection to whoever is to be talked to now."""

FIRST_PAUSE = 0.02
"""Seconds after a first failure to connect; each further one takes twice as long."""

LAST_PAUSE = 1.0
"""Seconds that no pause is longer than; nor than a quarter of the time limit, so that several attempts fit into it."""

STEADY = 0.1
"""Seconds that a connection has to stand for the next one to be made at once."""


def pack(parts: Iterable[bytes]) -> bytes:
    """A command as an array of bulk strings (Redis serialization protocol specification)."""
    encoded = [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"*%d\r\n%b" % (len(encoded), b"".join(encoded))


class Line(ABC):
    """
    What keeps one connection, for as long as it is open.

    `timeout` bounds connecting, in seconds. Whatever one turn of the event loop has to say goes out in one write.
    A subclass says what is written, takes what is read, and hears when the connection is there and when it is lost.
    """

    speaks = False
    """Whether it logs when nobody answers."""

    def __init__(self, connect: Connect, *, clock: Clock, timeout: float, name: str) -> None:
        self.name = name
        """Which server, for logs."""
        self.since: float | None = None
        """From when on the present connection stands, by the clock; None: there is none."""
        self.trouble: BaseException | None = None
        """Why there is no connection."""
        self._connect = connect
        self._clock = clock
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._dropped = asyncio.Event()
        self._told = False
        self._hurry = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as anybody knows."""
        return self.since is not None

    def open(self) -> None:
        """Start to connect, and to stay connected."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    def drop(self, trouble: BaseException) -> None:
        """Give the present connection up: it is dead, or leads to the wrong place. Another one is made at once."""
        if self.trouble is None:
            self.trouble = trouble
        self._dropped.set()
        self._hurry.set()

    def wake(self) -> None:
        """There is something to write."""
        self._wake.set()

    # --- what a subclass does ---

    @abstractmethod
    def _opened(self) -> None:
        """The connection is there: nothing was written to it or read from it yet."""

    @abstractmethod
    def _lost(self, trouble: BaseException) -> None:
        """The connection is gone, or could not be made; there will be another attempt."""

    @abstractmethod
    def _outgoing(self) -> bytes:
        """What to write now; empty: nothing."""

    @abstractmethod
    def _incoming(self, reply: object) -> None:
        """Take a reply; a `ResponseError` is one."""

    # --- its life ---

    async def _run(self) -> None:
        failures = 0
        while True:
            self._dropped.clear()
            self.trouble = None
            connection = None
            try:
                async with asyncio.timeout(self._timeout):
                    connection = await self._connect()
            except asyncio.CancelledError:
                raise
            except Exception as exc:
                self._report(exc)
                self._lost(exc)
            else:
                if self._told:
                    self._told = False
                    logger.info("%s is there again", self.name)
                self.since = self._clock.now()
                try:
                    self._opened()
                    self._wake.set()
                    trouble = await self._converse(connection)
                finally:
                    steady = self._clock.now() - self.since >= STEADY
                    self.since = None
                    await _disconnect(connection)
                logger.info("the connection to %s was lost: %s", self.name, _reason(trouble))
                self._lost(trouble)
                if steady:
                    failures = 0
            await self._pause(failures)
            failures = min(failures + 1, 10)

    async def _pause(self, failures: int) -> None:
        self._hurry.clear()
        if failures == 0:
            return  # most often it can be had again at once
        delay = min(LAST_PAUSE, self._timeout / 4, FIRST_PAUSE * 2 ** (failures - 1))
        with suppress(TimeoutError):
            async with self._clock.timeout(delay):
                await self._hurry.wait()

    async def _converse(self, connection: AbstractConnection) -> BaseException:
        """Write and read until one of the two fails; tells how."""
        tasks = [
            asyncio.ensure_future(self._write(connection)),
            asyncio.ensure_future(self._read(connection)),
            asyncio.ensure_future(self._dropped.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is not tasks[2] and (error := task.exception()) is not None:
                    return error
            return self.trouble or ConnectionError("it was given up")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while data := self._outgoing():
                await connection.send_packed_command((data,), check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            try:
                reply = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
            except ResponseError as exc:
                reply = exc
            self._incoming(reply)

    def _report(self, exc: Exception) -> None:
        """Say once that nobody answers, or refuses; of a server's two lines one does."""
        if self.speaks and not self._told:
            self._told = True
            logger.warning("%s can't be connected to; it is tried again and again: %s", self.name, _reason(exc))


def _reason(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


async def _disconnect(connection: AbstractConnection) -> None:
    with suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)
