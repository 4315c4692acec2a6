"""RoomRouter: rooms that are declared here, served below a path, with everything that they need to live."""

import logging
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette_realtime.asgi import mounted_path
from starlette_realtime.auth import AuthGuard, ScopeUser
from starlette_realtime.clock import Clock
from starlette_realtime.connection import Connection, ConnectionOptions
from starlette_realtime.counters import Counters
from starlette_realtime.errors import ConfigurationError, StoreError, Unavailable
from starlette_realtime.messages import Connections, Counts, History, Node, Position, Reconnect
from starlette_realtime.patterns import check_user
from starlette_realtime.payloads import Handler
from starlette_realtime.ratelimit import Limits, RateLimiter
from starlette_realtime.rooms import Room, Rooms, RoomsOptions, RoomView
from starlette_realtime.rooms.census import Census
from starlette_realtime.router.endpoint import Endpoint
from starlette_realtime.router.tickets import Tickets
from starlette_realtime.scripts import Scripts
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.tokens import Secret, Sessions
from starlette_realtime.types import ASGIApp, Receive, Scope, Send
from starlette_realtime.workers import count_workers, is_alone

__all__ = ["RoomRouter"]

logger = logging.getLogger("starlette_realtime")

RETURNING = 500.0
"""How many clients a second are asked to come back when the process stops."""

F = TypeVar("F", bound=Callable[..., Any])


class RoomRouter:
    """
    Serves rooms below a path, and passes everything else on to `app`; mounted without one, it answers 404 there.

        router = RoomRouter(path="/realtime")
        app = Starlette(middleware=[Middleware(AuthGuard, …), Middleware(router.wrap)])

    `path` is where the kit is, below where this is mounted: "" for a `Mount`. `rooms` are declared elsewhere, `room`
    declares one here. Its lifespan must run: as middleware of an application it sees to that itself; mounted, it is
    `Starlette(lifespan=router.lifespan)`, or `async with router` in a lifespan of your own.

    `guard` authenticates; by default whoever the authentication outside has found is that user (`AuthGuard`, or
    Starlette's `AuthenticationMiddleware`), origins are checked, and nobody comes in anonymously. Only a guard that is
    given here renews credentials in band and makes tickets. `limiter` is a `RateLimiter` of the defaults unless given.
    `store` is what processes share, in memory by default; a memory store refuses to serve several workers, unless
    `several_workers`. `secret` signs sessions, the newest first; by default it is random for a memory store and must
    be given for any other. `connection` and `options` bound what clients may do, `max_connections` how many there are
    on this process. `clock` is for tests.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        path: str = "",
        rooms: Sequence[Room] = (),
        guard: AuthGuard | None = None,
        limiter: RateLimiter | None = None,
        store: Store | None = None,
        secret: Secret | None = None,
        connection: ConnectionOptions | None = None,
        options: RoomsOptions | None = None,
        max_connections: int = 10_000,
        several_workers: bool = False,
        clock: Clock | None = None,
    ) -> None:
        if path and (not path.startswith("/") or path.endswith("/")):
            raise ConfigurationError(f"path is like '/realtime', not {path!r}")
        if isinstance(rooms, RoomsOptions):
            raise ConfigurationError("rooms are Room objects: pass options=RoomsOptions(…)")
        self.app = app
        self.clock = clock if clock is not None else Clock()
        self.store = store if store is not None else MemoryStore(clock=self.clock)
        self.options = options or RoomsOptions()
        self.counters = Counters()
        self._makes_tickets = guard is not None  # an outer one could not read those of ours
        self.guard = guard if guard is not None else AuthGuard(authenticate=ScopeUser(), clock=self.clock)
        self.limiter = limiter if limiter is not None else RateLimiter()
        self.guard.bind(self.store, self.clock)
        self.limiter.bind(self.store, self.clock)
        limits = connection or ConnectionOptions()
        self._path = path
        self._several_workers = several_workers
        self._rooms = Rooms(
            store=self.store,
            clock=self.clock,
            guard=self.guard,
            limiter=self.limiter,
            sessions=Sessions(self._secret(secret), clock=self.clock),
            connection_options=limits,
            options=self.options,
            counters=self.counters,
        )
        self._endpoint = Endpoint(
            rooms=self._rooms,
            guard=self.guard,
            limiter=self.limiter,
            clock=self.clock,
            options=limits,
            counters=self.counters,
            max_connections=max_connections,
        )
        self._census = Census(self.store, self.clock, connections=lambda: self._endpoint.connections)
        self._rooms.publishing.census = self._census
        self._tickets = Tickets(self.guard, self.limiter, timeout=limits.auth_timeout, clock=self.clock)
        self._scripts = Scripts()
        self._grace = limits.handler_grace
        self._entered = 0
        self._stack: AsyncExitStack | None = None
        for room in rooms:
            self.add(room)

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

    def on(self, event: str, *, limit: Limits = None) -> Callable[[F], F]:
        """
        Bind a handler to an event that a client sends without a room: it gets the `Connection` and the payload.

        `limit` is that of `Room.on`.
        """
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
        return await self._rooms.publishing.send_to_user(user, event, data)

    async def disconnect_user(self, user: str, *, code: int = 4403, error: str = "forbidden") -> None:
        """Close all of a user's connections, with a close code of the table; they may come back: see `revoke_user`."""
        await self._rooms.publishing.disconnect_user(user, code=code, error=error)

    async def revoke_user(self, user: str, *, issued_before: float | None = None) -> None:
        """
        Revoke what was issued to a user until now, or until `issued_before` (Unix seconds): connections close with
        4450, and older credentials are refused.

        Everywhere within 15 s, most often at once. Raises `Unavailable` when the store is away: it may be revoked or
        not, and to call it again does no harm.
        """
        try:
            await self.guard.revoke_user(user, issued_before=issued_before)
        except StoreError as exc:
            raise Unavailable from exc

    async def revoke_token(self, token_id: str) -> None:
        """Revoke one token by its id, `identity.claims["jti"]`; like `revoke_user`."""
        try:
            await self.guard.revoke_token(token_id)
        except StoreError as exc:
            raise Unavailable from exc

    # --- looking in -------------------------------------------------------------------------------------------------

    @property
    def rooms(self) -> tuple[Room, ...]:
        """The rooms that are declared here, in their order."""
        return tuple(self._rooms.publishing.declared)

    @property
    def connections(self) -> frozenset[Connection]:
        """This process's connections."""
        return frozenset(self._endpoint.connections)

    def occupancy(self) -> Mapping[str, int]:
        """The rooms that this process has members of, user rooms aside, and how many connections there are in each."""
        topics = self._rooms.fanout.topics
        return {name: len(topic.members) for name, topic in topics.items() if not name.startswith("user:")}

    def gauges(self) -> Mapping[str, int]:
        """What this process holds at the moment: back at its baseline when everybody has gone."""
        return {
            "connections": len(self._endpoint.connections),
            **self._rooms.gauges,
            **self.guard.gauges(),
            **{f"store.{name}": value for name, value in self.store.gauges().items()},
        }

    # --- all processes ----------------------------------------------------------------------------------------------

    async def connections_of(self, user: str, *, limit: int = 1_000, timeout: float = 1.0) -> Connections:
        """
        A user's connections on all processes, at most `limit` of each.

        Every process is asked, and given `timeout` seconds; `missing` names those that did not answer. Raises
        `Unavailable`, and `ValueError` for what can't be a user.
        """
        check_user(user)
        return await self._census.find(user=user, limit=limit, timeout=timeout)

    async def count(self, *, timeout: float = 1.0) -> Counts:
        """How many connections there are, in total and by process; asked like `connections_of`."""
        return await self._census.count(timeout=timeout)

    async def nodes(self) -> Sequence[Node]:
        """
        The processes that hold a lease on the store, this one included, and how long ago each was last heard of.

        Raises `Unavailable`.
        """
        try:
            return await self.store.nodes()
        except StoreError as exc:
            raise Unavailable from exc

    # --- serving ----------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        await self._serve(self.app, scope, receive, send)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """This router around another application: `Middleware(router.wrap)`."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(app, scope, receive, send)

        return wrapped

    async def _serve(self, app: ASGIApp | None, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(app, scope, receive, send)
            return
        serve = self._find(scope)
        if serve is None and app is not None:
            await app(scope, receive, send)
            return
        self._check_started()
        await (serve or self._endpoint.nowhere)(scope, receive, send)

    def _find(self, scope: Scope) -> ASGIApp | None:
        kind, path = scope["type"], self._below(scope)
        if path is None:
            return None
        if kind == "websocket":
            return self._endpoint.websocket if path == "/ws" else None
        if path == "/ticket" and self._makes_tickets:
            return self._tickets
        return self._scripts if self._scripts.has(path) else None

    def _below(self, scope: Scope) -> str | None:
        if scope["type"] not in ("http", "websocket"):
            return None
        path = mounted_path(scope)
        return path.removeprefix(self._path) if path.startswith(self._path + "/") else None

    def _check_started(self) -> None:
        if self._stack is None:
            name = type(self).__name__
            raise ConfigurationError(
                f"{name} was not started: a mounted application's lifespan doesn't run by itself. Pass "
                f"lifespan={name.lower()}.lifespan to FastAPI(…) or Starlette(…), or use `async with "
                f"{name.lower()}:` in your own"
            )

    # --- life -------------------------------------------------------------------------------------------------------

    async def _live(self, app: ASGIApp | None, scope: Scope, receive: Receive, send: Send) -> None:
        """As middleware: live as long as the application."""
        if app is None:
            name = type(self).__name__
            raise ConfigurationError(f"mount {name} in an application and pass that lifespan={name.lower()}.lifespan")
        try:
            await self.__aenter__()
        except Exception as exc:
            await receive()
            # Else a server would take it for an application without a lifespan, and go on.
            await send({"type": "lifespan.startup.failed", "message": f"{type(exc).__name__}: {exc}"})
            raise
        try:
            await app(scope, receive, send)
        finally:
            await self.__aexit__(None, None, None)

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
                    await stack.enter_async_context(self.guard)
                    await stack.enter_async_context(self._census)
                    self.store.on_presence(self._rooms.presence_changed)
                    self.guard.on_revocation(self._rooms.revoked)
                    self._endpoint.draining = False
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
            self._endpoint.draining = True
            # Spread evenly, so that they don't all come back at once.
            for number, connection in enumerate(list(self._endpoint.connections)):
                after = 0.5 + number / RETURNING
                connection.push(Reconnect(after, "draining"))
                connection.close(1012, retry_after=after)
            await self._endpoint.drained(self._grace)
            await self._rooms.close(self._grace)
            await self.limiter.aclose()
            self._rooms.publishing.started = False
            self.guard.off_revocation(self._rooms.revoked)
            self.store.off_presence(self._rooms.presence_changed)

    def _secret(self, secret: Secret | None) -> Secret:
        """What signs sessions: given, or that of the tokens, or a random one that no other process has to know."""
        if secret is None:
            secret = self.guard.secret
        if secret is not None:
            return secret
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
