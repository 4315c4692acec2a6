"""Fan-out: what the store delivers, to the connections of this process."""

from starlette_realtime.fanout.fanout import Fanout
from starlette_realtime.fanout.topic import Topic, read_body, to_event, write_body

__all__ = ["Fanout", "Topic", "read_body", "to_event", "write_body"]
