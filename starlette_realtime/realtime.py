"""Realtime: the facade that wires the components, mounts as one application and lives with it."""

import logging
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from starlette_realtime.auth import Authenticate, AuthGuard
from starlette_realtime.clock import Clock
from starlette_realtime.connection import Connection, ConnectionOptions
from starlette_realtime.counters import Counters
from starlette_realtime.errors import CLOSE_CODES, ConfigurationError
from starlette_realtime.messages import History, Position, Reconnect
from starlette_realtime.patterns import check_user, encode_user
from starlette_realtime.payloads import Handler
from starlette_realtime.ratelimit import Rate
from starlette_realtime.rooms import Room, Rooms, RoomsOptions, RoomView
from starlette_realtime.rooms.publishing import Disconnect
from starlette_realtime.router import RoomRouter
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.tokens import Sessions, SignedTokens
from starlette_realtime.types import Receive, Scope, Send
from starlette_realtime.workers import count_workers, is_alone

__all__ = ["Realtime"]

logger = logging.getLogger("starlette_realtime")

RETURNING = 500.0
"""How many clients a second are asked to come back when the process stops."""

F = TypeVar("F", bound=Callable[..., Any])


class Realtime:
    """
    Rooms for a Starlette or FastAPI application: declare them here, mount this, and run its lifespan.

        realtime = Realtime(authenticate=SignedTokens(secret))
        app = FastAPI(lifespan=realtime.lifespan)
        app.mount("/realtime", realtime)

    `authenticate`, `anonymous`, `cookie`, `origins` and `allowed_hosts` are those of `AuthGuard`. `store` is what
    processes share, in memory by default; a memory store refuses to serve several workers, unless `several_workers`.
    `secret` signs sessions, the newest first; by default it is that of `SignedTokens`. `connection` and `rooms` bound
    what clients may do. `clock` is for tests.
    """

    def __init__(
        self,
        *,
        authenticate: Authenticate | Sequence[Authenticate] = (),
        anonymous: bool = False,
        cookie: str | None = None,
        origins: Sequence[str] | Literal["*"] = (),
        allowed_hosts: Sequence[str] = (),
        store: Store | None = None,
        secret: str | bytes | Sequence[str | bytes] | None = None,
        connection: ConnectionOptions | None = None,
        rooms: RoomsOptions | None = None,
        max_connections: int = 10_000,
        several_workers: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock if clock is not None else Clock()
        self.store = store if store is not None else MemoryStore(clock=self.clock)
        self.guard = AuthGuard(
            authenticate=authenticate,
            anonymous=anonymous,
            cookie=cookie,
            origins=origins,
            allowed_hosts=allowed_hosts,
            clock=self.clock,
        )
        self.counters = Counters()
        options = connection or ConnectionOptions()
        self._several_workers = several_workers
        self._rooms = Rooms(
            store=self.store,
            clock=self.clock,
            guard=self.guard,
            sessions=Sessions(self._secret(secret, authenticate), clock=self.clock),
            connection_options=options,
            options=rooms or RoomsOptions(),
            counters=self.counters,
        )
        self._router = RoomRouter(
            rooms=self._rooms,
            guard=self.guard,
            clock=self.clock,
            options=options,
            max_connections=max_connections,
            counters=self.counters,
        )
        self._handler_grace = options.handler_grace
        self._entered = 0
        self._stack: AsyncExitStack | None = None

    # --- declaring --------------------------------------------------------------------------------------------------

    def room(
        self,
        pattern: str,
        *,
        presence: bool = False,
        history: History | None = History(),  # noqa: B008 - frozen
        public: bool = False,
        show_users: bool | None = None,
        linger: float = 5.0,
        shown: int = 200,
    ) -> Room:
        """Declare a kind of room: see `Room`."""
        return self.add(
            Room(
                pattern,
                presence=presence,
                history=history,
                public=public,
                show_users=show_users,
                linger=linger,
                shown=shown,
            )
        )

    def add(self, room: Room) -> Room:
        """Add a `Room` that was made alone, in another module, say."""
        self._rooms.publishing.add(room)
        return room

    def on(self, event: str, *, limit: str | Rate | None = None) -> Callable[[F], F]:
        """Bind a handler to an event that a client sends without a room: it gets the `Connection` and the payload."""
        return self._rooms.events.on(event, limit=limit)

    def on_connect(self, fn: F) -> F:
        """Bind a function that is called when a connection has authenticated; a `Refused` that it raises closes it."""
        self._rooms.on_connect.append(Handler(fn, injectable=(Connection,), payload=False))
        return fn

    def on_disconnect(self, fn: F) -> F:
        """Bind a function that is called when an authenticated connection has ended."""
        self._rooms.on_disconnect.append(Handler(fn, injectable=(Connection,), payload=False))
        return fn

    # --- publishing -------------------------------------------------------------------------------------------------

    def at(self, room: str) -> RoomView:
        """A declared room by its name, to publish to and to look into; raises `UnknownRoom`."""
        return self._rooms.at(room)

    async def send_to_user(self, user: str, event: str, data: object = None) -> Position:
        """Publish a kept event to all of a user's connections; who is away gets it on return. `user`: the raw id."""
        check_user(user)
        publishing = self._rooms.publishing
        return await publishing.publish(publishing.user_room, encode_user(user), event, data)

    async def disconnect_user(self, user: str, *, code: int = 4403, error: str = "forbidden") -> None:
        """Close all of a user's connections, with a close code of the table."""
        check_user(user)
        if code not in CLOSE_CODES:
            raise ConfigurationError(f"{code} is no close code: see starlette_realtime.CLOSE_CODES")
        await self._rooms.publishing.disconnect(Disconnect(user, code, error))

    @property
    def connections(self) -> frozenset[Connection]:
        """This process's connections."""
        return frozenset(self._router.connections)

    def occupancy(self) -> Mapping[str, int]:
        """The rooms that this process has members of, user rooms aside, and how many connections there are in each."""
        topics = self._rooms.fanout.topics
        return {name: len(topic.members) for name, topic in topics.items() if not name.startswith("user:")}

    def gauges(self) -> Mapping[str, int]:
        """What this process holds at the moment: back at its baseline when everybody has gone."""
        return {
            "connections": len(self._router.connections),
            **self._rooms.gauges,
            **{f"store.{name}": value for name, value in self.store.gauges().items()},
        }

    # --- serving ----------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "lifespan":
            raise ConfigurationError("mount Realtime in an application and pass that lifespan=realtime.lifespan")
        if self._stack is None:
            raise ConfigurationError(
                "Realtime was not started: a mounted application's lifespan doesn't run by itself. Pass "
                "lifespan=realtime.lifespan to FastAPI(…) or Starlette(…), or use `async with realtime:` in your own"
            )
        await self._router(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """The application's lifespan: `FastAPI(lifespan=realtime.lifespan)`."""
        async with self:
            yield

    async def __aenter__(self) -> Self:
        """Start. Entering again nests."""
        self._entered += 1
        if self._stack is None:
            try:
                self._check_workers()
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(self.store)
                    self.store.on_presence(self._rooms.presence_changed)
                    self._router.draining = False
                    self._rooms.publishing.started = True
                    self._stack = stack.pop_all()
            except BaseException:
                self._entered -= 1
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop: tell clients to come back later, close their connections, and clear everything away."""
        self._entered -= 1
        if self._entered or self._stack is None:
            return
        stack, self._stack = self._stack, None
        async with stack:
            self._router.draining = True
            # Spread evenly, so that they don't all come back at once.
            for number, connection in enumerate(list(self._router.connections)):
                after = 0.5 + number / RETURNING
                connection.push(Reconnect(after, "draining"))
                connection.close(1012, retry_after=after)
            await self._router.drained(self._handler_grace)
            await self._rooms.close(self._handler_grace)
            self._rooms.publishing.started = False
            self.store.off_presence(self._rooms.presence_changed)

    def _secret(
        self, secret: str | bytes | Sequence[str | bytes] | None, authenticate: object
    ) -> str | bytes | Sequence[str | bytes]:
        """What signs sessions: given, or that of the tokens, or a random one that no other process has to know."""
        if secret is not None:
            return secret
        for way in authenticate if isinstance(authenticate, list | tuple) else (authenticate,):
            if isinstance(way, SignedTokens):
                return way.secrets
        if not isinstance(self.store, MemoryStore):
            raise ConfigurationError(
                "processes that share a store share a secret, too: pass secret=…, 16 bytes or more"
            )
        return secrets.token_bytes(32)

    def _check_workers(self) -> None:
        if not isinstance(self.store, MemoryStore):
            return
        # Not `sys.orig_argv`: a worker that was spawned has the server's command line in `sys.argv` alone.
        workers = count_workers(sys.argv, os.environ)
        if workers <= 1 and is_alone():
            return
        many = f"{workers} workers" if workers > 1 else "several workers"
        message = (
            f"this server runs {many}, and a MemoryStore belongs to one: members of a room on different workers would "
            "not hear each other. Run one worker; several_workers=True serves all the same"
        )
        if not self._several_workers:
            raise ConfigurationError(message)
        logger.warning(message)
