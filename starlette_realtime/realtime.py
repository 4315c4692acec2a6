"""Realtime: the facade that wires the components, mounts as one application and lives with it."""

from collections.abc import Sequence
from typing import Literal

from starlette_realtime.auth import Authenticate, AuthGuard
from starlette_realtime.clock import Clock
from starlette_realtime.connection import ConnectionOptions
from starlette_realtime.ratelimit import RateLimiter
from starlette_realtime.rooms import Room, RoomsOptions
from starlette_realtime.router import RoomRouter
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.tokens import Secret

__all__ = ["Realtime"]


class Realtime(RoomRouter):
    """
    Rooms for a Starlette or FastAPI application: declare them here, mount this, and run its lifespan.

        realtime = Realtime(authenticate=SignedTokens(secret))
        app = FastAPI(lifespan=realtime.lifespan)
        app.mount("/realtime", realtime)

    It is a `RoomRouter` with a guard of its own. `authenticate`, `anonymous`, `cookie`, `origins` and `allowed_hosts`
    are those of `AuthGuard`. `limiter` is a `RateLimiter`, of the defaults unless given. `store` is what processes
    share, in memory by default; a memory store refuses to serve several workers, unless `several_workers`. `secret`
    signs sessions and tickets, the newest first; by default it is that of `SignedTokens`. `connection` and `options`
    bound what clients may do, `max_connections` how many there are on this process. `clock` is for tests.
    """

    def __init__(
        self,
        *,
        authenticate: Authenticate | Sequence[Authenticate] = (),
        anonymous: bool = False,
        cookie: str | None = None,
        origins: Sequence[str] | Literal["*"] = (),
        allowed_hosts: Sequence[str] = (),
        limiter: RateLimiter | None = None,
        store: Store | None = None,
        secret: Secret | None = None,
        rooms: Sequence[Room] = (),
        connection: ConnectionOptions | None = None,
        options: RoomsOptions | None = None,
        max_connections: int = 10_000,
        several_workers: bool = False,
        clock: Clock | None = None,
    ) -> None:
        clock = clock if clock is not None else Clock()
        store = store if store is not None else MemoryStore(clock=clock)
        guard = AuthGuard(
            authenticate=authenticate,
            anonymous=anonymous,
            cookie=cookie,
            origins=origins,
            allowed_hosts=allowed_hosts,
            store=store,
            secret=secret,
            clock=clock,
        )
        super().__init__(
            rooms=rooms,
            guard=guard,
            limiter=limiter,
            store=store,
            secret=secret,
            connection=connection,
            options=options,
            max_connections=max_connections,
            several_workers=several_workers,
            clock=clock,
        )
