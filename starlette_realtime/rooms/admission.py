"""Admission: the `auth` command, first and again; sessions, expiry, and who takes over from whom."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from starlette_realtime.asgi import outcome
from starlette_realtime.auth import AuthGuard
from starlette_realtime.clock import Clock, Timer
from starlette_realtime.connection import Connection
from starlette_realtime.errors import (
    ConnectionClosed,
    Forbidden,
    Refused,
    Unauthenticated,
    Unavailable,
    UnknownRoom,
)
from starlette_realtime.messages import Auth, Authenticated, Expiring, Identity, Joined, JoinedRoom, Left
from starlette_realtime.patterns import encode_user
from starlette_realtime.payloads import Call, Handler
from starlette_realtime.ratelimit import RateLimiter
from starlette_realtime.rooms.joining import Joining
from starlette_realtime.rooms.publishing import Publishing
from starlette_realtime.tokens import Sessions

__all__ = ["Admission", "announce"]

logger = logging.getLogger("starlette_realtime.rooms")

EXPIRING = 25.0
"""How long before its credentials expire a client is told, in seconds; at most half of their life."""


REMEMBERED = 120.0
"""How long after its connection's end a session that is past its age still counts, in seconds: as long as keys do."""


class Admission:
    """Who a connection is, from its first `auth` on."""

    def __init__(
        self,
        *,
        guard: AuthGuard,
        sessions: Sessions,
        joining: Joining,
        publishing: Publishing,
        clock: Clock,
        limiter: RateLimiter,
        on_connect: list[Handler],
    ) -> None:
        self._guard = guard
        self._sessions = sessions
        self._joining = joining
        self._publishing = publishing
        self._clock = clock
        self._limiter = limiter
        self._on_connect = on_connect
        self.by_session: dict[str, Connection] = {}
        self._ended: dict[str, Timer] = {}

    def awaits(self, connection: Connection) -> None:
        """Give the client its time for `auth`."""
        connection.set_timer("auth", connection.options.auth_timeout, connection.close, 4404)

    def asked(self, connection: Connection) -> None:
        """An `auth` has come: from now on time is the server's."""
        connection.asked = True
        connection.cancel_timer("auth")

    def check(self, connection: Connection) -> Identity:
        """The connection's identity; raises `Unauthenticated` before `auth`, and when it has expired."""
        identity = connection.identity
        if identity is None:
            raise Unauthenticated("send auth first")
        if identity.expires_at is not None and identity.expires_at <= self._clock.time():
            raise Unauthenticated(code="expired")
        return identity

    async def auth(self, connection: Connection, command: Auth, answer: Callable[[Authenticated], None]) -> None:
        """
        Authenticate, or refresh; `answer` is called before rooms are joined.

        Raises `Refused`: after a first `auth` the connection is to be closed (`refuse`), a refresh leaves it as it was.
        """
        first = connection.identity is None
        # What is revoked from this moment on is meant by it; credentials that were shown before are as old as then.
        since = self._clock.time() if command.token is not None else connection.authenticated
        try:
            async with self._clock.timeout(connection.options.auth_timeout):
                identity = await self._identify(connection, command)
        except TimeoutError:
            logger.warning("credentials took over %.1f s to check", connection.options.auth_timeout)
            raise Unavailable("the credentials could not be checked in time") from None
        if not first and identity.user != connection.user:
            raise Forbidden("a refresh keeps the user: reconnect to be somebody else")
        if first:
            connection.session = self._session(command.session, identity.user) or self._sessions.new_sid()
            await self._admit(connection, identity.user)
        if connection.closed:
            raise ConnectionClosed(connection.close_code or 1006, connection.close_reason)
        if self._guard.revoked(identity, since):
            raise Unauthenticated(code="revoked")  # since it was looked at
        connection.identity = identity
        connection.authenticated = since
        if first:
            self._continue_session(connection)
            connection.since = dict(command.since)
        self._watch_expiry(connection, identity)
        left = None if identity.expires_at is None else max(0.0, round(identity.expires_at - self._clock.time(), 3))
        connection.renewed = self._clock.now()
        answer(Authenticated(identity.user, left, self._sessions.issue(connection.session, identity.user)))
        if first:
            await self._welcome(connection)
        else:
            await self._reauthorize(connection)

    def closed(self, connection: Connection) -> None:
        """The connection has ended."""
        if self.by_session.get(connection.session) is not connection:
            return
        del self.by_session[connection.session]
        if self._clock.now() - connection.renewed >= self._sessions.max_age / 2:
            # Its token may be past its age, which counts from its last use: let it be used once more.
            sid = connection.session
            self._ended[sid] = self._clock.call_later(REMEMBERED, self._ended.pop, sid, None)

    async def _identify(self, connection: Connection, command: Auth) -> Identity:
        if command.token is not None:
            return await self._guard.authenticate(command.token, connection.scope)
        identity = connection.identity or connection.presented or self._guard.fallback()
        if identity.expires_at is not None and identity.expires_at <= self._clock.time():
            raise Unauthenticated("send a new token", code="expired")
        return identity

    def refuse(self, connection: Connection, refusal: Refused) -> None:
        """Close a connection that is not let in."""
        connection.close(
            outcome(refusal)[1], error=refusal.code, message=refusal.message, retry_after=refusal.retry_after
        )

    async def _admit(self, connection: Connection, user: str | None) -> None:
        """Take one of the connections that the user and the address may have; a session takes over its own."""
        taking = asyncio.ensure_future(self._limiter.admit(connection.session, user=user, scope=connection.scope))
        try:
            await asyncio.shield(taking)
        except asyncio.CancelledError:
            await asyncio.wait((taking,))  # so that what it took can be given back
            connection.admitted = not taking.cancelled() and taking.exception() is None
            connection.admitted_user = user
            raise
        connection.admitted, connection.admitted_user = True, user

    async def release(self, connection: Connection) -> None:
        """Give back what `auth` took."""
        if connection.admitted:
            connection.admitted = False
            await self._limiter.release(connection.session, user=connection.admitted_user, scope=connection.scope)

    def revoked(self) -> None:
        """Something was revoked: close the connections that it means."""
        for connection in tuple(self.by_session.values()):
            if connection.identity is not None and self._guard.revoked(connection.identity, connection.authenticated):
                connection.close(4450)

    def _continue_session(self, connection: Connection) -> None:
        ended = self._ended.pop(connection.session, None)
        if ended is not None:
            ended.cancel()
        before = self.by_session.get(connection.session)
        if before is not None:
            # Most often the peer has lost that link and we haven't noticed: then nobody hears this.
            before.replaced = True
            before.close(4403, message="the session goes on in another connection", discard=True)
        self.by_session[connection.session] = connection

    def _session(self, token: str | None, user: str | None) -> str | None:
        if token is None:
            return None
        sid = self._sessions.read(token, user)
        if sid is not None:
            return sid
        sid = self._sessions.read(token, user, expired=True)
        return sid if sid in self.by_session or sid in self._ended else None

    def _watch_expiry(self, connection: Connection, identity: Identity) -> None:
        connection.cancel_timer("expiring")
        connection.cancel_timer("expired")
        if identity.expires_at is None:
            return
        left = max(0.0, identity.expires_at - self._clock.time())
        warn = left - min(EXPIRING, left / 2)
        connection.set_timer("expiring", warn, lambda: connection.push(Expiring(left - warn)))
        connection.set_timer("expired", left, lambda: connection.close(4401, error="expired"))

    async def _welcome(self, connection: Connection) -> None:
        if connection.user is not None:
            await self._join_user_room(connection, connection.user)
        try:
            connection.welcomed = True
            for handler in self._on_connect:
                await handler(Call({Connection: connection}))
        except Refused as refusal:
            self.refuse(connection, refusal)
            return
        except ConnectionClosed:
            return
        except Exception:
            logger.exception("an on_connect handler failed")
            connection.close(1013, message="the server failed")
            return
        # What the server didn't join again is over, and the client must not go on waiting for it.
        for name in connection.since:
            if name not in connection.rooms:
                connection.push(Left(name, "not_joined"))
        connection.since = {}

    async def _join_user_room(self, connection: Connection, user: str) -> None:
        name = encode_user(user)
        try:
            await self.join(connection, name)
        except Refused as refusal:
            # Without it the user would miss what is sent to them, silently.
            self.refuse(connection, refusal)
            raise ConnectionClosed(connection.close_code or 1013, connection.close_reason) from refusal

    async def join(self, connection: Connection, name: str, *, meta: object = None) -> None:
        """Join a connection to a room on the server's behalf."""
        params: Mapping[str, str | int]
        if connection.user is not None and name == encode_user(connection.user):
            room, params = self._publishing.user_room, {"id": connection.user}
        else:
            try:
                room, params = self._publishing.find(name)
            except Forbidden:
                raise UnknownRoom from None
        raw = connection.encode(meta) if meta is not None else None
        await self._joining.join(
            connection,
            room,
            name,
            params,
            lambda joined: announce(name, joined),
            since=connection.since.get(name),
            meta=raw,
            by_server=True,
        )

    async def _reauthorize(self, connection: Connection) -> None:
        for name, membership in list(connection.rooms.items()):
            if membership.by_server:
                continue
            try:
                await self._joining.authorize(membership)
            except Refused as refusal:
                self._joining.remove(connection, name, code=refusal.code)
            except Exception:
                logger.exception("authorize of %s failed at a refresh; the member is removed", membership.room.template)
                self._joining.remove(connection, name, code="internal")


def announce(name: str, joined: JoinedRoom) -> Joined:
    return Joined(
        room=name,
        recovered=joined.recovered,
        events=joined.events,
        position=joined.position,
        reason=joined.reason,
        members=joined.members,
    )
