"""Dispatch: a client's commands to the handlers that the application declared."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from starlette_realtime.asgi import milliseconds
from starlette_realtime.auth import AuthGuard
from starlette_realtime.auth.refusals import why
from starlette_realtime.clock import Clock
from starlette_realtime.connection import Connection, ConnectionOptions, size_of
from starlette_realtime.counters import Counters
from starlette_realtime.errors import (
    ConnectionClosed,
    Forbidden,
    NotJoined,
    RateLimited,
    Refused,
    StoreError,
    Unavailable,
)
from starlette_realtime.fanout import Fanout, Topic
from starlette_realtime.messages import (
    Answer,
    Auth,
    Authenticated,
    Body,
    Bounds,
    Command,
    Entry,
    Error,
    Failure,
    GetHistory,
    GetMembers,
    Identity,
    Join,
    JoinedRoom,
    Leave,
    Pong,
    Reply,
    Send,
    ServerEvent,
    SetStatus,
    Welcome,
)
from starlette_realtime.payloads import Call, Handler, decoder, encode
from starlette_realtime.protocols import NativeProtocol
from starlette_realtime.ratelimit import RateLimiter
from starlette_realtime.rooms.admission import Admission, announce
from starlette_realtime.rooms.attendance import Attendance
from starlette_realtime.rooms.declaration import Events, Room
from starlette_realtime.rooms.joining import Joining
from starlette_realtime.rooms.limits import CommandLimits, RoomsOptions
from starlette_realtime.rooms.member import Member, Membership, RoomView
from starlette_realtime.rooms.publishing import DISCONNECT, KICK, TURN, Disconnect, Kick, Publishing, Turn
from starlette_realtime.store import Store
from starlette_realtime.tasks import Tasks
from starlette_realtime.tokens import Sessions
from starlette_realtime.types import Frame

__all__ = ["Rooms", "RoomsOptions"]

logger = logging.getLogger("starlette_realtime.rooms")

EMPTY = Raw(b"{}")


class Rooms:
    """
    Handles what connections ask: the three methods that a transport calls, and what a connection asks of its service.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        guard: AuthGuard,
        sessions: Sessions,
        connection_options: ConnectionOptions,
        options: RoomsOptions,
        counters: Counters,
        limiter: RateLimiter,
    ) -> None:
        self._clock = clock
        self._connection_options = connection_options
        self._options = options
        self._limits = CommandLimits(limiter, clock)
        self._counters = counters
        self.on_connect: list[Handler] = []
        self.on_disconnect: list[Handler] = []
        self.events = Events(injectable=(Connection,), params={})
        user_room = Room.for_users(options.user_history)
        self.publishing = Publishing(store, user_room, max_bytes=options.publication_bytes, counters=counters)
        self.publishing.commanded.append(self._asked)
        self.publishing.limit = self._limits.publish
        user_room.publishing = self.publishing
        self.fanout = Fanout(
            store, clock, control=self._control, presence_interval=options.presence_interval, counters=counters
        )
        self.attendance = Attendance(
            publishing=self.publishing, store=store, fanout=self.fanout, clock=clock, absent=self._absent
        )
        self.joining = Joining(
            store=store,
            fanout=self.fanout,
            attendance=self.attendance,
            clock=clock,
            missed=options.missed,
            missed_bytes=options.missed_bytes,
            counters=counters,
        )
        self.admission = Admission(
            guard=guard,
            sessions=sessions,
            joining=self.joining,
            publishing=self.publishing,
            clock=clock,
            limiter=limiter,
            on_connect=self.on_connect,
        )
        self._endings = Tasks("clearing away a connection failed", logger=logger)

    # --- what a transport calls -------------------------------------------------------------------------------------

    def opened(self, connection: Connection, *, heartbeat: float) -> None:
        """A connection has begun: welcome it. `heartbeat` is what the client is told, in seconds."""
        bounds = Bounds(connection.options.message_bytes, connection.options.rooms)
        connection.push(Welcome(connection.id, heartbeat, bounds, "starlette_realtime"))
        self.admission.awaits(connection)

    async def handle(self, connection: Connection, command: Command) -> None:
        """Take one command. This waits while the connection's inbox is full, and for nothing else."""
        if connection.closed:
            return
        self._counters.received += 1
        if isinstance(command, Pong) or (isinstance(command, Answer) and not connection.answered(command)):
            wait = self._limits.idle(connection)
            if wait:
                connection.close(4429, retry_after=wait)
            return
        if isinstance(command, Answer):
            return
        lanes = connection.lanes
        try:
            refused = await self._limits.command(connection, command)
        except Exception as exc:  # a cost or key function of the application's
            self._failed(connection, command, exc)
            return
        if refused is not None:
            if self._limits.goes_on(connection):
                connection.close(4429, retry_after=refused.retry_after)
            else:
                self._fail(connection, command, refused)
            return
        if isinstance(command, Auth):
            self.admission.asked(connection)
            if lanes.held >= 2 * lanes.size:
                self._fail(connection, command, RateLimited(retry_after=1.0))
            else:
                lanes.barrier(lambda: self._auth(connection, command))
            return
        while lanes.full:
            if connection.requests:
                # A handler waits for this client's answer, which may be behind this very command: read on.
                self._fail(connection, command, RateLimited("too much at once", retry_after=0.5))
                return
            connection.paused = True
            try:
                await lanes.changed()
            finally:
                connection.paused = False
                connection.heard = self._clock.now()
        lane = getattr(command, "room", None)
        lanes.put(lane, lambda: self._work(connection, command))

    def closed(self, connection: Connection) -> None:
        """A connection has ended; what its handlers still do is bounded in time."""
        self.joining.closed(connection)
        self.admission.closed(connection)
        self._endings.start(self._end(connection))

    # --- what a connection asks -------------------------------------------------------------------------------------

    def encode(self, value: object) -> Raw:
        """Encode what the application sends."""
        return encode(value)

    def decode(self, raw: Raw, kind: Any) -> Any:
        """Validate what a client answered."""
        return decoder(kind)(raw)

    async def join(self, connection: Connection, room: str, *, meta: object = None) -> None:
        """Join a connection to a room on the server's behalf."""
        await self.admission.join(connection, room, meta=meta)

    async def leave(self, connection: Connection, room: str, *, code: str = "forbidden") -> None:
        """Remove a connection from a room."""
        await self.joining.leave(connection, room, code=code)

    # --- for the server's code --------------------------------------------------------------------------------------

    def at(self, name: str) -> RoomView:
        """The declared room of that name; raises `UnknownRoom`."""
        room, params = self.publishing.find(name)
        return RoomView(self.publishing, room, name, params)

    def presence_changed(self, name: str, joined: Sequence[Entry], left: Sequence[Entry]) -> None:
        """Hear of presence that the store changed by itself: see `Store.on_presence`."""
        self.attendance.changed(name, joined, left)

    def revoked(self, revocations: Mapping[str, float]) -> None:
        """Hear of what was revoked: whose connections those are, they end."""
        self.admission.revoked()

    def _absent(self, name: str, entry: Entry) -> Membership | None:
        try:
            room, params = self.publishing.find(name)
        except Refused:
            return None
        connection = Connection(
            protocol=NativeProtocol(),
            scope={"type": "websocket", "headers": []},
            service=self,
            clock=self._clock,
            options=self._connection_options,
        )
        kind, _, who = entry.who.partition(":")
        connection.id = entry.connection
        connection.identity = Identity(who if kind == "u" else None)
        connection.end(code=1006, clean=False)
        return Membership(connection, room, name, params, entry, by_server=False)

    async def close(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until every ended connection has been cleared away."""
        try:
            async with self._clock.timeout(timeout):
                await self._endings.ended()
                await self.attendance.close()
                await self.fanout.close()
        except TimeoutError:
            logger.warning("not everything was cleared away within %.1f s", timeout)
            self.attendance.cancel()
            self.fanout.cancel()

    @property
    def gauges(self) -> Mapping[str, int]:
        """What is held at the moment, for metrics and leak tests."""
        return {
            **self.joining.gauges,
            **self.attendance.gauges,
            "sessions": len(self.admission.by_session),
            "topics": len(self.fanout.topics),
            "endings": len(self._endings),
        }

    # --- commands ---------------------------------------------------------------------------------------------------

    async def _work(self, connection: Connection, command: Command) -> None:
        try:
            frames = await self._reply(connection, command)
            if not frames:
                return
            size = size_of(frames)
            if connection.outbox.fits(size):
                connection.put(frames, size)
                return
            # Nobody is closed for what it asked for: the reply waits for its turn, and its lane with it.
            if isinstance(command, GetHistory | GetMembers):
                frames = ()  # made again then: an inbox of pages would be much to keep for who hardly reads
            async with connection.recovering:
                if not connection.closed:
                    await connection.outbox.put_unbounded(frames or await self._reply(connection, command))
        except BaseException as exc:
            self._failed(connection, command, exc)

    async def _reply(self, connection: Connection, command: Command) -> tuple[Frame, ...]:
        """Do what is asked; the reply's frames, none where there is nothing to reply, or that has been done."""
        self.admission.check(connection)
        data = await self._run(connection, command)
        if data is None or command.id is None:
            return ()
        size = len(bytes(data))
        if size > connection.options.largest:
            logger.error("a reply of %d bytes is more than may wait for a client", size)
            raise Refused("too_large", "the reply is too large")
        return connection.protocol.send(Reply(command.id, data))

    async def _run(self, connection: Connection, command: Command) -> Raw | None:
        """What to reply; None where that has been done."""
        if isinstance(command, Send):
            return await self._event(connection, command)
        if isinstance(command, Join):
            # Where the server has joined it, in its user's own room, say, it may go back to where it was.
            known: Membership | None = connection.rooms.get(command.room)
            room, params = self.publishing.find(command.room) if known is None else (known.room, known.params)
            await self.joining.join(
                connection,
                room,
                command.room,
                params,
                lambda joined: _respond(command, joined),
                since=command.since,
                meta=command.meta,
                status=command.status,
            )
            return None
        if isinstance(command, Leave):
            if command.room.startswith("user:"):
                raise Forbidden("the server joined you there, to reach you")
            await self.joining.leave(connection, command.room)
            return EMPTY
        if isinstance(command, SetStatus):
            names = [command.room] if command.room is not None else list(connection.rooms)
            for name in names:
                if command.room is None and name not in connection.rooms:
                    continue  # it was left, or removed from it, meanwhile
                membership = self._membership(connection, name)
                await self.attendance.set_status(membership, status=command.status, meta=command.meta)
            return EMPTY
        if isinstance(command, GetHistory):
            membership = self._membership(connection, command.room)
            limit = min(command.limit or 50, self._options.history_page)
            page = await self.publishing.history(membership.room, membership.name, before=command.before, limit=limit)
            return Raw(msgspec.json.encode(page))
        assert isinstance(command, GetMembers)
        return Raw(msgspec.json.encode(await self.attendance.roster(self._membership(connection, command.room))))

    async def _event(self, connection: Connection, command: Send) -> Raw:
        objects: dict[type, object] = {Connection: connection}
        params: Mapping[str, object] = {}
        turn = Turn(connection.who, command.key or "")
        if command.room is None:
            bound = self.events.get(command.event)
        else:
            membership = self._membership(connection, command.room)
            bound = membership.room.events.get(command.event)
            objects[Member] = Member(self.publishing, membership, turn)
            params = membership.params
        if bound is None:
            raise Refused("unknown_event", f"nobody handles {command.event!r} here")
        await self._limits.handler(connection, bound, command)
        TURN.set(turn)  # this is a task of the lane's own, which handles one event after the other
        try:
            return encode(await bound.handler(Call(objects, params, command.data)))
        finally:
            TURN.set(None)

    def _membership(self, connection: Connection, name: str) -> Any:
        membership = connection.rooms.get(name)
        if membership is None:
            if not name.startswith("user:"):
                self.publishing.find(name)
            raise NotJoined
        return membership

    async def _auth(self, connection: Connection, command: Auth) -> None:
        def answer(authenticated: Authenticated) -> None:
            if command.id is not None:
                connection.push(Reply(command.id, Raw(msgspec.json.encode(authenticated))))

        try:
            await self.admission.auth(connection, command, answer)
        except BaseException as exc:
            if isinstance(exc, Refused):
                logger.info("auth was refused: %s", why(exc))
            self._failed(connection, command, exc)
            if connection.identity is None:
                self.admission.refuse(connection, exc if isinstance(exc, Refused) else Unavailable())

    def _failed(self, connection: Connection, command: Command, exc: BaseException) -> None:
        if isinstance(exc, Refused):
            self._fail(connection, command, exc)
        elif isinstance(exc, StoreError):
            logger.warning("the store failed: %s", exc)
            self._fail(connection, command, Unavailable())
        elif isinstance(exc, ConnectionClosed):
            pass
        elif isinstance(exc, Exception):
            logger.error("%s failed", self._what(connection, command), exc_info=exc)
            self._fail(connection, command, Refused("internal"))
        else:
            raise exc

    def _what(self, connection: Connection, command: Command) -> str:
        """What a command is about, by the application's names alone."""
        if isinstance(command, Send):
            membership = connection.rooms.get(command.room) if command.room is not None else None
            where = f" of {membership.room.template}" if membership is not None else ""
            return f"the handler of {command.event!r}{where}"
        room = getattr(command, "room", None)
        found = self.publishing.rooms.match(room) if room is not None else None
        kind = type(command).__name__.lower()
        return f"{kind} in {found[0].template}" if found is not None else kind

    def _fail(self, connection: Connection, command: Command, refusal: Refused) -> None:
        self._counters.refuse(refusal.code)
        code, message, fields = refusal.code, refusal.message, refusal.fields
        retry_after = None if refusal.retry_after is None else milliseconds(refusal.retry_after)
        event: ServerEvent
        if command.id is not None:
            event = Reply(command.id, error=Failure(code, message, retry_after, fields))
        else:
            event = Error(code, message, retry_after, fields)
        connection.push(event)

    # --- the end of a connection ------------------------------------------------------------------------------------

    async def _end(self, connection: Connection) -> None:
        lanes = connection.lanes
        try:
            async with self._clock.timeout(connection.options.handler_grace):
                await lanes.ended()
        except TimeoutError:
            lanes.cancel()
            await lanes.ended()
        await self.admission.release(connection)
        if not connection.welcomed:
            return
        for handler in self.on_disconnect:
            try:
                async with self._clock.timeout(connection.options.handler_grace):
                    await handler(Call({Connection: connection}))
            except Exception:
                logger.exception("an on_disconnect handler failed")

    # --- the kit's own publications ---------------------------------------------------------------------------------

    def _control(self, topic: Topic, body: Body) -> None:
        self._obey(topic.name, tuple(topic.members.values()), body)

    def _asked(self, name: str, body: Body) -> None:
        # At once for those who are here, whatever becomes of the publication, and for those who are still joining.
        topic = self.fanout.topics.get(name)
        self._obey(name, tuple(topic.members.values()) if topic is not None else (), body)

    def _obey(self, name: str, members: Sequence[Connection], body: Body) -> None:
        try:
            if body.event == KICK:
                kick = msgspec.json.decode(body.data, type=Kick)
                for membership in self.joining.entering(name):
                    if kick.means(membership.connection):
                        membership.kicked = kick.code
                for member in members:
                    if kick.means(member):
                        self.joining.remove(member, name, code=kick.code)
            elif body.event == DISCONNECT:
                disconnect = msgspec.json.decode(body.data, type=Disconnect)
                # Not by who is in the user's room: whoever is that user is meant.
                for connection in tuple(self.admission.by_session.values()):
                    if connection.user == disconnect.user:
                        connection.close(disconnect.code, error=disconnect.error)
        except msgspec.DecodeError:
            logger.error("a publication of the kit's own could not be read")


def _respond(command: Join, joined: JoinedRoom) -> ServerEvent:
    if command.id is None:
        return announce(command.room, joined)
    return Reply(command.id, Raw(msgspec.json.encode(joined)))
