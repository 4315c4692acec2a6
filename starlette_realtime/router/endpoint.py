"""The endpoint: from a handshake to a transport and a wire protocol; it holds the connections and their heartbeats."""

import asyncio
import logging
from collections.abc import Sequence

from starlette.requests import HTTPConnection

from starlette_realtime.asgi import deny, header_values, milliseconds, scope_user
from starlette_realtime.auth import AuthGuard
from starlette_realtime.auth.refusals import denial, why
from starlette_realtime.auth.tickets import hide_tickets
from starlette_realtime.clock import Clock
from starlette_realtime.connection import Connection, ConnectionOptions
from starlette_realtime.counters import Counters
from starlette_realtime.errors import CLOSE_CODES, ERROR_CODES, Refused
from starlette_realtime.messages import Command, Error, Ping
from starlette_realtime.protocols import NativeProtocol
from starlette_realtime.ratelimit import RateLimiter, Subject
from starlette_realtime.rooms import Rooms
from starlette_realtime.transports import serve_websocket
from starlette_realtime.types import Receive, Scope, Send

__all__ = ["Endpoint"]

logger = logging.getLogger("starlette_realtime.router")


class Endpoint:
    """Serves handshakes and the connections that come of them. `max_connections` bounds those of this process."""

    def __init__(
        self,
        *,
        rooms: Rooms,
        guard: AuthGuard,
        limiter: RateLimiter,
        clock: Clock,
        options: ConnectionOptions,
        counters: Counters,
        max_connections: int,
    ) -> None:
        self.connections: set[Connection] = set()
        self.draining = False
        self._handshakes = 0
        self._refused_origins: set[bytes] = set()
        self._empty = asyncio.Event()
        self._rooms = rooms
        self._guard = guard
        self._limiter = limiter
        self._clock = clock
        self._options = options
        self._counters = counters
        self._max_connections = max_connections

    # --- the handler that a transport calls -------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """Welcome a connection, and listen for its heart."""
        self._counters.opened += 1
        beats = self._beats(connection)
        self._rooms.opened(connection, heartbeat=self._options.heartbeat if beats else 0.0)
        if beats:
            connection.set_timer("heartbeat", self._options.heartbeat, self._beat, connection)

    async def handle(self, connection: Connection, command: Command) -> None:
        """Pass a command on."""
        await self._rooms.handle(connection, command)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._counters.closed[connection.close_code or 1006] += 1
        self._forget(connection)
        self._rooms.closed(connection)

    def _forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def drained(self, timeout: float) -> None:
        """Wait until all connections have ended; those that take over `timeout` seconds are dropped."""
        try:
            async with self._clock.timeout(timeout):
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _beats(self, connection: Connection) -> bool:
        # Who asked for no subprotocol may be a person at a terminal: the server's WebSocket pings watch over it.
        return bool(connection.scope.get("subprotocols"))

    def _beat(self, connection: Connection) -> None:
        """
        Ping who was silent for a heartbeat, and close who stays silent after that.

        Who has heard nothing for a heartbeat is pinged, too, however much it says: it watches over the link as well.
        """
        options, now = self._options, self._clock.now()
        if connection.paused:
            connection.heard = now
        silent = now - connection.heard
        if silent >= options.heartbeat + options.grace:
            connection.close(4408)
            return
        due = silent >= options.heartbeat
        quiet = now - max(connection.outbox.wrote, connection.pinged)
        if quiet >= options.heartbeat or (due and connection.pinged <= connection.heard):
            connection.pinged, quiet = now, 0.0
            connection.push(Ping())
        wait = options.heartbeat + (options.grace if due else 0.0) - silent
        # Never so little that adding it to the time changes nothing.
        wait = max(min(wait, options.heartbeat - quiet), 0.001)
        connection.set_timer("heartbeat", wait, self._beat, connection)

    async def nowhere(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for what there isn't."""
        await self._refuse(scope, receive, send, status=404, code=4403, reason="not_found")

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one handshake, and the connection that comes of it."""
        hide_tickets(scope)
        if not self._guard.origins.check(scope):
            self._tell_origin(scope)
            await self._refuse(scope, receive, send, status=403, code=4403)
            return
        if self.draining or len(self.connections) + self._handshakes >= self._max_connections:
            code = 1012 if self.draining else 1013
            await self._refuse(scope, receive, send, status=503, code=code, retry_after=5.0)
            return
        # A handshake counts while it is under way, and may not outlive the kit's stop.
        self._handshakes += 1
        connection: Connection | None = None
        try:
            connection = await self._handshake(scope, receive, send)
            if connection is not None:
                self.connections.add(connection)
        finally:
            self._handshakes -= 1
        if connection is None:
            return
        offered = NativeProtocol.subprotocol in scope.get("subprotocols", ())
        subprotocol = NativeProtocol.subprotocol if offered else None
        try:
            await serve_websocket(connection, self, receive, send, subprotocol=subprotocol)
        finally:
            self._forget(connection)

    def _tell_origin(self, scope: Scope) -> None:
        """Tell the developer, who sees only a page that doesn't work; each origin once, and not many."""
        origins = header_values(scope, b"origin")
        origin = b", ".join(origins)[:200]
        if origin in self._refused_origins or len(self._refused_origins) >= 100:
            return
        self._refused_origins.add(origin)
        host = b", ".join(header_values(scope, b"host"))[:200]
        advice = "if that page may connect, add it with origins=[…]"
        if not self._guard.origins.check_host(scope):
            advice = "the host is not an allowed one, or is not one host"
        elif len(origins) != 1:
            advice = "a page has one origin, and a program that has none sends no cookie"
        logger.warning("refused origin %r for host %r: %s", origin.decode("latin-1"), host.decode("latin-1"), advice)

    async def _handshake(self, scope: Scope, receive: Receive, send: Send) -> Connection | None:
        """Count and authenticate a handshake; None where it was refused, and the peer told."""
        subject = Subject(scope, scope_user(scope))
        pace = await self._limiter.handshakes.take(subject, {}, HTTPConnection(scope))
        if not pace.allowed:
            refusal = pace.refusal()
            await self._refuse(
                scope, receive, send, status=429, code=4429, reason=refusal.code, retry_after=refusal.retry_after
            )
            return None
        since = self._clock.time()
        try:
            async with self._clock.timeout(self._options.auth_timeout):
                identity = await self._guard.handshake(scope)
        except TimeoutError:
            logger.warning("a handshake's credentials took over %.1f s to check", self._options.auth_timeout)
            await self._refuse(scope, receive, send, status=503, code=1013, retry_after=5.0)
            return None
        except Refused as exc:
            logger.info("a handshake was refused: %s", why(exc))
            await self._refuse(scope, receive, send, **denial(exc, presented=True))
            return None
        if self.draining:
            await self._refuse(scope, receive, send, status=503, code=1012, retry_after=5.0)
            return None
        if (await receive())["type"] != "websocket.connect":
            return None
        return Connection(
            protocol=NativeProtocol(max_size=self._options.message_bytes),
            scope=scope,
            service=self._rooms,
            clock=self._clock,
            options=self._options,
            identity=identity,
            authenticated=since,
            counters=self._counters,
        )

    async def _refuse(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        status: int,
        code: int,
        reason: str = "",
        message: str = "",
        retry_after: float | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Deny, with the `error` frame that goes before every close for who can't read the status."""
        row = CLOSE_CODES[code]
        name = reason or row.name
        self._counters.refuse(name)
        message = message or ERROR_CODES.get(name, row.meaning)
        error = NativeProtocol.encode(Error(name, message, None if retry_after is None else milliseconds(retry_after)))
        frames = [frame for frame in error if isinstance(frame, str)]
        await deny(
            scope,
            receive,
            send,
            status=status,
            code=code,
            reason=name,
            message=message,
            retry_after=retry_after,
            headers=headers,
            frames=frames,
        )
