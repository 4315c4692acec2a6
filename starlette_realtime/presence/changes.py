"""Changes: what a watcher of presence gets. `msgspec.json.encode` makes each a JSON object, told apart by `type`."""

from dataclasses import dataclass
from typing import Literal

from starlette_realtime.presence.users import ConnectionPresence

__all__ = ["Diff", "Snapshot", "StoreAway", "StoreBack", "Watched"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    Who is present at sequence `seq`: it takes the place of all that was known before.

    `total` counts connections. `members` are all of them, the longest present first, or a sample where `complete` is
    False.
    """

    seq: int
    total: int
    members: tuple[ConnectionPresence, ...]
    complete: bool = True
    type: Literal["snapshot"] = "snapshot"


@dataclass(frozen=True, slots=True)
class Diff:
    """
    How that changed from sequence `prev`, which is where the watcher is, to `seq`.

    `joined` and `updated` are as they are now, `left` are ids of connections; `total` counts connections.
    """

    prev: int
    seq: int
    total: int
    joined: tuple[ConnectionPresence, ...] = ()
    updated: tuple[ConnectionPresence, ...] = ()
    left: tuple[str, ...] = ()
    type: Literal["diff"] = "diff"


@dataclass(frozen=True, slots=True)
class StoreAway:
    """The store is away: what is known may be old, and no change arrives until `StoreBack`."""

    type: Literal["stale"] = "stale"


@dataclass(frozen=True, slots=True)
class StoreBack:
    """The store is back: what has changed meanwhile follows."""

    type: Literal["fresh"] = "fresh"


Watched = Snapshot | Diff | StoreAway | StoreBack
"""What a watcher gets."""
