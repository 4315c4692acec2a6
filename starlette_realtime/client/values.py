"""What the application sees: events, resets, pages, people, changes of state, and the errors of this side."""

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from starlette_realtime.errors import ConnectionClosed, RealtimeError
from starlette_realtime.messages import Position, Sender, Status

__all__ = [
    "Change",
    "ClientState",
    "Closed",
    "Event",
    "Page",
    "Person",
    "QueueFull",
    "Reset",
    "RoomState",
    "StateChange",
    "TokenError",
    "Uncertain",
    "UserChanged",
]

T = TypeVar("T")

ClientState: TypeAlias = Literal["connecting", "online", "waiting", "closed"]
RoomState: TypeAlias = Literal["joining", "joined", "left", "refused"]


@dataclass(frozen=True, slots=True)
class Event(Generic[T]):
    """
    Something that was sent to a room, to the user, or to this connection.

    `data` is decoded JSON, or what `type=` asked for. `position` is there for kept events; volatile ones have none.
    `sender` is None for what the server itself sent, and so is its `user` where the room shows none. `at` is in Unix
    milliseconds of the server. `recovered`: it was missed, and delivered later.
    """

    event: str
    data: T
    room: str | None = None
    position: Position | None = None
    sender: Sender | None = None
    at: int | None = None
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """
    Events were, or may have been, lost: load your state anew, events go on from `position`.

    `reason` is the server's (`trimmed`, `too_many`, `too_much`, `forgotten`, `rewound`, `ephemeral`…), or `lagged`:
    volatile events came faster than they were read. `room` is None for what is sent to this connection.
    """

    room: str | None
    reason: str
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Older events, oldest first. `more`: there are older ones; `truncated`: there were, and they are not kept."""

    events: tuple[Event[Any], ...]
    more: bool
    truncated: bool


@dataclass(frozen=True, slots=True)
class Person:
    """
    A user in a room with all of their connections, or somebody anonymous with the one.

    `status` is online if any connection is; `meta` is that of the connection that joined last among those that have
    any; `since` is in Unix milliseconds, of the first connection.
    """

    user: str | None
    status: Status
    meta: Any
    connections: tuple[str, ...]
    since: int


@dataclass(frozen=True, slots=True)
class Change:
    """Who came, changed and went, since the last time that it was told."""

    joined: tuple[Person, ...] = ()
    updated: tuple[Person, ...] = ()
    left: tuple[Person, ...] = ()


@dataclass(frozen=True, slots=True)
class StateChange:
    """
    What the client is doing now; `code`, `reason` and `message` say how a connection ended.

    `retry_in`, in seconds, is there while it waits for the next try.
    """

    state: ClientState
    code: int | None = None
    reason: str = ""
    message: str = ""
    retry_in: float | None = None


class Closed(ConnectionClosed):
    """The client is closed for good: by the application (1000), or as the close code and `message` say."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(code, reason)
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.code}, {self.reason})"


class Uncertain(RealtimeError):
    """It was sent and never answered: it may have arrived, or not. Sent again with the same `key`, it counts once."""


class QueueFull(RealtimeError):
    """Too much waits to be sent: await what you send, or raise `queue`."""


class UserChanged(RealtimeError):
    """Another user signed in before this was sent: it is not sent in their name."""


class TokenError(RealtimeError):
    """The token function failed (the error is the `__cause__`), or took too long; it is asked again."""
