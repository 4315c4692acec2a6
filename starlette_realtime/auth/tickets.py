"""Tickets: one short use of somebody's credentials where only a URL can carry them."""

import os
import secrets as randomness
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from starlette_realtime.asgi import Origins, header_values
from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, Forbidden, StoreError, Unauthenticated, Unavailable
from starlette_realtime.messages import Identity
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.tokens import Secret, check_secret, open_signed, serializer
from starlette_realtime.types import Scope

__all__ = ["MAX_TICKET", "Tickets", "hide_tickets", "take_tickets"]

MAX_TICKET: Final = 4096
"""The longest ticket, in characters: what fits into any proxy's idea of a URL."""

PREFIX: Final = "rtt1."
"""What every ticket begins with, so that an application may have a `ticket` parameter of its own."""

CLOCKS: Final = 60.0
"""How much longer than it is good a ticket is known to be used, in seconds: clocks of processes differ."""

_PARAMETER: Final = b"ticket="
_HIDDEN: Final = "starlette_realtime.tickets"
_PROCESS: Final = randomness.token_hex(8)
_SAME_ORIGIN: Final = Origins()


class _Ticket(msgspec.Struct, frozen=True):
    """
    What a ticket holds: an id, who, since when that is known and when it expires in Unix milliseconds, the origin it is
    for, where it can be used, and what its identity has besides.
    """

    tid: str
    sub: str
    iat: int
    exp: int
    home: str
    origin: str | None = None
    claims: dict[str, Any] = {}
    until: float | None = None


class Tickets:
    """
    Issues tickets, and lets each be used once.

    They are signed with `secret` (None: a random one), good for `max_age` seconds, and claimed in `store`. With a
    `MemoryStore` a ticket is good in its process only, as no other could tell whether it has been used.
    """

    def __init__(
        self,
        store: Store,
        *,
        secret: Secret | None,
        max_age: float,
        clock: Clock,
        entropy: Callable[[int], bytes],
    ) -> None:
        if not max_age > 0:
            raise ConfigurationError(f"ticket_age is in seconds and positive, not {max_age!r}")
        self._random = secret is None
        keys = (randomness.token_bytes(32),) if secret is None else check_secret(secret)
        self._serializer = serializer(keys, "ticket")
        self._store = store
        self._max_age = max_age
        self._clock = clock
        self._entropy = entropy

    def issue(self, identity: Identity, scope: Scope) -> str:
        """
        A ticket for `identity`, bound to the origin that `scope` comes from, if it says so.

        It holds the identity's claims, signed and readable. Raises `Unauthenticated` for who is nobody or has expired,
        `Forbidden` for several origins, and `ValueError` for claims that are too long.
        """
        if self._random and not isinstance(self._store, MemoryStore):
            raise ConfigurationError(
                "processes that share a store share the secret of tickets: pass AuthGuard(secret=…)"
            )
        now = self._clock.time()
        if identity.user is None:
            raise Unauthenticated("a ticket stands for a user: send a token, or sign in first")
        expires = now + self._max_age
        if identity.expires_at is not None:
            expires = min(expires, identity.expires_at)
        if expires <= now:
            raise Unauthenticated(code="expired")
        origins = header_values(scope, b"origin")
        if len(origins) > 1:
            raise Forbidden
        ticket = _Ticket(
            tid=self._entropy(16).hex(),
            sub=identity.user,
            iat=int(min(now, identity.issued_at if identity.issued_at is not None else now) * 1000),
            exp=round(expires * 1000),
            home=self._home(),
            origin=origins[0].decode("latin-1") if origins else None,
            claims=dict(identity.claims),
            until=identity.expires_at,
        )
        text: str = PREFIX + self._serializer.dumps(msgspec.structs.asdict(ticket))
        if len(text) > MAX_TICKET:
            raise ValueError(f"a ticket has at most {MAX_TICKET} characters: put less into the identity's claims")
        return text

    async def use(self, texts: Sequence[str], other: Identity | None, scope: Scope) -> tuple[Identity, float]:
        """
        Whom the one ticket of a handshake stands for, and since when that is known, in Unix seconds: no later than when
        it was issued. It is used then.

        `other` is whom the handshake's other credentials name. Raises `Unauthenticated`, or `Unavailable` when the
        store can't tell whether it has been used.
        """
        if len(texts) != 1:
            raise Unauthenticated("bring one ticket")
        try:
            ticket = open_signed(self._serializer, texts[0].removeprefix(PREFIX), _Ticket, most=MAX_TICKET)
        except ValueError as exc:
            raise Unauthenticated("the ticket is not valid") from exc
        now = self._clock.time()
        if round(now * 1000) >= ticket.exp:
            raise Unauthenticated("the ticket has expired: fetch a new one", code="expired")
        if ticket.home != self._home():
            raise Unauthenticated("the ticket is another process's, and there is no store that they share")
        if not _comes_from(ticket.origin, scope):
            raise Unauthenticated("the ticket is another origin's")
        if other is not None and other.user != ticket.sub:
            raise Unauthenticated("the ticket is another user's")
        try:
            # Last of all: a ticket that somebody else shows is not used up by that.
            claimed = await self._store.claim(f"ticket:{ticket.tid}", ttl=self._max_age + CLOCKS)
        except StoreError as exc:
            raise Unavailable("nobody can tell now whether this ticket has been used") from exc
        if not claimed:
            raise Unauthenticated("the ticket has been used: fetch a new one")
        return Identity(ticket.sub, ticket.claims, ticket.until), ticket.iat / 1000

    def _home(self) -> str:
        """Where tickets can be used: wherever the store is, or in this process, which may have been forked."""
        if isinstance(self._store, MemoryStore):
            return f"{_PROCESS}.{os.getpid()}.{id(self._store.backend):x}"
        return ""


def take_tickets(scope: Scope) -> list[str]:
    """The tickets in the query of a handshake or a GET, once."""
    hide_tickets(scope)
    tickets: list[str] = scope.pop(_HIDDEN, [])
    return tickets


def hide_tickets(scope: Scope) -> None:
    """
    Take the tickets out of the query of a handshake or a GET, so that they get into no log, whatever comes of it.

    Any other query, and whatever else it has, stays as it came.
    """
    query: bytes = scope.get("query_string", b"")
    if _PARAMETER not in query or not (scope["type"] == "websocket" or scope["method"] == "GET"):
        return
    rest, tickets = [], []
    start = _PARAMETER + PREFIX.encode()
    for pair in query.split(b"&"):
        if pair.startswith(start):
            tickets.append(pair[len(_PARAMETER) :].decode("latin-1"))
        else:
            rest.append(pair)
    if tickets:
        scope["query_string"] = b"&".join(rest)
        scope[_HIDDEN] = [*scope.get(_HIDDEN, []), *tickets]


def _comes_from(origin: str | None, scope: Scope) -> bool:
    """
    Whether a handshake comes from where its ticket was issued to.

    A page's GET of its own origin has no `Origin`, but says that it is one (Fetch Metadata, `Sec-Fetch-Site`).
    """
    if origin is None:
        return True
    origins = header_values(scope, b"origin")
    if not origins and scope["type"] == "http" and header_values(scope, b"sec-fetch-site") == [b"same-origin"]:
        return _SAME_ORIGIN.check({**scope, "headers": [*scope["headers"], (b"origin", origin.encode("latin-1"))]})
    return [value.decode("latin-1") for value in origins] == [origin]
