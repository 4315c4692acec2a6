"""Publishers: publish from any process, with the rooms' own definitions."""

from starlette_realtime.publisher.blocking import SyncPublisher
from starlette_realtime.publisher.publisher import Publisher

__all__ = ["Publisher", "SyncPublisher"]
