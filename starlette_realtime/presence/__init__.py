"""Presence: who is there, in rooms and on plain WebSocket routes, and how that changes."""

from starlette_realtime.presence.changes import Diff, Snapshot, StoreAway, StoreBack, Watched
from starlette_realtime.presence.handle import PresenceHandle
from starlette_realtime.presence.roster import Change, Roster
from starlette_realtime.presence.tracker import PresenceTracker
from starlette_realtime.presence.users import ConnectionPresence, UserPresence, by_user
from starlette_realtime.presence.watching import Watch

__all__ = [
    "Change",
    "ConnectionPresence",
    "Diff",
    "PresenceHandle",
    "PresenceTracker",
    "Roster",
    "Snapshot",
    "StoreAway",
    "StoreBack",
    "UserPresence",
    "Watch",
    "Watched",
    "by_user",
]
