"""The client: one connection that comes back by itself, and the rooms on it."""

import asyncio
import inspect
import logging
import random as system
import secrets
import ssl as tls
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from starlette_realtime.client.core import Core
from starlette_realtime.client.exchange import Exchange, Wire
from starlette_realtime.client.frames import read
from starlette_realtime.client.links import MAX_SIZE, Opener, socket_url, websockets_opener
from starlette_realtime.client.ports import Answer, Token
from starlette_realtime.client.reading import Channel, H
from starlette_realtime.client.room import Room, promise
from starlette_realtime.client.sockets import CLOSING, Socket
from starlette_realtime.client.stay import Stay
from starlette_realtime.client.tasks import Handler, Tasks, Told
from starlette_realtime.client.values import ClientState, Closed, StateChange, TokenError
from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, RealtimeError
from starlette_realtime.messages import Event, Limits, Position, Status

__all__ = ["Client", "TokenSource", "connect"]

logger = logging.getLogger("starlette_realtime.client")

T = TypeVar("T")

TokenSource = str | Callable[[], str | None] | Callable[[], Awaitable[str | None]]


class Client(Channel):
    """
    A connection that comes back by itself, and the rooms on it: made by `connect`, entered with `async with`.

    It is read like a room: what it gets is what the server sent to this connection, and to the user, whose own room is
    resumed like any other.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        token: TokenSource | None,
        opener: Opener,
        timeout: float,
        queue: int,
        inbox: int,
        backoff: tuple[float, float],
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._port = _Port(self, token, opener)
        self._core = Core(
            [socket_url(url) for url in urls],
            self._port,
            clock=clock,
            random=random,
            prefix=secrets.token_urlsafe(12),
            renews=token is not None and not isinstance(token, str),
            queue=queue,
            inbox=inbox,
            timeout=timeout,
            backoff=backoff,
        )
        tasks = Tasks()
        super().__init__(self._core.inbox, tasks)
        self._rooms: dict[Stay, Room] = {}
        self._changes = asyncio.Event()
        self._last = ""  # what was wrong with the last try
        self._told = Told(tasks, lambda: logger.warning("handlers of notices are too slow: some were not told"))
        self._on_state: list[Handler[StateChange]] = []
        self._on_error: list[Handler[RealtimeError]] = []
        self._on_joined: list[Handler[Room]] = []
        self._on_stale: list[Handler[bool]] = []
        self._on_limits: list[Handler[Limits]] = []
        self._entered = False

    def __repr__(self) -> str:
        return f"<Client {self.state}>"

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ConfigurationError("a client is entered once: connect() makes another one")
        self._entered = self._tasks.running = True
        self.dispatch()
        self._core.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """
        Close for good: rooms end, what was not acknowledged fails, and no task is left.

        Handlers of events and questions that still run are cancelled. It takes a few seconds at most, where the server
        doesn't answer.
        """
        self._core.close()
        self._tasks.running = False
        last = {socket.task for socket in self._port.sockets} | self._told.tasks
        last -= {asyncio.current_task()}
        try:
            if last:
                await asyncio.wait(last, timeout=CLOSING)
        finally:
            await self._tasks.cancel()

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> ClientState:
        """`connecting`, `online`, `waiting` (for the next try), or `closed` for good."""
        return self._core.dialer.state

    @property
    def closed(self) -> Closed | None:
        """Why it is closed; None: it isn't."""
        return self._core.dialer.closed

    @property
    def user(self) -> str | None:
        """Who this is; None: anonymous, or not yet known."""
        return self._core.dialer.user

    @property
    def connection(self) -> str | None:
        """The public id of the present connection."""
        return self._core.dialer.connection

    @property
    def pending(self) -> int:
        """How many commands wait to be sent or answered."""
        return self._core.pending

    @property
    def rooms(self) -> Mapping[str, Room]:
        """The rooms that were joined and not left or refused, by name."""
        return {stay.name: room for stay, room in self._rooms.items()}

    async def wait_online(self, *, timeout: float | None = None) -> None:
        """Wait until it is online. Raises `Closed`; `TimeoutError` after `timeout` seconds says what the trouble is."""
        try:
            async with self._clock.timeout(timeout):
                while self.state != "online":
                    if self.closed is not None:
                        raise self.closed.with_traceback(None)
                    await self._changes.wait()
        except TimeoutError:
            raise TimeoutError(f"not online within {timeout} s{self._last and ': '}{self._last}") from None

    # --- what it does -----------------------------------------------------------------------------------------------

    def join(
        self, name: str, *, meta: object = None, status: Status | None = None, since: Position | None = None
    ) -> Room:
        """
        Join a room, now or as soon as there is a connection, and again after each break, from where it was.

        It is the same room until it is left or refused, whatever the options. `await` it to know that it is joined.
        `meta` (JSON, at most 1 KiB) and `status` are what presence shows. `since` resumes from a position you kept.
        """
        if not self._entered:
            raise ConfigurationError("use the client within `async with connect(…) as client:`")
        if name.startswith("user:"):
            raise ConfigurationError("the server joins the user's own room: iterate over the client, or use its `on`")
        return self._room(self._core.join(name, meta=meta, status=status, since=since))

    @overload
    def send(
        self, event: str, data: object = None, *, key: str | None = None, timeout: float | None = None
    ) -> "asyncio.Future[Any]": ...
    @overload
    def send(
        self,
        event: str,
        data: object = None,
        *,
        key: str | None = None,
        timeout: float | None = None,
        returns: type[T],
    ) -> "asyncio.Future[T]": ...
    def send(
        self,
        event: str,
        data: object = None,
        *,
        key: str | None = None,
        timeout: float | None = None,
        returns: Any = Any,
    ) -> "asyncio.Future[Any]":
        """Send an event to the connection's own handlers (`@realtime.on`), as `Room.send` does."""
        return promise(
            self._core,
            lambda done: self._core.send(None, event, data, done, key=key, timeout=timeout),
            lambda raw: read(raw, returns),
        )

    def send_volatile(self, event: str, data: object = None) -> bool:
        """Send to the connection's own handlers, now or never; whether it went out."""
        return self._core.send_volatile(None, event, data)

    def set_status(self, status: Status | None = None, meta: object = None) -> "asyncio.Future[list[None]]":
        """Change how presence shows this client in all rooms that are joined, as `Room.set_status` does in one."""
        return asyncio.gather(*(room.set_status(status, meta) for room in self._rooms.values()))

    async def refresh(self) -> None:
        """
        Ask the token function now and give the server what it returns, e.g. after the user's rights changed.

        Raises `TokenError`, `Refused`, and `ConnectionClosed` where the link broke before the answer; the next one asks
        anyway, which is why nothing is done offline.
        """

        def push(done: Callable[[Exception | None, Any], None]) -> None:
            self._core.dialer.refresh(done)

        await promise(self._core, push, lambda raw: None)

    # --- handlers ---------------------------------------------------------------------------------------------------

    def on_state(self, handler: H) -> H:
        """Decorate a handler of `StateChange`."""
        self._on_state.append(handler)
        return handler

    def on_error(self, handler: H) -> H:
        """Decorate a handler of what no call raises; without one it is a warning in the log."""
        self._on_error.append(handler)
        return handler

    def on_joined(self, handler: H) -> H:
        """Decorate a handler of the `Room`s that the server joins this client to, other than the user's own."""
        self._on_joined.append(handler)
        return handler

    def on_stale(self, handler: H) -> H:
        """Decorate a handler that gets True when the server's store is away, False when it is back."""
        self._on_stale.append(handler)
        return handler

    def on_limits(self, handler: H) -> H:
        """Decorate a handler of `Limits`: what is left to spend. The client paces itself by it in any case."""
        self._on_limits.append(handler)
        return handler

    # --- within -----------------------------------------------------------------------------------------------------

    def _room(self, stay: Stay) -> Room:
        room = self._rooms.get(stay)
        if room is None:
            room = Room(self._core, stay, self._tasks, self._told)
            if stay.error is None:
                self._rooms[stay] = room
        return room


class _Port:
    """The core's surroundings: sockets, the token function, and those who want to be told."""

    def __init__(self, client: Client, token: TokenSource | None, opener: Opener) -> None:
        self._client = client
        self._token = token
        self._opener = opener
        self.sockets: set[Socket] = set()

    def ask(self, done: Token) -> None:
        token = self._token
        if token is None or isinstance(token, str):
            done(None, token)
        else:
            self._client._tasks.start(self._ask(token, done))

    async def _ask(self, token: Callable[[], Any], done: Token) -> None:
        client = self._client
        try:
            async with client._clock.timeout(client._core.timeout):
                if inspect.iscoroutinefunction(token) or inspect.iscoroutinefunction(getattr(token, "__call__", None)):  # noqa: B004
                    found = await token()
                else:
                    found = await asyncio.to_thread(token)  # it may ask a server, and block
                    if isinstance(found, Awaitable):
                        found = await found
            if found is not None and not isinstance(found, str):
                raise TypeError(f"it returned a {type(found).__name__}, and a token is a str")
        except Exception as exc:
            error = TokenError(f"the token function failed: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            done(error, None)
        else:
            done(None, found)

    def open(self, url: str, exchange: Exchange) -> Wire:
        client = self._client
        socket = Socket(url, exchange, opener=self._opener, tasks=client._tasks, clock=client._clock)
        self.sockets.add(socket)
        socket.task.add_done_callback(lambda _: self.sockets.discard(socket))
        return socket

    def state_changed(self, change: StateChange) -> None:
        client = self._client
        client._last = change.message or client._last
        changes, client._changes = client._changes, asyncio.Event()
        changes.set()
        self._tell(client._on_state, change)

    def failed(self, error: RealtimeError) -> None:
        client = self._client
        client._last = str(getattr(error, "message", error))
        if client._on_error:
            self._tell(client._on_error, error)
        else:
            logger.warning("%s", error)

    def served(self, stay: Stay) -> None:
        if not stay.mirrored:
            self._tell(self._client._on_joined, self._client._room(stay))

    def changed(self, stay: Stay) -> None:
        client = self._client
        room = client._rooms.get(stay)
        if room is None:
            return
        room.changed()
        if stay.error is not None:
            del client._rooms[stay]
            if stay.state == "refused" and not room.awaited:
                self.failed(RealtimeError(f"{stay.name} was refused: {stay.error}"))

    def people(self, stay: Stay) -> None:
        room = self._client._rooms.get(stay)
        if room is not None:
            room.people_changed()

    def stale(self, stay: Stay | None, away: bool) -> None:
        self._tell(self._client._on_stale, away)

    def limits(self, limits: Limits) -> None:
        self._tell(self._client._on_limits, limits)

    def question(self, stay: Stay | None, event: Event, answer: Answer) -> None:
        # The user's own room, and one that was left meanwhile, have no handlers but the client's.
        room = None if stay is None else self._client._rooms.get(stay)
        (room or self._client).ask(event, answer)

    def _tell(self, handlers: Sequence[Handler[Any]], value: object) -> None:
        if handlers and self._client._tasks.running:
            self._client._told.tell(tuple(handlers), value)


def connect(
    urls: str | Sequence[str],
    *,
    token: TokenSource | None = None,
    headers: Mapping[str, str] | None = None,
    ssl: tls.SSLContext | None = None,
    origin: str | None = None,
    timeout: float = 10.0,
    queue: int = 256,
    inbox: int = 1_024,
    backoff: tuple[float, float] = (0.5, 20.0),
    max_size: int = MAX_SIZE,
    websockets: Mapping[str, Any] | None = None,
    opener: Opener | None = None,
    clock: Clock | None = None,
    random: Callable[[], float] = system.random,
) -> Client:
    """
    A client of the kit that is mounted at `urls` (`https://example.com/realtime`); of several each is tried in turn.

        async with connect("https://example.com/realtime", token=fetch_token) as client:
            room = await client.join("chat:42")
            await room.send("message", {"text": "hello"})
            async for event in room:
                print(event)

    `token` is a function, or coroutine function, that returns a token: asked before every connection, and before the
    old token expires, each time for at most `timeout` seconds, which is also the time for `history`. A plain function
    runs in a thread. A string is given as it is, each time: for what ends before it expires. None: the `headers` of
    the handshake say who this is, or nobody does.

    `queue` is how many commands wait to be sent or answered, `inbox` how many events of one room wait to be read.
    Retries wait a random part of `backoff[0]` seconds, doubled with each failure up to `backoff[1]`.

    `ssl` is for addresses with https; `origin` is sent where the server wants one; `max_size` is the largest frame
    that is taken, in bytes; `websockets` goes to the `connect` of that library as it is (`proxy`, `ping_interval`…).

    `opener` opens links of another kind; `clock` and `random` are for tests.

    Raises `ConfigurationError` where the `websockets` library is missing.
    """
    addresses = [urls] if isinstance(urls, str) else list(urls)
    if not addresses:
        raise ConfigurationError("connect() takes at least one address")
    if queue < 1 or inbox < 1:
        raise ConfigurationError("`queue` and `inbox` are 1 or more")
    if opener is None:
        options = {**({} if ssl is None else {"ssl": ssl}), **(websockets or {})}
        opener = websockets_opener(headers=headers, origin=origin, max_size=max_size, options=options)
    return Client(
        addresses,
        token=token,
        opener=opener,
        timeout=timeout,
        queue=queue,
        inbox=inbox,
        backoff=backoff,
        clock=clock or Clock(),
        random=random,
    )
