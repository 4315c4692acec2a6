"""Real-time for Starlette and FastAPI: rooms, presence, history with gap-free resume, acknowledgements, limits."""

from typing import TYPE_CHECKING

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
    Declined,
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
from starlette_realtime.messages import (
    ConnectionInfo,
    Connections,
    Counts,
    Entry,
    Event,
    Events,
    History,
    Identity,
    Members,
    Node,
    Position,
    ProcessCounts,
)
from starlette_realtime.presence import PresenceTracker, UserPresence
from starlette_realtime.publisher import Publisher, SyncPublisher
from starlette_realtime.ratelimit import Limit, Rate, RateLimiter
from starlette_realtime.realtime import Realtime
from starlette_realtime.rooms import Member, Room, RoomsOptions, RoomView
from starlette_realtime.router import RoomRouter
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.tokens import SignedTokens
from starlette_realtime.webtokens import JWKS, JSONWebTokens

if TYPE_CHECKING:
    from starlette_realtime.store.redis import RedisStore

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
    "ConnectionInfo",
    "ConnectionOptions",
    "Connections",
    "Counters",
    "Counts",
    "Declined",
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
    "Node",
    "NotJoined",
    "Position",
    "PresenceTracker",
    "ProcessCounts",
    "ProtocolError",
    "Publisher",
    "Rate",
    "RateLimited",
    "RateLimiter",
    "Realtime",
    "RealtimeError",
    "RedisStore",
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
    "SyncPublisher",
    "TokenReader",
    "Unauthenticated",
    "Unavailable",
    "UnknownRoom",
    "UserPresence",
]


def __getattr__(name: str) -> object:
    """Import `RedisStore` when somebody asks for it: it needs a driver that not everybody has."""
    if name == "RedisStore":
        from starlette_realtime.store.redis import RedisStore

        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
