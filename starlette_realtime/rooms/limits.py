"""Limits: how often a connection may ask for what, and what applies to all rooms."""

from dataclasses import dataclass

from starlette_realtime.clock import Clock
from starlette_realtime.connection import Connection
from starlette_realtime.messages import Auth, Command, History, Join, SetStatus
from starlette_realtime.ratelimit import Rate, TokenBucket

__all__ = ["CommandLimits", "RoomsOptions"]

REFRESHES = Rate(5, 30.0)
"""How often a connection may renew its credentials: each time all its rooms are asked again."""


@dataclass(frozen=True, kw_only=True)
class RoomsOptions:
    """What applies to all rooms. Durations are seconds, sizes are bytes."""

    messages: str = "20/second"
    """How many commands a connection may send, joins aside."""
    messages_burst: int = 40
    """How many of them at once."""
    joins: str = "5/second"
    """How often a connection may join."""
    joins_burst: int = 100
    """How many joins at once: as many as a client has rooms, or it couldn't come back."""
    missed: int = 512
    """How many events one resume may bring."""
    missed_bytes: int = 1024 * 1024
    """How large they may be together."""
    presence_interval: float = 0.1
    """At most so often a room's members hear of each other."""
    user_history: History = History()  # noqa: RUF009 - frozen
    """What is kept of what is sent to a user."""
    publication_bytes: int = 256 * 1024
    """How large one published event may be: a fraction of what may wait for a client."""
    history_page: int = 100
    """How many events one page of history has at most."""


class CommandLimits:
    """Local token buckets, kept on the connections. All methods take, and tell how many seconds to wait; 0: taken."""

    def __init__(self, options: RoomsOptions, clock: Clock) -> None:
        self._messages = Rate.parse(options.messages)
        self._messages_burst = options.messages_burst
        self._joins = Rate.parse(options.joins)
        self._joins_burst = options.joins_burst
        self._clock = clock

    def wait(self, connection: Connection, command: Command) -> float:
        """Count a command."""
        if isinstance(command, Join):
            return self._bucket(connection, "joins", self._joins, self._joins_burst).take()
        if isinstance(command, Auth) and connection.identity is not None:
            return self._bucket(connection, "refreshes", REFRESHES, None).take()
        bucket = self._bucket(connection, "messages", self._messages, self._messages_burst)
        everywhere = isinstance(command, SetStatus) and command.room is None
        return bucket.take(min(max(1, len(connection.rooms)), bucket.burst) if everywhere else 1)

    def idle(self, connection: Connection) -> float:
        """Count what asks for nothing, and so can't be refused."""
        return self._bucket(connection, "idle", self._messages, self._messages_burst).take()

    def handler(self, connection: Connection, key: object, rate: Rate) -> float:
        """Count a call of one handler."""
        return self._bucket(connection, key, rate, None).take()

    def goes_on(self, connection: Connection) -> bool:
        """Count a refusal; tells whether the client goes on regardless."""
        return bool(self._bucket(connection, "refused", self._messages, self._messages_burst).take())

    def _bucket(self, connection: Connection, key: object, rate: Rate, burst: int | None) -> TokenBucket:
        bucket = connection.buckets.get(key)
        if bucket is None:
            bucket = connection.buckets[key] = TokenBucket(rate, burst, self._clock)
        found: TokenBucket = bucket
        return found
