"""Stores: the state that processes share."""

from starlette_realtime.messages import (
    Delivery,
    Entry,
    Fresh,
    Gap,
    History,
    Members,
    Node,
    Page,
    Position,
    PresenceDiff,
    Publication,
    Recovery,
    Stale,
)
from starlette_realtime.store.base import PROCESSES, READ_BYTES, REVOCATIONS, Deliver, PresenceChanged, Store
from starlette_realtime.store.memory import MemoryStore

__all__ = [
    "PROCESSES",
    "READ_BYTES",
    "REVOCATIONS",
    "Deliver",
    "Delivery",
    "Entry",
    "Fresh",
    "Gap",
    "History",
    "Members",
    "MemoryStore",
    "Node",
    "Page",
    "Position",
    "PresenceChanged",
    "PresenceDiff",
    "Publication",
    "Recovery",
    "Stale",
    "Store",
]
