"""Limits: how often a connection may ask for what, and what applies to all rooms."""

from dataclasses import dataclass

from starlette_realtime.asgi import milliseconds
from starlette_realtime.clock import Clock
from starlette_realtime.connection import Connection
from starlette_realtime.errors import ConfigurationError, RateLimited, Refused
from starlette_realtime.messages import Auth, Command, History, Join, Limits, Send, SetStatus
from starlette_realtime.ratelimit import Decision, Gate, Rate, RateLimiter, Subject, TokenBucket
from starlette_realtime.rooms.declaration import EventHandler

__all__ = ["CommandLimits", "RoomsOptions"]

REFRESHES = Rate(5, 30.0)
"""How often a connection may renew its credentials: each time all its rooms are asked again."""

STATUS = Rate(100, 5.0)
"""How many presence records it may change: one command may mean every room that it is in."""

IDLE, IDLE_BURST = Rate(20, 1.0), 40
"""How often it may send what asks for nothing, or go on after a refusal."""


@dataclass(frozen=True, kw_only=True)
class RoomsOptions:
    """What applies to all rooms. Durations are seconds, sizes are bytes."""

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

    def __post_init__(self) -> None:
        for name in ("missed", "missed_bytes", "publication_bytes", "history_page"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is 1 or more, not {getattr(self, name)!r}")
        if self.presence_interval < 0:
            raise ConfigurationError(f"presence_interval is in seconds and not negative, not {self.presence_interval}")


class CommandLimits:
    """
    What a connection may ask for, by the gates of a `RateLimiter` and by bounds of the kit's own.

    A client that has little left hears `limits`.
    """

    def __init__(self, limiter: RateLimiter, clock: Clock) -> None:
        self._limiter = limiter
        self._clock = clock
        self._handlers: dict[EventHandler, Gate] = {}

    async def command(self, connection: Connection, command: Command) -> Refused | None:
        """Count a command; tells why it is refused, if it is."""
        if isinstance(command, Auth) and connection.asked:
            return self._own(connection, "refreshes", REFRESHES, 1)
        if isinstance(command, Join):
            return await self._take(connection, self._limiter.joins, command)
        if isinstance(command, SetStatus):
            records = max(1, len(connection.rooms)) if command.room is None else 1
            refused = self._own(connection, "status", STATUS, min(records, int(STATUS.amount)))
            if refused is not None:
                return refused
        return await self._take(connection, self._limiter.frames, command)

    async def handler(self, connection: Connection, handler: EventHandler, command: Send) -> None:
        """Count a call of one handler; raises `Refused`."""
        if not handler.limits:
            return
        gate = self._handlers.get(handler)
        if gate is None:
            gate = self._handlers[handler] = self._limiter.gate(handler.name, handler.limits)
        refused = await self._take(connection, gate, command, command.event)
        if refused is not None:
            raise refused

    async def publish(self, connection: Connection) -> None:
        """Count a kept event that a connection's handler publishes; raises `Refused`."""
        refused = await self._take(connection, self._limiter.publishes, None)
        if refused is not None:
            raise refused

    def idle(self, connection: Connection) -> float:
        """Count what asks for nothing, and so can't be refused; tells how long to wait: 0 for not at all."""
        return self._bucket(connection, "idle", IDLE, IDLE_BURST).take()

    def goes_on(self, connection: Connection) -> bool:
        """Count a refusal; tells whether the client goes on regardless."""
        return bool(self._bucket(connection, "refused", IDLE, IDLE_BURST).take())

    async def _take(self, connection: Connection, gate: Gate, what: object, event: str | None = None) -> Refused | None:
        decision = (
            gate.take_now(connection.buckets, what)
            if gate.local
            else await gate.take(Subject(connection.scope, connection.user, connection.id), connection.buckets, what)
        )
        if not decision.allowed:
            return decision.refusal()
        if 4 * decision.remaining < decision.limit and gate.due(connection.told, decision):
            connection.push(Limits(decision.remaining, _pause(decision), event))
        return None

    def _own(self, connection: Connection, key: str, rate: Rate, cost: int) -> Refused | None:
        wait = self._bucket(connection, key, rate, None).take(cost)
        return RateLimited(retry_after=wait) if wait else None

    def _bucket(self, connection: Connection, key: object, rate: Rate, burst: int | None) -> TokenBucket:
        bucket = connection.buckets.get(key)
        if bucket is None:
            bucket = connection.buckets[key] = TokenBucket(rate, burst, self._clock)
        found: TokenBucket = bucket
        return found


def _pause(decision: Decision) -> float:
    """How long a client should wait that would pace itself: what one more takes to come, where nothing is left."""
    return 0.0 if decision.remaining else milliseconds(decision.reset / max(1, decision.limit))
