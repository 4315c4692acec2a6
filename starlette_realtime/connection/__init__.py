"""One client: its protocol, identity, outbox and inbox."""

from starlette_realtime.connection.connection import Connection, ConnectionOptions, Service, size_of
from starlette_realtime.connection.lanes import Lanes
from starlette_realtime.connection.outbox import Outbox

__all__ = ["Connection", "ConnectionOptions", "Lanes", "Outbox", "Service", "size_of"]
