"""The client without I/O: what the application wants and what the server says go in, frames and news come out."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from msgspec import Raw

from starlette_realtime.client.dialer import Dialer
from starlette_realtime.client.exchange import Exchange
from starlette_realtime.client.frames import encode, expect
from starlette_realtime.client.inbox import End, Inbox, News
from starlette_realtime.client.outbox import RETRIED, Done, Entry, Outbox
from starlette_realtime.client.ports import Port
from starlette_realtime.client.stay import Stay
from starlette_realtime.client.values import Closed, Reset, RoomState, UserChanged
from starlette_realtime.clock import Clock
from starlette_realtime.errors import NotJoined, RealtimeError, Refused
from starlette_realtime.messages import (
    NULL,
    Event,
    Joined,
    JoinedRoom,
    Left,
    Limits,
    Position,
    Presence,
    Roster,
    ServerEvent,
    Status,
    StoreAway,
    StoreBack,
)
from starlette_realtime.messages import Reset as ResetFrame

__all__ = ["Core"]

SINCE: Final = 100
"""Positions that the server takes with `auth`."""

SERVED: Final = 1_000
"""Rooms that the server may join this client to."""


class Core:
    """
    One client over any number of links.

    `tokens`: there is a token function to ask, and to ask again before a token expires. `queue` bounds what waits to be
    sent, `inbox` what waits to be read of each room. `backoff` is the seconds that a retry waits a random part of,
    doubled up to the second number.
    """

    def __init__(
        self,
        urls: Sequence[str],
        port: Port,
        *,
        clock: Clock,
        random: Callable[[], float],
        prefix: str,
        renews: bool,
        queue: int,
        inbox: int,
        timeout: float,
        backoff: tuple[float, float],
    ) -> None:
        self.rooms: dict[str, Stay] = {}
        self.inbox = Inbox(inbox)
        self.inbox.on_low = self._low
        self.timeout = timeout
        self.dialer = Dialer(urls, self, port, clock=clock, random=random, renews=renews, backoff=backoff)
        self._port = port
        self._prefix = prefix
        self._inbox = inbox
        self._outbox = Outbox(clock, limit=queue, link=lambda: self.dialer.live, pause=self.dialer.pause)
        self._keys = 0
        self._own: Stay | None = None  # the user's own room
        self._passed_over = False  # events of the connection itself found no space

    @property
    def pending(self) -> int:
        """How many commands wait to be sent or answered."""
        return len(self._outbox)

    # --- what the application wants ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and again whenever the connection breaks."""
        self.dialer.dial()

    def close(self) -> None:
        """Close for good."""
        self.dialer.finish(Closed(1000, "closed", "the application has closed the client"))

    def join(self, name: str, *, meta: Any = None, status: Status | None = None, since: Position | None = None) -> Stay:
        """Join a room, now or when there is a connection; the same stay until it is over, whatever the options."""
        known = self.rooms.get(name)
        if known is not None:
            return known
        encode({"meta": meta})  # what can't be sent is told here
        stay = self._stay(name, served=False, since=since)
        stay.meta, stay.status = meta, status
        if self.dialer.closed is not None:
            self._end(stay, "left", self.dialer.closed)
        elif self.dialer.live is not None:
            self._join(stay)
        return stay

    def leave(self, stay: Stay, done: Done) -> None:
        """Leave; what still waits to be sent there fails."""
        link = self.dialer.live
        present = self.rooms.get(stay.name) is stay
        if present:
            self._end(stay, "left", NotJoined("this room was left: join it again"), wanted=True)
        if present and link is not None:
            # Over is over: with the link, too.
            link.request(encode({"type": "leave", "room": stay.name}), lambda error, data: done(None, NULL))
        else:
            done(None, NULL)

    def send(
        self, stay: Stay | None, event: str, data: object, done: Done, *, key: str | None, timeout: float | None
    ) -> Entry:
        """Send an event with a key, over as many links as it takes."""
        self._keys += 1
        key = key or f"{self._prefix}-{self._keys}"
        room = None if stay is None else stay.name
        body = encode({"type": "event", "room": room, "event": event, "data": data, "key": key})
        return self.push(body, done, lane=stay or self, stay=stay, event=event, timeout=timeout)

    def push(
        self,
        body: str,
        done: Done,
        *,
        lane: object,
        stay: Stay | None = None,
        event: str | None = None,
        timeout: float | None = None,
    ) -> Entry:
        """Queue a command."""
        if self.dialer.closed is not None:
            raise self.dialer.closed.with_traceback(None)
        return self._outbox.push(body, done, lane=lane, gate=stay, event=event, timeout=timeout)

    def forget(self, entry: Entry) -> None:
        """Nobody waits for this any more."""
        self._outbox.forget(entry)

    def send_volatile(self, stay: Stay | None, event: str, data: object) -> bool:
        """Send now or never; whether it went out."""
        room = None if stay is None else stay.name
        body = encode({"type": "event", "room": room, "event": event, "data": data})
        link = self.dialer.live
        if link is None or (stay is not None and not stay.joined) or self._outbox.rest(event) > 0:
            return False
        return link.send(body, volatile=True)

    def set_status(self, stay: Stay, done: Done) -> Entry:
        """Tell what `stay.status` and `stay.meta` are now, instead of what waits to be told."""
        body = encode({"type": "status", "room": stay.name, "status": stay.status, "meta": stay.meta})
        self._outbox.supersede(stay.presence)
        return self.push(body, done, lane=stay.presence, stay=stay)

    # --- the dialer's side ------------------------------------------------------------------------------------------

    def since(self) -> Mapping[str, Position]:
        """How far the rooms were heard that the server joins."""
        served = ((stay.name, stay.since()) for stay in self.rooms.values() if stay.served)
        return dict(islice(((name, position) for name, position in served if position is not None), SINCE))

    def online(self, *, same_user: bool) -> None:
        """A link is through."""
        if not same_user:
            # What one user wrote isn't sent in the name of the next one.
            self._outbox.drop(UserChanged("another user signed in before this was sent"))
        for stay in tuple(self.rooms.values()):
            if not stay.served:
                self._join(stay)
        self.dialer.later(self.timeout, self._forsaken)
        self._outbox.pump()

    def offline(self) -> None:
        """The link is over."""
        self._outbox.unpace()
        for stay in self.rooms.values():
            stay.disconnected()

    def finished(self, closed: Closed) -> None:
        """No link follows."""
        wanted = closed.code == 1000
        self._outbox.close(closed)
        for stay in tuple(self.rooms.values()):
            self._end(stay, "left", closed, wanted=wanted)
        self.inbox.put(End(None if wanted else closed))

    def _forsaken(self) -> None:
        """Rooms that the server had joined this client to, and has not again."""
        for stay in tuple(self.rooms.values()):
            if stay.served and stay.state == "joining":
                self._end(stay, "left", NotJoined("the server has not joined this client to the room again"))

    # --- frames -----------------------------------------------------------------------------------------------------

    def frame(self, frame: ServerEvent, exchange: Exchange) -> None:
        """What the server says of its own accord."""
        stay = self.rooms.get(getattr(frame, "room", None) or "")
        match frame:
            case Event():
                self._event(frame, stay, exchange)
            case Presence() if stay is not None and stay.joined:
                stay.presence.diff(frame)
            case Joined() if stay is None or (stay.served and not stay.joined):
                self._served(frame, stay)
            case Left() if stay is not None and (stay.joined or stay.served):
                # What the server had joined and won't again is over, too.
                self._end(stay, "left", Refused(frame.code, f"the server removed this client: {frame.code}"))
            case ResetFrame() if stay is not None:
                stay.reset(frame)
            case StoreAway() | StoreBack() if frame.room is None or stay is not None:
                self._stale(stay, isinstance(frame, StoreAway))
            case Limits():
                self._outbox.pace(frame.event, frame.remaining, frame.retry_after)
                self._port.limits(frame)

    def _event(self, frame: Event, stay: Stay | None, exchange: Exchange) -> None:
        if frame.id is not None:
            question = frame.id

            def answer(data: Any, error: Refused | None) -> None:
                failure = None if error is None else {"code": error.code, "message": error.message}
                reply: Mapping[str, object] = {"type": "reply", "id": question}
                try:
                    exchange.send(encode({**reply, "data": data} if failure is None else {**reply, "error": failure}))
                except Refused as exc:
                    self._port.failed(exc)
                    exchange.send(encode({**reply, "error": {"code": "internal", "message": ""}}))

            self._port.question(stay, frame, answer)
        elif frame.room is not None:
            if stay is not None:
                stay.event(frame)
        elif self.inbox.full or self._passed_over:
            self._passed_over = True
        else:
            self.inbox.put(News(frame, False, memoryview(frame.data).nbytes))

    def _served(self, frame: Joined, known: Stay | None) -> None:
        if known is None and len(self.rooms) >= SERVED:
            self._port.failed(Refused("too_many_rooms", f"the server joined this client to over {SERVED} rooms"))
            return
        stay = known or self._stay(frame.room, served=True, since=None)
        self._enter(stay, frame)
        if known is None:
            self._port.served(stay)

    def _stale(self, stay: Stay | None, away: bool) -> None:
        for one in self.rooms.values() if stay is None else (stay,):
            one.stale = away
        self._port.stale(stay, away)

    # --- rooms ------------------------------------------------------------------------------------------------------

    def _stay(self, name: str, *, served: bool, since: Position | None) -> Stay:
        own = served and name.startswith("user:")
        inbox = self.inbox if own else Inbox(self._inbox)

        def ask(answered: Callable[[Roster | None], None]) -> None:
            def done(error: Exception | None, data: Raw) -> None:
                answered(expect(data, Roster) if error is None else None)

            try:
                self.push(encode({"type": "members", "room": name}), done, lane=object(), stay=stay)
            except RealtimeError:
                answered(None)

        stay = Stay(name, inbox, served=served, since=since, ask=ask, people_changed=lambda: self._port.people(stay))
        if own:
            self._own = stay
        else:
            inbox.on_low = lambda: self._catch_up(stay)
        self.rooms[name] = stay
        return stay

    def _join(self, stay: Stay, tries: int = 0, *, again: bool = False) -> None:
        link = self.dialer.live
        if link is None or self.rooms.get(stay.name) is not stay:
            return
        since = stay.position if again else stay.since()
        body = encode({"type": "join", "room": stay.name, "since": since, "meta": stay.meta, "status": stay.status})

        def answered(error: Exception | None, data: Raw) -> None:
            if link is not self.dialer.link or self.rooms.get(stay.name) is not stay:
                return
            if error is None:
                if again:
                    stay.behind = stay.catching_up = False
                self._enter(stay, expect(data, JoinedRoom))
            elif isinstance(error, Refused) and error.code in RETRIED:
                wait = self.dialer.pause(error, tries)
                self.dialer.later(wait, lambda: self._join(stay, tries + 1, again=again))
            elif again and stay.mirrored:
                # It goes on, so that its end would tell nobody: what was passed over is lost.
                stay.catching_up = False
                stay.caught_up()
            else:
                self._end(stay, "refused", error)

        try:
            link.request(body, answered)
        except Refused as exc:
            self._end(stay, "refused", exc)  # `meta` is too large

    def _enter(self, stay: Stay, data: JoinedRoom) -> None:
        stay.entered(data)
        self._port.changed(stay)
        self._outbox.pump()
        self._catch_up(stay)

    def _low(self) -> None:
        """There is space in the client's own inbox."""
        if self._passed_over:
            self._passed_over = False
            self.inbox.put(Reset(None, "lagged"))
        if self._own is not None:
            self._catch_up(self._own)

    def _catch_up(self, stay: Stay) -> None:
        """Fetch what was passed over while there was no space, by joining again where the reader is."""
        if not stay.behind or stay.catching_up or not stay.joined or not stay.inbox.low:
            return
        if stay.position is None:
            stay.caught_up()
            return
        stay.catching_up = True
        self._join(stay, again=True)

    def _end(self, stay: Stay, state: RoomState, error: Exception, *, wanted: bool = False) -> None:
        self.rooms.pop(stay.name, None)
        if stay is self._own:
            self._own = None
        stay.end(state, error, wanted=wanted)
        self._outbox.drop(error, stay)
        self._port.changed(stay)
