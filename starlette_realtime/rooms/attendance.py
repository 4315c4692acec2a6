"""Attendance: who is present in the rooms of this process, for the store, the clients and the handlers."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.connection import Connection
from starlette_realtime.errors import Forbidden, StoreError, Unavailable
from starlette_realtime.fanout import Fanout, Topic
from starlette_realtime.messages import Entry, MemberInfo, Presence, Roster, ServerEvent, Status
from starlette_realtime.payloads import Call, Handler
from starlette_realtime.presence import Change
from starlette_realtime.rooms.declaration import Room
from starlette_realtime.rooms.member import Member, Membership
from starlette_realtime.rooms.publishing import Publishing
from starlette_realtime.store import Store
from starlette_realtime.tasks import Tasks

__all__ = ["Attendance"]

logger = logging.getLogger("starlette_realtime.rooms")

HANDLING = 30.0
"""How long one `on_join` or `on_leave` may take, in seconds: those of the same user wait for it."""

SAMPLE = 20
"""How many members are told of a room that has more than it shows."""


_TELLING: ContextVar[tuple[str, str] | None] = ContextVar("telling", default=None)
"""Of whom, in which room, the handlers of `on_join` or `on_leave` are being told, in what they do."""


class _Linger(Struct, eq=False):
    membership: Membership
    timer: Timer


class Attendance:
    """
    The presence records of this process's members.

    `absent` stands in for a membership that this process doesn't have (any more),
    None where the room is not declared here.
    """

    def __init__(
        self,
        *,
        publishing: Publishing,
        store: Store,
        fanout: Fanout,
        clock: Clock,
        absent: Callable[[str, Entry], Membership | None],
    ) -> None:
        self._publishing = publishing
        self._store = store
        self._fanout = fanout
        self._clock = clock
        self._absent = absent
        self._present: dict[tuple[str, str], Membership] = {}
        self._lingering: dict[tuple[str, str], _Linger] = {}
        self._telling: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._away = False
        self.tasks = Tasks("leaving a room failed", logger=logger)
        """What is owed, whoever asked for it may be gone."""

    @property
    def gauges(self) -> Mapping[str, int]:
        """What is held at the moment, for metrics and leak tests."""
        return {
            "present": len(self._present),
            "lingering": len(self._lingering),
            "telling": len(self._telling),
            "tasks": len(self.tasks),
        }

    # --- coming and going -------------------------------------------------------------------------------------------

    async def enter(self, membership: Membership) -> bool:
        """
        Enter presence; tells whether that brought the user. Raises `StoreError`.

        What lingers for the same session goes, and nobody hears that it was away.
        """
        self._present[membership.name, membership.entry.connection] = membership
        arrived = await self._store.enter(membership.name, (membership.entry,))
        before = self._lingering.pop((membership.name, membership.connection.session), None)
        if before is not None:
            before.timer.cancel()
            await self._depart(before.membership)
        return bool(arrived)

    def undo(self, membership: Membership, *, arrived: bool) -> None:
        """Take back an `enter`, one that failed, too."""
        self.tasks.start(self._undo(membership, arrived))

    async def _undo(self, membership: Membership, arrived: bool) -> None:
        if arrived:  # others have seen it come: so it comes and goes for the handlers, too
            self.tell(membership, joined=True)
        await self._depart(membership)

    async def leave(self, membership: Membership) -> None:
        """Leave presence at once; a caller that is cancelled doesn't keep it from happening."""
        departing = self.tasks.start(self._depart(membership))
        if _TELLING.get() != (membership.name, membership.entry.who):  # `on_join` would wait for its own end
            await asyncio.shield(departing)

    def release(self, membership: Membership) -> None:
        """The connection has ended: leave presence, after a linger where the end was not clean."""
        connection = membership.connection
        # Whose session goes on elsewhere is about to join there: a link that was taken over counts as a broken one.
        linger = membership.room.linger if connection.replaced or not connection.clean else 0.0
        if not linger:
            self.tasks.start(self._depart(membership))
            return
        key = (membership.name, connection.session)
        before = self._lingering.pop(key, None)
        if before is not None:
            before.timer.cancel()
            self.tasks.start(self._depart(before.membership))
        self._lingering[key] = _Linger(membership, self._clock.call_later(linger, self._lingered, key))

    def _lingered(self, key: tuple[str, str]) -> None:
        self.tasks.start(self._depart(self._lingering.pop(key).membership))

    async def _depart(self, membership: Membership) -> None:
        key = (membership.name, membership.entry.connection)
        if self._present.get(key) is membership:
            del self._present[key]
        try:
            gone = await self._store.leave(membership.name, (membership.entry.connection,))
        except StoreError as exc:
            # The store makes it up when it is back, and `changed` hears of it: nobody stays as a ghost.
            level = logging.DEBUG if self._away else logging.WARNING
            logger.log(level, "members leave when the store is back: %s", exc)
            self._away = True
            return
        self._away = False
        if gone:
            await asyncio.shield(self.tell(membership, joined=False))

    def tell(self, membership: Membership, *, joined: bool) -> "asyncio.Task[None]":
        """
        Call `on_join` or `on_leave`, after what was told of the same user in the same room before.

        So the two never overlap, whatever the connections do, and a row that one writes is there for the other.
        """
        key = (membership.name, membership.entry.who)
        handlers = membership.room.arrivals if joined else membership.room.departures
        task = self.tasks.start(self._tell(self._telling.get(key), handlers, membership))
        self._telling[key] = task

        def told(_: "asyncio.Task[None]") -> None:
            if self._telling.get(key) is task:
                del self._telling[key]

        task.add_done_callback(told)
        return task

    async def _tell(
        self, before: "asyncio.Task[None] | None", handlers: Sequence[Handler], membership: Membership
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        _TELLING.set((membership.name, membership.entry.who))
        for handler in handlers:
            try:
                async with self._clock.timeout(HANDLING):
                    await handler(self.call_for(membership))
            except Exception:
                logger.exception("a handler of %s failed", membership.room.template)

    def changed(self, name: str, joined: Sequence[Entry], left: Sequence[Entry]) -> None:
        """The store itself brought users back or removed them (`Store.on_presence`): tell the handlers."""
        for entry in joined:
            # Who has just gone again came, too: the leave will be told.
            membership = self._present.get((name, entry.connection)) or self._absent(name, entry)
            if membership is not None:
                self.tell(membership, joined=True)
        for entry in left:
            membership = self._absent(name, entry)
            if membership is not None:
                self.tell(membership, joined=False)

    # --- what is shown ----------------------------------------------------------------------------------------------

    async def set_status(
        self, membership: Membership, *, status: Status | None, meta: Raw | UnsetType | None = UNSET
    ) -> None:
        """Change the presence record; raises `Unavailable`."""
        entry = membership.entry
        entry = msgspec.structs.replace(
            entry,
            status=status if status is not None else entry.status,
            meta=entry.meta if isinstance(meta, UnsetType) else meta if meta is not None else UNSET,
        )
        if not membership.room.tracked:
            membership.entry = entry
            return
        try:
            arrived = await self._store.enter(membership.name, (entry,))
            membership.entry = entry
            if arrived:  # after a missed lease, say: nobody was there any more
                self.tell(membership, joined=True)
        except StoreError as exc:
            raise Unavailable from exc
        finally:
            if membership.connection.rooms.get(membership.name) is not membership and not self._stays(membership):
                # It left meanwhile, and the store may have taken the two in the other order.
                self.tasks.start(self._depart(membership))

    def _stays(self, membership: Membership) -> bool:
        linger = self._lingering.get((membership.name, membership.connection.session))
        return linger is not None and linger.membership is membership

    async def roster(self, membership: Membership) -> Roster:
        """The members as clients see them; raises `Forbidden` where the room doesn't show them, and `Unavailable`."""
        await self.ready(membership)
        return self.snapshot(membership)

    async def ready(self, membership: Membership) -> None:
        """See to it that `snapshot` has the members, this one included; raises what `roster` raises."""
        topic = membership.topic
        if not membership.room.presence or topic is None or topic.roster is None:
            raise Forbidden("this room doesn't show its members")
        if topic.knows(membership.connection.id):
            return
        try:
            await self._fanout.know(topic, membership.connection.id)
        except StoreError as exc:
            raise Unavailable from exc

    def snapshot(self, membership: Membership) -> Roster:
        """The members at this moment, as clients see them."""
        topic, shown = membership.topic, membership.room.shown
        assert topic is not None
        assert topic.roster is not None
        roster = topic.roster
        total = len(roster)
        entries = roster.entries(shown if total <= shown else min(SAMPLE, shown))
        return Roster(roster.seq, total, [_info(entry) for entry in entries])

    def show(self, room: Room) -> Callable[[Topic, Change], ServerEvent]:
        """What a room's members are told of a change."""

        def show(topic: Topic, change: Change) -> ServerEvent:
            assert topic.roster is not None
            total = len(topic.roster)
            if total > room.shown:
                sample = [_info(entry) for entry in topic.roster.entries(min(SAMPLE, room.shown))]
                return Presence(topic.name, change.seq, total=total, sample=sample)
            joined = [_info(entry) for entry in change.joined]
            updated = [_info(entry) for entry in change.updated]
            return Presence(topic.name, change.seq, change.prev, joined, updated, change.left, total)

        return show

    # --- handlers ---------------------------------------------------------------------------------------------------

    def call_for(self, membership: Membership) -> Call:
        """What `authorize`, `on_join` and `on_leave` may take."""
        member = Member(self._publishing, membership)
        return Call({Member: member, Connection: membership.connection}, membership.params)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Let nobody linger, and wait until nothing is owed."""
        for key, linger in list(self._lingering.items()):
            linger.timer.cancel()
            self._lingered(key)
        await self.tasks.ended()

    def cancel(self) -> None:
        """Give up what is owed still."""
        self.tasks.cancel()


def _info(entry: Entry) -> MemberInfo:
    return MemberInfo(entry.connection, entry.user, entry.status, entry.meta, entry.since)
