"""Inbox: what was sent to one process of a memory store, until it is received."""

import asyncio
from collections import deque
from collections.abc import Callable

from starlette_realtime.errors import StoreError

__all__ = ["INBOX_BYTES", "INBOX_ENTRIES", "Inbox"]

INBOX_ENTRIES = 1_024
"""How many messages wait for a process at most; a further one is refused."""

INBOX_BYTES = 1_048_576
"""How many bytes they have at most, all together."""


class Inbox:
    """A bounded queue that hands its messages to `take`, in order, whenever `ready` says so and `drain_soon` asks."""

    def __init__(self, take: Callable[[bytes], object], ready: Callable[[], bool]) -> None:
        self.size = 0
        """Bytes that wait."""
        self._take = take
        self._ready = ready
        self._waiting: deque[bytes] = deque()
        self._draining: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def post(self, data: bytes) -> None:
        """Add a message. Raises `StoreError` when there is no room for it."""
        if len(self._waiting) >= INBOX_ENTRIES or self.size + len(data) > INBOX_BYTES:
            raise StoreError("the process's inbox is full")
        self._waiting.append(data)
        self.size += len(data)
        self.drain_soon()

    def drain_soon(self) -> None:
        """Not at once: the sender is not to run the receiver's code."""
        if self._draining is None and self._waiting and self._ready():
            self._draining = asyncio.get_running_loop().call_soon(self._drain)

    def clear(self) -> None:
        """Forget what waits."""
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        self._waiting.clear()
        self.size = 0

    def _drain(self) -> None:
        self._draining = None
        while self._waiting and self._ready():
            data = self._waiting.popleft()
            self.size -= len(data)
            self._take(data)
