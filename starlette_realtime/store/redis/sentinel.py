"""Sentinel: the server that the sentinels call the master, and the next one as soon as they say so."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ReadOnlyError, RedisError

from starlette_realtime.store.redis.address import Address, Host
from starlette_realtime.store.redis.link import Single, ask, unreachable

__all__ = ["Sentinel"]

logger = logging.getLogger("starlette_realtime.store")

PAUSE = 0.5
"""Seconds until another sentinel is listened to, after one was lost."""


class Sentinel(Single):
    """
    A master that is found by asking the sentinels, one after the other, whoever answered last first.

    (Redis documentation, "Guidelines for Redis clients with support for Redis Sentinel".) Who says to be a replica is
    not connected to. One sentinel is listened to, so that a switch is known at once and not only by its errors.
    """

    def __init__(self, address: Address, **options: Any) -> None:
        super().__init__(address, **options)
        self._sentinels = list(address.hosts)
        # All of them, and then the master, within the time limit: those who are gone for good are asked last.
        self._each = self._timeout / (len(self._sentinels) + 1)
        self._master: Host | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See `Link.start`."""
        await super().start()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """See `Link.stop`."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait((watcher,))
        await super().stop()

    async def _connect(self) -> AbstractConnection:
        host = await self._find()
        connection = await self._open(host)
        try:
            role = await ask(connection, "ROLE")
            if role[0] != b"master":
                raise ReadOnlyError("the sentinels name a server that is no master yet")
            # One that was frozen answers when it wakes up, and still takes itself for the master.
            if await self._find() != host:
                raise ReadOnlyError("the sentinels have made another server the master meanwhile")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._follow(host)
        return connection

    def _follow(self, host: Host) -> None:
        """That is the master: whoever is connected to another one leaves it, though it may still take writes."""
        former, self._master = self._master, host
        if former is not None and former != host:
            logger.info("the sentinels have made another server the master")
            for line in (self._commands, self._channels):
                if line.connected:
                    line.drop(ConnectionError("another server is the master now"))

    async def _find(self) -> Host:
        trouble: list[str | Exception] = []
        for place in tuple(self._sentinels):
            try:
                found = await self._ask(place)
            except (RedisError, OSError) as exc:
                trouble.append(exc)
                self._sentinels.remove(place)
                self._sentinels.append(place)
                continue
            if found is None:
                trouble.append(f"{place[0]}:{place[1]} knows no master {self.address.service!r}")
                continue
            self._prefer(place)
            return found
        raise unreachable(self.address, trouble)

    async def _ask(self, place: Host) -> Host | None:
        sentinel = await self._open_sentinel(place)
        try:
            async with asyncio.timeout(self._each):
                found = await ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.address.service or "")
        finally:
            await sentinel.disconnect(nowait=True)
        return None if found is None else (found[0].decode(), int(found[1]))

    def _prefer(self, place: Host) -> None:
        """Ask this one first from now on."""
        self._sentinels.remove(place)
        self._sentinels.insert(0, place)

    async def _open_sentinel(self, place: Host) -> AbstractConnection:
        reached = self._reach(place)
        assert reached is not None
        # An answer or none, soon: there are others to ask.
        sentinel = self.address.to_sentinel(reached, timeout=self._each)
        try:
            async with asyncio.timeout(self._each):
                await sentinel.connect()  # type: ignore[no-untyped-call]
        except TimeoutError as exc:
            await sentinel.disconnect(nowait=True)
            raise OSError(f"{place[0]}:{place[1]} doesn't answer") from exc
        except BaseException:
            await sentinel.disconnect(nowait=True)
            raise
        return sentinel

    async def _watch(self) -> None:
        """Listen to one sentinel after the other."""
        turn = 0
        while True:
            place = self._sentinels[turn % len(self._sentinels)]
            turn += 1
            with suppress(RedisError, OSError):
                sentinel = await self._open_sentinel(place)
                try:
                    await self._hear(sentinel, place)
                finally:
                    await sentinel.disconnect(nowait=True)
            await self._clock.sleep(PAUSE)

    async def _hear(self, sentinel: AbstractConnection, place: Host) -> None:
        await sentinel.send_command("SUBSCRIBE", "+switch-master")
        while True:
            reply = await sentinel.read_response(timeout=self._probe)
            if reply is None:  # is it there at all?
                await sentinel.send_command("PING")
                if await sentinel.read_response(timeout=self._timeout) is None:
                    return
            elif reply[0] == b"subscribe":  # there may have been news while nobody was listened to
                if (found := await self._ask(place)) is not None:
                    self._changed(place, found)
            elif reply[0] == b"message":
                service, _, _, host, port = reply[2].decode().split(" ")
                if service == self.address.service:
                    self._changed(place, (host, int(port)))

    def _changed(self, place: Host, host: Host) -> None:
        if self._master not in (None, host):
            self._prefer(place)  # others may not know yet
            self._follow(host)
