"""AuthGuard: who is asking, by token, session, cookie or an application's own backend."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol, cast

import anyio.to_thread
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    UnauthenticatedUser,
)
from starlette.requests import HTTPConnection, cookie_parser

from starlette_realtime.asgi import Origins, deny, header_values
from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, Refused, Unauthenticated
from starlette_realtime.messages import Identity
from starlette_realtime.patterns import check_user
from starlette_realtime.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["AuthGuard", "Authenticate", "IdentifiedUser", "StarletteSession", "TokenReader"]

logger = logging.getLogger("starlette_realtime.auth")


SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110 section 9.2.1)."""

INVALID = "the token is not valid"

CLOSING = 10.0
"""How long a peer may take to read that its credentials have expired, in seconds."""


class TokenReader(Protocol):
    """Reads tokens: `SignedTokens` is one."""

    def read(self, token: str) -> Identity | Awaitable[Identity]:
        """Whom the token was issued to; raises `Unauthenticated`."""
        ...


class StarletteSession:
    """
    Authenticates by Starlette's `SessionMiddleware`: the user is what the session has under `key`.

    The middleware has to be outside. `expires_key` names where the session keeps the time, in Unix seconds, at which
    it ends (None: with the connection).
    """

    def __init__(self, key: str = "user", *, expires_key: str | None = None) -> None:
        self.key = key
        self.expires_key = expires_key

    def identify(self, scope: Scope) -> Identity | None:
        """The session's user; None without one."""
        if "session" not in scope:
            raise ConfigurationError("StarletteSession reads what SessionMiddleware found: add it to the application")
        session = scope["session"]
        user = session.get(self.key)
        if user is None:
            return None
        expires = session.get(self.expires_key) if self.expires_key is not None else None
        return Identity(str(user), expires_at=float(expires) if expires is not None else None)


Authenticate = (
    TokenReader
    | StarletteSession
    | AuthenticationBackend
    | Callable[[str], Identity | str | Awaitable[Identity | str | None] | None]
)
"""What can authenticate: a reader of tokens, a function that takes a token, Starlette's sessions or any backend."""


class IdentifiedUser(BaseUser):
    """`request.user` behind an `AuthGuard`."""

    def __init__(self, identity: Identity) -> None:
        self.realtime_identity = identity

    @property
    def is_authenticated(self) -> bool:
        """True: anonymous peers have Starlette's `UnauthenticatedUser`."""
        return True

    @property
    def display_name(self) -> str:
        """The user."""
        return self.realtime_identity.user or ""

    @property
    def identity(self) -> str:
        """The user."""
        return self.realtime_identity.user or ""


class AuthGuard:
    """
    Authenticates requests and handshakes, checks their origin, and ends a WebSocket whose credentials expire.

    As ASGI middleware it checks the origin of WebSockets and of requests that are not GET, HEAD or OPTIONS, and fills
    `scope["user"]` and `scope["auth"]`. `authenticate` is one or more of `Authenticate`, asked in turn; `cookie` names
    a cookie that holds a token; `anonymous` lets in who brings no credentials (an invalid bearer token is refused all
    the same). `origins` are allowed besides the application's own, "*" any; `allowed_hosts` bounds the `Host` header,
    against DNS rebinding.

    A token in the query is never read: it ends up in logs.
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
        clock: Clock | None = None,
    ) -> None:
        ways = tuple(authenticate) if isinstance(authenticate, Sequence) else (authenticate,)
        self._ways: tuple[Authenticate, ...] = ways
        if not self._ways and not anonymous:
            raise ConfigurationError(
                "nobody could get in: pass authenticate=SignedTokens(secret), or another way, or anonymous=True"
            )
        for way in self._ways:
            if isinstance(way, type):
                raise ConfigurationError(f"authenticate takes an instance: {way.__name__}(…), not the class")
            if not isinstance(way, StarletteSession | AuthenticationBackend) and not (
                hasattr(way, "read") or callable(way)
            ):
                raise ConfigurationError(f"{way!r} can't authenticate: see starlette_realtime.auth.Authenticate")
        self.app = app
        self.anonymous = anonymous
        self.origins = Origins(origins, allowed_hosts)
        self._cookie = cookie
        self._clock = clock if clock is not None else Clock()

    # --- plain methods ----------------------------------------------------------------------------------------------

    async def handshake(self, scope: Scope) -> Identity | None:
        """
        Whom a handshake's credentials name, None where it brought none.

        Raises `Unauthenticated` for an `Authorization: Bearer` that is not valid. A cookie that isn't is no
        credential: browsers send it unasked, and the client may have something better.
        """
        authorization = header_values(scope, b"authorization")
        if len(authorization) > 1:
            raise Unauthenticated
        scheme, _, token = (authorization[0] if authorization else b"").partition(b" ")
        if scheme.lower() == b"bearer":
            return await self.authenticate(token.strip().decode("latin-1"), scope)
        cookie = self._read_cookie(scope)
        if cookie is not None:
            try:
                return await self.authenticate(cookie, scope)
            except Unauthenticated:
                pass
        for way in self._ways:
            if isinstance(way, StarletteSession):
                identity = way.identify(scope)
            elif isinstance(way, AuthenticationBackend):
                identity = await self._ask_backend(way, scope, strict=bool(authorization))
            else:
                continue
            if identity is not None:
                return self._checked(identity)
        return None  # another scheme's header may be a proxy's, that browsers send unasked

    async def authenticate(self, token: str, scope: Scope) -> Identity:
        """Whom a token names; raises `Unauthenticated`."""
        failure = Unauthenticated(INVALID)
        for way in self._ways:
            try:
                identity = await self._read(way, token, scope)
            except Unauthenticated as exc:
                if exc.code == "expired":
                    failure = exc
                elif failure.code != "expired":
                    failure.__cause__ = exc.__cause__ or exc
                continue
            if identity is None:
                continue
            if self._expired(identity):
                failure = Unauthenticated(code="expired")
                continue
            return self._checked(identity)
        raise failure

    def fallback(self) -> Identity:
        """Who comes without credentials: nobody in particular, or nobody at all: raises `Unauthenticated`."""
        if not self.anonymous:
            raise Unauthenticated("send a token, or sign in first")
        return Identity(None)

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

    async def _read(self, way: Authenticate, token: str, scope: Scope) -> Identity | None:
        if isinstance(way, StarletteSession):
            return None
        if isinstance(way, AuthenticationBackend):
            try:
                header = token.encode("latin-1")
            except UnicodeEncodeError:
                return None
            headers = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
            headers.append((b"authorization", b"Bearer " + header))
            return await self._ask_backend(way, {**scope, "headers": headers}, strict=True)
        read: Callable[[str], Any] | None = getattr(way, "read", None)
        check = cast(Callable[[str], Any], way)
        if read is not None:
            result = read(token)
        elif _is_async(check):
            result = check(token)
        else:
            result = await anyio.to_thread.run_sync(check, token)  # it may ask a database
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, str):
            return Identity(result)
        if result is None or isinstance(result, Identity):
            return result
        raise ConfigurationError(f"{way!r} answered with a {type(result).__name__}: an Identity, a user or None is due")

    async def _ask_backend(self, backend: AuthenticationBackend, scope: Scope, *, strict: bool) -> Identity | None:
        try:
            result = await backend.authenticate(HTTPConnection(scope))
        except AuthenticationError as exc:
            if strict:
                raise Unauthenticated from exc
            return None
        if result is None or not result[1].is_authenticated:
            return None
        credentials, user = result
        try:
            name = user.identity
        except NotImplementedError:
            name = user.display_name
        return Identity(name, {"scopes": list(credentials.scopes)})

    def _read_cookie(self, scope: Scope) -> str | None:
        """Our cookie, however odd its neighbours are; one that is there twice is anybody's, and none."""
        if self._cookie is None:
            return None
        text = ";".join(header.decode("latin-1") for header in header_values(scope, b"cookie"))
        if [pair.partition("=")[0].strip() for pair in text.split(";")].count(self._cookie) != 1:
            return None
        return cookie_parser(text).get(self._cookie)

    # --- as middleware ----------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if self.app is None:
            raise ConfigurationError("this AuthGuard wraps no application: AuthGuard(app, …)")
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        # A page may be opened from anywhere; what its handlers do on a GET is theirs to keep harmless.
        reads = scope["type"] == "http" and scope["method"] in SAFE
        if not (self.origins.check_host(scope) if reads else self.origins.check(scope)):
            await deny(scope, receive, send, status=403, code=4403)
            return
        try:
            identity = await self.handshake(scope) or self.fallback()
            if self._expired(identity):
                raise Unauthenticated(code="expired")
        except Refused as exc:
            status, code = (401, 4401) if isinstance(exc, Unauthenticated) else (403, 4403)
            await deny(scope, receive, send, status=status, code=code, reason=exc.code, retry_after=exc.retry_after)
            return
        user: BaseUser = IdentifiedUser(identity) if identity.user is not None else UnauthenticatedUser()
        scopes = identity.claims.get("scopes")
        named = [str(name) for name in scopes] if isinstance(scopes, list | tuple) else []
        scope["user"] = user
        scope["auth"] = AuthCredentials(["authenticated", *named] if identity.user is not None else [])
        if scope["type"] == "websocket" and identity.expires_at is not None:
            await self._until(identity.expires_at, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _until(self, expires_at: float, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket until its credentials expire: then it is closed, and the application is told."""
        assert self.app is not None
        expired = asyncio.Event()
        sending: set[asyncio.Timeout] = set()
        pending: asyncio.Task[Message] | None = None

        async def guarded_receive() -> Message:
            nonlocal pending
            if pending is None:
                pending = asyncio.ensure_future(cast(Any, receive()))
            gone = asyncio.ensure_future(expired.wait())
            try:
                await asyncio.wait((pending, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
            if expired.is_set():
                return {"type": "websocket.disconnect", "code": 4401, "reason": "expired"}
            message, pending = pending.result(), None
            return message

        async def guarded_send(message: Message) -> None:
            if expired.is_set():
                raise OSError("the credentials have expired, and the connection with them")
            try:
                async with asyncio.timeout(None) as scope:
                    sending.add(scope)
                    await send(message)
            except TimeoutError:
                raise OSError("the credentials have expired, and the peer doesn't read") from None
            finally:
                sending.discard(scope)

        async def expire() -> None:
            expired.set()
            try:
                async with self._clock.timeout(CLOSING):
                    await send({"type": "websocket.close", "code": 4401, "reason": "expired"})
            except (OSError, RuntimeError) as exc:
                logger.debug("the peer had gone before its credentials expired, or doesn't read: %r", exc)
            for scope in sending:
                scope.reschedule(0.0)

        closing: list[asyncio.Task[None]] = []
        timer = self._clock.call_later(
            expires_at - self._clock.time(), lambda: closing.append(asyncio.ensure_future(expire()))
        )
        try:
            await self.app(scope, guarded_receive, guarded_send)
        finally:
            timer.cancel()
            if pending is not None:
                pending.cancel()
            for task in closing:
                await asyncio.wait((task,))


def _is_async(fn: Any) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
