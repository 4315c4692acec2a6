"""Tokens: signed access tokens and sessions (itsdangerous), with key rotation and expiry to the millisecond."""

import hashlib
import math
import secrets as randomness
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from itsdangerous import BadData, URLSafeSerializer
from itsdangerous.encoding import base64_decode, base64_encode

from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, Unauthenticated
from starlette_realtime.messages import Identity
from starlette_realtime.patterns import check_user

__all__ = ["MAX_TOKEN", "Secret", "Sessions", "SignedTokens", "check_secret", "open_signed", "serializer"]

Secret: TypeAlias = str | bytes | Sequence[str | bytes]
"""One secret of at least 16 bytes, or several, the newest first: it signs, all of them verify."""

MAX_TOKEN: Final = 8192
"""The longest token that is looked at, in characters."""

T = TypeVar("T")

_MIN_SECRET: Final = 16
_RESERVED_CLAIMS: Final = frozenset({"exp", "iat", "jti", "sub"})


class _Access(msgspec.Struct, frozen=True):
    """What an access token holds: user, issued at and expires at in Unix milliseconds, the token's id, claims."""

    sub: str
    iat: int
    exp: int
    jti: str
    claims: dict[str, Any] = {}


class _Session(msgspec.Struct, frozen=True):
    """What a session token holds."""

    sid: str
    sub: str | None
    exp: int


def check_secret(secret: Secret) -> tuple[bytes, ...]:
    """The secrets as bytes, the newest first; raises `ConfigurationError` for none, or one that is too short."""
    given = [secret] if isinstance(secret, str | bytes) else list(secret)
    keys = tuple(key.encode() if isinstance(key, str) else key for key in given)
    if not keys or any(len(key) < _MIN_SECRET for key in keys):
        raise ConfigurationError(
            f"a secret has at least {_MIN_SECRET} bytes: make one with `python -c 'import secrets; "
            "print(secrets.token_urlsafe(32))'` and keep it out of the source"
        )
    return keys


def serializer(keys: Sequence[bytes], purpose: str) -> URLSafeSerializer:
    """
    Signs with the first of `keys` and verifies with all of them, for one purpose.

    The purpose goes into each derived key, so that what was signed for one is nothing for another.
    """
    return URLSafeSerializer(
        list(reversed(keys)),  # itsdangerous wants the newest last
        salt=f"starlette-realtime.{purpose}",
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )


def open_signed(signed: URLSafeSerializer, token: object, kind: type[T], *, most: int = MAX_TOKEN) -> T:
    """
    What `token` holds. Raises `ValueError`, without any of its text; over `most` characters are not even looked at.

    There is one way to write a signature: base64 has bits to spare in its last character, and they must be zero (RFC
    4648 section 3.5), or a changed token would pass.
    """
    if not isinstance(token, str) or len(token) > most:
        raise ValueError("not a string, or too long")
    signature = token.rpartition(".")[2].encode(errors="replace")
    try:
        if base64_encode(base64_decode(signature)) != signature:
            raise ValueError("the signature is written in another way than ours")
        return msgspec.convert(signed.loads(token), kind)
    except BadData as exc:
        raise ValueError(type(exc).__name__) from None  # its message holds the signature, and would be logged


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


class SignedTokens:
    """
    Access tokens that this application signs itself, and reads without asking anybody.

    `secret` is at least 16 bytes, or a list of such, the newest first: put a new one in front, and drop the old one
    `max_age` later. `max_age` is the longest life of a token in seconds, and holds for those already issued, too.
    Tokens of another `salt` are refused: give each audience its own. Time is `clock.time()`.

    A token is signed, not encrypted: whoever holds it reads user and claims.

    Raises `ConfigurationError` for a short secret or a `max_age` that is not positive.
    """

    def __init__(
        self,
        secret: Secret,
        *,
        max_age: float = 600.0,
        salt: str = "default",
        clock: Clock | None = None,
        token_id: Callable[[], str] = lambda: randomness.token_urlsafe(16),
    ) -> None:
        self.secrets = check_secret(secret)
        if not max_age > 0:
            raise ConfigurationError(f"max_age is in seconds and positive, not {max_age!r}")
        self.max_age = max_age
        self._clock = clock if clock is not None else Clock()
        self._token_id = token_id
        self._serializer = serializer(self.secrets, f"access:{salt}")

    def issue(self, user: str, *, claims: Mapping[str, object] | None = None, expires_in: float | None = None) -> str:
        """
        A token for `user` that is good for `expires_in` seconds (by default, and at most, `max_age`).

        `claims` are JSON values and come back in `Identity.claims`, beside the token's own: `jti`, its id, and
        `iat`, when it was issued, in Unix seconds.

        Raises `ValueError` for what cannot be a user, a claim or a time, and for a token over 8,192 characters;
        `TypeError` for claims that are no JSON.
        """
        check_user(user)
        claims = dict(claims or {})
        if taken := _RESERVED_CLAIMS & claims.keys():
            raise ValueError(f"the claims {', '.join(sorted(taken))} are the token's own")
        life = self.max_age if expires_in is None else expires_in
        if not 0 < life <= self.max_age:
            raise ValueError(f"expires_in is in seconds, over 0 and at most max_age ({self.max_age:g})")
        now = self._clock.time()
        # Rounded down: what was issued up to a moment must not seem to be later, or a revocation would miss it.
        issued = math.floor(now * 1000)
        access = _Access(sub=user, iat=issued, exp=_ms(now + life), jti=self._token_id(), claims=claims)
        token: str = self._serializer.dumps(msgspec.structs.asdict(access))
        if len(token) > MAX_TOKEN:
            raise ValueError(f"a token has at most {MAX_TOKEN} characters: put less into its claims")
        return token

    def read(self, token: str) -> Identity:
        """
        Whom `token` was issued to.

        Raises `Unauthenticated` with the code `expired` from its last millisecond on, and `unauthenticated` for
        whatever else is wrong with it; what exactly is in the exception's `__cause__` and for logs only. A token from
        the future is good until it expires, since clocks of several servers differ.
        """
        try:
            access = open_signed(self._serializer, token, _Access)
            check_user(access.sub)
        except ValueError as exc:
            raise Unauthenticated from exc
        expires_at = min(access.exp, access.iat + _ms(self.max_age))
        if _ms(self._clock.time()) >= expires_at:
            raise Unauthenticated(code="expired")
        claims = {**access.claims, "jti": access.jti, "iat": access.iat / 1000}
        return Identity(user=access.sub, claims=claims, expires_at=expires_at / 1000)


class Sessions:
    """
    Session tokens: the continuity of one client across connections. They authenticate nobody.

    A session belongs to a user, or to no one, and is nothing to anybody else. `max_age` is in seconds since the
    token was issued: give out a new one whenever it was used. `entropy(n)` makes n random bytes.

    Raises `ConfigurationError` for a short secret or a `max_age` that is not positive.
    """

    def __init__(
        self,
        secret: Secret,
        *,
        max_age: float = 86400.0,
        clock: Clock | None = None,
        entropy: Callable[[int], bytes] = randomness.token_bytes,
    ) -> None:
        if not max_age > 0:
            raise ConfigurationError(f"max_age is in seconds and positive, not {max_age!r}")
        self.max_age = max_age
        self._clock = clock if clock is not None else Clock()
        self._entropy = entropy
        self._serializer = serializer(check_secret(secret), "session")

    def new_sid(self) -> str:
        """A session's id: 128 random bits, in hexadecimal."""
        return self._entropy(16).hex()

    def issue(self, sid: str, user: str | None) -> str:
        """The token of session `sid` for its client; `user` is None for an anonymous one."""
        session = _Session(sid=sid, sub=user, exp=_ms(self._clock.time() + self.max_age))
        token: str = self._serializer.dumps(msgspec.structs.asdict(session))
        return token

    def read(self, token: str, user: str | None, *, expired: bool = False) -> str | None:
        """
        The session's id, or None when the token is invalid, has expired, or is another user's.

        With `expired`, its age doesn't matter: for a session that is known to have been in use until now.
        """
        try:
            session = open_signed(self._serializer, token, _Session)
        except ValueError:
            return None
        if session.sub != user or (not expired and _ms(self._clock.time()) >= session.exp):
            return None
        return session.sid
