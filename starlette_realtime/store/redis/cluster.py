"""Cluster: many masters, each with its slots, its commands and its channels; and the map of who has what."""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

from redis.exceptions import AskError, MovedError, RedisError, ResponseError

from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.address import Address, Host
from starlette_realtime.store.redis.keys import SLOTS, TAGS, slot_of
from starlette_realtime.store.redis.link import Link, ask, unreachable
from starlette_realtime.store.redis.listener import Listener
from starlette_realtime.store.redis.pipe import Call, Pipe

__all__ = ["Cluster"]

logger = logging.getLogger("starlette_realtime.store")

PAUSE = 0.1
"""Seconds between two readings of the map, while something is wrong with it."""

LOOK = 30.0
"""Seconds after which the map is read again though nothing is wrong with it."""

MASTERS = 1_000
"""How many masters a cluster may have (its specification's own bound)."""


class _Node:
    """One master: its pipe, and, once a channel of its slots is wanted, its listener."""

    __slots__ = ("host", "listener", "pipe")

    def __init__(self, host: Host, pipe: Pipe, listener: Listener) -> None:
        self.host = host
        self.pipe = pipe
        self.listener = listener


class Cluster(Link):
    """
    A cluster (Redis Cluster specification), with sharded pub/sub.

    The map of slots is read at the start, whenever a server says that it is out of date or can't be reached, and now
    and then. What waits for a master that is none any more goes to the one in its place.
    """

    sharded = True

    def __init__(self, address: Address, **options: Any) -> None:
        super().__init__(address, **options)
        self._nodes: dict[Host, _Node] = {}
        self._owners: list[Host | None] = [None] * SLOTS
        self._channels: dict[bytes, Listener] = {}  # channel → where it is wanted
        self._refresher: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        self._readings = 0
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """See `Link.start`."""
        try:
            await self._read_map()
        except BaseException:
            await self.stop()
            raise
        self._refresher = asyncio.get_running_loop().create_task(self._refresh())

    async def stop(self) -> None:
        """See `Link.stop`."""
        refresher, self._refresher = self._refresher, None
        if refresher is not None:
            refresher.cancel()
            await asyncio.wait((refresher,))
        nodes, self._nodes, self._owners = list(self._nodes.values()), {}, [None] * SLOTS
        self._channels.clear()
        for node in nodes:
            await node.listener.close()
            await node.pipe.close()
        if self._closing:
            await asyncio.wait(tuple(self._closing))

    def gauges(self) -> dict[str, int]:
        """See `Link.gauges`."""
        return {"commands": sum(len(node.pipe) for node in self._nodes.values()), "channels": len(self._channels)}

    # --- who has what ---

    def _route(self, call: Call) -> None:
        node = self._at(call.slot)
        if node is None:
            call.fail("the cluster has no master for this, as far as is known")
            self._due.set()
        else:
            node.pipe.submit(call)

    def _at(self, slot: int) -> _Node | None:
        owner = self._owners[slot]
        return self._nodes.get(owner) if owner is not None else None

    def _pipe(self, slot: int) -> Pipe | None:
        node = self._at(slot)
        return node.pipe if node is not None else None

    def _listener(self, channel: bytes) -> Listener:
        listener = self._channels.get(channel)
        if listener is None:
            node = self._at(slot_of(channel))
            if node is None:
                self._due.set()
                raise StoreError("the cluster has no master for this, as far as is known")
            listener = node.listener
        return listener

    async def subscribe(self, channel: bytes) -> None:
        """See `Link.subscribe`."""
        listener = self._channels[channel] = self._listener(channel)
        listener.add(channel)
        await self.ready(channel)

    def unsubscribe(self, channel: bytes) -> None:
        """See `Link.unsubscribe`."""
        listener = self._channels.pop(channel, None)
        if listener is not None:
            listener.discard(channel)

    # --- what servers say ---

    def _moved(self, asked: Host, call: Call, error: ResponseError) -> None:
        """A command belongs elsewhere: it goes there, in any case in time for its deadline."""
        assert isinstance(error, AskError)
        host = (error.host or asked[0], error.port)  # a server that doesn't know where it is says nothing
        call.asking = not isinstance(error, MovedError)
        if not call.asking:
            self._owners[call.slot] = host
            self._due.set()
        self._node(host).pipe.submit(call)

    def _failed(self, host: Host, trouble: BaseException) -> None:
        self._due.set()
        node = self._nodes.get(host)
        if node is not None:
            node.listener.suspect()

    def _astray(self, channel: bytes) -> None:
        self._due.set()

    def _node(self, host: Host) -> _Node:
        node = self._nodes.get(host)
        if node is None:
            common: dict[str, Any] = {
                "clock": self._clock,
                "timeout": self._timeout,
                "name": f"{host[0]}:{host[1]}",
            }
            connect = partial(self._open, host)
            pipe = Pipe(
                connect,
                scripts=self._scripts,
                moved=partial(self._moved, host),
                failed=partial(self._failed, host),
                **common,
            )
            listener = Listener(
                connect,
                probe=self._probe,
                echo=partial(self._echo, host),
                publish=self._publish,
                heard=self._heard,
                lost=self._lost,
                astray=self._astray,
                sharded=True,
                **common,
            )
            node = self._nodes[host] = _Node(host, pipe, listener)
            pipe.open()
        return node

    def _echo(self, host: Host) -> bytes | None:
        """A channel of our own in a slot of that server's; where it has none, nothing is wanted of it either."""
        for tag in TAGS:
            if self._owners[slot_of(b"{%b}" % tag)] == host:
                return b"%b:echo:{%b}:%b" % (self._keys.prefix.encode(), tag, self._name.encode())
        return None

    # --- the map ---

    async def _refresh(self) -> None:
        while True:
            try:
                async with self._clock.timeout(LOOK):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            try:
                await self._read_map()
            except StoreError as exc:
                logger.info("the cluster's map can't be read: %s", exc)
                self._due.set()
            await self._clock.sleep(PAUSE)

    async def _read_map(self) -> None:
        """Ask one node after the other who has which slots, and arrange everything by it. Raises `StoreError`."""
        trouble: list[str | Exception] = []
        known = [node.host for node in self._nodes.values() if node.pipe.connected]
        if known:  # each time another one first: one may be cut off from the others, and not know it
            self._readings += 1
            turn = self._readings % len(known)
            known = known[turn:] + known[:turn]
        for host in dict.fromkeys((*known, *self._nodes, *self.address.hosts)):
            try:
                async with asyncio.timeout(self._timeout / 2):
                    connection = await self._open(host)
                    try:
                        ranges = await ask(connection, "CLUSTER", "SLOTS")
                    finally:
                        await connection.disconnect(nowait=True)
            except (RedisError, OSError) as exc:
                trouble.append(exc)
                continue
            if ranges:
                await self._arrange(ranges, host)
                return
            trouble.append(f"{host[0]}:{host[1]} has no slots")
        raise unreachable(self.address, trouble)

    async def _arrange(self, ranges: Iterable[Any], asked: Host) -> None:
        owners: list[Host | None] = [None] * SLOTS
        masters: dict[Host, None] = {}
        for first, last, master, *_ in ranges:
            # A node that doesn't know its own address means the one that it was asked at.
            name = (master[0] or b"").decode()
            host = (name if name not in ("", "?") else asked[0], int(master[1]))
            masters[host] = None
            if len(masters) > MASTERS:
                raise StoreError(f"a cluster of over {MASTERS} masters")
            owners[first : last + 1] = [host] * (last + 1 - first)
        self._owners = owners
        for host in masters:
            self._node(host).listener.open()
        self._move_channels()
        for node in self._nodes.values():
            node.listener.choose()
        for host, node in list(self._nodes.items()):
            if host not in masters and not node.listener.channels:
                del self._nodes[host]
                calls = node.pipe.take()
                task = asyncio.get_running_loop().create_task(self._close(node))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
                for call in calls:
                    if call.slot >= 0:
                        self._route(call)
            elif host not in masters:
                self._due.set()

    def _move_channels(self) -> None:
        lost: list[bytes] = []
        for channel, listener in self._channels.items():
            node = self._at(slot_of(channel))
            if node is None:
                self._due.set()  # between two masters: the map will say
            elif node.listener is not listener:
                self._channels[channel] = node.listener
                node.listener.add(channel)
                listener.discard(channel)
                lost.append(channel)
            elif channel not in listener.channels:
                listener.add(channel)
            else:
                listener.again(channel)
        if lost:
            self._lost(lost)

    async def _close(self, node: _Node) -> None:
        await node.listener.close()
        await node.pipe.close()
