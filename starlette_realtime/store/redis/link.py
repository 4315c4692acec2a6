"""Link: commands to, and channels from, the servers that an address names."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.address import Address, Host, Remap
from starlette_realtime.store.redis.keys import Keys, slot_of
from starlette_realtime.store.redis.listener import Heard, Listener
from starlette_realtime.store.redis.pipe import Call, Pipe
from starlette_realtime.store.redis.scripts import Script

__all__ = ["Link", "Lost", "Single", "ask"]

logger = logging.getLogger("starlette_realtime.store")

Lost = Any
"""Hears the channels whose messages may be missing from now on."""


class Link(ABC):
    """
    One process's way to the servers, whatever their topology.

    Commands go over one connection for each server, and what they are answered comes back in order; channels come over
    another one. `timeout` bounds every command, in seconds; `probe` is how long silence goes unquestioned.
    """

    sharded = False
    """Whether channels belong to slots, as keys do."""

    def __init__(
        self,
        address: Address,
        *,
        keys: Keys,
        name: str,
        clock: Clock,
        timeout: float,
        probe: float,
        remap: Remap | None,
        heard: Heard,
        lost: Any,
    ) -> None:
        self.address = address
        self._keys = keys
        self._name = name
        self._clock = clock
        self._timeout = timeout
        self._probe = probe
        self._remap = remap
        self._heard = heard
        self._lost = lost
        self._scripts: dict[bytes, Script] = {}

    # --- commands ---

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes], *, once: bool = False) -> Any:
        """
        Run a script on keys of one slot; tells its answer as it came.

        It may run twice, when the connection is lost before the answer, unless `once`. Raises `StoreError`: then it may
        have run or not.
        """
        return await self.submit(script, keys, args, once=once)

    def submit(
        self, script: Script, keys: Sequence[bytes], args: Sequence[bytes], *, once: bool = False
    ) -> "asyncio.Future[Any]":
        """Like `run`, at once, in the order of these calls where they go to the same server."""
        self._scripts[script.sha] = script
        return self._submit((b"EVALSHA", script.sha, b"%d" % len(keys), *keys, *args), keys[0], once)

    async def call(self, *command: bytes, key: bytes, once: bool = False) -> Any:
        """One command on one key, like `run`."""
        return await self._submit(command, key, once)

    def _submit(self, parts: Sequence[bytes], key: bytes, once: bool) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        deadline = self._clock.now() + self._timeout
        call = Call(parts, future, slot=slot_of(key) if self.sharded else -1, deadline=deadline, once=once)
        self._route(call)
        return future

    def steady_since(self, key: bytes) -> float | None:
        """From when on the present connection to the key's server stands, by the clock; None: there is none."""
        pipe = self._pipe(slot_of(key))
        return pipe.since if pipe is not None else None

    # --- channels ---

    async def subscribe(self, channel: bytes) -> None:
        """Have a channel delivered. Raises `StoreError`; then it is still wanted, and comes as soon as it can be."""
        self._listener(channel).add(channel)
        await self.ready(channel)

    async def ready(self, channel: bytes) -> None:
        """Wait until a channel that is wanted is delivered. Raises `StoreError` when it isn't in time."""
        await self._listener(channel).ready(channel)

    def unsubscribe(self, channel: bytes) -> None:
        """Want a channel no more."""
        self._listener(channel).discard(channel)

    # --- life, and what a topology does ---

    @abstractmethod
    async def start(self) -> None:
        """Connect. Raises `StoreError` when nobody answers."""

    @abstractmethod
    async def stop(self) -> None:
        """End all connections."""

    @abstractmethod
    def gauges(self) -> dict[str, int]:
        """What is held now."""

    @abstractmethod
    def _route(self, call: Call) -> None:
        """Give it to the server's pipe."""

    @abstractmethod
    def _pipe(self, slot: int) -> Pipe | None:
        """The pipe to the slot's server."""

    @abstractmethod
    def _listener(self, channel: bytes) -> Listener:
        """The listener to the channel's server."""

    async def _open(self, host: Host | None) -> AbstractConnection:
        """Open a connection to a server."""
        connection = self.address.connection(self._reach(host), timeout=self._timeout)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _reach(self, host: Host | None) -> Host | None:
        return host if host is None or self._remap is None else self._remap(host)

    async def _publish(self, channel: bytes) -> None:
        await self.call(b"SPUBLISH" if self.sharded else b"PUBLISH", channel, b"", key=channel, once=True)


class Single(Link):
    """One server, at one place."""

    def __init__(self, address: Address, **options: Any) -> None:
        super().__init__(address, **options)
        common: dict[str, Any] = {"clock": self._clock, "timeout": self._timeout, "name": str(address)}
        self._commands = Pipe(self._connect, scripts=self._scripts, failed=self._failed, **common)
        self._channels = Listener(
            self._connect,
            probe=self._probe,
            echo=lambda: self._keys.of("echo", self._name),
            publish=self._publish,
            heard=self._heard,
            lost=self._lost,
            astray=lambda channel: None,
            sharded=False,
            **common,
        )

    async def start(self) -> None:
        """See `Link.start`."""
        self._commands.open()
        self._channels.open()
        try:
            await self.call(b"PING", key=b"")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """See `Link.stop`."""
        await self._channels.close()
        await self._commands.close()

    def gauges(self) -> dict[str, int]:
        """See `Link.gauges`."""
        return {"commands": len(self._commands), "channels": len(self._channels.channels)}

    def _route(self, call: Call) -> None:
        self._commands.submit(call)

    def _pipe(self, slot: int) -> Pipe:
        return self._commands

    def _listener(self, channel: bytes) -> Listener:
        return self._channels

    async def _connect(self) -> AbstractConnection:
        hosts = self.address.hosts
        return await self._open(hosts[0] if hosts else None)

    def _failed(self, trouble: BaseException) -> None:
        """The connection for commands was lost, or couldn't be made: is the other one alive?"""
        self._channels.suspect()


async def ask(connection: AbstractConnection, *command: str | bytes) -> Any:
    """One command on a connection of one's own."""
    await connection.send_command(*command)
    return await connection.read_response()


def unreachable(address: Address, trouble: Collection[str | Exception]) -> StoreError:
    """None of them answers, or not as it should; the cause is one that would help, where there is one."""
    said = dict.fromkeys(str(each) or type(each).__name__ for each in trouble)
    error = StoreError(f"none of {address} answers: {', '.join(said) or 'there is none'}")
    causes = [each for each in trouble if isinstance(each, Exception)]
    error.__cause__ = next((each for each in causes if isinstance(each, AuthenticationError)), *causes[-1:] or (None,))
    return error
