"""Reading: how the application gets what was received, by iterating or by handlers, in order either way."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar, overload

from starlette_realtime.client.frames import read
from starlette_realtime.client.inbox import End, Inbox, Item, News
from starlette_realtime.client.ports import Answer
from starlette_realtime.client.tasks import Handler, Tasks, call, report
from starlette_realtime.client.values import Event, Reset
from starlette_realtime.errors import ConfigurationError, Refused
from starlette_realtime.messages import Event as Frame
from starlette_realtime.messages import Position

__all__ = ["Channel"]

logger = logging.getLogger("starlette_realtime.client")

QUESTIONS: Final = 16
"""Questions of the server that are answered at the same time; more are refused."""

T = TypeVar("T")
H = TypeVar("H", bound=Callable[..., object])


class Channel:
    """
    What can be read: a room, or the client itself.

    Iterate over it, or give it handlers with `on`: one or the other. Both take events in order, one after the other,
    and what comes meanwhile waits: at most `inbox` events. Beyond that the room is passed over and, when half of them
    are taken, fetched again from where the reader is; what the server no longer has is a `Reset`, never silence.
    Volatile events are worthless later and not fetched again.
    """

    def __init__(self, inbox: Inbox, tasks: Tasks) -> None:
        self._inbox = inbox
        self._inbox.on_item = self._arrived
        self._tasks = tasks
        self._something = asyncio.Event()
        self._ended: End | None = None
        self._position: Position | None = None
        self._reading = False
        self._handlers: dict[str | None, list[tuple[Handler[Event[Any]], Any]]] = {}
        self._on_reset: list[Handler[Reset]] = []
        self._on_end: list[Handler[Exception | None]] = []
        self._answers: dict[str, tuple[Handler[Event[Any]], Any]] = {}
        self._has_handlers = False
        self._dispatching = False

    @property
    def position(self) -> Position | None:
        """Of the last kept event that you have taken: to `join` from there in another life. None: none yet."""
        while (mark := self._inbox.take_mark()) is not None:
            self._position = mark.position
        return self._position

    # --- iterating --------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Event[Any] | Reset]:
        return self.events()

    @overload
    def events(self) -> "AsyncIterator[Event[Any] | Reset]": ...
    @overload
    def events(self, *, type: type[T]) -> "AsyncIterator[Event[T] | Reset]": ...
    def events(self, *, type: Any = Any) -> "AsyncIterator[Event[Any] | Reset]":
        """
        Events and resets, in order, until it is over: after `leave` and `close` the loop ends, after the server's word
        it raises `Refused` or `Closed`.

        `type` is what `data` is decoded into (anything that msgspec decodes; a union of tagged structs tells several
        events apart): for what doesn't fit the next step raises `InvalidPayload`, and may be followed by another.
        Cancelling a step loses nothing. Raises `ConfigurationError` where there are handlers, or another reader waits.
        """
        self._check_free()
        return _Events(self, type)

    async def next(self, kind: Any) -> Event[Any] | Reset:
        """One step of an iteration."""
        self._check_free()
        if self._reading:
            raise ConfigurationError("another task waits for the next event here: let one read, and share what it gets")
        self._reading = True
        try:
            while True:
                item = await self._item()
                if isinstance(item, End):
                    if item.error is not None:
                        raise item.error.with_traceback(None)
                    raise StopAsyncIteration
                if isinstance(item, Reset):
                    return item
                if isinstance(item, News):
                    return _event(item.event, item.recovered, kind)
        finally:
            self._reading = False

    def _check_free(self) -> None:
        if self._has_handlers:
            raise ConfigurationError("this has handlers (`on`): iterate, or give it handlers")

    async def _item(self) -> Item:
        """The next item; the end stays."""
        while True:
            item = self._ended or self._inbox.take()
            if item is not None:
                break
            self._something.clear()
            await self._something.wait()
        if isinstance(item, End):
            self._ended = item
        elif isinstance(item, News):
            self._position = item.event.position or self._position
        else:
            self._position = item.position
        return item

    def _arrived(self) -> None:
        self._something.set()

    # --- handlers ---------------------------------------------------------------------------------------------------

    @overload
    def on(self, event: str | None = None) -> "Callable[[H], H]": ...
    @overload
    def on(
        self, event: str | None = None, *, type: type[T]
    ) -> "Callable[[Callable[[Event[T]], object]], Callable[[Event[T]], object]]": ...
    def on(self, event: str | None = None, *, type: Any = Any) -> Any:
        """
        Decorate a handler of the events called `event`, or of all: a function or coroutine function of the `Event`.

        Handlers are called one at a time, in the events' order; what nobody handles is passed over, once there is any
        handler. `type` is what `data` is decoded into. What a handler raises goes to the event loop's exception
        handler, and the next event is handled.
        """

        def decorate(handler: H) -> H:
            self._handlers.setdefault(event, []).append((handler, type))
            self._handled()
            return handler

        return decorate

    def on_reset(self, handler: H) -> H:
        """Decorate a handler of `Reset`: events were lost, load your state anew. It is called in order with events."""
        self._on_reset.append(handler)
        self._handled()
        return handler

    def answer(self, event: str, *, type: Any = Any) -> Callable[[H], H]:
        """
        Decorate the one handler of the server's questions called `event`: what it returns is the answer.

        Questions don't wait for events, nor for each other; at most 16 are answered at a time. A `Refused` that it
        raises is the answer, too; for another error the server hears `internal`.
        """

        def decorate(handler: H) -> H:
            self._answers[event] = (handler, type)
            return handler

        return decorate

    def _handled(self) -> None:
        if self._reading:
            raise ConfigurationError("a task iterates over this: iterate, or give it handlers")
        self._has_handlers = True
        self.dispatch()

    def dispatch(self) -> None:
        """Start to call the handlers, if there are any, as soon as the client runs."""
        if self._has_handlers and self._tasks.running and not self._dispatching:
            self._dispatching = True
            self._tasks.start(self._dispatch())

    async def _dispatch(self) -> None:
        while True:
            item = await self._item()
            if isinstance(item, News):
                for handler, kind in self._handlers.get(item.event.event, []) + self._handlers.get(None, []):
                    await self._call(handler, item, kind)
            elif isinstance(item, Reset):
                if not self._on_reset:
                    logger.warning("events of %s were lost (%s), and `on_reset` has no handler", item.room, item.reason)
                for on_reset in tuple(self._on_reset):
                    await self._call(on_reset, item)
            elif isinstance(item, End):
                if isinstance(item.error, Refused) and not self._on_end:
                    logger.warning("the server ended a room (%s), and `on_left` has no handler", item.error.code)
                for on_end in tuple(self._on_end):
                    await self._call(on_end, item.error)
                return

    async def _call(self, handler: Handler[Any], value: object, kind: Any = None) -> None:
        try:
            if isinstance(value, News):
                value = _event(value.event, value.recovered, kind)
            await call(handler, value)
        except Exception as exc:
            report(exc)

    # --- questions --------------------------------------------------------------------------------------------------

    def ask(self, frame: Frame, answer: Answer) -> None:
        """Have a question of the server answered."""
        found = self._answers.get(frame.event)
        if found is None:
            answer(None, Refused("unknown_event", f"the client has nothing that answers {frame.event[:64]}"))
        elif self._tasks.answering >= QUESTIONS:
            answer(None, Refused("unavailable", f"the client answers {QUESTIONS} questions already"))
        else:
            self._tasks.answering += 1
            self._tasks.start(self._answer(frame, answer, *found))

    async def _answer(self, frame: Frame, answer: Answer, handler: Handler[Any], kind: Any) -> None:
        try:
            answer(await call(handler, _event(frame, False, kind)), None)
        except Refused as exc:
            answer(None, exc)
        except Exception as exc:
            report(exc)
            answer(None, Refused("internal"))
        finally:
            self._tasks.answering -= 1


class _Events(AsyncIterator[Event[Any] | Reset]):
    def __init__(self, channel: Channel, kind: Any) -> None:
        self._channel = channel
        self._kind = kind

    async def __anext__(self) -> Event[Any] | Reset:
        return await self._channel.next(self._kind)


def _event(frame: Frame, recovered: bool, kind: Any) -> Event[Any]:
    data = read(frame.data, kind)
    return Event(frame.event, data, frame.room, frame.position, frame.sender, frame.at, recovered)
