"""Users: presence as an application reads it, by connection and by user."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UnsetType

from starlette_realtime.messages import Entry, Status

__all__ = ["ConnectionPresence", "UserPresence", "by_user", "view"]


@dataclass(frozen=True, slots=True)
class ConnectionPresence:
    """One connection that is present; `since` is in Unix milliseconds, `meta` a JSON value, None without one."""

    connection: str
    user: str | None
    status: Status
    since: int
    meta: Any = None


@dataclass(frozen=True, slots=True)
class UserPresence:
    """
    One user over all their connections, the longest present first; who is anonymous has `user=None`.

    `status` is `online` where any connection is, and `away` where all are. `since` is the first connection's, in Unix
    milliseconds; `meta` is that of the first connection with this status.
    """

    user: str | None
    status: Status
    since: int
    meta: Any
    connections: tuple[ConnectionPresence, ...]


def view(entry: Entry) -> ConnectionPresence:
    """A presence record without what stays on the server, its `meta` read."""
    meta = None if isinstance(entry.meta, UnsetType) else msgspec.json.decode(entry.meta)
    return ConnectionPresence(entry.connection, entry.user, entry.status, entry.since, meta)


def by_user(present: Iterable[Entry | ConnectionPresence]) -> list[UserPresence]:
    """
    The users behind presence records, in the order of their first connection.

    Anonymous peers are one each, by what the record counts them by (`Entry.who`), else by connection.
    """
    groups: dict[str, list[ConnectionPresence]] = {}
    for each in present:
        if isinstance(each, Entry):
            groups.setdefault(each.who, []).append(view(each))
        else:
            who = f"u:{each.user}" if each.user is not None else f"s:{each.connection}"
            groups.setdefault(who, []).append(each)
    return [_user(connections) for connections in groups.values()]


def _user(connections: list[ConnectionPresence]) -> UserPresence:
    first = connections[0]
    telling = next((each for each in connections if each.status == "online"), first)
    since = min(each.since for each in connections)
    return UserPresence(first.user, telling.status, since, telling.meta, tuple(connections))
