"""Ways: what can say who is asking, by a token or by what a handshake brings."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, cast

import anyio.to_thread
from starlette.authentication import AuthenticationBackend, AuthenticationError, BaseUser
from starlette.requests import HTTPConnection

from starlette_realtime.asgi import scope_user
from starlette_realtime.errors import ConfigurationError, Unauthenticated
from starlette_realtime.messages import Identity
from starlette_realtime.tasks import finish
from starlette_realtime.types import Scope

__all__ = [
    "Authenticate",
    "IdentifiedUser",
    "ScopeUser",
    "StarletteSession",
    "TokenReader",
    "ask",
    "ask_live",
    "check_ways",
    "read",
]


class TokenReader(Protocol):
    """Reads tokens: `SignedTokens` and `JSONWebTokens` are such."""

    def read(self, token: str) -> Identity | Awaitable[Identity]:
        """Whom the token was issued to; raises `Unauthenticated`, or `Unavailable` when it can't tell now."""
        ...


class StarletteSession:
    """
    Authenticates by Starlette's `SessionMiddleware`: the user is what the session has under `key`.

    The middleware has to be outside. `expires_key` names where the session keeps the time, in Unix seconds, at which
    it ends (None: with the connection), `issued_key` where it keeps when the user signed in: without that, a user who
    was revoked can't come back by a session until the store forgets the revocation.
    """

    def __init__(self, key: str = "user", *, expires_key: str | None = None, issued_key: str | None = None) -> None:
        self.key = key
        self.expires_key = expires_key
        self.issued_key = issued_key

    def identify(self, scope: Scope) -> Identity | None:
        """The session's user; None without one."""
        if "session" not in scope:
            raise ConfigurationError("StarletteSession reads what SessionMiddleware found: add it to the application")
        session = scope["session"]
        user = session.get(self.key)
        if user is None:
            return None
        expires = session.get(self.expires_key) if self.expires_key is not None else None
        issued = session.get(self.issued_key) if self.issued_key is not None else None
        claims = {"iat": float(issued)} if issued is not None else {}
        return Identity(str(user), claims, float(expires) if expires is not None else None)


class ScopeUser:
    """
    Authenticates by whatever stands outside: who `scope["user"]` says it is.

    That is `AuthGuard`'s or Starlette's `AuthenticationMiddleware`, or anything else that fills it. An `AuthGuard`
    outside also tells when the credentials expire, and looks after their revocation.
    """

    def identify(self, scope: Scope) -> Identity | None:
        """The user found outside; None for nobody."""
        user = scope.get("user")
        if isinstance(user, IdentifiedUser):
            return user.realtime_identity
        name = scope_user(scope)
        if name is None:
            return None
        credentials = scope.get("auth")
        return Identity(name, {"scopes": list(credentials.scopes)} if credentials is not None else {})


Authenticate = (
    TokenReader
    | StarletteSession
    | ScopeUser
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


def check_ways(authenticate: Authenticate | Sequence[Authenticate]) -> tuple[Authenticate, ...]:
    """The ways to ask, in turn; raises `ConfigurationError` for what is none."""
    if isinstance(authenticate, str | bytes):
        raise ConfigurationError("a secret can't authenticate: authenticate=SignedTokens(secret)")
    ways = tuple(authenticate) if isinstance(authenticate, Sequence) else (authenticate,)
    for way in ways:
        if isinstance(way, type):
            raise ConfigurationError(f"authenticate takes an instance: {way.__name__}(…), not the class")
        if not isinstance(way, StarletteSession | ScopeUser | AuthenticationBackend) and not (
            hasattr(way, "read") or callable(way)
        ):
            raise ConfigurationError(f"{way!r} can't authenticate: see starlette_realtime.auth.Authenticate")
    return ways


def ask_live(way: Authenticate) -> bool:
    """
    Whether the application itself answers at this moment: what it lets in now has not been revoked before.

    A reader of tokens and a session only repeat what was true when they were issued.
    """
    if isinstance(way, AuthenticationBackend | ScopeUser):
        return True
    return not (isinstance(way, StarletteSession) or hasattr(way, "read"))


async def ask(way: Authenticate, scope: Scope, *, strict: bool) -> Identity | None:
    """Whom a handshake's session or headers name; `strict`: a backend's error is a refusal."""
    if isinstance(way, StarletteSession | ScopeUser):
        return way.identify(scope)
    if isinstance(way, AuthenticationBackend):
        return await _ask_backend(way, scope, strict=strict)
    return None


async def read(way: Authenticate, token: str, scope: Scope) -> Identity | None:
    """Whom a token names; None, or `Unauthenticated`, for one that is not valid."""
    if isinstance(way, StarletteSession | ScopeUser):
        return None
    if isinstance(way, AuthenticationBackend):
        try:
            header = token.encode("latin-1")
        except UnicodeEncodeError:
            return None
        headers = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
        headers.append((b"authorization", b"Bearer " + header))
        return await _ask_backend(way, {**scope, "headers": headers}, strict=True)
    reader: Callable[[str], Any] | None = getattr(way, "read", None)
    function = cast(Callable[[str], Any], way)
    if reader is not None:
        result = reader(token)
    elif _is_async(function):
        result = function(token)
    else:
        result = await anyio.to_thread.run_sync(function, token)  # it may ask a database
    if inspect.isawaitable(result):
        result = await finish(result)
    if isinstance(result, str):
        return Identity(result)
    if result is None or isinstance(result, Identity):
        return result
    raise ConfigurationError(f"{way!r} answered with a {type(result).__name__}: an Identity, a user or None is due")


async def _ask_backend(backend: AuthenticationBackend, scope: Scope, *, strict: bool) -> Identity | None:
    try:
        result = await finish(backend.authenticate(HTTPConnection(scope)))
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


def _is_async(fn: Any) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
