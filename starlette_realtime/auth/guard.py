"""AuthGuard: who is asking, by token, session, cookie, ticket or an application's own backend."""

import logging
import secrets as randomness
from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from types import TracebackType
from typing import Literal, Self

import msgspec
from starlette.authentication import AuthCredentials, BaseUser, UnauthenticatedUser
from starlette.requests import cookie_parser

from starlette_realtime.asgi import Origins, deny, header_values
from starlette_realtime.auth.firstframe import FirstFrame
from starlette_realtime.auth.refusals import refuse
from starlette_realtime.auth.revocation import OnRevocation, Revocations, token_subject, user_subject
from starlette_realtime.auth.supervision import supervise
from starlette_realtime.auth.tickets import Tickets, hide_tickets, take_tickets
from starlette_realtime.auth.ways import (
    Authenticate,
    IdentifiedUser,
    ScopeUser,
    StarletteSession,
    ask,
    ask_live,
    check_ways,
    read,
)
from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, Refused, Unauthenticated, Unavailable
from starlette_realtime.messages import Identity
from starlette_realtime.patterns import check_user
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.tokens import Secret, SignedTokens
from starlette_realtime.types import ASGIApp, Receive, Scope, Send
from starlette_realtime.workers import several

__all__ = ["AuthGuard"]

logger = logging.getLogger("starlette_realtime.auth")

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110 section 9.2.1)."""

INVALID = "the token is not valid"
MAX_JTI = 256


class AuthGuard:
    """
    Authenticates requests and handshakes, checks their origin, and ends a WebSocket whose credentials expire or are
    revoked.

    As ASGI middleware it checks the origin of WebSockets and of requests that are not GET, HEAD or OPTIONS, and fills
    `scope["user"]` and `scope["auth"]`, as Starlette's `requires` wants them. One guard serves several applications
    with `wrap`. It works without being entered; `async with guard` makes it hear of revocations at once.

    `authenticate` is one or more of `Authenticate`, asked in turn; `cookie` names a cookie that holds a token;
    `anonymous` lets in who brings no credentials (an invalid bearer token is refused all the same). `origins` are
    allowed besides the application's own, "*" any; `allowed_hosts` bounds the `Host` header, against DNS rebinding.

    `store` is where tickets are used up and revocations stand (None: in this process only). `secret` signs tickets,
    the newest first (None: that of `SignedTokens` in `authenticate`, else a random one). `ticket_age`: seconds that a
    ticket is good. A token in the query is never read: it ends up in logs.

    With `first_frame`, a WebSocket without credentials is accepted and sends them in its first frame, at most
    `auth_timeout` seconds later, at most `max_waiting` of them at once; then the application is called. Of
    `subprotocols`, the first that the client offers is chosen. Where `anonymous` peers are let in, too, their frame
    has no token.

    `revocation_interval`: seconds between two readings of what is revoked.

    Raises `ConfigurationError` for options that let nobody in, or make no sense.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        authenticate: Authenticate | Sequence[Authenticate] = (),
        anonymous: bool = False,
        cookie: str | None = None,
        origins: Sequence[str] | Literal["*"] = (),
        allowed_hosts: Sequence[str] = (),
        store: Store | None = None,
        secret: Secret | None = None,
        ticket_age: float = 30.0,
        first_frame: bool = False,
        auth_timeout: float = 5.0,
        max_waiting: int = 1_000,
        subprotocols: Sequence[str] = (),
        revocation_interval: float = 10.0,
        clock: Clock | None = None,
        entropy: Callable[[int], bytes] = randomness.token_bytes,
    ) -> None:
        self._ways = check_ways(authenticate)
        if not self._ways and not anonymous:
            raise ConfigurationError(
                "nobody could get in: pass authenticate=SignedTokens(secret), or another way, or anonymous=True"
            )
        if origins == "*" and (cookie is not None or any(isinstance(way, StarletteSession) for way in self._ways)):
            raise ConfigurationError(
                'origins="*" lets any page act for whoever is signed in by cookie: name the origins, or take tokens'
            )
        self.app = app
        self.anonymous = anonymous
        self.origins = Origins(origins, allowed_hosts)
        self.ticket_age = ticket_age
        self._cookie = cookie
        self._clock = clock if clock is not None else Clock()
        self._given = (store is not None, clock is not None)
        if secret is None:
            secret = next((way.secrets for way in self._ways if isinstance(way, SignedTokens)), None)
        self.secret = secret
        self._entropy = entropy
        self._told_alone = False
        self._interval = revocation_interval
        self._with_first_frame = first_frame
        self._make_first_frame = partial(
            FirstFrame,
            self.authenticate,
            self.fallback,
            timeout=auth_timeout,
            subprotocols=subprotocols,
            most=max_waiting,
        )
        self._use(store if store is not None else MemoryStore(clock=self._clock))

    def bind(self, store: Store, clock: Clock) -> None:
        """
        Use this store and clock, where none was given: what else there is shares them. To be called before it is used.
        """
        if self._given[0] or store is self._store:
            return
        if not self._given[1]:
            self._clock = clock
        self._use(store)

    def _use(self, store: Store) -> None:
        self._store = store
        self._first_frame = self._make_first_frame(clock=self._clock)
        self._revocations = Revocations(store, self._clock, interval=self._interval)
        self._tickets = Tickets(
            store, secret=self.secret, max_age=self.ticket_age, clock=self._clock, entropy=self._entropy
        )

    # --- who it is --------------------------------------------------------------------------------------------------

    async def handshake(self, scope: Scope) -> Identity | None:
        """
        Whom a handshake's credentials name, None where it brought none.

        Raises `Unauthenticated` for an `Authorization: Bearer` or a ticket that is not valid, and for whatever is
        revoked. A cookie that isn't valid is no credential: browsers send it unasked, and the client may have
        something better. A ticket is taken out of the scope's query, and used up. Raises `Unavailable` where that, or
        what is revoked, can't be told now.
        """
        tickets = take_tickets(scope)
        identity = await self._headers(scope)
        if not tickets:
            return identity
        stands_for, issued = await self._tickets.use(tickets, identity, scope)
        return await self._standing(self._checked(stands_for), issued)

    async def authenticate(self, token: str, scope: Scope) -> Identity:
        """Whom a token names; raises `Unauthenticated`, and `Unavailable` where nobody can tell now."""
        failure: Refused = Unauthenticated(INVALID)
        for way in self._ways:
            since = self._clock.time()
            try:
                identity = await read(way, token, scope)
            except Unavailable as exc:
                failure = exc
                continue
            except Unauthenticated as exc:
                if isinstance(failure, Unavailable) or failure.code == "expired":
                    continue
                if exc.code == "expired":
                    failure = exc
                else:
                    failure.__cause__ = exc.__cause__ or exc
                continue
            if identity is None:
                continue
            if self._expired(identity):
                failure = Unauthenticated(code="expired")
                continue
            return await self._standing(self._checked(identity), self._since(way, identity, since))
        raise failure

    def fallback(self) -> Identity:
        """Who comes without credentials: nobody in particular, or nobody at all: raises `Unauthenticated`."""
        if not self.anonymous:
            raise Unauthenticated("send a token, or sign in first")
        return Identity(None)

    async def _headers(self, scope: Scope) -> Identity | None:
        authorization = header_values(scope, b"authorization")
        if len(authorization) > 1:
            raise Unauthenticated
        for way in self._ways:
            if isinstance(way, ScopeUser) and (found := way.identify(scope)) is not None:
                return self._checked(found)  # whoever stands outside has read these headers, and looks after it
        scheme, _, token = (authorization[0] if authorization else b"").partition(b" ")
        if scheme.lower() == b"bearer":
            return await self.authenticate(token.strip().decode("latin-1"), scope)
        cookie = self._read_cookie(scope)
        if cookie is not None:
            try:
                return await self.authenticate(cookie, scope)
            except Unauthenticated as exc:
                if exc.code == "revoked":
                    raise
        for way in self._ways:
            since = self._clock.time()
            identity = await ask(way, scope, strict=bool(authorization))
            if identity is not None:
                return await self._standing(self._checked(identity), self._since(way, identity, since))
        return None  # another scheme's header may be a proxy's, that browsers send unasked

    def _since(self, way: Authenticate, identity: Identity, since: float) -> float:
        """From when on what `way` said counts: what doesn't say when it was issued may be as old as it likes."""
        return since if ask_live(way) or isinstance(identity.claims.get("iat"), int | float) else 0.0

    async def _standing(self, identity: Identity, since: float) -> Identity:
        # Kept with the identity: this process may hear only later of what was revoked before it was shown here.
        issued = since if identity.issued_at is None else min(since, identity.issued_at)
        identity = msgspec.structs.replace(identity, issued_at=issued)
        await self._revocations.ready()
        if self.revoked(identity, since):
            raise Unauthenticated(code="revoked")
        return identity

    def _expired(self, identity: Identity) -> bool:
        return identity.expires_at is not None and identity.expires_at <= self._clock.time()

    def _checked(self, identity: Identity) -> Identity:
        try:
            if identity.user is None:
                raise ValueError("an authenticated identity has a user")
            check_user(identity.user)
        except ValueError as exc:
            logger.warning("credentials were valid, but not the user they name: %s", exc)
            raise Unauthenticated(INVALID) from exc
        return identity

    def _read_cookie(self, scope: Scope) -> str | None:
        """Our cookie, however odd its neighbours are; one that is there twice is anybody's, and none."""
        if self._cookie is None:
            return None
        text = ";".join(header.decode("latin-1") for header in header_values(scope, b"cookie"))
        if [pair.partition("=")[0].strip() for pair in text.split(";")].count(self._cookie) != 1:
            return None
        return cookie_parser(text).get(self._cookie)

    # --- tickets ----------------------------------------------------------------------------------------------------

    def issue_ticket(self, identity: Identity, scope: Scope) -> str:
        """
        A ticket that stands for `identity` once, within `ticket_age` seconds and no longer than it: `?ticket=…` in
        the URL of a WebSocket or a GET.

        `scope` is that of the request that asks for it: where that has an `Origin`, the ticket is good for that one
        only. It holds the claims, which can be read by whoever has it.

        Raises `Unauthenticated` for nobody and for an identity that has expired, `ValueError` for claims that make it
        longer than 4,096 characters, `ConfigurationError` where other processes couldn't read it.
        """
        self._tell_alone("tickets")
        return self._tickets.issue(identity, scope)

    # --- revocation -------------------------------------------------------------------------------------------------

    async def revoke_user(self, user: str, *, issued_before: float | None = None) -> None:
        """
        Revoke everything that was issued to `user` up to now, or up to `issued_before` (Unix seconds).

        What is issued later is good again. Open WebSockets end with 4450, here at once and in other processes of the
        store within 15 s. Where the processes' clocks differ, pass a time that is ahead by as much. Raises `ValueError`
        for what can't be a user or a time, and `StoreError`: then it may be revoked or not; call it again, which does
        no harm.
        """
        check_user(user)
        if issued_before is not None and not isfinite(issued_before):
            raise ValueError(f"issued_before is in Unix seconds, not {issued_before!r}")
        self._tell_alone("revocations")
        until = self._clock.time() if issued_before is None else issued_before
        await self._revocations.revoke(user_subject(user), until)

    async def revoke_token(self, jti: str) -> None:
        """
        Revoke the one token with this id: the claim `jti`, which `SignedTokens` always has. Otherwise as `revoke_user`.
        """
        if not 1 <= len(jti) <= MAX_JTI:
            raise ValueError(f"a token's id has 1 to {MAX_JTI} characters")
        self._tell_alone("revocations")
        await self._revocations.revoke(token_subject(jti), self._clock.time())

    def _tell_alone(self, what: str) -> None:
        """Say once that other workers know nothing of it."""
        if self._told_alone or not isinstance(self._store, MemoryStore) or not several():
            return
        self._told_alone = True
        logger.warning(
            "this server runs several workers, and %s hold in one of them only: give the AuthGuard a store that they "
            "share, or run one worker",
            what,
        )

    def revoked(self, identity: Identity, since: float) -> bool:
        """Whether this process knows that `identity`, authenticated at `since` (Unix seconds), has been revoked."""
        return self._revocations.revoked(identity, since)

    def on_revocation(self, callback: OnRevocation) -> None:
        """
        Call `callback` with what is revoked from now on: subject → issued up to that Unix time.

        A subject is `u:` and a user, or `t:` and a token's id. Whose connections that ends, `revoked` tells. Enter the
        guard (`async with`), or what other processes revoke is only heard when credentials are checked.
        """
        self._revocations.on(callback)

    def off_revocation(self, callback: OnRevocation) -> None:
        """Undo `on_revocation`."""
        self._revocations.off(callback)

    def gauges(self) -> dict[str, int]:
        """What the guard holds at the moment."""
        return {**self._revocations.gauges(), "authenticating": self._first_frame.waiting}

    async def __aenter__(self) -> Self:
        """Enter the store, and hear of revocations at once. Raises `StoreError` when it is away."""
        await self._revocations.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._revocations.stop()

    # --- as middleware ----------------------------------------------------------------------------------------------

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """`app`, served by this guard: for several applications or routes, `Middleware(guard.wrap)`."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(app, scope, receive, send)

        return guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if self.app is None:
            raise ConfigurationError("this AuthGuard wraps no application: AuthGuard(app, …), or guard.wrap(app)")
        await self._serve(self.app, scope, receive, send)

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        hide_tickets(scope)
        # A page may be opened from anywhere; what its handlers do on a GET is theirs to keep harmless.
        reads = scope["type"] == "http" and scope["method"] in SAFE
        if not (self.origins.check_host(scope) if reads else self.origins.check(scope)):
            logger.info("refused a request from origin %r to host %r", *_from_where(scope))
            await deny(scope, receive, send, status=403, code=4403)
            return
        presented = True
        since = self._clock.time()
        try:
            identity = await self.handshake(scope)
            if identity is None and not (self._with_first_frame and scope["type"] == "websocket"):
                presented = False
                identity = self.fallback()
            if identity is not None and self._expired(identity):
                raise Unauthenticated(code="expired")
        except Refused as exc:
            await refuse(scope, receive, send, exc, presented=presented)
            return
        if identity is None:
            opened = await self._first_frame.open(scope, receive, send)
            if opened is None:
                return
            identity, since, receive, send = opened
        _fill(scope, identity)
        if scope["type"] == "http" or identity.user is None:
            await app(scope, receive, send)
            return
        await supervise(
            app,
            scope,
            receive,
            send,
            identity=identity,
            since=since,
            revocations=self._revocations,
            clock=self._clock,
        )


def _from_where(scope: Scope) -> tuple[bytes, bytes]:
    """What a refused request says of its origin and host, for the log."""
    return b", ".join(header_values(scope, b"origin"))[:200], b", ".join(header_values(scope, b"host"))[:200]


def _fill(scope: Scope, identity: Identity) -> None:
    """Tell the application who it is, in Starlette's terms."""
    user: BaseUser = IdentifiedUser(identity) if identity.user is not None else UnauthenticatedUser()
    scopes = identity.claims.get("scopes")
    named = [str(name) for name in scopes] if isinstance(scopes, list | tuple) else []
    scope["user"] = user
    scope["auth"] = AuthCredentials(["authenticated", *named] if identity.user is not None else [])
