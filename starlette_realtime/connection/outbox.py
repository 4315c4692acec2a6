"""Outbox: what waits to be written to one client, bounded in bytes, entries and time."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.counters import Counters
from starlette_realtime.types import Frame

Write = Callable[[Frame], Awaitable[None]]

_RATE_FLOOR = 64 * 1024
"""A frame above this many bytes gets a multiple of the time limit: the bound is on the rate, not on large frames."""

_Item = tuple[tuple[Frame, ...], int, "asyncio.Future[None] | None"]


class Outbox:
    """
    A queue of ready frames and the one writer that empties it.

    `max_bytes` and `max_entries` bound what waits; going over calls `overflow` once and takes nothing more: so what can
    wait elsewhere asks `fits`. A single write that takes longer than `timeout` seconds (for each 64 KiB) calls `stuck`
    once. This is the seam where a transport that takes shared bytes without awaiting can come in.
    """

    __slots__ = (
        "_before",
        "_clock",
        "_closed",
        "_counters",
        "_ending",
        "_items",
        "_overflow",
        "_since",
        "_stuck",
        "_timeout",
        "_wake",
        "_watch",
        "_writing",
        "max_bytes",
        "max_entries",
        "size",
        "wrote",
    )

    def __init__(
        self,
        *,
        clock: Clock,
        max_bytes: int,
        max_entries: int,
        timeout: float,
        overflow: Callable[[], None],
        stuck: Callable[[], None],
        counters: Counters | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.size = 0
        self.wrote = clock.now()
        """When the last write began, in seconds of the clock."""
        self._clock = clock
        self._counters = counters if counters is not None else Counters()
        self._timeout = timeout
        self._overflow = overflow
        self._stuck = stuck
        self._items: deque[_Item] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._watch: Timer | None = None
        self._since: float | None = None
        self._before = 0
        self._writing = 0
        self._ending = False
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def largest(self) -> int:
        """The larger of the last two frames that were handed over, in bytes: the server may still hold them."""
        return max(self._before, self._writing)

    def fits(self, size: int) -> bool:
        """Whether `size` bytes more leave half of each bound to what can't wait."""
        return (self.size + size) * 2 <= self.max_bytes and len(self._items) * 2 <= self.max_entries

    def put(self, frames: tuple[Frame, ...], size: int) -> None:
        """Queue frames of `size` bytes in all; over a bound they are not taken, and `overflow` is called."""
        if self._ending or self._closed:
            return
        if self.size + size > self.max_bytes or len(self._items) >= self.max_entries:
            self._ending = True
            self._overflow()
            return
        self.size += size
        self._items.append((frames, size, None))
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    def offer(self, frames: tuple[Frame, ...], size: int) -> None:
        """Queue what may be dropped: only while less than a quarter of each bound is in use."""
        if self.size * 4 <= self.max_bytes and len(self._items) * 4 <= self.max_entries:
            self.put(frames, size)

    def put_unbounded(self, frames: tuple[Frame, ...]) -> "asyncio.Future[None]":
        """
        Queue frames that don't count; what is returned is done when they are out or never will be.

        The caller sees to it that there is one lot at a time.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._ending or self._closed:
            written.set_result(None)
        else:
            self._items.append((frames, 0, written))
            self._notify()
        return written

    def finish(self, last: tuple[Frame, ...] = (), *, discard: bool = False) -> None:
        """Take nothing more; the writer returns when `last` is out, after the rest, or instead of it (`discard`)."""
        self._ending = True
        if discard:
            self._drop()
        if last:
            self._items.append((last, 0, None))
        self._notify()

    def close(self) -> None:
        """Forget everything, and let the writer return."""
        self._closed = self._ending = True
        self._drop()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._notify()

    async def run(self, write: Write) -> None:
        """Write what comes, until `finish` or `close`."""
        items = self._items
        try:
            while True:
                while items:
                    frames, size, written = items.popleft()
                    try:
                        for frame in frames:
                            await self._write(write, frame)
                            if self._closed:
                                return
                    finally:  # also when the writer was cancelled, or the write failed
                        self.size -= size
                        if written is not None and not written.done():
                            written.set_result(None)
                if self._ending:
                    return
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
        finally:
            self.close()

    async def _write(self, write: Write, frame: Frame) -> None:
        self._since = self.wrote = self._clock.now()
        self._before, self._writing = self._writing, len(frame)
        if self._writing > _RATE_FLOOR and isinstance(frame, str) and not frame.isascii():
            self._writing = len(frame.encode())
        if self._watch is None:
            self._watch = self._clock.call_later(self._timeout, self._check)
        try:
            await write(frame)
            self._counters.sent += 1
        finally:
            self._since = None

    def _check(self) -> None:
        # One timer for a stretch of writes, however many: it looks whether the same write is still under way.
        self._watch = None
        if self._closed or self._since is None:
            return
        # A server may take a frame at once, and let the next one wait until it is out.
        limit = self._timeout * max(1.0, self.largest / _RATE_FLOOR)
        left = self._since + limit - self._clock.now()
        if left > 0:
            self._watch = self._clock.call_later(max(left, 0.001), self._check)
        else:
            self._stuck()

    def _drop(self) -> None:
        for _, size, written in self._items:
            self.size -= size
            if written is not None and not written.done():
                written.set_result(None)
        self._items.clear()

    def _notify(self) -> None:
        if self._wake is not None:
            wake, self._wake = self._wake, None
            if not wake.done():
                wake.set_result(None)
