"""JSONWebTokens: whom an issuer's token names, after every check that RFC 7519 and RFC 8725 ask for."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, Unauthenticated
from starlette_realtime.messages import Identity
from starlette_realtime.patterns import check_user
from starlette_realtime.webtokens.jwks import JWKS, load_keys_module

if TYPE_CHECKING:
    from starlette_realtime.webtokens.keys import Key

__all__ = ["MAX_TOKEN", "JSONWebTokens", "Keys"]

MAX_TOKEN: Final = 8192
"""The longest token that is looked at, in characters."""

Keys: TypeAlias = str | bytes | Sequence[str | bytes] | Mapping[str, str | bytes] | JWKS
"""A secret or a public key in PEM; several, of which any may have signed; several by their `kid`; or `JWKS`."""

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_object: Final = msgspec.json.Decoder(dict[str, Any])


class JSONWebTokens:
    """
    Reads the JSON web tokens of one issuer (RFC 7519): a way for `AuthGuard(authenticate=…)`.

        JSONWebTokens(JWKS("https://login.example/keys"), issuer="https://login.example", audience="chat",
                      algorithms=["RS256"])

    `keys` are the issuer's: a secret of at least as many bytes as the hash has (HS256: 32) or a public key in PEM;
    a list of them, of which any may have signed; a mapping of `kid` to key; or `JWKS`. `algorithms` are those that it
    signs with, of HS256/384/512, RS256/384/512, PS256/384/512, ES256/384/512 and EdDSA; secrets and public keys never
    go together. What a token's header says only picks among these: a key that it brings or points to is ignored.

    A token needs `exp`; `iss` is `issuer`; `aud` is, or holds, `audience` (one or more names; None: the tokens must
    have no `aud`). `nbf` and `iat` are not in the future. `max_age` also bounds its life in seconds since `iat`, which
    it then needs. `leeway` is how far the clocks may be apart, in seconds. `require` names claims that must be there.

    `user` is the claim that names the user, or a function that makes the name from the claims: with several issuers,
    say, where each has its own "7". The claims are `Identity.claims`; `scopes` is among them as a list, from `scopes`
    or `scope` (RFC 8693 section 4.2).

    Raises `ConfigurationError` for keys and algorithms that don't fit, and where PyJWT is not installed.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        issuer: str,
        audience: str | Sequence[str] | None,
        algorithms: Sequence[str],
        user: str | Callable[[Mapping[str, Any]], str] = "sub",
        require: Sequence[str] = (),
        max_age: float | None = None,
        leeway: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self._module = load_keys_module()
        self._algorithms = _pinned(algorithms, self._module.ALGORITHMS, published=isinstance(keys, JWKS))
        self._published = keys if isinstance(keys, JWKS) else None
        self._given: tuple[Key, ...] = () if isinstance(keys, JWKS) else self._module.given_keys(keys, self._algorithms)
        if not issuer or isinstance(require, str) or audience in ("", [], ()):
            raise ConfigurationError("name the issuer and the audience (None: tokens have no aud); require is a list")
        if not (leeway >= 0 and (max_age is None or max_age > 0)):
            raise ConfigurationError("leeway is 0 or more seconds, max_age a positive number of them")
        self.issuer = issuer
        self._audience = frozenset([audience] if isinstance(audience, str) else audience or ())
        self._user = user
        self._require = tuple(require)
        self._max_age = max_age
        self._leeway = leeway
        self._clock = clock if clock is not None else Clock()

    async def read(self, token: str) -> Identity:
        """
        Whom `token` was issued to, until it expires.

        Raises `Unauthenticated`, with the code `expired` for one that was good; why is in the exception's `__cause__`,
        for logs. Raises `Unavailable` when its key can't be had from the issuer now.
        """
        try:
            claims = await self._verified(token)
            expires_at = self._check_times(claims)
            self._check_audience(claims)
            if missing := [name for name in self._require if claims.get(name) is None]:
                raise ValueError(f"without {', '.join(missing)}")
            user = self._user(claims) if callable(self._user) else claims.get(self._user)
            if not isinstance(user, str):
                raise ValueError("the claim that names the user is missing, or no string")
            check_user(user)
        except ValueError as exc:
            raise Unauthenticated from exc
        if expires_at <= self._clock.time():
            raise Unauthenticated(code="expired")
        return Identity(user, {**claims, **_scopes(claims)}, expires_at)

    async def _verified(self, token: object) -> dict[str, Any]:
        """The claims, once the signature has been found to be the issuer's. Raises `ValueError`."""
        if not isinstance(token, str) or len(token) > MAX_TOKEN:
            raise ValueError("not a string, or too long")
        match = _COMPACT.fullmatch(token)
        if match is None:
            raise ValueError("not three parts in base64url")
        header = _part(match[1])
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise ValueError("signed by an algorithm that is not pinned")
        if "crit" in header or "b64" in header:
            raise ValueError("the header demands what is not understood")  # RFC 7515 section 4.1.11
        if not (kid is None or isinstance(kid, str)):
            raise ValueError("kid is no string")
        _decode(match[3])
        # Before its keys are asked for, or anybody's token would have them fetched; it is signed, so it may come first.
        claims = _part(match[2])
        if claims.get("iss") != self.issuer:
            raise ValueError("of another issuer")
        keys = await self._published.find(kid) if self._published is not None else self._named(kid)
        for key in keys:
            if algorithm in key.algorithms and self._module.verify(token, key, algorithm):
                return claims
        raise ValueError("signed by none of the issuer's keys")

    def _named(self, kid: str | None) -> tuple["Key", ...]:
        """Keys that were given without a name may have signed anything, others only what names them."""
        return tuple(key for key in self._given if key.kid is None or key.kid == kid)

    def _check_times(self, claims: Mapping[str, Any]) -> float:
        """When the token ends to be good, in Unix seconds."""
        latest = self._clock.time() + self._leeway
        expires = _time(claims, "exp")
        if expires is None:
            raise ValueError("without exp")
        issued = _time(claims, "iat")
        if issued is not None and issued > latest:
            raise ValueError("issued in the future")
        not_before = _time(claims, "nbf")
        if not_before is not None and not_before > latest:
            raise ValueError("not valid yet")
        if self._max_age is not None:
            if issued is None:
                raise ValueError("without iat")
            expires = min(expires, issued + self._max_age)
        return expires + self._leeway

    def _check_audience(self, claims: Mapping[str, Any]) -> None:
        audience = claims.get("aud")
        if audience is None and not self._audience:
            return
        named = [audience] if isinstance(audience, str) else audience
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise ValueError("aud is neither a string nor a list of strings")
        if self._audience.isdisjoint(named):
            raise ValueError("for another audience")


def _pinned(algorithms: Sequence[str], known: frozenset[str], *, published: bool) -> frozenset[str]:
    pinned = frozenset([algorithms] if isinstance(algorithms, str) else algorithms)
    secrets = {name for name in pinned if name.startswith("HS")}
    if not pinned or not pinned <= known:
        raise ConfigurationError(f"pin one or more of {', '.join(sorted(known))}")
    if secrets and (published or secrets != pinned):
        raise ConfigurationError("HS verifies with a secret, which is neither published nor goes with public keys")
    return pinned


def _decode(text: str) -> bytes:
    """Base64url as the one who wrote it must have written it, without bits to spare (RFC 4648 section 3.5)."""
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(data).decode().rstrip("=") != text:
        raise ValueError("base64url that could be written in another way")
    return data


def _part(text: str) -> dict[str, Any]:
    try:
        return _object.decode(_decode(text))
    except (msgspec.DecodeError, RecursionError):
        raise ValueError("a part is no JSON object") from None


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 section 2)."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise ValueError(f"{name} is no time")
    return float(value)


def _scopes(claims: Mapping[str, Any]) -> dict[str, list[str]]:
    given = claims.get("scopes", claims.get("scope"))
    if isinstance(given, str):
        return {"scopes": given.split()}
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    return {"scopes": names} if "scopes" in claims or names else {}
