"""Real-time for Starlette and FastAPI: rooms, presence, history with gap-free resume, acknowledgements, limits."""

from starlette_realtime.auth import Authenticate, AuthGuard, IdentifiedUser, ScopeUser, StarletteSession, TokenReader
from starlette_realtime.clock import Clock
from starlette_realtime.connection import Connection, ConnectionOptions
from starlette_realtime.counters import Counters
from starlette_realtime.errors import (
    CLOSE_CODES,
    ERROR_CODES,
    CloseCode,
    ConfigurationError,
    ConnectionClosed,
    Forbidden,
    InvalidPayload,
    NotJoined,
    ProtocolError,
    RateLimited,
    RealtimeError,
    Refused,
    StoreError,
    Unauthenticated,
    Unavailable,
    UnknownRoom,
)
from starlette_realtime.messages import Entry, Event, Events, History, Identity, Members, Position
from starlette_realtime.presence import PresenceTracker, UserPresence
from starlette_realtime.ratelimit import Limit, Rate, RateLimiter
from starlette_realtime.realtime import Realtime
from starlette_realtime.rooms import Member, Room, RoomsOptions, RoomView
from starlette_realtime.router import RoomRouter
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.tokens import SignedTokens
from starlette_realtime.webtokens import JWKS, JSONWebTokens

__version__ = "0.1.0"

__all__ = [
    "CLOSE_CODES",
    "ERROR_CODES",
    "JWKS",
    "AuthGuard",
    "Authenticate",
    "Clock",
    "CloseCode",
    "ConfigurationError",
    "Connection",
    "ConnectionClosed",
    "ConnectionOptions",
    "Counters",
    "Entry",
    "Event",
    "Events",
    "Forbidden",
    "History",
    "IdentifiedUser",
    "Identity",
    "InvalidPayload",
    "JSONWebTokens",
    "Limit",
    "Member",
    "Members",
    "MemoryStore",
    "NotJoined",
    "Position",
    "PresenceTracker",
    "ProtocolError",
    "Rate",
    "RateLimited",
    "RateLimiter",
    "Realtime",
    "RealtimeError",
    "Refused",
    "Room",
    "RoomRouter",
    "RoomView",
    "RoomsOptions",
    "ScopeUser",
    "SignedTokens",
    "StarletteSession",
    "Store",
    "StoreError",
    "TokenReader",
    "Unauthenticated",
    "Unavailable",
    "UnknownRoom",
    "UserPresence",
]
