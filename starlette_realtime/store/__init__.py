"""Stores: the state that processes share."""

from starlette_realtime.store.base import Deliver, Store
from starlette_realtime.store.memory import MemoryStore

__all__ = ["Deliver", "MemoryStore", "Store"]
