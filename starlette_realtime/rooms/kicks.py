"""Kicks that a process could not hear: published while it asked whether somebody may join, before it listened."""

import msgspec

from starlette_realtime.connection import Connection
from starlette_realtime.errors import StoreError, Unavailable
from starlette_realtime.fanout import read_body
from starlette_realtime.messages import Publication
from starlette_realtime.rooms.member import Membership
from starlette_realtime.rooms.publishing import COMMANDS, KICK, Kick
from starlette_realtime.store import Store

__all__ = ["may_be_kicked"]

LOOKED_AT = 64
"""How many of a room's last publications are looked at."""

LOOKED_AT_BYTES = 65_536
"""How many bytes of them, about."""


async def may_be_kicked(store: Store, membership: Membership, *, seconds: float) -> bool:
    """
    Whether a kick of the last `seconds` may mean this connection, as far as the room's history tells.

    There is no telling the store's time from here. So it may be an older kick, too: ask `authorize` once more, which
    decides who comes back. Raises `Unavailable`.
    """
    if seconds >= (membership.room.history or COMMANDS).ttl:
        return True
    try:
        page = await store.page(membership.name, before=None, limit=LOOKED_AT, limit_bytes=LOOKED_AT_BYTES)
    except StoreError as exc:
        raise Unavailable from exc
    found = page.publications
    if (page.more or page.truncated) and (not found or found[-1].at - found[0].at <= seconds * 1000 + 1):
        return True  # it does not reach back that far
    return any(_kicks(publication, membership.connection) for publication in found)


def _kicks(publication: Publication, connection: Connection) -> bool:
    try:
        body = read_body(publication)
        return body.event == KICK and msgspec.json.decode(body.data, type=Kick).means(connection)
    except msgspec.DecodeError:
        return False
