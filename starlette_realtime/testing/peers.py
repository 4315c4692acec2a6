"""Peers: WebSocket clients of any ASGI application, inside the test's own event loop, without threads or a network."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict

from starlette.datastructures import Headers
from starlette.websockets import WebSocketDisconnect

from starlette_realtime.testing.links import Link, Way
from starlette_realtime.testing.scopes import make_scope, request_headers
from starlette_realtime.testing.waiting import Changes
from starlette_realtime.types import ASGIApp, Frame, Message

__all__ = ["Closed", "Peer", "PeerOptions", "Rejected"]

_ACCEPTED, _CLOSE, _SEND = "websocket.accept", "websocket.close", "websocket.send"
_DENIAL_START, _DENIAL_BODY = "websocket.http.response.start", "websocket.http.response.body"


class Closed(Exception):
    """The WebSocket is closed: `code` and `reason` are the application's, or the peer's own where it left first."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Rejected(Exception):
    """The application refused the handshake with an HTTP `status` (403 where it just closed), `headers` and `body`."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.body = body


class PeerGone(OSError):
    """What the application's `send` raises when the peer has gone; like a server, a peer takes it back in silence."""


class PeerOptions(TypedDict, total=False):
    """The options of `Peer`, for those who pass them on."""

    headers: Iterable[tuple[str, str]]
    origin: str | None
    cookies: Mapping[str, str] | None
    subprotocols: Sequence[str]
    host: str | None
    root_path: str
    secure: bool
    client: tuple[str, int] | None
    denial: bool
    link: Link | None
    timeout: float
    backlog: int


class Peer:
    """
    One WebSocket client of an ASGI application (ASGI's WebSocket messages, version 2.5).

        async with Peer(app, "/realtime/ws", subprotocols=["starlette-realtime.v1.json"]) as peer:
            await peer.send({"type": "auth", "id": 1})
            assert (await peer.receive_json())["type"] == "welcome"

    The application runs as a task of the same event loop, so that a `FakeClock` governs both. Nothing here waits for
    longer than `timeout` seconds of real time: then it raises `TimeoutError` and says what did not happen.

    `path` is where the application is asked, with an optional query; `root_path` is its first part, where a server
    would say so. `origin`, `cookies` and `headers` go into the handshake, `headers` just as they are; `host` is the
    `Host`, and None leaves it out. `secure` makes it a `wss` connection. `client` is the peer's address.
    `denial=False` takes the extension away that lets an application refuse with an HTTP response of its own.
    `link` is what lies between, with its faults; by default one of its own, as `peer.link`.

    At most `backlog` frames wait in each direction: beyond that the sender waits, as TCP would have it. `arrived` is
    called with each frame as it comes, and keeps it out of that queue by returning True.
    """

    def __init__(
        self,
        app: ASGIApp,
        path: str = "/ws",
        *,
        headers: Iterable[tuple[str, str]] = (),
        origin: str | None = None,
        cookies: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
        host: str | None = "testserver",
        root_path: str = "",
        secure: bool = False,
        client: tuple[str, int] | None = ("127.0.0.1", 50_000),
        denial: bool = True,
        link: Link | None = None,
        timeout: float = 5.0,
        backlog: int = 4_096,
        arrived: Callable[[Frame], bool] | None = None,
    ) -> None:
        self.app = app
        self.backlog = backlog
        self.link = link if link is not None else Link()
        """What lies between this peer and the application."""
        self.scope = make_scope(
            "websocket",
            path,
            request_headers(headers, origin, cookies, host, subprotocols=subprotocols),
            root_path=root_path,
            secure=secure,
            client=client,
            asgi={"version": "3.0", "spec_version": "2.5"},
            subprotocols=list(subprotocols),
            extensions={"websocket.http.response": {}} if denial else {},
        )
        self.subprotocol: str | None = None
        """The subprotocol that the application chose."""
        self.accepted = False
        """Whether the application accepted the handshake."""
        self.closed: Closed | None = None
        """How the WebSocket ended: by the application, or by this peer; None while it is open."""
        self.task: asyncio.Task[None] | None = None
        """The application's call, to wait for, or to be cancelled as a server that stops would."""
        self.changes = Changes(timeout)
        """What wakes those who wait for this peer."""
        self.ways = self._there, self._back = Way(self.link), Way(self.link)
        self._arrived = arrived
        self._to_app: deque[Message] = deque()
        self._frames: deque[Frame] = deque()
        self._denial: Rejected | None = None
        self._connected = False  # or about to be
        self._answered = False  # the application accepted the handshake, or began to refuse it
        self._gone = False  # the application can't reach the peer any more
        self._lost = False  # the link was cut
        self._over = False  # the application's call has ended
        self._stalled = False

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()
        if len(self._there):  # the link does not let the farewell through: the test is over nevertheless
            self.lost()
        await self.ended()

    # --- the handshake ----------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """
        Open the WebSocket; raises `Rejected`, or what the application raised instead of answering, and a
        `ConnectionError` over a link that is cut.
        """
        if self._connected:
            raise RuntimeError("a peer connects once: make another one")
        self.link.carry(self)
        self._connected = True
        self._there.put(self._start)
        try:
            await self.changes.until(lambda: self.accepted or self.closed, "an answer to the handshake did not come")
        except TimeoutError:
            self.lost()
            raise
        if not self.accepted:
            await self.ended()
            if self._lost:
                raise ConnectionResetError("the link was cut during the handshake")
            raise self._denial or Rejected(403, Headers())

    # --- frames -----------------------------------------------------------------------------------------------------

    async def send(self, frame: Frame | Mapping[str, Any]) -> None:
        """Send a text or binary frame; a mapping is sent as JSON. Raises `Closed`."""
        data = frame if isinstance(frame, str | bytes) else json.dumps(frame)
        if self.closed is None:
            await self.changes.until(lambda: self.closed or not self.full, "the application's reading did not come")
        if self.closed is not None:
            raise self.closed
        self.push(data)

    @property
    def full(self) -> bool:
        """Whether the backlog towards the application is."""
        return len(self._to_app) + len(self._there) >= self.backlog

    def push(self, frame: Frame) -> None:
        """Send a frame without waiting for room in the backlog; on a closed connection it is lost."""
        message = {"type": "websocket.receive", "text" if isinstance(frame, str) else "bytes": frame}
        if self.closed is None:
            self._there.put(lambda: self._reach(message))

    async def receive(self, *, timeout: float | None = None) -> Frame:
        """
        The next frame, at most `timeout` seconds from now (the peer's own by default).

        Raises `Closed` when there is none left, and `TimeoutError`.
        """
        await self.changes.until(lambda: self._frames or self.closed, "a frame did not come", timeout)
        if self._frames:
            self.changes.wake()
            return self._frames.popleft()
        assert self.closed is not None
        raise self.closed

    async def receive_json(self, *, timeout: float | None = None) -> Any:
        """The next frame, read as JSON."""
        return json.loads(await self.receive(timeout=timeout))

    def waiting(self) -> list[Frame]:
        """Take all frames that are here already."""
        frames = list(self._frames)
        self._frames.clear()
        self.changes.wake()
        return frames

    # --- the end ----------------------------------------------------------------------------------------------------

    async def wait_closed(self, *, timeout: float | None = None) -> Closed:
        """Wait until the application closes; what it said before can still be received."""
        await self.changes.until(lambda: self.closed, "the application's close did not come", timeout)
        assert self.closed is not None
        return self.closed

    async def disconnect(self, code: int = 1000, reason: str = "") -> None:
        """Leave with a close frame, and wait for the application's call to end: what it raised is raised here."""
        self.leave(code, reason)
        await self.ended()

    async def lose(self) -> None:
        """Lose the connection without a close frame, as a cut cable that was noticed; then as `disconnect`."""
        await self.disconnect(1006)

    def leave(self, code: int = 1000, reason: str = "") -> None:
        """As `disconnect`, without waiting for the application."""
        if self.closed is None:
            self.closed = Closed(code, reason)
            message = _disconnect(self.closed)
            self._there.put(lambda: self._reach(message))
        self.changes.wake()

    def lost(self) -> None:
        """The link was cut: what was on its way is lost, and both ends notice (1006)."""
        self._lost = True
        for way in self.ways:
            way.clear()
        closed = Closed(1006)
        self._reach(_disconnect(closed))
        self._hear_close(closed)

    async def cancel(self) -> None:
        """Cancel the application's call, as a server does that stops, and wait for its end."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait((self.task,), timeout=self.changes.timeout)

    async def ended(self, *, timeout: float | None = None) -> None:
        """
        Wait until the application's call has ended; what it raised is raised here, other than a cancellation and,
        after the peer has gone, what tells it so.
        """
        task = self.task
        if task is None:
            return
        await self.changes.until(lambda: self._over, "the application's call did not end", timeout)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    # --- troubles ---------------------------------------------------------------------------------------------------

    def stall(self) -> None:
        """Read nothing more: the application's next `send` waits, until `flow` or the end of its call."""
        self._stalled = True

    def flow(self) -> None:
        """Read again."""
        self._stalled = False
        self.changes.wake()

    # --- the application's side -------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._reach({"type": "websocket.connect"})
        self.task = asyncio.get_running_loop().create_task(self._run())
        self.task.add_done_callback(self._ended)

    async def _run(self) -> None:
        try:
            await self.app(self.scope, self._receive, self._send)
        except (WebSocketDisconnect, PeerGone):
            if not self._gone:
                raise

    async def _receive(self) -> Message:
        while not self._to_app:
            await self.changes.change()
        message = self._to_app.popleft()
        self.changes.wake()
        return message

    async def _send(self, message: Message) -> None:
        while not self._gone and (self._stalled or len(self._frames) + len(self._back) >= self.backlog):
            await self.changes.change()
        if self._gone:
            raise PeerGone("the peer has gone")
        kind = message["type"]
        if kind == _ACCEPTED and not self._answered:
            self._answered = True
            subprotocol = message.get("subprotocol")
            self._back.put(lambda: self._accept(subprotocol))
        elif kind == _SEND and self._answered and self._denial is None:
            text = message.get("text")
            frame: Frame = text if text is not None else message["bytes"]
            self._back.put(lambda: self._hear(frame))
        elif kind == _CLOSE and self._denial is None:
            self._close(Closed(message.get("code") or 1000, message.get("reason") or ""))
        elif kind == _DENIAL_START and not self._answered and "websocket.http.response" in self.scope["extensions"]:
            self._answered = True
            self._denial = Rejected(message["status"], Headers(raw=list(message.get("headers", ()))))
        elif kind == _DENIAL_BODY and self._denial is not None:
            self._denial.body += message.get("body", b"")
            if not message.get("more_body"):
                self._close(Closed(1006))
        else:
            raise RuntimeError(f"{kind} is not allowed now")

    def _close(self, closed: Closed) -> None:
        """The application has closed: it can say nothing more, and is told so itself."""
        self._to_app.clear()
        self._reach(_disconnect(closed))
        self._back.put(lambda: self._hear_close(closed))

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._over = self._gone = True
        if self.closed is None:
            self._back.put(lambda: self._hear_close(Closed(1006)))
        self._release()
        self.changes.wake()
        if not task.cancelled():
            task.exception()  # `ended` raises it; nobody has to ask

    # --- what arrives -----------------------------------------------------------------------------------------------

    def _reach(self, message: Message) -> None:
        """Something arrives at the application."""
        if self._gone:
            return
        self._gone = message["type"] == "websocket.disconnect"
        self._to_app.append(message)
        self.changes.wake()

    def _accept(self, subprotocol: str | None) -> None:
        self.accepted = True
        self.subprotocol = subprotocol
        self.changes.wake()

    def _hear(self, frame: Frame) -> None:
        if self.closed is None and not (self._arrived is not None and self._arrived(frame)):
            self._frames.append(frame)
        self.changes.wake()

    def _hear_close(self, closed: Closed) -> None:
        if self.closed is None:
            self.closed = closed
        self._release()
        self.changes.wake()

    def _release(self) -> None:
        """Let go of the link once both ends are through with it."""
        if self.closed is not None and (self.task is None or self._over):
            for way in self.ways:
                way.clear()
            self.link.drop(self)


def _disconnect(closed: Closed) -> Message:
    return {"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason}
