"""Members: a room as the server's code sees it, and one connection's place in it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar, overload

from msgspec import Struct

from starlette_realtime.connection import Connection
from starlette_realtime.errors import ConnectionClosed
from starlette_realtime.fanout import Topic
from starlette_realtime.messages import Connections, Entry, Event, Events, Identity, Members, Position, Sender
from starlette_realtime.patterns import check_event, encode_user
from starlette_realtime.presence import UserPresence, by_user
from starlette_realtime.rooms.declaration import Room
from starlette_realtime.rooms.publishing import Kick, Publishing, Turn

T = TypeVar("T")


class Membership(Struct, eq=False):
    """One connection in one room: what is kept while it lasts."""

    connection: Connection
    room: Room
    name: str
    params: Mapping[str, str | int]
    entry: Entry
    by_server: bool
    topic: Topic | None = None
    position: Position | None = None
    live: bool = False
    arrived: bool = False
    told: asyncio.Task[None] | None = None
    kicked: str = ""


class RoomView:
    """
    One room by its name: publish to it, look into it, remove somebody.

    Attributes:
        room (str): The room's name.
        params (Mapping[str, str | int]): The parameters of the pattern, by name.
        definition (Room): The `Room` that it is one of.
    """

    __slots__ = ("_publishing", "definition", "params", "room")

    def __init__(self, publishing: Publishing, room: Room, name: str, params: Mapping[str, str | int]) -> None:
        self._publishing = publishing
        self.definition = room
        self.room = name
        self.params = params

    async def broadcast(self, event: str, data: object = None) -> Position:
        """
        Publish a kept event to all members: sequenced, stored, recovered after a gap.

        Raises `Unavailable` when the store is away, `Refused` (`too_large`), and `ConfigurationError` in an
        ephemeral room.
        """
        return await self._publishing.publish(self.definition, self.room, event, data)

    async def broadcast_volatile(self, event: str, data: object = None) -> None:
        """Send an event to the members who are there: never stored, and not to those who lag behind."""
        await self._publishing.publish_volatile(self.room, event, data)

    async def send_to(self, connection: str, event: str, data: object = None) -> None:
        """Send an event to one member, by the public id of its connection; nothing happens where it is gone."""
        await self._publishing.publish_volatile(self.room, event, data, only=connection)

    async def kick(self, *, user: str | None = None, connection: str | None = None, code: str = "forbidden") -> None:
        """Remove a user, or one connection, from the room; the client hears `left` with `code`, and may join again."""
        if (user is None) == (connection is None):
            raise TypeError("kick takes either a user or a connection")
        await self._publishing.kick(self.definition, self.room, Kick(code, user, connection))

    async def history(self, *, before: Position | None = None, limit: int = 50) -> Events:
        """At most `limit` kept events before a position, oldest first."""
        return await self._publishing.history(self.definition, self.room, before=before, limit=limit)

    async def members(self, *, limit: int = 200) -> Members:
        """Who is in the room, where it has `presence`, `on_join` or `on_leave`: at most `limit` entries, the total."""
        return await self._publishing.members(self.room, limit=limit)

    async def users(self, *, limit: int = 200) -> list[UserPresence]:
        """
        Who is in the room, each user once over all their connections: online where any connection is, else away.

        At most `limit` connections are looked at, the longest present first. Who is not there is offline.
        """
        return by_user((await self.members(limit=limit)).entries)

    async def connections(self, *, limit: int = 200, timeout: float = 1.0) -> Connections:
        """
        The connections in this room on all processes, whether it has presence or not; at most `limit` of each process.

        Every process is asked, and given `timeout` seconds; `missing` names those that did not answer. Raises
        `Unavailable`.
        """
        return await self._publishing.census.find(room=self.room, limit=limit, timeout=timeout)


class Member(RoomView):
    """
    One connection in one room, for the time of one event. In `on_leave` the connection is gone.

    Attributes:
        identity (Identity): Who it is: user, claims, and until when.
        key (str): The client's idempotency key, "" without one. What the handler publishes is published once, however
            often the client repeats the event with that key, also through `realtime.at` and `send_to_user`, but not
            what it leaves to tasks of its own; use it for other side effects, too.
        params (Mapping[str, str | int]): The parameters of the room's pattern, by name.
        room (str): The room's name.
        entry (Entry): Its presence record, as it was when the event began.
    """

    __slots__ = ("_connection", "_turn", "entry", "identity")

    def __init__(self, publishing: Publishing, membership: Membership, turn: Turn | None = None) -> None:
        super().__init__(publishing, membership.room, membership.name, membership.params)
        self._connection = membership.connection
        self._turn = turn
        self.entry = membership.entry
        self.identity: Identity = membership.connection.identity or Identity(membership.entry.user)

    def __repr__(self) -> str:
        return f"<Member {self.entry.connection} of {self.definition.template}>"

    @property
    def user(self) -> str | None:
        """The authenticated user; None for an anonymous member of a public room."""
        return self.identity.user

    @property
    def key(self) -> str:
        """The client's idempotency key, "" without one."""
        return self._turn.key if self._turn is not None else ""

    @property
    def connection(self) -> Connection:
        """The connection."""
        return self._connection

    async def broadcast(self, event: str, data: object = None, *, others_only: bool = False) -> Position:
        """
        Publish a kept event to all members, or to the others only: sequenced, stored, recovered after a gap.

        Raises `RateLimited` where the user publishes too much, `Unavailable` when the store is away, `Refused`
        (`too_large`), and `ConfigurationError` in an ephemeral room.
        """
        n = self._next()
        await self._count()
        return await self._publishing.publish(
            self.definition,
            self.room,
            event,
            data,
            sender=self._sender(),
            exclude=self._connection.session if others_only else None,
            producer=self._connection.who,
            key=self.key,
            n=n,
        )

    async def broadcast_volatile(self, event: str, data: object = None, *, others_only: bool = False) -> None:
        """Send an event to the members, or to the others, who are there: never stored, not to those who lag behind."""
        exclude = self._connection.session if others_only else None
        await self._publishing.publish_volatile(self.room, event, data, sender=self._sender(), exclude=exclude)

    async def send_to(self, connection: str, event: str, data: object = None) -> None:
        """Send an event to one member, by the public id of its connection; nothing happens where it is gone."""
        await self._publishing.publish_volatile(self.room, event, data, sender=self._sender(), only=connection)

    async def send_to_user(self, user: str, event: str, data: object = None) -> Position:
        """
        Publish a kept event to all of a user's connections, anywhere; who is away gets it on coming back.

        Raises what `broadcast` raises.
        """
        n = self._next()
        await self._count()
        return await self._publishing.publish(
            self._publishing.user_room,
            encode_user(user),
            event,
            data,
            sender=self._sender(),
            producer=self._connection.who,
            key=self.key,
            n=n,
        )

    async def send(self, event: str, data: object = None) -> None:
        """Send an event to this member alone: no position, no history; nothing happens when it has gone."""
        self._connection.push(Event(check_event(event), self._connection.fitting(data), self.room))

    @overload
    async def request(self, event: str, data: object = None, *, timeout: float | None = None) -> Any: ...

    @overload
    async def request(
        self, event: str, data: object = None, *, returns: type[T], timeout: float | None = None
    ) -> T: ...

    async def request(
        self, event: str, data: object = None, *, returns: Any = Any, timeout: float | None = None
    ) -> Any:
        """
        Ask this member's client and wait for its answer, at most `timeout` seconds (10 by default).

        The answer is validated as `returns`. Raises what `Connection.request` raises.
        """
        check_event(event)
        return await self.connection.ask(event, data, room=self.room, returns=returns, timeout=timeout)

    async def leave(self, *, code: str = "forbidden") -> None:
        """Remove this member from the room; the client hears `left` with `code`."""
        if self._connection.closed:
            raise ConnectionClosed(self._connection.close_code or 1006, self._connection.close_reason)
        await self._connection.leave(self.room, code=code)

    async def _count(self) -> None:
        if self._turn is not None and self._publishing.limit is not None:
            await self._publishing.limit(self._connection)

    def _sender(self) -> Sender:
        return Sender(self.entry.connection, self.user if self.definition.show_users else None)

    def _next(self) -> int:
        # Before anything is awaited: a publication that is refused has its number, too, and so has what runs beside it.
        return self._turn.next() if self._turn is not None else 0
