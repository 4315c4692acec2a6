"""Connection: one client session, from its welcome to its last frame."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar, overload

from msgspec import Raw

from starlette_realtime.asgi import close_reason, milliseconds
from starlette_realtime.clock import Clock, Timer
from starlette_realtime.connection.lanes import Lanes
from starlette_realtime.connection.outbox import Outbox
from starlette_realtime.counters import Counters
from starlette_realtime.errors import (
    CLOSE_CODES,
    ConfigurationError,
    ConnectionClosed,
    Declined,
    Refused,
    Unavailable,
)
from starlette_realtime.messages import Answer, Error, Event, Identity, Position, ServerEvent
from starlette_realtime.patterns import check_event
from starlette_realtime.protocols.base import WireProtocol
from starlette_realtime.types import Frame, Scope

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ConnectionOptions:
    """The bounds of one connection. Durations are seconds, sizes are bytes."""

    heartbeat: float = 25.0
    """Silence after which the server sends `ping`."""
    grace: float = 10.0
    """How long after a `ping` a sign of life may take."""
    auth_timeout: float = 5.0
    """How long a client may take for its first `auth`."""
    message_bytes: int = 64 * 1024
    """The largest message from a client."""
    outbox_bytes: int = 1024 * 1024
    """What may wait for a client, in bytes; a recovery doesn't count."""
    outbox_entries: int = 1024
    """What may wait for a client, in messages."""
    send_timeout: float = 10.0
    """How long one write may take, for each 64 KiB."""
    inbox: int = 32
    """Commands that are held, running ones included."""
    requests: int = 16
    """Requests to the client that are open at once."""
    request_timeout: float = 10.0
    """How long a client may take to answer one."""
    handler_grace: float = 10.0
    """How long a running handler has after the connection's end."""
    rooms: int = 100
    """Rooms that a client may be in; the server's own joins don't count."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ConfigurationError(f"{name} is positive, not {value!r}")

    @property
    def largest(self) -> int:
        """The largest event or reply for one client, in bytes: over it, the client would seem to lag behind."""
        return self.outbox_bytes // 2


class Service(Protocol):
    """What a connection asks of the layer above it."""

    def encode(self, value: object) -> Raw:
        """Encode what the application sends."""
        ...

    def decode(self, raw: Raw, kind: Any) -> Any:
        """Validate what the client answered."""
        ...

    async def join(self, connection: "Connection", room: str, *, meta: object = None) -> None:
        """Join the connection to a room, on the server's behalf."""
        ...

    async def leave(self, connection: "Connection", room: str, *, code: str = "forbidden") -> None:
        """Remove the connection from a room."""
        ...


class Connection:
    """
    One client session.

    Handlers get it by annotation, or as `member.connection`.

    Attributes:
        id (str): Its public id, which others in a room see, and which `send_to` and `kick` take.
        identity (Identity | None): Who it is; None before `auth`. A refresh brings another one, of the same user.
        session (str): The continuity over reconnects, the same when this client comes back. A secret of the client's.
        state (dict[str, Any]): The application's own: whatever it keeps as long as this connection lasts.
        scope (Scope): The ASGI scope of the handshake: headers, client, path.
    """

    def __init__(
        self,
        *,
        protocol: WireProtocol,
        scope: Scope,
        service: Service,
        clock: Clock,
        options: ConnectionOptions,
        identity: Identity | None = None,
        authenticated: float | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.id = secrets.token_urlsafe(12)
        self.protocol = protocol
        self.scope = scope
        self.clock = clock
        self.options = options
        self.presented = identity
        self.identity: Identity | None = None
        self.session = ""
        self.state: dict[str, Any] = {}
        self.rooms: dict[str, Any] = {}
        self.since: Mapping[str, Position] = {}
        self.timers: dict[str, Timer] = {}
        self.buckets: dict[object, Any] = {}
        self.told: dict[object, float] = {}
        self.opened = clock.time()
        self.heard = clock.now()
        self.pinged = float("-inf")
        self.paused = False
        self.close_code: int | None = None
        self.close_reason = ""
        self.clean = False
        self.replaced = False
        self.welcomed = False
        self.renewed = clock.now()
        self.authenticated = authenticated if authenticated is not None else clock.time()
        self.asked = False
        self.admitted = False
        self.admitted_user: str | None = None
        self.gone = False
        self.aborted: Callable[[], object] | None = None
        self.recovering = asyncio.Lock()
        self.lanes = Lanes(options.inbox)
        self.outbox = Outbox(
            clock=clock,
            max_bytes=options.outbox_bytes,
            max_entries=options.outbox_entries,
            timeout=options.send_timeout,
            overflow=lambda: self.close(4440, discard=True),
            stuck=self.abort,
            counters=counters,
        )
        self.put = self.outbox.put
        self.offer = self.outbox.offer
        self._service = service
        self._requests: dict[int, asyncio.Future[Answer]] = {}
        self._last_request = 0

    def __repr__(self) -> str:
        return f"<Connection {self.id}>"

    @property
    def user(self) -> str | None:
        """The authenticated user; None for an anonymous one."""
        return self.identity.user if self.identity is not None else None

    @property
    def who(self) -> str:
        """What connections are counted by and whose keys count: the user, or an anonymous peer's session."""
        return f"u:{self.user}" if self.user is not None else f"s:{self.session}"

    @property
    def closed(self) -> bool:
        """Whether the connection has ended or is about to."""
        return self.gone or self.close_code is not None

    @property
    def requests(self) -> int:
        """How many requests to the client are open."""
        return len(self._requests)

    # --- for applications -------------------------------------------------------------------------------------------

    async def send(self, event: str, data: object = None) -> None:
        """Send an event to this connection alone: no position, no history. Nothing happens after its end."""
        self.push(Event(check_event(event), self.fitting(data)))

    @overload
    async def request(self, event: str, data: object = None, *, timeout: float | None = None) -> Any: ...

    @overload
    async def request(
        self, event: str, data: object = None, *, returns: type[T], timeout: float | None = None
    ) -> T: ...

    async def request(
        self, event: str, data: object = None, *, returns: Any = Any, timeout: float | None = None
    ) -> Any:
        """
        Ask the client and wait for its answer, at most `timeout` seconds (10 by default), validated as `returns`.

        Raises `Declined` with the client's error; `Refused` with `timeout` or `invalid_payload`; `Unavailable` when 16
        requests are open already; `ConnectionClosed`.
        """
        return await self.ask(event, data, room=None, returns=returns, timeout=timeout)

    async def join(self, room: str, *, meta: object = None) -> None:
        """
        Join this connection to a declared room, on the server's behalf: `authorize` is not asked.

        The client hears `joined`. Raises `UnknownRoom`, `Unavailable`, `ConnectionClosed`.
        """
        await self._service.join(self, room, meta=meta)

    async def leave(self, room: str, *, code: str = "forbidden") -> None:
        """Remove this connection from a room; the client hears `left` with `code`."""
        await self._service.leave(self, room, code=code)

    def close(
        self,
        code: int = 4403,
        *,
        error: str | None = None,
        message: str = "",
        retry_after: float | None = None,
        discard: bool = False,
    ) -> None:
        """
        End the connection with a close code of the table; the first call counts.

        The client gets an `error` event with `error` (the close code's name by default), `message` and `retry_after`
        (seconds) before. What waits is written first, unless `discard`.
        """
        row = CLOSE_CODES.get(code)
        if row is None:
            raise ConfigurationError(f"{code} is no close code: see starlette_realtime.CLOSE_CODES")
        if self.closed:
            return
        name = error or row.name
        if retry_after is not None:
            retry_after = milliseconds(retry_after)
        reason = close_reason(name, retry_after)
        frames = self.protocol.send(Error(name, message or row.meaning, retry_after))
        self.close_code, self.close_reason = code, reason
        self.outbox.finish(frames, discard=discard)
        # A peer that neither reads nor closes must not hold on to its connection.
        self.timers["closing"] = self.clock.call_later(self.options.send_timeout, self.abort)

    # --- for the kit ------------------------------------------------------------------------------------------------

    def encode(self, value: object) -> Raw:
        """Encode what the application sends; raises `TypeError` or `ValueError` for what can't be sent."""
        return self._service.encode(value)

    def fitting(self, value: object) -> Raw:
        """`encode`, and raise `Refused` (`too_large`) for more than a client may be sent at once."""
        raw = self.encode(value)
        if len(bytes(raw)) > self.options.largest:
            raise Refused("too_large", f"an event may have {self.options.largest} bytes")
        return raw

    def push(self, event: ServerEvent) -> None:
        """Queue one event for this connection."""
        frames = self.protocol.send(event)
        self.outbox.put(frames, size_of(frames))

    def abort(self) -> None:
        """Drop the connection without a word."""
        if self.close_code is None:
            self.close_code = 4440
        self.outbox.close()
        if self.aborted is not None:
            self.aborted()

    async def ask(self, event: str, data: object, *, room: str | None, returns: Any, timeout: float | None) -> Any:
        """`request`, in a room or without."""
        if self.closed:
            raise ConnectionClosed(self.close_code or 1006, self.close_reason)
        if len(self._requests) >= self.options.requests:
            raise Unavailable("too many requests to this client are open")
        raw = self.fitting(data)
        check_event(event)
        self._last_request = number = self._last_request + 1
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._requests[number] = future
        self.lanes.poke()
        limit = self.options.request_timeout if timeout is None else timeout
        timer = self.clock.call_later(limit, _expire, future)
        try:
            self.push(Event(event, raw, room, id=number))
            answer = await future
        finally:
            timer.cancel()
            self._requests.pop(number, None)
        if answer.error is not None:
            error = answer.error
            raise Declined(Refused(error.code, error.message, retry_after=error.retry_after, fields=error.fields))
        return self._service.decode(answer.data, returns)

    def answered(self, answer: Answer) -> bool:
        """Take a client's answer; one that nobody waits for is dropped: False."""
        future = self._requests.get(answer.id or 0)
        if future is None or future.done():
            return False
        future.set_result(answer)
        return True

    def set_timer(self, name: str, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Start or restart one of this connection's timers."""
        self.cancel_timer(name)
        self.timers[name] = self.clock.call_later(delay, callback, *args)

    def cancel_timer(self, name: str) -> None:
        """Stop one of this connection's timers."""
        timer = self.timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def end(self, *, code: int, clean: bool) -> None:
        """The transport is gone: nothing can be sent any more, and who waits for an answer is told."""
        self.gone = True
        self.clean = clean
        if self.close_code is None:
            self.close_code = code
        for name in list(self.timers):
            self.cancel_timer(name)
        self.outbox.close()
        self.lanes.close()
        for future in self._requests.values():
            if not future.done():
                future.set_exception(ConnectionClosed(self.close_code, self.close_reason))


def size_of(frames: tuple[Frame, ...]) -> int:
    """The size of frames in bytes, as they are on the wire."""
    total = 0
    for frame in frames:
        if isinstance(frame, bytes) or frame.isascii():
            total += len(frame)
        else:
            total += len(frame.encode())
    return total


def _expire(future: "asyncio.Future[Answer]") -> None:
    if not future.done():
        future.set_exception(Refused("timeout"))
