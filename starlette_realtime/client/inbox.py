"""What was received and waits for the application: bounded, and what does not fit is fetched again later."""

from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from msgspec import Struct

from starlette_realtime.client.values import Reset
from starlette_realtime.messages import Event, Position

__all__ = ["End", "Inbox", "Item", "Mark", "News"]

MAX_BYTES: Final = 4 * 1024 * 1024
"""Bytes of events that wait in one inbox, beside the bound of their number."""


class News(Struct, frozen=True):
    """An event as it came, not yet decoded."""

    event: Event
    recovered: bool
    size: int


class Mark(Struct, frozen=True):
    """The room was heard up to here, without a further event."""

    position: Position | None


class End(Struct, frozen=True):
    """Nothing follows; `error` is why, None: the application's own wish."""

    error: Exception | None


Item: TypeAlias = News | Reset | Mark | End


class Inbox:
    """
    At most `limit` events, and `MAX_BYTES`; what follows a join or a gap is let in on top, once.

    `on_item` is called when something was put in, `on_low` when the application has taken it down to a half.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[Item] = deque()
        self._bytes = 0
        self.on_item: Callable[[], None] = _nothing
        self.on_low: Callable[[], None] = _nothing

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Nothing more fits."""
        return len(self._items) >= self._limit or self._bytes >= MAX_BYTES

    @property
    def low(self) -> bool:
        """At most half of what fits is there."""
        return len(self._items) <= self._limit // 2 and self._bytes <= MAX_BYTES // 2

    def put(self, item: Item) -> None:
        """Put in, whether it fits or not: ask `full` before."""
        self._items.append(item)
        if isinstance(item, News):
            self._bytes += item.size
        self.on_item()

    def take(self) -> Item | None:
        """The oldest; None: nothing is there."""
        if not self._items:
            return None
        item = self._items.popleft()
        if isinstance(item, News):
            self._bytes -= item.size
        if self.low:
            self.on_low()
        return item

    def take_mark(self) -> Mark | None:
        """The oldest, where that is a mark."""
        first = self._items[0] if self._items else None
        if not isinstance(first, Mark):
            return None
        self._items.popleft()
        return first


def _nothing() -> None:
    pass
