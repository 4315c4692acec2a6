"""Topic: one topic's deliveries to the connections that joined it, encoded once per wire protocol."""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from starlette_realtime.connection import Connection, size_of
from starlette_realtime.counters import Counters
from starlette_realtime.messages import (
    Body,
    Delivery,
    Event,
    Fresh,
    Gap,
    Members,
    Position,
    PresenceDiff,
    Publication,
    Reset,
    ServerEvent,
    Stale,
    StoreAway,
    StoreBack,
)
from starlette_realtime.presence import Roster
from starlette_realtime.protocols.base import WireProtocol
from starlette_realtime.replay import Replay
from starlette_realtime.types import Frame

__all__ = ["Topic", "read_body", "to_event", "write_body"]

logger = logging.getLogger("starlette_realtime.fanout")

_decode = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.Encoder().encode

Put = Callable[[tuple[Frame, ...], int], None]


def read_body(publication: Publication) -> Body:
    """What a room published; raises `msgspec.DecodeError` for what no room did."""
    data = publication.data
    if not data.isascii():
        # What is not decoded here, the payload, would fail later otherwise: for every member, at every resume.
        try:
            data.decode()
        except UnicodeDecodeError as exc:
            raise msgspec.DecodeError("this is no UTF-8") from exc
    try:
        return _decode(data)
    except RecursionError as exc:
        raise msgspec.DecodeError("this is nested deeper than anything that a room publishes") from exc


def write_body(body: Body) -> bytes:
    """The `data` of a publication."""
    return _encode(body)


def to_event(publication: Publication, body: Body, room: str) -> Event:
    """A publication as clients see it."""
    return Event(body.event, body.data, room, publication.position, body.sender, publication.at)


class _Group:
    """The members that share frames. The tuples are rebuilt when somebody came or went and something is sent."""

    __slots__ = ("_offers", "_puts", "encode", "members", "view")

    def __init__(self, protocol: type[WireProtocol], view: str | None) -> None:
        self.encode = protocol.encode
        self.view = view
        self.members: dict[Connection, None] = {}
        self._puts: tuple[Put, ...] | None = None
        self._offers: tuple[Put, ...] | None = None

    def changed(self) -> None:
        self._puts = self._offers = None

    def puts(self, *, droppable: bool) -> tuple[Put, ...]:
        if droppable:
            if self._offers is None:
                self._offers = tuple([member.offer for member in self.members])
            return self._offers
        if self._puts is None:
            self._puts = tuple([member.put for member in self.members])
        return self._puts


class Topic:
    """
    One topic on this process: who hears it, who is about to, and who is present.

    `control` hears the kit's own publications (`rt:…` events), which no client does; `change` hears of presence.
    """

    __slots__ = (
        "_behind",
        "_control",
        "_counters",
        "_expected",
        "_groups",
        "_reload",
        "_started",
        "joining",
        "members",
        "name",
        "position",
        "references",
        "roster",
        "stale",
    )

    def __init__(self, name: str, control: Callable[["Topic", Body], None], counters: Counters) -> None:
        self.name = name
        self.references = 0
        self.members: dict[str, Connection] = {}
        self.joining: dict[str, Replay] = {}
        self.roster: Roster | None = None
        self.stale = False
        self.position: Position | None = None
        """The last position that was delivered here; None: none since the subscription."""
        self._control = control
        self._counters = counters
        self._behind: dict[str, tuple[Connection, Position]] = {}
        self._groups: dict[tuple[type[WireProtocol], str | None], _Group] = {}
        self._expected: dict[str, asyncio.Future[None]] = {}
        self._started: asyncio.Future[None] | None = None
        self._reload: Callable[[], None] | None = None

    def buffer(self, connection: Connection, replay: Replay) -> None:
        """Let `replay` hold what is published until the connection goes live."""
        self.joining[connection.id] = replay

    def live(self, connection: Connection, position: Position | None, here: Position | None) -> None:
        """
        Let the connection, which has heard everything up to `position`, hear everything from there on.

        `here` is where this process is: a backend may have told a reader of more than it has delivered yet.
        """
        self.joining.pop(connection.id, None)
        self.members[connection.id] = connection
        if position is not None and here is not None and position != here:
            self._behind[connection.id] = (connection, position)
        else:
            self._add(connection)

    def heard(self, connection: Connection) -> Position | None:
        """Up to where a member has heard the topic; None: nothing since it went live."""
        behind = self._behind.get(connection.id)
        return behind[1] if behind is not None else self.position

    def _add(self, connection: Connection) -> None:
        key = (type(connection.protocol), None)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(*key)
        group.members[connection] = None
        group.changed()

    def remove(self, connection: Connection) -> None:
        """Let the connection hear nothing more."""
        self.joining.pop(connection.id, None)
        if self.members.pop(connection.id, None) is None or self._behind.pop(connection.id, None) is not None:
            return
        key = (type(connection.protocol), None)
        group = self._groups[key]
        del group.members[connection]
        group.changed()
        if not group.members:
            del self._groups[key]

    def deliver(self, delivery: Delivery) -> None:
        """Hear the store."""
        if isinstance(delivery, Publication):
            self._publish(delivery)
        elif isinstance(delivery, PresenceDiff):
            if self.roster is not None:
                self.roster.apply(delivery)
                if self._expected:
                    for entry in delivery.entered:
                        self._arrived(entry.connection)
        elif isinstance(delivery, Gap):
            self.position = delivery.position
            for replay in self.joining.values():
                replay.interrupted()
            for connection, _ in self._behind.values():
                self._add(connection)
            self._behind.clear()
            self._counters.reset += len(self.members)
            self.broadcast(Reset(self.name, delivery.reason, delivery.position))
            if self._reload is not None:
                self._reload()
        elif isinstance(delivery, Stale):
            self.stale = True
            self.broadcast(StoreAway(self.name))
        elif isinstance(delivery, Fresh):
            self.stale = False
            self.broadcast(StoreBack(self.name))
            if self._reload is not None:
                self._reload()

    def load(self, members: Members) -> None:
        """Take a snapshot of who is present."""
        if self.roster is not None:
            self.roster.load(members)
            for connection in tuple(self._expected):
                self._arrived(connection)

    def knows(self, connection: str) -> bool:
        """Whether the members are known as they are, that one included."""
        return self.roster is not None and not self.stale and self.roster.loaded and connection in self.roster

    def _arrived(self, connection: str) -> None:
        if self.knows(connection) and (waiter := self._expected.pop(connection, None)) and not waiter.done():
            waiter.set_result(None)

    def broadcast(
        self, event: ServerEvent, *, skip: str | None = None, droppable: bool = False, kept: bool = False
    ) -> None:
        """
        Send one event to every member but those with the session `skip`.

        `droppable`: not to who lags behind; `kept`: not to who has had it from the store already.
        """
        if self._behind and not kept:
            for connection, _ in self._behind.values():
                if skip is None or connection.session != skip:
                    connection.push(event)
        for group in tuple(self._groups.values()):
            try:
                frames = group.encode(event, group.view)
                size = size_of(frames)
            except Exception:
                # The others are served; for these something is lost, and they are told so rather than left behind.
                logger.exception("an event could not be encoded; its receivers are disconnected and resume")
                for member in tuple(group.members):
                    member.close(4441)
                continue
            if skip is None:
                for put in group.puts(droppable=droppable):
                    put(frames, size)
            else:
                for member in tuple(group.members):
                    if member.session != skip:
                        (member.offer if droppable else member.put)(frames, size)

    def _publish(self, publication: Publication) -> None:
        position = publication.position
        if position is not None:
            self.position = position
            for replay in self.joining.values():
                replay.live(publication)
        self._pass_on(publication)
        if position is not None and self._behind:
            self._catch_up(position)

    def _pass_on(self, publication: Publication) -> None:
        try:
            body = read_body(publication)
        except msgspec.DecodeError:
            logger.error("a publication that no room made was left out")
            return
        if body.event.startswith("rt:"):
            self._control(self, body)
            return
        event = to_event(publication, body, self.name)
        if body.only is not None:
            member = self.members.get(body.only)
            if member is not None:
                member.push(event)
            return
        kept = publication.position is not None
        self.broadcast(event, skip=body.exclude, droppable=not kept, kept=kept)

    def _catch_up(self, position: Position) -> None:
        """Let those hear what follows who heard of `position` from the store before this process did."""
        for connection, until in tuple(self._behind.values()):
            if position == until:
                del self._behind[connection.id]
                self._add(connection)
            elif position.epoch != until.epoch or position.offset >= until.offset:
                connection.close(4441)  # the two disagree: resuming settles it
