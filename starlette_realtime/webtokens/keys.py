"""Keys: what verifies a signature, with the algorithms that fit it, and no other. Imports PyJWT and cryptography."""

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.api_jws import PyJWS

from starlette_realtime.errors import ConfigurationError

__all__ = ["ALGORITHMS", "Key", "given_keys", "published_keys", "verify"]

logger = logging.getLogger("starlette_realtime.auth")

Given: TypeAlias = str | bytes | Sequence[str | bytes] | Mapping[str, str | bytes]
"""A secret or a public key in PEM; several, of which any may have signed; or several by their `kid`."""

_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {SECP256R1.name: "ES256", SECP384R1.name: "ES384", SECP521R1.name: "ES512"}
_SECRETS: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # bytes at least: as many as the hash has (RFC 7518 3.2)

ALGORITHMS: Final = _RSA | frozenset(_CURVES.values()) | frozenset(_SECRETS) | {"EdDSA"}
"""What can be pinned: RFC 7518 section 3.1, and EdDSA with Ed25519 (RFC 8037)."""

MIN_RSA: Final = 2048
"""Bits (RFC 7518 section 3.3)."""

_jws: Final = PyJWS(algorithms=sorted(ALGORITHMS))


@dataclass(frozen=True)
class Key:
    """One key, and what it may verify; `kid` is None where it has no name."""

    kid: str | None
    material: Any
    algorithms: frozenset[str]


def verify(token: str, key: Key, algorithm: str) -> bool:
    """Whether `key` signed it by `algorithm`."""
    try:
        _jws.decode_complete(token, key.material, algorithms=[algorithm])
    except jwt.PyJWTError:
        return False
    return True


def given_keys(given: Given, algorithms: Iterable[str]) -> tuple[Key, ...]:
    """The keys that an application names; raises `ConfigurationError` for one that fits none of `algorithms`."""
    named: Iterable[tuple[str | None, str | bytes]]
    if isinstance(given, str | bytes):
        named = [(None, given)]
    elif isinstance(given, Mapping):
        named = given.items()
    else:
        named = [(None, each) for each in given]
    keys = tuple(_given(kid, text, frozenset(algorithms)) for kid, text in named)
    if not keys:
        raise ConfigurationError("no key is given: nothing could be verified")
    return keys


def _given(kid: str | None, text: str | bytes, pinned: frozenset[str]) -> Key:
    raw = text.encode() if isinstance(text, str) else text
    fitting = pinned & _SECRETS.keys()
    if fitting:
        # A public key as a secret is the classic forgery: everybody has it. PyJWT knows them by their look.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _jws.get_algorithm_by_name("HS256").prepare_key(raw)
        except jwt.InvalidKeyError:
            raise ConfigurationError("a public key is no secret: for keys in PEM pin RS, PS, ES or EdDSA") from None
        least = max(_SECRETS[name] for name in fitting)
        if len(raw) < least:
            raise ConfigurationError(f"a secret for {', '.join(sorted(fitting))} has at least {least} bytes")
        return Key(kid, raw, fitting)
    try:
        material = load_pem_public_key(raw)
    except Exception as exc:
        raise ConfigurationError(
            "this is no public key in PEM (-----BEGIN PUBLIC KEY-----); the private one stays with the issuer"
        ) from exc
    fitting = _fitting(material) & pinned
    if not fitting:
        raise ConfigurationError(
            f"no pinned algorithm fits this key ({type(material).__name__}); RSA has at least {MIN_RSA} bits"
        )
    return Key(kid, material, fitting)


def published_keys(entries: Sequence[Mapping[str, Any]]) -> tuple[Key, ...]:
    """
    The usable ones of a JWK set (RFC 7517 section 5): what is none of ours, or no public key for signatures, is left.
    """
    return tuple(key for entry in entries if (key := _published(entry)) is not None)


def _published(entry: Mapping[str, Any]) -> Key | None:
    kid, kind = entry.get("kid"), entry.get("kty")
    operations = entry.get("key_ops")
    if (
        kind not in ("RSA", "EC", "OKP")  # never a secret: whoever can read the set would have it
        or not (kid is None or isinstance(kid, str))
        or entry.get("use", "sig") != "sig"
        or (operations is not None and not (isinstance(operations, list) and "verify" in operations))
    ):
        return None
    if "d" in entry:
        logger.warning("a set of keys at an issuer holds a private key: it is not used")
        return None
    try:
        material = jwt.PyJWK({name: entry[name] for name in _MEMBERS if name in entry}).key
    except Exception as exc:  # of the many kinds that a malformed number or point makes
        logger.info("a key of an issuer is not understood: %s", type(exc).__name__)
        return None
    fitting = _fitting(material)
    if "alg" in entry:
        fitting &= {entry["alg"]} if isinstance(entry["alg"], str) else frozenset()
    return Key(kid, material, fitting) if fitting else None


_MEMBERS: Final = ("kty", "crv", "n", "e", "x", "y")


def _fitting(material: object) -> frozenset[str]:
    """The algorithms that a public key is made for: one curve, one algorithm (RFC 7518 section 3.4)."""
    if isinstance(material, RSAPublicKey):
        return _RSA if material.key_size >= MIN_RSA else frozenset()
    if isinstance(material, EllipticCurvePublicKey):
        name = _CURVES.get(material.curve.name)
        return frozenset() if name is None else frozenset({name})
    return frozenset({"EdDSA"}) if isinstance(material, Ed25519PublicKey) else frozenset()
