"""A client of the native protocol for tests: commands by their names, and what came in the order in which it came."""

import itertools
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

import msgspec

from starlette_realtime.errors import Refused
from starlette_realtime.messages import Position, Status
from starlette_realtime.testing.clock import settle
from starlette_realtime.testing.links import Link
from starlette_realtime.testing.peers import Closed, Peer, PeerOptions
from starlette_realtime.testing.rooms import ClientRoom, Received, brief, matches, read_event
from starlette_realtime.types import ASGIApp, Frame

__all__ = ["Client"]

SUBPROTOCOL: Final = "starlette-realtime.v1.json"

SHOWN: Final = 8
"""How many frames a complaint names."""

F = TypeVar("F", bound=Callable[..., Any])


class Client:
    """
    One client of a mounted `Realtime`, connected and authenticated for the length of a block.

        async with Client(app, "/realtime", token=tokens.issue("ann")) as ann:
            room = await ann.join("chat:1")
            await room.send("message", {"text": "hello"})
            assert (await room.event("message")).data["text"] == "hello"

    It hides nothing: what comes is kept in order until it is asked for, and nothing is repeated, retried or answered by
    itself, but for pings, which are answered as long as the peer reads.

    `mount` is where the `Realtime` is: "" where it is `app` itself. `token` goes into the first frame; None: the
    credentials came with the handshake, or there are none. `auth=False` leaves the first frame to the test. `session`
    continues an earlier client's. The other options are those of `Peer`: `origin`, `cookies`, `link`, `timeout` …
    Every method that waits raises `TimeoutError` after `timeout` seconds of real time, and `Closed`.
    """

    def __init__(
        self,
        app: ASGIApp,
        mount: str = "/realtime",
        *,
        token: str | None = None,
        auth: bool = True,
        session: str | None = None,
        **options: Unpack[PeerOptions],
    ) -> None:
        self.app = app
        self.mount = mount
        self.token = token
        self.session = session
        """What continues this client over connections; the server gives it out with `auth`."""
        self.user: str | None = None
        """Who the server says that this is."""
        self.id = ""
        """The connection's public id."""
        self.rooms: dict[str, ClientRoom] = {}
        """The rooms that it is in, by name, those that the server joined included."""
        self._authenticates = auth
        self._options = options
        self._unread: deque[dict[str, Any]] = deque()
        self._handlers: dict[str, Callable[[Any], object]] = {}
        self._joining: dict[int, str] = {}
        self._numbers = itertools.count(1)
        self._left: list[Peer] = []  # dropped, where the application may not know it yet
        self.peer = self._peer()
        """The connection itself: `peer.link`, `peer.stall()`, frames that the protocol does not allow …"""

    # --- coming and going -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for peer in (*self._left, self.peer):
            await peer.__aexit__(kind, error, traceback)

    async def connect(self) -> Self:
        """Connect and authenticate; raises `Rejected`, `Refused`, or `Closed`."""
        await self.peer.connect()
        self.id = (await self.expect("welcome"))["connection"]
        if self._authenticates:
            await self.auth(self.token)
        return self

    async def auth(self, token: str | None = None) -> Mapping[str, Any]:
        """Authenticate, or renew the credentials; raises `Refused`."""
        since = {name: room.position for name, room in self.rooms.items() if room.served}
        data = await self.call("auth", token=token, session=self.session, since=since)
        self.session, self.user = data["session"], data["user"]
        return dict(data)

    async def close(self) -> None:
        """Leave with a close frame, and wait until the application has let go."""
        await self.peer.disconnect()

    async def drop(self) -> None:
        """
        Lose the connection without a close frame. The application notices, unless the link holds it back: then it is
        for its heartbeat to find out. What came before can still be read.
        """
        self.peer.leave(1006)
        await settle()
        if self.peer.accepted and self.peer.task is not None and self.peer.task.done():
            await self.peer.ended()

    async def resume(self, app: ASGIApp | None = None, *, token: str | None = None, link: Link | None = None) -> Self:
        """
        Come back with the session and the positions, as real clients do: to another process where `app` is one, with a
        new `token`, over another `link`, or to and with what it had.

        What was missed is there as if it had come live, with `recovered`; where the server says that events are lost,
        there is a `reset`. Each room's `recovered` says which. Raises as `connect` and `join`.
        """
        await self.drop()
        self._left = [peer for peer in (*self._left, self.peer) if peer.task is not None and not peer.task.done()]
        self._refill()
        if app is not None:
            self.app = app
        if token is not None:
            self.token = token
        if link is not None:
            self._options["link"] = link
        again = [room for room in self.rooms.values() if not room.served]
        self._joining.clear()
        self.peer = self._peer()
        await self.connect()
        for room in again:
            await self.join(room.name, since=room.position, meta=room.meta, status=room.status)
        return self

    @property
    def closed(self) -> Closed | None:
        """How the connection ended; None while it is open."""
        return self.peer.closed

    async def wait_closed(self) -> Closed:
        """Wait until the application closes."""
        return await self.peer.wait_closed()

    # --- talking ----------------------------------------------------------------------------------------------------

    async def join(
        self, room: str, *, since: Position | None = None, meta: object = None, status: Status | None = None
    ) -> ClientRoom:
        """Join a room; raises `Refused`, also where the server let it in and removed it before this could return."""
        number = next(self._numbers)
        self._joining[number] = room
        await self.command("join", number=number, room=room, since=since, meta=meta, status=status)
        await self.answer(number)
        joined = self.rooms.get(room)
        if joined is None:
            raise Refused("not_joined", f"the server removed the client from {room} while it joined")
        joined.meta, joined.status = meta, status
        return joined

    async def send(self, event: str, data: object = None, *, room: str | None = None, key: str | None = None) -> Any:
        """
        Send an event to a room, or without one to the connection's own handlers, and wait for the acknowledgement.

        Gives what the handler returned; raises `Refused`.
        """
        number = await self.command("event", event=event, data=data, room=room, key=key)
        return await self.answer(number, what=f"the acknowledgement of {event!r}")

    async def call(self, kind: str, **fields: Any) -> Any:
        """Send a command by its `type` and fields, without those that are None, and wait for the reply's data."""
        return await self.answer(await self.command(kind, **fields), what=f"the reply to {kind!r}")

    async def command(self, kind: str, *, number: int | None = None, **fields: Any) -> int:
        """Send a command and don't wait for its reply: `answer(id)` does, with the id that this gives."""
        number = next(self._numbers) if number is None else number
        given = {name: msgspec.to_builtins(value) for name, value in fields.items() if value is not None}
        await self.peer.send({"type": kind, "id": number, **given})
        return number

    async def answer(self, number: int, *, what: str = "a reply") -> Any:
        """Wait for the reply to that command; its data, or raises `Refused`."""
        reply = await self._next(lambda frame: matches(frame, "reply", id=number), what)
        if "error" in reply:
            error = reply["error"]
            raise Refused(
                error["code"], error.get("message"), retry_after=error.get("retry_after"), fields=error.get("fields")
            )
        return reply["data"]

    # --- hearing ----------------------------------------------------------------------------------------------------

    async def event(self, name: str | None = None, *, room: str | None = None) -> Received:
        """The next unread event, of that name and in that room where they are given; others stay unread."""
        where = f" in {room}" if room is not None else ""
        return read_event(
            await self._next(
                lambda frame: (
                    frame["type"] == "event"
                    and name in (None, frame["event"])
                    and room in (None, frame.get("room"))
                    and ("id" not in frame or name is not None)
                ),
                f"the event {name!r}{where}" if name is not None else f"an event{where}",
            )
        )

    async def expect(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next unread frame of that `type` and with these fields, as it is on the wire; others stay unread."""
        what = f"a frame {kind!r}" + (f" with {fields}" if fields else "")
        return await self._next(lambda frame: matches(frame, kind, **fields), what)

    async def nothing(self, *names: str, room: str | None = None) -> None:
        """
        Let the application come to rest, and raise `AssertionError` if there is an unread event of these names.

        Without names, no event, `reset`, `left` or `error` may be there. What waits for a clock, a thread or a socket
        has not happened yet: move the clock first.
        """
        await settle()
        found = [
            frame
            for frame in self._inbox()
            if (frame["type"] == "event" if names else frame["type"] in ("event", "reset", "left", "error"))
            and (not names or frame["event"] in names)
            and room in (None, frame.get("room"))
        ]
        if found:
            raise AssertionError(f"nothing was to come, but there is {_listed(found)}")

    def take(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Take the unread frames that are here already, of one `type` or all."""
        found = [frame for frame in self._inbox() if kind in (None, frame["type"])]
        kept = [frame for frame in self._unread if kind not in (None, frame["type"])]
        self._unread = deque(kept)
        return found

    # --- answering --------------------------------------------------------------------------------------------------

    def on(self, event: str) -> Callable[[F], F]:
        """Answer the server's requests of that name by what a plain function makes of the data, or by its `Refused`."""

        def bind(fn: F) -> F:
            self._handlers[event] = fn
            return fn

        return bind

    async def reply(self, request: Received, data: object = None) -> None:
        """Answer a request that `event(name)` gave."""
        await self.peer.send({"type": "reply", "id": request.id, "data": data})

    async def refuse(self, request: Received, code: str, message: str = "") -> None:
        """Answer a request by an error."""
        await self.peer.send({"type": "reply", "id": request.id, "error": {"code": code, "message": message}})

    # --- what comes -------------------------------------------------------------------------------------------------

    def _peer(self) -> Peer:
        options: PeerOptions = {"subprotocols": [SUBPROTOCOL], **self._options}
        peer = Peer(self.app, f"{self.mount}/ws", arrived=self._arrived, **options)
        peer.changes.instead = lambda: _listed(self._unread)
        return peer

    def _arrived(self, text: Frame) -> bool:
        """Take a frame as it comes; False leaves it to the peer, which makes the application wait in the end."""
        if len(self._unread) >= self.peer.backlog:
            return False
        self._note(json.loads(text))
        return True

    def _note(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind == "ping":
            self.peer.push('{"type":"pong"}')
            return
        if kind == "event" and "id" in frame and frame["event"] in self._handlers:
            self._answer_request(frame)
            return
        self._unread.append(frame)
        if kind == "reply":
            name = self._joining.pop(frame["id"], None)
            if name is not None and "data" in frame:
                self._enter(name, frame["data"], served=False)
        elif kind == "joined":
            self._enter(frame["room"], frame, served=True)
        elif kind == "left":
            self.rooms.pop(frame["room"], None)
        elif "room" in frame and frame["room"] in self.rooms and frame.get("position") is not None:
            self.rooms[frame["room"]].position = msgspec.convert(frame["position"], Position)

    def _enter(self, name: str, joined: Mapping[str, Any], *, served: bool) -> None:
        """Note where a room is, and what was missed of it."""
        before = self.rooms.get(name)
        position = joined.get("position")
        room = before or ClientRoom(self, name, served=served)
        room.recovered, room.reason = bool(joined.get("recovered")), joined.get("reason") or ""
        room.roster = joined.get("members")
        room.position = None if position is None else msgspec.convert(position, Position)
        self.rooms[name] = room
        if before is not None and not room.recovered:
            self._unread.append({"type": "reset", "room": name, "reason": room.reason, "position": position})
        for event in joined.get("events") or ():
            self._unread.append({"type": "event", "room": name, **event, "recovered": True})

    def _answer_request(self, frame: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"type": "reply", "id": frame["id"]}
        try:
            answer["data"] = self._handlers[frame["event"]](frame.get("data"))
        except Refused as refused:
            answer["error"] = {"code": refused.code, "message": refused.message}
        self.peer.push(json.dumps(answer))

    def _refill(self) -> None:
        """Take over what the peer kept while there was no room."""
        for text in self.peer.waiting():
            self._note(json.loads(text))

    def _inbox(self) -> Sequence[dict[str, Any]]:
        if len(self._unread) < self.peer.backlog:
            self._refill()
        return tuple(self._unread)

    async def _next(self, match: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        found: dict[str, Any] | None = None

        def look() -> bool:
            nonlocal found
            found = next(filter(match, self._inbox()), None)
            return found is not None or self.peer.closed is not None

        await self.peer.changes.until(look, f"{what} did not come")
        if found is None:
            assert self.peer.closed is not None
            raise self.peer.closed
        self._unread.remove(found)
        return found


def _listed(frames: Sequence[Mapping[str, Any]] | deque[dict[str, Any]]) -> str:
    """The last frames, in few words."""
    last = [brief(frame) for frame in itertools.islice(reversed(frames), SHOWN)]
    more = f"… {len(frames) - SHOWN} more, " if len(frames) > SHOWN else ""
    return more + ", ".join(reversed(last))
