"""Stream: one topic's publications in memory, with exact history."""

from collections import deque
from itertools import islice

from starlette_realtime.messages import History, Page, Position, Publication, Recovery
from starlette_realtime.store.ring import after

__all__ = ["Stream"]


class Stream:
    """
    A topic's life from its epoch on: where it is, and the publications that its history still holds.

    `limit_bytes` bounds the history's data, whatever the number of publications. Times are the caller's, in seconds.
    """

    __slots__ = ("epoch", "expires", "id", "limit_bytes", "offset", "rows", "size")

    def __init__(self, epoch: str, limit_bytes: int) -> None:
        self.epoch = epoch
        self.offset = 0
        self.id = ""
        self.rows: deque[Publication] = deque()  # without a hole, the last one at `offset`
        self.size = 0  # bytes of data in the rows
        self.expires = 0.0  # when the rows are too old
        self.limit_bytes = limit_bytes

    @property
    def position(self) -> Position:
        """Where the topic is."""
        return Position(self.epoch, self.offset, self.id)

    def append(self, data: bytes, *, id: str, at: int, history: History, now: float) -> Publication:
        """Publish: the next offset, chained to the one before; what the history has no room for goes."""
        rows = self.rows
        if rows and now >= self.expires:
            self.expire()
        self.offset += 1
        publication = Publication(data, at, Position(self.epoch, self.offset, id), self.id)
        self.id = id
        self.expires = now + history.ttl
        rows.append(publication)
        self.size += len(data)
        while rows and (len(rows) > history.size or self.size > self.limit_bytes):
            self.size -= len(rows.popleft().data)
        return publication

    def trim(self, size: int) -> None:
        """Drop the oldest publications, until there are at most `size` bytes of data; the position stays."""
        while self.rows and self.size > size:
            self.size -= len(self.rows.popleft().data)

    def expire(self) -> None:
        """Drop the whole history; the position stays."""
        self.rows.clear()
        self.size = 0

    def read(self, since: Position | None, limit: int, limit_bytes: int) -> Recovery:
        """See `Store.read`."""
        top = self.position
        if since is None:
            return Recovery((), top, complete=True)
        found = after(self.rows, top, since, limit, limit_bytes)
        return found if found is not None else Recovery((), top, complete=False, reason="trimmed")

    def page(self, before: Position | None, limit: int, limit_bytes: int) -> Page:
        """See `Store.page`."""
        end = len(self.rows)
        first = self.offset - end + 1  # the offset of the oldest row
        if before is not None:
            end = before.offset - first
            if before == Position(self.epoch, 0, ""):
                return Page((), more=False, truncated=False)
            if not 0 <= end < len(self.rows) or self.rows[end].position != before:
                return Page((), more=False, truncated=True)
        start, size = end, 0
        while start > 0 and end - start < limit:
            size += len(self.rows[start - 1].data)
            if size > limit_bytes and start < end:  # at least one, or nobody would ever get past it
                break
            start -= 1
        return Page(tuple(islice(self.rows, start, end)), more=start > 0, truncated=start == 0 and first > 1)

    def rewind(self, count: int) -> None:
        """Forget the last `count` publications as if they had never been, as a replica's promotion does."""
        if not 0 <= count <= len(self.rows):
            raise ValueError(f"the history holds {len(self.rows)} publications, so that {count} cannot be taken back")
        for _ in range(count):
            publication = self.rows.pop()
            self.offset -= 1
            self.id = publication.previous
            self.size -= len(publication.data)
