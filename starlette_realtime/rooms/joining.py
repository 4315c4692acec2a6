"""Joining and leaving: each step is rolled back when a later one fails, and nothing is owed when a connection ends."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import msgspec
from msgspec import UNSET, Raw

from starlette_realtime.clock import Clock
from starlette_realtime.connection import Connection, size_of
from starlette_realtime.counters import Counters
from starlette_realtime.errors import (
    ConnectionClosed,
    Forbidden,
    NotJoined,
    Refused,
    StoreError,
    Unauthenticated,
    Unavailable,
)
from starlette_realtime.fanout import Fanout, Topic, read_body, to_event
from starlette_realtime.messages import (
    Entry,
    Event,
    Gap,
    JoinedRoom,
    Left,
    Position,
    Publication,
    ServerEvent,
    Status,
)
from starlette_realtime.replay import Replay
from starlette_realtime.rooms.attendance import Attendance
from starlette_realtime.rooms.declaration import Room
from starlette_realtime.rooms.kicks import may_be_kicked
from starlette_realtime.rooms.member import Membership
from starlette_realtime.store import Store
from starlette_realtime.types import Frame

logger = logging.getLogger("starlette_realtime.rooms")

Respond = Callable[[JoinedRoom], ServerEvent]

_READS = 8
"""How often a join reads the history again when publications overtake it."""


class Joining:
    """
    The memberships of this process's connections.

    `missed` and `missed_bytes` bound what one resume may bring.
    """

    def __init__(
        self,
        *,
        store: Store,
        fanout: Fanout,
        attendance: Attendance,
        clock: Clock,
        missed: int = 512,
        missed_bytes: int = 1024 * 1024,
        counters: Counters,
    ) -> None:
        self._store = store
        self._fanout = fanout
        self._attendance = attendance
        self._clock = clock
        self._missed = missed
        self._counters = counters
        self._missed_bytes = missed_bytes
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        self._reserved: dict[str, int] = {}
        self._entering: dict[str, set[Membership]] = {}

    @property
    def gauges(self) -> Mapping[str, int]:
        """What is held at the moment, for metrics and leak tests."""
        return {
            "locks": len(self._locks),
            "reserved": len(self._reserved),
            "entering": len(self._entering),
        }

    # --- joining ----------------------------------------------------------------------------------------------------

    async def join(
        self,
        connection: Connection,
        room: Room,
        name: str,
        params: Mapping[str, str | int],
        respond: Respond,
        *,
        since: Position | None = None,
        meta: Raw | None = None,
        status: Status = "online",
        by_server: bool = False,
    ) -> None:
        """
        Join, and answer with what `respond` makes of it before anything else from the room.

        Joining again tells where the room is, and changes `meta` and `status`. Raises `Refused` and `ConnectionClosed`;
        nothing is left behind then.
        """
        async with self._alone(connection, name):
            existing: Membership | None = connection.rooms.get(name)
            if existing is not None:
                with self._coming(existing):
                    await self._again(existing, since, respond, meta, status)
                return
            entry = Entry(
                connection.id,
                connection.who,
                connection.user if room.show_users else None,
                status,
                meta if meta is not None else UNSET,
                int(self._clock.time() * 1000),
            )
            membership = Membership(connection, room, name, params, entry, by_server)
            with _Reservation(self._reserved, connection, by_server), self._coming(membership):
                hears, began = self._fanout.hears(name), self._clock.now()
                if not by_server:
                    await self.authorize(membership)
                _check_kicked(membership)
                await self._enter(membership, since, respond, hears, began)
        if membership.told is not None:
            await asyncio.shield(membership.told)

    def entering(self, name: str) -> Sequence[Membership]:
        """Who is about to join, and can still be refused."""
        return tuple(self._entering.get(name, ()))

    @contextmanager
    def _coming(self, membership: Membership) -> Iterator[None]:
        coming = self._entering.setdefault(membership.name, set())
        coming.add(membership)
        try:
            yield
        finally:
            coming.discard(membership)
            if not coming:
                self._entering.pop(membership.name, None)

    async def authorize(self, membership: Membership) -> None:
        """Ask whether the connection may be in the room; raises `Refused`."""
        room, connection = membership.room, membership.connection
        if connection.user is None and not room.public:
            logger.info("an anonymous peer asked for %s: Room(public=True) would let it in", room.template)
            raise Unauthenticated("this room is for signed-in users")
        if room.authorizer is None:
            return
        answer = await room.authorizer(self._attendance.call_for(membership))
        if answer is not True:
            if answer is not False:
                kind = type(answer).__name__
                logger.warning("authorize of %s returned a %s, which refuses: True is due", room.template, kind)
            raise Forbidden

    async def _enter(
        self, membership: Membership, since: Position | None, respond: Respond, hears: Topic | None, began: float
    ) -> None:
        """`hears`: the topic, if this process heard it when `authorize` was asked, at `began`."""
        connection, room, name = membership.connection, membership.room, membership.name
        try:
            topic = await self._fanout.attach(name, self._attendance.show(room) if room.presence else None)
        except StoreError as exc:
            raise Unavailable from exc
        membership.topic = topic
        entered = False
        try:
            if topic is not hears and room.authorizer is not None and not membership.by_server:
                seconds = self._clock.now() - began
                if await may_be_kicked(self._store, membership, seconds=seconds):
                    await self.authorize(membership)
                    _check_kicked(membership)
            replay = None
            if room.history is not None:
                replay = Replay(since)
                topic.buffer(connection, replay)
            if room.tracked:
                entered = True
                membership.arrived = await self._attendance.enter(membership)
            async with connection.recovering if since is not None else _nothing():
                written = await self._finish(membership, replay, since, respond, alone=since is not None)
                if written is not None:
                    await written
        except BaseException as exc:
            if membership.live:
                raise
            topic.remove(connection)
            self._fanout.detach(topic)
            if entered:
                self._attendance.undo(membership, arrived=membership.arrived)
            if isinstance(exc, StoreError):
                raise Unavailable from exc
            raise

    async def _finish(
        self,
        membership: Membership,
        replay: Replay | None,
        since: Position | None,
        respond: Respond,
        *,
        alone: bool,
    ) -> "asyncio.Future[None] | None":
        """Answer, and be in the room; what is returned has to be awaited. `alone`: `connection.recovering` is held."""
        connection, room, topic = membership.connection, membership.room, membership.topic
        assert topic is not None
        before = connection.rooms.get(membership.name)  # itself, where it is there already
        if room.presence:
            await self._attendance.ready(membership)
        deliveries = await self._read(membership, replay) if replay is not None else []
        # From here to the queued answer nothing awaits, so that nothing can come in between.
        if connection.closed:
            raise ConnectionClosed(connection.close_code or 1006, connection.close_reason)
        _check_kicked(membership)
        if connection.rooms.get(membership.name) is not before:
            raise NotJoined  # it was removed meanwhile
        reason, publications = self._judge(deliveries)
        if replay is None and since is not None:
            reason = "ephemeral"
        events = self._events(membership, publications)
        joined = JoinedRoom(
            recovered=since is not None and not reason,
            events=events,
            position=replay.position if replay is not None else None,
            reason=reason or None,
            members=self._attendance.snapshot(membership) if room.presence else None,
        )
        if joined.recovered:
            self._counters.resumed += 1
        elif since is not None:
            self._counters.reset += 1
        frames = connection.protocol.send(respond(joined))
        size = size_of(frames)
        fits = connection.outbox.fits(size)
        if not fits and not alone:
            # Nobody is closed for what it asked for. Made again then, and not kept: the room will be elsewhere.
            del frames, joined, events, publications, deliveries
            async with connection.recovering:
                if replay is not None:
                    replay = Replay()
                    topic.buffer(connection, replay)
                written = await self._finish(membership, replay, since, respond, alone=True)
                if written is not None:
                    await written
            return None
        connection.rooms[membership.name] = membership
        membership.live = True
        membership.position = joined.position
        if membership.arrived:
            # Before anything can make it leave again.
            membership.told, membership.arrived = self._attendance.tell(membership, joined=True), False
        topic.live(connection, joined.position, self._store.position(membership.name))
        if fits and not (alone and events):
            connection.put(frames, size)
            return None
        # A recovery, or many members, don't count against the outbox: nobody could come in otherwise.
        return connection.outbox.put_unbounded(frames)

    async def _read(self, membership: Membership, replay: Replay) -> list[Publication | Gap]:
        deliveries: list[Publication | Gap] = []
        for _ in range(_READS):
            recovery = await self._store.recover(
                membership.name,
                since=replay.position,
                limit=self._missed,
                limit_bytes=self._missed_bytes,
                history=membership.room.history,
            )
            deliveries += replay.recovered(recovery)
            if not replay.needs_read:
                return deliveries
        raise Unavailable("the room is too busy to join")

    def _judge(self, deliveries: list[Publication | Gap]) -> tuple[str, list[Publication]]:
        """Why this is no recovery ("" if it is one), and what to deliver all the same: what came after the gap."""
        reason = ""
        publications: list[Publication] = []
        for delivery in deliveries:
            if isinstance(delivery, Gap):
                reason = delivery.reason or "lost"
                publications.clear()
            else:
                publications.append(delivery)
        if len(publications) > self._missed or sum(len(each.data) for each in publications) > self._missed_bytes:
            return "too_much", []
        return reason, publications

    def _events(self, membership: Membership, publications: list[Publication]) -> list[Event]:
        events = []
        for publication in publications:
            try:
                body = read_body(publication)
            except msgspec.DecodeError:
                logger.error("a publication that no room made was left out")
                continue
            if not body.event.startswith("rt:") and (
                body.exclude != membership.connection.session or body.exclude is None
            ):
                events.append(to_event(publication, body, membership.name))
        return events

    async def _again(
        self, membership: Membership, since: Position | None, respond: Respond, meta: Raw | None, status: Status
    ) -> None:
        connection, room = membership.connection, membership.room
        if meta is not None or status != membership.entry.status:
            await self._attendance.set_status(membership, status=status, meta=meta if meta is not None else UNSET)
        if since is not None and room.history is not None:
            await self._resume(membership, since, respond)
            return
        frames = await self._stays(membership, respond)
        size = size_of(frames)
        if connection.outbox.fits(size):
            connection.put(frames, size)
            return
        del frames  # not kept while it waits
        async with connection.recovering:
            await connection.outbox.put_unbounded(await self._stays(membership, respond))

    async def _stays(self, membership: Membership, respond: Respond) -> tuple[Frame, ...]:
        """What to answer who has joined already, before anything else from the room."""
        connection, room = membership.connection, membership.room
        snapshot = await self._attendance.roster(membership) if room.presence else None
        # Everything up to there is queued for this connection already.
        heard = (
            membership.topic.heard(connection) if membership.topic is not None and room.history is not None else None
        )
        position = heard or membership.position
        if connection.closed or connection.rooms.get(membership.name) is not membership:
            raise NotJoined
        return connection.protocol.send(
            respond(JoinedRoom(recovered=False, events=(), position=position, members=snapshot))
        )

    async def _resume(self, membership: Membership, since: Position, respond: Respond) -> None:
        """Go back to `since` in a room that was joined already, by the server, say: nothing comes in between."""
        connection, name, topic = membership.connection, membership.name, membership.topic
        assert topic is not None
        replay = Replay(since)
        topic.remove(connection)
        topic.buffer(connection, replay)
        membership.live = False
        try:
            async with connection.recovering:
                written = await self._finish(membership, replay, since, respond, alone=True)
                if written is not None:
                    await written
        finally:
            if not membership.live and connection.rooms.get(name) is membership:
                # What was published meanwhile isn't here any more: out, or back through a resume of everything.
                topic.remove(connection)
                if membership.kicked:
                    self.remove(connection, name, code=membership.kicked)
                else:
                    connection.close(4441)

    # --- leaving ----------------------------------------------------------------------------------------------------

    async def leave(self, connection: Connection, name: str, *, code: str | None = None) -> None:
        """Leave; with a `code`, the client is told that the server removed it. Raises `NotJoined`."""
        async with self._alone(connection, name):
            membership = connection.rooms.pop(name, None)
            if membership is None:
                raise NotJoined
            membership.topic.remove(connection)
            if code is not None:
                connection.push(Left(name, code))
            self._fanout.detach(membership.topic)
            if membership.room.tracked:
                await self._attendance.leave(membership)

    def remove(self, connection: Connection, name: str, *, code: str) -> None:
        """Remove the connection from the room at once, whatever else is under way; only its presence may follow."""
        membership: Membership | None = connection.rooms.pop(name, None)
        if membership is None or membership.topic is None:
            return
        membership.topic.remove(connection)
        connection.push(Left(name, code))
        self._fanout.detach(membership.topic)
        if membership.room.tracked:
            self._attendance.tasks.start(self._removed(membership))

    async def _removed(self, membership: Membership) -> None:
        async with self._alone(membership.connection, membership.name):
            if membership.name not in membership.connection.rooms:  # or it has come again, and is present
                await self._attendance.leave(membership)

    def closed(self, connection: Connection) -> None:
        """The connection has ended: leave all rooms, after a linger where the end was not clean."""
        for membership in list(connection.rooms.values()):
            membership.topic.remove(connection)
            self._fanout.detach(membership.topic)
            if membership.room.tracked:
                self._attendance.release(membership)
        connection.rooms.clear()

    def _alone(self, connection: Connection, name: str) -> AbstractAsyncContextManager[None]:
        return _Lock(self._locks, (connection.id, name))


class _Lock(AbstractAsyncContextManager[None]):
    """A lock by key, that is there only while somebody holds or wants it."""

    def __init__(self, locks: dict[tuple[str, str], tuple[asyncio.Lock, int]], key: tuple[str, str]) -> None:
        self._locks = locks
        self._key = key

    async def __aenter__(self) -> None:
        lock, users = self._locks.get(self._key, (asyncio.Lock(), 0))
        self._locks[self._key] = (lock, users + 1)
        try:
            await lock.acquire()
        except BaseException:
            self._forget()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self._locks[self._key][0].release()
        self._forget()

    def _forget(self) -> None:
        lock, users = self._locks[self._key]
        if users > 1:
            self._locks[self._key] = (lock, users - 1)
        else:
            del self._locks[self._key]


class _Reservation:
    """A place among the rooms that a client may be in, held while a join is under way."""

    def __init__(self, reserved: dict[str, int], connection: Connection, by_server: bool) -> None:
        self._reserved = reserved
        self._connection = connection
        self._free = by_server

    def __enter__(self) -> None:
        if self._free:
            return
        connection = self._connection
        pending = self._reserved.get(connection.id, 0)
        joined = sum(not membership.by_server for membership in connection.rooms.values())
        if joined + pending >= connection.options.rooms:
            raise Refused("too_many_rooms")
        self._reserved[connection.id] = pending + 1

    def __exit__(self, *exc_info: object) -> None:
        if self._free:
            return
        pending = self._reserved[self._connection.id] - 1
        if pending:
            self._reserved[self._connection.id] = pending
        else:
            del self._reserved[self._connection.id]


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def _check_kicked(membership: Membership) -> None:
    if membership.kicked:
        raise Refused(membership.kicked, "removed while joining")
