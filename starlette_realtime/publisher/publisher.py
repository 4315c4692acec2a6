"""Publisher: what a server does to its rooms and users, from a process that serves nobody."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import isfinite
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from starlette_realtime.auth.guard import MAX_JTI
from starlette_realtime.auth.revocation import token_subject, user_subject
from starlette_realtime.clock import Clock
from starlette_realtime.counters import Counters
from starlette_realtime.errors import ConfigurationError, Forbidden, StoreError, Unavailable, UnknownRoom
from starlette_realtime.messages import Connections, Counts, Node, Position
from starlette_realtime.patterns import MAX_NAME, check_user
from starlette_realtime.rooms import Room, RoomsOptions, RoomView
from starlette_realtime.rooms.publishing import Kick, Publishing
from starlette_realtime.store import MemoryStore, Store

if TYPE_CHECKING:
    from starlette_realtime.publisher.blocking import SyncPublisher

__all__ = ["Publisher"]


class Publisher:
    """
    Publishes to an application's rooms and users from another process: a script, a worker, another service.

        async with Publisher(RedisStore(url), rooms=[chat]) as publisher:
            await publisher.publish("chat:42", "message", {"text": "hello"}, key="welcome-42")

    An async context manager, entered as often as it is used. `store` is the application's. `rooms` are its own `Room`
    objects, in a module that both import: what a room keeps is part of its definition, and something published with
    another would cut its history short. `options` are the application's, too, where it has any: of these,
    `user_history` and `publication_bytes` count here.

    A `key` makes a publication happen once: what is published again with it, in the same room within the store's
    `dedupe` (120 s), answers with the first position. Keys are known by `producer`, a name of 1 to 128 characters:
    publishers of one name, in whatever process and run, share their keys, and those of different names don't.

    Every method that asks the store raises `Unavailable`, which has its reason as the `__cause__`: what was asked may
    or may not have been done then, and repeating it with the same `key` is safe. All raise `ConfigurationError` where
    this wasn't entered.
    """

    def __init__(
        self,
        store: Store,
        rooms: Sequence[Room] = (),
        *,
        options: RoomsOptions | None = None,
        producer: str = "publisher",
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(store, Store):
            raise ConfigurationError(f"a Publisher takes the application's store, RedisStore(url) say, not {store!r}")
        if not 1 <= len(producer) <= MAX_NAME:
            raise ConfigurationError(f"producer is a name of 1 to {MAX_NAME} characters, not {producer!r}")
        self.store = store
        self._producer = f"p:{producer}"
        self._clock = clock if clock is not None else store.clock
        self._entered = 0
        self._pid = os.getpid()
        options = options or RoomsOptions()
        self._publishing = Publishing(
            store,
            Room.for_users(options.user_history),
            max_bytes=options.publication_bytes,
            counters=Counters(),
            unstarted="this Publisher was not entered: `async with publisher:`, or publisher.sync()",
        )
        self._census = self._publishing.census
        for room in rooms:
            if not isinstance(room, Room):
                raise ConfigurationError(f"rooms are Room objects, not {room!r}")
            self._publishing.borrow(room)

    def sync(self, *, timeout: float = 10.0) -> SyncPublisher:
        """This publisher for code that is not asynchronous: see `SyncPublisher`. Not to be entered otherwise, too."""
        from starlette_realtime.publisher.blocking import SyncPublisher

        return SyncPublisher(lambda: self, timeout=timeout)

    # --- publishing -------------------------------------------------------------------------------------------------

    async def publish(self, room: str, event: str, data: object = None, *, key: str | None = None) -> Position:
        """
        Publish a kept event to a room by its name ("chat:42", or `chat.name(room_id=42)`); once for each `key`.

        Raises `UnknownRoom`, `Refused` (`too_large`), `ConfigurationError` for a room that keeps nothing, and
        `TypeError` or `ValueError` for data that is no JSON or a key that is not 1 to 128 characters.
        """
        view = self.at(room)
        if view.definition.history is None:
            raise ConfigurationError(f"{view.definition!r} keeps no history: use publish_volatile there")
        return await self._publishing.publish(
            view.definition, room, event, data, producer=self._producer, key=_check_key(key)
        )

    async def publish_volatile(self, room: str, event: str, data: object = None) -> None:
        """Send an event to the members who are there: never stored, and not to those who lag behind."""
        await self.at(room).broadcast_volatile(event, data)

    async def send_to_user(self, user: str, event: str, data: object = None, *, key: str | None = None) -> Position:
        """Publish a kept event to all of a user's connections; who is away gets it on return. `user`: the raw id."""
        return await self._publishing.send_to_user(user, event, data, producer=self._producer, key=_check_key(key))

    async def disconnect_user(self, user: str, *, code: int = 4403, error: str = "forbidden") -> None:
        """Close all of a user's connections, with a close code of the table; they may come back: see `revoke_user`."""
        await self._publishing.disconnect_user(user, code=code, error=error)

    async def kick(
        self, room: str, *, user: str | None = None, connection: str | None = None, code: str = "forbidden"
    ) -> None:
        """Remove a user, or one connection, from a room; the client hears `left` with `code`, and may join again."""
        if (user is None) == (connection is None):
            raise TypeError("kick takes either a user or a connection")
        if user is not None:
            check_user(user)
        view = self.at(room)
        await self._publishing.kick(view.definition, room, Kick(code, user, connection))

    async def revoke_user(self, user: str, *, issued_before: float | None = None) -> None:
        """
        Revoke what was issued to a user until now, or until `issued_before` (Unix seconds): connections close with
        4450, and older credentials are refused, everywhere within 15 s.

        "Now" is this machine's clock. Where the servers' are ahead of it, pass a time that is ahead by as much. Raises
        `Unavailable`: it may be revoked or not, and to call it again does no harm.
        """
        check_user(user)
        if issued_before is not None and not isfinite(issued_before):
            raise ValueError(f"issued_before is in Unix seconds, not {issued_before!r}")
        await self._revoke(user_subject(user), issued_before)

    async def revoke_token(self, token_id: str) -> None:
        """Revoke one token by its id, the claim `jti`; like `revoke_user`."""
        if not 1 <= len(token_id) <= MAX_JTI:
            raise ValueError(f"a token's id has 1 to {MAX_JTI} characters")
        await self._revoke(token_subject(token_id), None)

    # --- looking in -------------------------------------------------------------------------------------------------

    def at(self, room: str) -> RoomView:
        """A room by its name, to publish to and to look into; raises `UnknownRoom`, which names the rooms there are."""
        try:
            definition, params = self._publishing.find(room)
        except Forbidden:
            raise Forbidden("a user's own room is reached with send_to_user") from None
        except UnknownRoom:
            known = ", ".join(each.template for each in self._publishing.declared) or "none: pass rooms=[…]"
            raise UnknownRoom(f"no declared room has the name {room!r}; declared are {known}") from None
        return RoomView(self._publishing, definition, room, params)

    async def connections_of(self, user: str, *, limit: int = 1_000, timeout: float = 1.0) -> Connections:
        """A user's connections on all processes: see `Realtime.connections_of`."""
        check_user(user)
        self._check_entered()
        return await self._census.find(user=user, limit=limit, timeout=timeout)

    async def count(self, *, timeout: float = 1.0) -> Counts:
        """How many connections there are, in total and by process: see `Realtime.count`."""
        self._check_entered()
        return await self._census.count(timeout=timeout)

    async def nodes(self) -> Sequence[Node]:
        """The other processes that hold a lease on the store, and how long ago each was last heard of."""
        self._check_entered()
        try:
            return [node for node in await self.store.nodes() if node.id != self.store.node]
        except StoreError as exc:
            raise Unavailable from exc

    # --- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """
        Enter the store. Entering again nests.

        Raises `Unavailable` when the store is away, and `ConfigurationError` for a store that reaches nobody.
        """
        if self._entered and self._pid != os.getpid():
            raise ConfigurationError(
                "this Publisher was entered before the process forked, and its connections are the parent's: make one "
                "in each process, or pass SyncPublisher a function that does"
            )
        if isinstance(self.store, MemoryStore) and not self.store.backend.leases:
            raise ConfigurationError(
                "a Publisher on a MemoryStore of its own reaches nobody: share a RedisStore with the application, or "
                "enter the application first, where it is in this process and the store is its own"
            )
        try:
            await self.store.__aenter__()
        except StoreError as exc:
            raise Unavailable from exc
        self._entered += 1
        self._pid = os.getpid()
        self._publishing.started = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self._publishing.started = False
            await self._census.__aexit__(kind, error, traceback)
        await self.store.__aexit__(kind, error, traceback)

    def _check_entered(self) -> None:
        self._publishing.check_started()

    async def _revoke(self, subject: str, issued_before: float | None) -> None:
        self._check_entered()
        until = self._clock.time() if issued_before is None else issued_before
        try:
            await self.store.revoke(subject, issued_before=until)
        except StoreError as exc:
            raise Unavailable from exc


def _check_key(key: Any) -> str:
    """The key as stores take it; an empty one would silently be none."""
    if key is None:
        return ""
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {key!r}")
    if not 1 <= len(key) <= MAX_NAME:
        raise ValueError(f"a key has 1 to {MAX_NAME} characters, not {len(key)}")
    return key
