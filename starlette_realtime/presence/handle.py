"""Handle: `scope["presence"]`, by which an endpoint tells more about its own connection."""

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from starlette_realtime.messages import Entry, Status
from starlette_realtime.presence.visits import Visit, Visits

__all__ = ["META_BYTES", "PresenceHandle", "encode_meta"]

META_BYTES = 4_096
"""How large the JSON of one connection's `meta` may be."""


def encode_meta(value: Any) -> Raw | UnsetType:
    """A connection's `meta` as JSON, nothing for None. Raises `ValueError` when it is too large, and `TypeError`."""
    if value is None:
        return UNSET
    data = msgspec.json.encode(value)
    if len(data) > META_BYTES:
        raise ValueError(f"meta has {len(data)} bytes of JSON, and every watcher gets it: {META_BYTES} are allowed")
    return Raw(data)


class PresenceHandle:
    """
    One connection's presence, as its endpoint has it: `websocket.scope["presence"]`.

    `connection` is its id and `topic` where it is present: both None until the endpoint has accepted, and where the
    connection isn't tracked.
    """

    __slots__ = ("_ended", "_meta", "_status", "_visit", "topic", "visits")

    def __init__(self, visits: Visits) -> None:
        self.topic: str | None = None
        self.visits = visits
        self._visit: Visit | None = None
        self._ended = False
        self._status: Status = "online"
        self._meta: Raw | UnsetType | None = None  # None: what the tracker's `meta` says

    @property
    def connection(self) -> str | None:
        """The connection's id in snapshots and changes."""
        return self._visit.entry.connection if self._visit is not None else None

    async def set(self, *, status: Status | None = None, meta: Any = UNSET) -> None:
        """
        Show another `status` ("online" or "away"), another `meta` (a JSON value, at most 4 KiB; None: none), or both.

        Before the endpoint accepts, it is what others see first; after the end, and where the connection isn't
        tracked, nothing happens. It returns when others can see it; while the store is away it returns all the same,
        and is repeated until the store is back. Raises `ValueError` and `TypeError` for what can't be shown.
        """
        if status not in ("online", "away", None):
            raise ValueError(f"a connection is online or away, not {status!r}: who has none is offline")
        if status is not None:
            self._status = status
        if not isinstance(meta, UnsetType):
            self._meta = encode_meta(meta)
        visit = self._visit
        if visit is None or self._ended:
            return
        shown = visit.entry.meta if self._meta is None else self._meta
        self.visits.update(visit, msgspec.structs.replace(visit.entry, status=self._status, meta=shown))
        await self.visits.attempted(visit)

    # --- what the tracker calls -------------------------------------------------------------------------------------

    async def begin(self, topic: str, store_topic: str, entry: Entry) -> None:
        """The endpoint has accepted."""
        if self._ended or self._visit is not None:
            return
        meta = entry.meta if self._meta is None else self._meta
        entry = msgspec.structs.replace(entry, status=self._status, meta=meta)
        self.topic = topic
        self._visit = self.visits.begin(store_topic, entry)
        await self.visits.attempted(self._visit)

    def end(self, *, clean: bool) -> None:
        """The connection has ended; only the first one who knows is asked how."""
        if self._ended:
            return
        self._ended = True
        if self._visit is not None:
            self.visits.end(self._visit, clean=clean)
