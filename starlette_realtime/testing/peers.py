"""Peers: WebSocket clients of any ASGI application, inside the test's own event loop, without threads or a network."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

from starlette_realtime.types import ASGIApp, Frame, Message, Scope

__all__ = ["Closed", "Peer", "Rejected"]

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

    At most `backlog` frames wait in each direction: beyond that the sender waits, as TCP would have it.
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
        timeout: float = 5.0,
        backlog: int = 4_096,
    ) -> None:
        self.app = app
        self.timeout = timeout
        self.backlog = backlog
        self.scope = _scope(
            path,
            _headers(headers, origin, cookies, subprotocols, host),
            subprotocols,
            root_path=root_path,
            secure=secure,
            client=client,
            denial=denial,
        )
        self.subprotocol: str | None = None
        """The subprotocol that the application chose."""
        self.accepted = False
        """Whether the application accepted the handshake."""
        self.closed: Closed | None = None
        """How the WebSocket ended: by the application, or by this peer; None while it is open."""
        self.task: asyncio.Task[None] | None = None
        """The application's call, to wait for, or to be cancelled as a server that stops would."""
        self._to_app: deque[Message] = deque()
        self._from_app: deque[Frame] = deque()
        self._denial: Rejected | None = None
        self._gone = False  # the application can't reach the peer any more
        self._stalled = False
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

    # --- the handshake ----------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the WebSocket; raises `Rejected`, or what the application raised instead of answering."""
        if self.task is not None:
            raise RuntimeError("a peer connects once: make another one")
        self._to_app.append({"type": "websocket.connect"})
        self.task = asyncio.get_running_loop().create_task(self._run())
        self.task.add_done_callback(self._ended)
        await self._until(lambda: self.accepted or self.closed or self._ending(), "an answer to the handshake")
        if self._denial is not None:
            await self.ended()
            raise self._denial
        if not self.accepted:
            await self.ended()
            raise Rejected(403, {})

    # --- frames -----------------------------------------------------------------------------------------------------

    async def send(self, frame: Frame | Mapping[str, Any]) -> None:
        """Send a text or binary frame; a mapping is sent as JSON. Raises `Closed`."""
        data = frame if isinstance(frame, str | bytes) else json.dumps(frame)
        if self.closed is None:
            await self._until(lambda: self.closed or len(self._to_app) < self.backlog, "the application's reading")
        if self.closed is not None:
            raise self.closed
        self._to_app.append({"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data})
        self._wake()

    async def receive(self, *, timeout: float | None = None) -> Frame:
        """
        The next frame, at most `timeout` seconds from now (the peer's own by default).

        Raises `Closed` when there is none left, and `TimeoutError`.
        """
        await self._until(lambda: self._from_app or self.closed or self._ending(), "a frame", timeout)
        if self._from_app:
            self._wake()
            return self._from_app.popleft()
        raise self.closed or Closed(1006)

    async def receive_json(self, *, timeout: float | None = None) -> Any:
        """The next frame, read as JSON."""
        return json.loads(await self.receive(timeout=timeout))

    def waiting(self) -> list[Frame]:
        """Take all frames that are here already."""
        frames = list(self._from_app)
        self._from_app.clear()
        self._wake()
        return frames

    # --- the end ----------------------------------------------------------------------------------------------------

    async def wait_closed(self, *, timeout: float | None = None) -> Closed:
        """Wait until the application closes; what it said before can still be received."""
        await self._until(lambda: self.closed or self._ending(), "the application's close", timeout)
        return self.closed or Closed(1006)

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
        if not self._gone:
            self._gone = True
            self._to_app.append(
                {"type": "websocket.disconnect", "code": self.closed.code, "reason": self.closed.reason}
            )
        self._wake()

    async def cancel(self) -> None:
        """Cancel the application's call, as a server does that stops, and wait for its end."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait((self.task,), timeout=self.timeout)

    async def ended(self, *, timeout: float | None = None) -> None:
        """Wait until the application's call has ended; what it raised, other than a cancellation, is raised here."""
        if self.task is None:
            return
        limit = self.timeout if timeout is None else timeout
        done, _ = await asyncio.wait((self.task,), timeout=limit)
        if not done:
            raise TimeoutError(f"the application's call did not end within {limit} s")
        if not self.task.cancelled() and (error := self.task.exception()) is not None:
            raise error

    # --- troubles ---------------------------------------------------------------------------------------------------

    def stall(self) -> None:
        """Read nothing more: the application's next `send` waits, until `flow` or the end of its call."""
        self._stalled = True

    def flow(self) -> None:
        """Read again."""
        self._stalled = False
        self._wake()

    # --- the application's side -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await self.app(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        while not self._to_app:
            await self._change()
        message = self._to_app.popleft()
        self._wake()
        return message

    async def _send(self, message: Message) -> None:
        while not self._gone and (self._stalled or len(self._from_app) >= self.backlog):
            await self._change()
        if self._gone:
            raise OSError("the peer has gone")
        kind = message["type"]
        if kind == _ACCEPTED and not self.accepted:
            self.accepted = True
            self.subprotocol = message.get("subprotocol")
        elif kind == _SEND and self.accepted:
            text = message.get("text")
            self._from_app.append(text if text is not None else message["bytes"])
        elif kind == _CLOSE:
            self._close(Closed(message.get("code") or 1000, message.get("reason") or ""))
        elif kind == _DENIAL_START and not self.accepted and "websocket.http.response" in self.scope["extensions"]:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message.get("headers", ())}
            self._denial = Rejected(message["status"], headers)
        elif kind == _DENIAL_BODY and self._denial is not None:
            self._denial.body += message.get("body", b"")
            if not message.get("more_body"):
                self._close(Closed(1006))
        else:
            raise RuntimeError(f"{kind} is not allowed now")
        self._wake()

    def _close(self, closed: Closed) -> None:
        self.closed = closed
        self._gone = True
        self._to_app.clear()
        self._to_app.append(_disconnect(closed))

    def _ending(self) -> bool:
        return self.task is None or self.task.done()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if self.closed is None:
            self.closed = Closed(1006)
        self._gone = True
        self._wake()
        if not task.cancelled():
            task.exception()  # `ended` raises it; nobody has to ask

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _change(self) -> None:
        await self._changed.wait()

    async def _until(self, condition: Callable[[], object], what: str, timeout: float | None = None) -> None:
        if condition():
            return
        limit = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                while not condition():
                    await self._change()
        except TimeoutError:
            raise TimeoutError(f"{what} did not come within {limit} s") from None


def _disconnect(closed: Closed) -> Message:
    return {"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason}


def _scope(
    path: str,
    headers: list[tuple[bytes, bytes]],
    subprotocols: Sequence[str],
    *,
    root_path: str,
    secure: bool,
    client: tuple[str, int] | None,
    denial: bool,
) -> Scope:
    path, _, query = path.partition("?")
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "scheme": "wss" if secure else "ws",
        "path": unquote(path),
        "raw_path": quote(path, safe="/%:@!$&'()*+,;=~").encode(),
        "query_string": query.encode(),
        "root_path": root_path,
        "headers": headers,
        "client": client,
        "server": ("testserver", 443 if secure else 80),
        "subprotocols": list(subprotocols),
        "state": {},
        "extensions": {"websocket.http.response": {}} if denial else {},
    }


def _headers(
    headers: Iterable[tuple[str, str]],
    origin: str | None,
    cookies: Mapping[str, str] | None,
    subprotocols: Sequence[str],
    host: str | None,
) -> list[tuple[bytes, bytes]]:
    found = [(name.lower(), value) for name, value in headers]
    if host is not None:
        found.insert(0, ("host", host))
    if origin is not None:
        found.append(("origin", origin))
    if cookies:
        found.append(("cookie", "; ".join(f"{name}={value}" for name, value in cookies.items())))
    if subprotocols:
        found.append(("sec-websocket-protocol", ", ".join(subprotocols)))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in found]
