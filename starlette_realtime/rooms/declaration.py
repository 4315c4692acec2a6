"""Declarations: a room's pattern, its options and its handlers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from starlette_realtime.connection import Connection
from starlette_realtime.errors import ConfigurationError
from starlette_realtime.messages import History
from starlette_realtime.patterns import Pattern, check_event
from starlette_realtime.payloads import Handler
from starlette_realtime.ratelimit import Limit, Limits
from starlette_realtime.ratelimit.limit import as_limits

if TYPE_CHECKING:
    from starlette_realtime.rooms.member import RoomView
    from starlette_realtime.rooms.publishing import Publishing

__all__ = ["EventHandler", "Events", "Room"]

SHOWN = 500
"""The most members that a room may show one by one: with all they say of themselves, they must fit into an outbox."""

F = TypeVar("F", bound=Callable[..., Any])


class EventHandler:
    """A handler of an event, and how often it may be called; `name` tells its limits from others, in the store too."""

    __slots__ = ("handler", "limits", "name")

    def __init__(self, handler: Handler, limits: tuple[Limit, ...], name: str) -> None:
        self.handler = handler
        self.limits = limits
        self.name = name


class Events:
    """Handlers by event."""

    __slots__ = ("_handlers", "_injectable", "_params", "_template")

    def __init__(self, *, injectable: tuple[type, ...], params: dict[str, type], template: str = "") -> None:
        self._handlers: dict[str, EventHandler] = {}
        self._injectable = injectable
        self._params = params
        self._template = template

    def get(self, event: str) -> EventHandler | None:
        """The event's handler."""
        return self._handlers.get(event)

    def on(self, event: str, *, limit: Limits = None) -> Callable[[F], F]:
        """A decorator that binds a function to `event`."""
        check_event(event)
        if event in self._handlers:
            raise ConfigurationError(f"{event!r} has a handler already")
        limits = as_limits(limit, "connection")

        def bind(fn: F) -> F:
            handler = Handler(fn, injectable=self._injectable, params=self._params)
            self._handlers[event] = EventHandler(handler, limits, f"{self._template}#{event}")
            return fn

        return bind


class Room:
    """
    A kind of room, by the pattern of its names.

    `pattern` is like `"chat:{room_id:int}"`: its parameters are passed to handlers by name. `presence` shows the
    members to each other; a connection that ends uncleanly stays a member for `linger` seconds; above `shown`
    members only a total and a sample are told. `history` is what is kept for those who come back; None makes the
    room ephemeral. Without `public` only authenticated users may join, and a public room shows no users unless
    `show_users`. Without `authorize` every user (in a public room, everybody) may join.

    A `Room` made alone is added with `Realtime.add`; `Realtime.room` makes and adds one.
    """

    def __init__(
        self,
        pattern: str,
        *,
        presence: bool = False,
        history: History | None = History(),  # noqa: B008 - frozen
        public: bool = False,
        show_users: bool | None = None,
        linger: float = 5.0,
        shown: int = 200,
    ) -> None:
        self._declare(pattern, Pattern(pattern), presence, history, public, show_users, linger, shown)

    def _declare(
        self,
        template: str,
        pattern: Pattern | None,
        presence: bool,
        history: History | None,
        public: bool,
        show_users: bool | None,
        linger: float,
        shown: int,
    ) -> None:
        from starlette_realtime.rooms.member import Member

        if history is not None and not isinstance(history, History):
            raise ConfigurationError(f"history is History(size=…, ttl=…) or None, not {history!r}")
        if history is not None and (history.size < 1 or history.ttl <= 0):
            raise ConfigurationError("a history keeps at least one event, for some time; history=None keeps nothing")
        if linger < 0:
            raise ConfigurationError("linger is in seconds, and not negative")
        if not 0 <= shown <= SHOWN:
            raise ConfigurationError(f"shown is a number of members, at most {SHOWN}: clients get them all at once")
        self.template = template
        self.pattern = pattern
        self.presence = presence
        self.history = history
        self.public = public
        self.show_users = show_users if show_users is not None else not public
        self.linger = linger
        self.shown = shown
        self.authorizer: Handler | None = None
        self.arrivals: list[Handler] = []
        self.departures: list[Handler] = []
        self.publishing: Publishing | None = None
        self._params = dict(pattern.params) if pattern is not None else {}
        self._injectable: tuple[type, ...] = (Member, Connection)
        self.events = Events(injectable=self._injectable, params=self._params, template=template)

    @classmethod
    def for_users(cls, history: History) -> Room:
        """The rooms that the server joins users to, one for each."""
        room = cls.__new__(cls)
        room._declare("user:{id}", None, False, history, False, True, 0.0, 0)
        return room

    def __repr__(self) -> str:
        return f"Room({self.template!r})"

    @property
    def tracked(self) -> bool:
        """Whether the store knows the members: they are shown, or somebody asked to hear of them."""
        return self.presence or bool(self.arrivals) or bool(self.departures)

    def name(self, **params: str | int) -> str:
        """The name of the room with these parameters; raises `ValueError` for what the pattern doesn't take."""
        if self.pattern is None:
            raise ConfigurationError("user rooms are named by the server: use send_to_user")
        return self.pattern.format(**params)

    def at(self, **params: str | int) -> RoomView:
        """The room with these parameters, to publish to from anywhere in the process."""
        from starlette_realtime.rooms.member import RoomView

        if self.publishing is None:
            raise ConfigurationError(f"{self!r} belongs to no Realtime yet: add it with realtime.add(room)")
        return RoomView(self.publishing, self, self.name(**params), params)

    def authorize(self, fn: F) -> F:
        """
        Bind the function that decides who may join: it returns True, or raises `Refused`; anything else refuses.

        It gets a `Member` that has not joined yet, a `Connection`, path parameters. It is asked again at each refresh.
        """
        if self.authorizer is not None:
            raise ConfigurationError(f"{self!r} has an authorize function already")
        self.authorizer = self._bind(fn)
        return fn

    def on(self, event: str, *, limit: Limits = None) -> Callable[[F], F]:
        """
        Bind a handler to an event of the room's members.

        Arguments: a `Member` or `Connection` by annotation, path parameters by name, and the payload, validated by
        its annotation. What it returns is the acknowledgement. `limit` is how often it may be called: a rate like
        `"5/second"` for each connection, `Limit("5/second", by="user")`, or several of them.
        """
        return self.events.on(event, limit=limit)

    def on_join(self, fn: F) -> F:
        """Bind a function that is called when a user joins who had no other connection in the room."""
        self.arrivals.append(self._bind(fn))
        return fn

    def on_leave(self, fn: F) -> F:
        """Bind a function that is called when a user's last connection has left; its `Member` can't be sent to."""
        self.departures.append(self._bind(fn))
        return fn

    def _bind(self, fn: Callable[..., Any]) -> Handler:
        return Handler(fn, injectable=self._injectable, params=self._params, payload=False)
