"""RateLimiter: how much of what a peer may ask, as middleware and for the rooms."""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable
from math import ceil
from typing import Literal, get_args

import anyio
from starlette.requests import HTTPConnection

from starlette_realtime.asgi import address_group, client_address, deny, header_values, is_private, scope_user
from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, RateLimited, Refused
from starlette_realtime.ratelimit.caps import Caps, address_key, user_key
from starlette_realtime.ratelimit.frames import LimitedSocket
from starlette_realtime.ratelimit.gate import Gate
from starlette_realtime.ratelimit.limit import By, Limit, Limits, Subject, as_limits
from starlette_realtime.ratelimit.rate import Decision
from starlette_realtime.ratelimit.shared import SharedQuotas
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.types import ASGIApp, Message, Receive, Scope, Send
from starlette_realtime.workers import several

__all__ = ["RateLimiter"]

logger = logging.getLogger("starlette_realtime.ratelimit")

Over = Literal["close", "wait"]

TAKEN = "starlette_realtime.slots"
"""In a scope: under which keys a limiter has taken a slot for that connection, so that it takes no second one."""


class RateLimiter:
    """
    Limits requests, handshakes, frames and connections; and for the rooms joins, publishes and named events.

    As ASGI middleware it answers a request over `requests` with 429, `Retry-After` and the error as JSON; refuses a
    handshake over `handshakes` with 429 (a browser's is accepted and closed with 4429, as it can't read a status);
    and counts the `frames` of each WebSocket. Over that limit the WebSocket is closed with 4429; with `over="wait"`
    the frames that are too many wait, and nothing more is read meanwhile; who is over it for `max_wait` seconds on end
    is closed then, as nobody notices that a peer has gone while frames of it wait. `joins`, `publishes` and gates of
    one's own (`gate`) are for whoever knows what a frame means.

    Each is a `Limit`, a rate such as "5/second", several of both, or `()` for none. A rate alone is counted by the
    connection for frames and joins, by the user for publishes, and by the address for what comes before.

    `connections_per_user` and `connections_per_address` cap the WebSockets that are open at once, over all processes
    that share the store; None: no cap. Each takes a slot for its life; `slot`, a function of the handshake, names it
    where a client has something to be known by again, and only that client knows it: a reconnect then takes its own
    slot over, and what it left behind in this process is closed with 4403.

    `headers=True` tells in every HTTP response what remains, in `RateLimit` and `RateLimit-Policy`
    (draft-ietf-httpapi-ratelimit-headers). `store` is where shared quotas and slots are counted, by default a memory
    store of its own; `clock` tells the time, by default the store's.

    Raises `ConfigurationError`.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        requests: Limits = (),
        handshakes: Limits = Limit("5/second", burst=20, by="address"),  # noqa: B008 - frozen
        frames: Limits = Limit("20/second", burst=40, by="connection"),  # noqa: B008
        joins: Limits = Limit("5/second", burst=100, by="connection"),  # noqa: B008
        publishes: Limits = Limit("10/second", by="user", shared=True),  # noqa: B008
        connections_per_user: int | None = 10,
        connections_per_address: int | None = 50,
        slot: Callable[[HTTPConnection], str | None] | None = None,
        over: Over = "close",
        max_wait: float = 60.0,
        headers: bool = False,
        store: Store | None = None,
        clock: Clock | None = None,
    ) -> None:
        if over not in get_args(Over):
            raise ConfigurationError(f"over the limit of frames, 'close' or 'wait', not {over!r}")
        if not max_wait > 0:
            raise ConfigurationError(f"max_wait is in seconds and positive, not {max_wait!r}")
        for name, cap in (("user", connections_per_user), ("address", connections_per_address)):
            if cap is not None and cap < 1:
                raise ConfigurationError(f"connections_per_{name} is 1 or more, or None for no cap, not {cap!r}")
        self.app = app
        self.connections_per_user = connections_per_user
        self.connections_per_address = connections_per_address
        self._slot = slot
        self._over: Over = over
        self._max_wait = max_wait
        self._headers = headers
        self._store = store
        self._bindable = (store is None, clock is None)
        self._clock = clock if clock is not None else store.clock if store is not None else Clock()
        self._quotas: SharedQuotas | None = None
        self._caps: Caps | None = None
        self._sockets: dict[str, LimitedSocket] = {}  # slot → who holds it, where it can be taken over
        self._endings: set[asyncio.Future[None]] = set()
        self._warned = self._warned_of_proxy = False
        self.requests = self._early("requests", requests)
        self.handshakes = self._early("handshakes", handshakes)
        self.frames = self.gate("frames", frames)
        self.joins = self.gate("joins", joins)
        self.publishes = self.gate("publishes", publishes, "user")
        if any(callable(limit.cost) for limit in self.publishes.limits):
            raise ConfigurationError("a publication costs a number: let the event's own limit have a function")

    # --- for other components ---------------------------------------------------------------------------------------

    def gate(self, name: str, limits: Limits, by: By = "connection") -> Gate:
        """
        The limits on one more kind of thing, such as a named event: counted `by` where they don't say otherwise.

        Processes that share a store count shared limits of the same name together.
        """
        return Gate(name, as_limits(limits, by), self)

    def bind(self, store: Store, clock: Clock) -> None:
        """Use this store and clock, where none was given. To be called before anything is counted."""
        if self._bindable[0]:
            self._store = store
            self._quotas = self._caps = None
        if all(self._bindable):
            self._clock = clock

    @property
    def clock(self) -> Clock:
        """The time by which is counted."""
        return self._clock

    @property
    def quotas(self) -> SharedQuotas:
        """What is counted in the store."""
        if self._quotas is None:
            if isinstance(self.store, MemoryStore) and several():
                logger.warning(
                    "this server runs several workers, and each counts shared limits and connections alone: give the "
                    "RateLimiter a store that they share, or run one worker"
                )
            self._quotas = SharedQuotas(self.store, self._clock)
        return self._quotas

    @property
    def store(self) -> Store:
        """What processes share: a memory store of its own, where none was given."""
        if self._store is None:
            self._store = MemoryStore(clock=self._clock)
        return self._store

    def address_group(self, scope: Scope) -> str | None:
        """What the peer's address is counted as; None where it isn't, as it is no public one."""
        address = client_address(scope)
        if address is None or is_private(address):
            self._warn(address, scope)
            return None
        return address_group(address)

    async def admit(self, slot: str, *, user: str | None = None, scope: Scope | None = None) -> None:
        """
        Take one of the connections that `user` may have, and one of those of the peer's address: both, or neither.
        What this limiter took as middleware, in front, is not taken again.

        A slot that is held already is taken over, so that a reconnect replaces what it left behind. Each `admit` that
        returned needs a `release` with the same arguments. Raises `RateLimited`.
        """
        await self._capping.admit(slot, self._cap_keys(user, scope))

    async def release(self, slot: str, *, user: str | None = None, scope: Scope | None = None) -> None:
        """Give back what `admit` took. Never raises `StoreError`: where the store is away, it is made up for."""
        await self._capping.release(slot, self._cap_keys(user, scope))

    @property
    def _capping(self) -> Caps:
        if self._caps is None:
            self._caps = Caps(self.store, self._clock, self.quotas)
        return self._caps

    def _cap_keys(self, user: str | None, scope: Scope | None) -> dict[str, int]:
        keys: dict[str, int] = {}
        if user is not None and self.connections_per_user is not None:
            keys[user_key(user)] = self.connections_per_user
        if scope is not None and self.connections_per_address is not None:
            group = self.address_group(scope)
            if group is not None:
                keys[address_key(group)] = self.connections_per_address
        for key in scope.get(TAKEN, {}).get(self, ()) if scope is not None else ():
            keys.pop(key, None)
        return keys

    async def aclose(self) -> None:
        """Stop what goes on in the background: telling the store, once it is back, of slots taken meanwhile."""
        if self._caps is not None:
            await self._caps.close()
        if self._quotas is not None:
            await self._quotas.close()

    def gauges(self) -> dict[str, int]:
        """What this process holds at the moment."""
        gates = (self.requests, self.handshakes, self.frames, self.joins, self.publishes)
        return {
            "buckets": sum(gate.kept for gate in gates),
            "leases": self._quotas.leased if self._quotas is not None else 0,
            "slots": self._caps.held if self._caps is not None else 0,
            "untold_slots": self._caps.untold if self._caps is not None else 0,
            "replaceable": len(self._sockets),
        }

    # --- as middleware ----------------------------------------------------------------------------------------------

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this very limiter, which may stand before others as well: `Middleware(limiter.wrap)`."""

        async def limited(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(app, scope, receive, send)

        return limited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if self.app is None:
            raise ConfigurationError(
                "this RateLimiter wraps no application: RateLimiter(app, …), or Middleware(limiter.wrap)"
            )
        await self._serve(self.app, scope, receive, send)

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._request(app, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(app, scope, receive, send)
        else:
            await app(scope, receive, send)

    async def _request(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        gate = self.requests
        if not gate.limits:
            await app(scope, receive, send)
            return
        subject = Subject(scope, scope_user(scope))
        decision = await gate.take(subject, {}, HTTPConnection(scope), exact=self._headers)
        fields = _fields(gate, decision) if self._headers else []
        if not decision.allowed:
            await _deny(scope, receive, send, decision.refusal(), fields)
            return

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *fields]}
            await send(message)

        await app(scope, receive, tell if fields else send)

    async def _websocket(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        handshake, user = HTTPConnection(scope), scope_user(scope)
        decision = await self.handshakes.take(Subject(scope, user), {}, handshake)
        if not decision.allowed:
            await _deny(scope, receive, send, decision.refusal())
            return
        connection = secrets.token_hex(16)
        own = self._slot(handshake) if self._slot is not None else None
        slot = connection if own is None else _slot_of(user, own)
        keys = self._cap_keys(user, scope)  # now: a middleware inside may put another address into the scope
        try:
            await self._capping.admit(slot, keys)
        except RateLimited as refusal:
            await _deny(scope, receive, send, refusal)
            return
        scope[TAKEN] = taken = {**scope.get(TAKEN, {})}
        taken[self] = frozenset(keys).union(taken.get(self, ()))
        socket = LimitedSocket(
            self.frames,
            Subject(scope, user, connection),
            receive,
            send,
            clock=self._clock,
            over=self._over,
            max_wait=self._max_wait,
            replaceable=own is not None,
        )
        before = self._sockets.get(slot)
        if own is not None:
            self._sockets[slot] = socket
        ending: asyncio.Future[None] | None = None
        if before is not None:
            ending = asyncio.ensure_future(before.end(4403, "replaced"))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
        try:
            await app(scope, socket.receive, socket.send)
        finally:
            socket.leave()
            if self._sockets.get(slot) is socket:
                del self._sockets[slot]
            with anyio.CancelScope(shield=True):
                await self._capping.release(slot, keys)
                if ending is not None:
                    await ending

    def _early(self, name: str, limits: Limits) -> Gate:
        gate = self.gate(name, limits, "address")
        if any(limit.by == "connection" for limit in gate.limits):
            raise ConfigurationError(
                f"{name} come before there is a connection: count them by 'address', by 'user' or by a function"
            )
        return gate

    def _warn(self, address: str | None, scope: Scope) -> None:
        """Say once that addresses don't limit; once more where a proxy is seen to be the reason."""
        forwarded = b", ".join(header_values(scope, b"x-forwarded-for") + header_values(scope, b"forwarded"))
        # Where the server has taken the address from that header, the proxy is trusted, and the peer is in its network.
        untrusted = bool(forwarded) and (address or "-") not in forwarded.decode("latin-1")
        if untrusted and not self._warned_of_proxy:
            self._warned = self._warned_of_proxy = True
            logger.warning(
                "limits by address are off: peers come through a proxy (%s) whose word the server does not take. Have "
                "it take their addresses from the proxy: for uvicorn, --forwarded-allow-ips=%s",
                address or "without an address",
                address or "'*'",
            )
        elif not self._warned:
            self._warned = True
            logger.warning(
                "limits by address are off for peers of private networks, such as %s: if that is a proxy, have the "
                "server take the peers' addresses from it (for uvicorn, --forwarded-allow-ips)",
                address or "one without an address",
            )


def _slot_of(user: str | None, own: str) -> str:
    """A slot that only this user can take over, and that doesn't tell the store what the client is known by."""
    return hashlib.sha256(repr((user, own)).encode(errors="surrogatepass")).hexdigest()[:32]


def _fields(gate: Gate, decision: Decision) -> list[tuple[bytes, bytes]]:
    """What remains, for a client that paces itself: structured fields (RFC 9651) of the draft."""
    policies = ", ".join(f'"{name}";q={amount};w={ceil(seconds)}' for name, amount, seconds in gate.policies)
    fields = [(b"ratelimit-policy", policies.encode())]
    if decision.policy:
        left = f'"{decision.policy}";r={decision.remaining};t={ceil(decision.reset)}'
        fields.append((b"ratelimit", left.encode()))
    return fields


async def _deny(
    scope: Scope, receive: Receive, send: Send, refusal: Refused, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    await deny(
        scope,
        receive,
        send,
        status=429,
        code=4429,
        reason=refusal.code,
        retry_after=refusal.retry_after,
        headers=headers or (),
    )
