"""A room, as the application holds it."""

import asyncio
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar, overload

import msgspec
from msgspec import Raw

from starlette_realtime.client.core import Core
from starlette_realtime.client.frames import encode, read
from starlette_realtime.client.outbox import Done, Entry
from starlette_realtime.client.presence import Presence
from starlette_realtime.client.reading import Channel, H
from starlette_realtime.client.stay import Stay
from starlette_realtime.client.tasks import Handler, Tasks, Told, call
from starlette_realtime.client.values import Change, Event, Page, Person, RoomState
from starlette_realtime.messages import Events, Position, Status

__all__ = ["Room", "promise"]

T = TypeVar("T")


def promise(core: Core, push: Callable[[Done], Entry | None], convert: Callable[[Raw], T]) -> "asyncio.Future[T]":
    """A future of the answer to what `push` queues; cancelled, it takes back what was not written yet."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(error: Exception | None, data: Raw) -> None:
        if future.done():
            return
        try:
            if error is not None:
                raise error
            future.set_result(convert(data))
        except Exception as exc:
            future.set_exception(exc)

    entry = push(done)
    if entry is not None:
        future.add_done_callback(lambda future: core.forget(entry) if future.cancelled() else None)
    return future


class Room(Channel):
    """
    One room, from `client.join` until it is left, or refused, or the client is closed; links come and go meanwhile.

    `await room` waits for the first join and gives the room; it raises `Refused` where the server does.
    """

    def __init__(self, core: Core, stay: Stay, tasks: Tasks, told: Told) -> None:
        super().__init__(stay.inbox, tasks)
        self._told = told
        self._core = core
        self._stay = stay
        self._changes = asyncio.Event()
        self._watchers: list[_Watcher] = []
        self.awaited = False
        self._position = stay.position

    def __repr__(self) -> str:
        return f"<Room {self.name} {self.state}>"

    def __await__(self) -> Generator[Any, None, "Room"]:
        return self._joined().__await__()

    async def _joined(self) -> "Room":
        self.awaited = True
        while not self._stay.admitted:
            if self._stay.error is not None:
                raise self._stay.error.with_traceback(None)
            await self._changes.wait()
        return self

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """As it was joined."""
        return self._stay.name

    @property
    def state(self) -> RoomState:
        """`joining` (also while the connection is away), `joined`, `left` or `refused`; the last two are final."""
        return self._stay.state

    @property
    def error(self) -> Exception | None:
        """Why it was left or refused: what is sent here fails with it."""
        return self._stay.error

    @property
    def stale(self) -> bool:
        """Whether the server's store is away: events may be late."""
        return self._stay.stale

    @property
    def presence(self) -> Presence:
        """Who is there, in a room declared with `presence=True`."""
        return self._stay.presence

    @property
    def members(self) -> Mapping[str, Person]:
        """Who is there, by user, or by connection where somebody is anonymous."""
        return self._stay.presence.members

    # --- what it does -----------------------------------------------------------------------------------------------

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
        """
        Send an event: it is queued by the call, and the future is what the server's handler returned, as `returns`.

        A room's events go out in order, each after the answer to the one before, with a `key` (1 to 64 characters;
        random unless given) that is the same at each repetition, so that the server takes each once. `timeout` is in
        seconds, offline or not; without it an entry waits for a connection as long as it takes, and for its answer
        100 s from the first write. Cancelling the future takes back what was not written yet.

        Raises `QueueFull`, `InvalidPayload` for what JSON can't say, and why the room is over; the future raises
        `Refused` (the server's word), `Uncertain`, `TimeoutError`, `UserChanged` and `Closed`.
        """
        return promise(
            self._core,
            lambda done: self._core.send(self._stay, event, data, done, key=key, timeout=timeout),
            lambda raw: read(raw, returns),
        )

    def send_volatile(self, event: str, data: object = None) -> bool:
        """
        Send what is worthless a moment later (typing, cursors): now or never; whether it went out.

        Raises `Refused` (`too_large`) and `InvalidPayload`.
        """
        return self._core.send_volatile(self._stay, event, data)

    def history(
        self, *, before: Position | None = None, limit: int | None = None, timeout: float | None = None
    ) -> "asyncio.Future[Page]":
        """
        Older events: the last ones, or those before a position; the server gives 50 and at most 100 at a time.

        `timeout` is in seconds, by default the client's.
        """
        body = encode({"type": "history", "room": self.name, "before": before, "limit": limit})
        limited = self._core.timeout if timeout is None else timeout
        return promise(
            self._core,
            lambda done: self._core.push(body, done, lane=object(), stay=self._stay, timeout=limited),
            _page,
        )

    def set_status(self, status: Status | None = None, meta: object = None) -> "asyncio.Future[None]":
        """
        Change how presence shows this client here, and at each join to come; None: as it is.

        `meta` is at most 1 KiB of JSON. The future need not be awaited.
        """
        encode({"data": meta})
        stay = self._stay
        stay.status = stay.status if status is None else status
        stay.meta = stay.meta if meta is None else meta
        future = promise(self._core, lambda done: self._core.set_status(stay, done), lambda raw: None)
        future.add_done_callback(_seen)  # nothing is lost: the next join says it again
        return future

    async def leave(self) -> None:
        """Leave, and wait until the server knows; what still waits to be sent here fails."""
        await promise(self._core, lambda done: self._core.leave(self._stay, done), lambda raw: None)

    # --- handlers ---------------------------------------------------------------------------------------------------

    def on_left(self, handler: H) -> H:
        """Decorate a handler of the end, after the last event: it gets `error`, or None where you left yourself."""
        self._on_end.append(handler)
        self._handled()
        return handler

    def on_presence(self, handler: H) -> H:
        """
        Decorate a handler of `Change`: first everybody who is there, then who came, changed and went.

        Changes that wait for a handler become one.
        """
        self._watchers.append(_Watcher(handler, self._stay.presence))
        self.people_changed()
        return handler

    # --- the client's side ------------------------------------------------------------------------------------------

    def people_changed(self) -> None:
        """Those who watch presence are told."""
        for watcher in self._watchers:
            if not watcher.waits:
                watcher.waits = self._told.later(watcher.tell)

    def changed(self) -> None:
        """The state has changed: whoever waits for it goes on."""
        changes, self._changes = self._changes, asyncio.Event()
        changes.set()


class _Watcher:
    """A handler of presence, and what it was told."""

    def __init__(self, handler: Handler[Change], presence: Presence) -> None:
        self.waits = False
        self._handler = handler
        self._presence = presence
        self._before: Mapping[str, Person] = {}

    async def tell(self) -> None:
        self.waits = False
        change, self._before = self._presence.change(self._before), self._presence.members
        if change != Change():
            await call(self._handler, change)


def _page(raw: Raw) -> Page:
    page = read(raw, Events)
    return Page(
        tuple(
            Event(one.event, msgspec.json.decode(one.data), one.room, one.position, one.sender, one.at)
            for one in page.events
        ),
        page.more,
        page.truncated,
    )


def _seen(future: "asyncio.Future[None]") -> None:
    if not future.cancelled():
        future.exception()
