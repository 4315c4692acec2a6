"""A client for bots, services, tests and devices: rooms that resume, sends that count once, over broken links."""

from starlette_realtime.client.client import Client, TokenSource, connect
from starlette_realtime.client.links import Link, Opener, refused
from starlette_realtime.client.presence import Presence
from starlette_realtime.client.room import Room
from starlette_realtime.client.values import (
    Change,
    Closed,
    Event,
    Page,
    Person,
    QueueFull,
    Reset,
    StateChange,
    TokenError,
    Uncertain,
    UserChanged,
)

__all__ = [
    "Change",
    "Client",
    "Closed",
    "Event",
    "Link",
    "Opener",
    "Page",
    "Person",
    "Presence",
    "QueueFull",
    "Reset",
    "Room",
    "StateChange",
    "TokenError",
    "TokenSource",
    "Uncertain",
    "UserChanged",
    "connect",
    "refused",
]
