"""Publishing: from an application's value to the store, by the rooms' own definitions."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar

import msgspec

from starlette_realtime.connection import Connection
from starlette_realtime.counters import Counters
from starlette_realtime.errors import (
    CLOSE_CODES,
    ConfigurationError,
    Forbidden,
    Refused,
    StoreError,
    Unavailable,
    UnknownRoom,
)
from starlette_realtime.fanout import read_body, to_event, write_body
from starlette_realtime.messages import Body, Event, Events, History, Members, Position, Sender
from starlette_realtime.patterns import Patterns, check_event, check_user, encode_user
from starlette_realtime.payloads import encode
from starlette_realtime.rooms.census import Census
from starlette_realtime.rooms.declaration import Room
from starlette_realtime.store import Store

logger = logging.getLogger("starlette_realtime.rooms")

KICK = "rt:kick"
DISCONNECT = "rt:disconnect"

COMMANDS = History(size=64, ttl=60.0)
"""What is kept of the kit's own publications in a room that keeps no events."""


class Kick(msgspec.Struct, frozen=True, omit_defaults=True):
    """Asks every process to remove members from a room."""

    code: str
    user: str | None = None
    connection: str | None = None

    def means(self, connection: Connection) -> bool:
        """Whether that connection is to be removed."""
        return connection.id == self.connection or (self.user is not None and connection.user == self.user)


class Disconnect(msgspec.Struct, frozen=True):
    """Asks every process to close a user's connections."""

    user: str
    code: int
    error: str


UNSTARTED = (
    "Realtime was not started, so nobody would hear this: use lifespan=realtime.lifespan or `async with realtime:`"
)


class Turn:
    """
    One event of a client, while the handler runs in its task: what that publishes is published once.

    `producer` is whose event it is, and `key` its idempotency key, "" without one. The numbers go by the order of the
    publications, so that a repetition of the event gives each the same one.
    """

    __slots__ = ("_n", "_task", "key", "producer")

    def __init__(self, producer: str, key: str) -> None:
        self.producer = producer
        self.key = key
        self._task = asyncio.current_task()
        self._n = 0

    @property
    def here(self) -> bool:
        """Whether this is the handler's own task: what it leaves to others may come in any order."""
        return asyncio.current_task() is self._task

    def next(self) -> int:
        """The number of the next publication."""
        n, self._n = self._n, self._n + 1
        return n


TURN: ContextVar[Turn | None] = ContextVar("turn", default=None)
"""Whose event is being handled, for what is published without a member."""


class Publishing:
    """
    Publishes to the rooms that are declared. `max_bytes` bounds one publication.

    `unstarted` says what to do when it was not started.
    """

    def __init__(
        self,
        store: Store,
        user_room: Room,
        *,
        max_bytes: int,
        counters: Counters,
        unstarted: str = UNSTARTED,
    ) -> None:
        self.store = store
        self.user_room = user_room
        self.census = Census(store, store.clock)
        """Who can tell of connections on all processes: one that only asks, where nobody puts another here."""
        self.rooms: Patterns[Room] = Patterns()
        self.declared: list[Room] = []
        """The same, in their order."""
        self.max_bytes = max_bytes
        self.counters = counters
        self.started = False
        """Whether the kit runs: what is published before would reach nobody, without a word."""
        self._unstarted = unstarted
        self.limit: Callable[[Connection], Awaitable[None]] | None = None
        """Count what a client's event publishes; raises `Refused`."""
        self.commanded: list[Callable[[str, Body], object]] = []
        """Hear of a kick or a disconnect that this process asks for, before the store does."""

    def add(self, room: Room) -> None:
        """Declare a room."""
        if room.publishing is not None:
            raise ConfigurationError(f"{room!r} was added already")
        self.borrow(room)
        room.publishing = self

    def borrow(self, room: Room) -> None:
        """Publish to a room that others may have declared, too."""
        assert room.pattern is not None
        self.rooms.add(room.pattern, room)
        self.declared.append(room)

    def find(self, name: str) -> tuple[Room, Mapping[str, str | int]]:
        """The declared room that `name` belongs to, and its parameters; raises `UnknownRoom`, or `Forbidden`."""
        if name.startswith("user:"):
            raise Forbidden("user rooms are joined by the server")
        found = self.rooms.match(name)
        if found is None:
            raise UnknownRoom
        return found

    async def publish(
        self,
        room: Room,
        name: str,
        event: str,
        data: object,
        *,
        sender: Sender | None = None,
        exclude: str | None = None,
        producer: str = "",
        key: str = "",
        n: int = 0,
    ) -> Position:
        """
        Publish a kept event; raises `Unavailable`, or `Refused` (`too_large`).

        Without a `key`, in a handler of a client's event, it has that event's.
        """
        if room.history is None:
            raise ConfigurationError(f"{room!r} keeps no history: use broadcast_volatile there")
        if not key and (turn := TURN.get()) is not None and turn.key and turn.here:
            producer, key, n = turn.producer, turn.key, turn.next()
        body = self._body(event, data, sender, exclude, None)
        try:
            position = await self.store.publish(name, body, history=room.history, producer=producer, key=key, n=n)
        except StoreError as exc:
            raise Unavailable from exc
        self.counters.published += 1
        return position

    async def publish_volatile(
        self,
        name: str,
        event: str,
        data: object,
        *,
        sender: Sender | None = None,
        exclude: str | None = None,
        only: str | None = None,
    ) -> None:
        """Publish an event that is not kept; raises `Unavailable`, or `Refused` (`too_large`)."""
        await self._volatile(name, self._body(event, data, sender, exclude, only))
        self.counters.published += 1

    async def kick(self, room: Room, name: str, kick: Kick) -> None:
        """Remove members from a room, on every process."""
        await self._command(room, name, Body(KICK, encode(kick)))

    async def send_to_user(self, user: str, event: str, data: object, *, producer: str = "", key: str = "") -> Position:
        """Publish a kept event to all of a user's connections; raises what `publish` raises, and `ValueError`."""
        check_user(user)
        return await self.publish(self.user_room, encode_user(user), event, data, producer=producer, key=key)

    async def disconnect_user(self, user: str, *, code: int, error: str) -> None:
        """Close a user's connections, on every process; raises `Unavailable`, `ValueError`, `ConfigurationError`."""
        check_user(user)
        if code not in CLOSE_CODES:
            raise ConfigurationError(f"{code} is no close code: see starlette_realtime.CLOSE_CODES")
        await self.disconnect(Disconnect(user, code, error))

    async def disconnect(self, disconnect: Disconnect) -> None:
        """Close a user's connections, on every process."""
        await self._command(self.user_room, encode_user(disconnect.user), Body(DISCONNECT, encode(disconnect)))

    async def _command(self, room: Room, name: str, body: Body) -> None:
        """Tell every process, with the order and the safety of what is kept, also where the room keeps nothing."""
        self.check_started()
        for hear in self.commanded:
            hear(name, body)
        try:
            await self.store.publish(name, write_body(body), history=room.history or COMMANDS)
        except StoreError as exc:
            raise Unavailable from exc

    async def history(self, room: Room, name: str, *, before: Position | None, limit: int) -> Events:
        """A page of what the room keeps, oldest first; raises `Unavailable`."""
        if room.history is None:
            return Events((), more=False, truncated=False)
        try:
            page = await self.store.page(name, before=before, limit=limit, limit_bytes=self.max_bytes)
        except StoreError as exc:
            raise Unavailable from exc
        events: list[Event] = []
        for publication in page.publications:
            try:
                body = read_body(publication)
            except msgspec.DecodeError:
                logger.error("a publication that no room made was left out")
                continue
            if not body.event.startswith("rt:"):
                events.append(to_event(publication, body, name))
        return Events(events, page.more, page.truncated)

    async def members(self, name: str, *, limit: int) -> Members:
        """Who is in the room; raises `Unavailable`."""
        try:
            return await self.store.members(name, limit=limit)
        except StoreError as exc:
            raise Unavailable from exc

    async def _volatile(self, name: str, body: bytes) -> None:
        try:
            await self.store.publish_volatile(name, body)
        except StoreError as exc:
            raise Unavailable from exc

    def _body(self, event: str, data: object, sender: Sender | None, exclude: str | None, only: str | None) -> bytes:
        self.check_started()
        body = write_body(Body(check_event(event), encode(data), sender, exclude, only))
        if len(body) > self.max_bytes:
            raise Refused("too_large", f"an event may have {self.max_bytes} bytes")
        return body

    def check_started(self) -> None:
        """Raise `ConfigurationError` where the kit does not run."""
        if not self.started:
            raise ConfigurationError(self._unstarted)
