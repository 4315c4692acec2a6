"""JSON web tokens are believed when this issuer signed them for this audience, in time, by a pinned algorithm."""

import asyncio
import base64
import json
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from starlette_realtime import ConfigurationError, Identity, Unauthenticated, Unavailable
from starlette_realtime.testing import FakeClock, settle
from starlette_realtime.webtokens import JWKS, JSONWebTokens, Keys
from starlette_realtime.webtokens.jwks import MOST_FETCHES, _fetching
from starlette_realtime.webtokens.reader import MAX_TOKEN
from tests.support.certificate import certificate
from tests.support.waiting import until

ISSUER = "https://login.example"
AUDIENCE = "chat"
SECRET = "x" * 64
NOW = 1_800_000_000.0
URL = "https://login.example/keys"

ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


@cache
def private_key(algorithm: str, number: int = 0, bits: int = 2048) -> PrivateKeyTypes:
    """A key for the algorithm; another one for each number. RSA keys are slow to make, and shared by all six."""
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm != "RSA":
        return private_key("RSA", number, bits)
    return rsa.generate_private_key(65537, bits)


def public_pem(key: Any) -> str:
    """The public half, as a file has it."""
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def private_pem(key: Any) -> str:
    """The private half, as a file has it."""
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()


def jwk(algorithm: str, kid: str | None, *, number: int = 0, **more: Any) -> dict[str, Any]:
    """The public half, as a set of keys has it."""
    public = private_key(algorithm, number).public_key()
    found: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    found.pop("key_ops", None)
    return {**found, **({"kid": kid} if kid is not None else {}), **more}


def claims(**other: Any) -> dict[str, Any]:
    """What a good token says; None takes a claim away."""
    all_claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": NOW, "exp": NOW + 600, **other}
    return {name: value for name, value in all_claims.items() if value is not None}


def sign(
    algorithm: str = "HS256",
    key: Any = SECRET,
    *,
    headers: dict[str, Any] | None = None,
    payload: Mapping[str, Any] | None = None,
    **other: Any,
) -> str:
    """A token as an issuer makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyJWT's, about keys that are short on purpose
        text = json.dumps(claims(**other) if payload is None else payload).encode()
        return jwt.PyJWS().encode(text, key, algorithm=algorithm, headers=headers)


def part(value: object) -> str:
    """One part of a token that is made by hand."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def reader(keys: Keys = SECRET, *, algorithms: Any = ("HS256",), clock: FakeClock | None = None, **options: Any) -> Any:
    """A reader of this issuer's tokens."""
    options = {"issuer": ISSUER, "audience": AUDIENCE, **options}
    return JSONWebTokens(keys, algorithms=algorithms, clock=clock or FakeClock(time=NOW), **options)


async def refused(tokens: JSONWebTokens, token: object) -> str:
    """The code that reading `token` is refused with."""
    with pytest.raises(Unauthenticated) as caught:
        await tokens.read(token)  # type: ignore[arg-type]
    assert caught.value.code in ("expired", "unauthenticated")
    assert caught.value.message == Unauthenticated(code=caught.value.code).message, "why is for logs only"
    return caught.value.code


# --- what is believed -------------------------------------------------------------------------------------------------


async def test_a_token_says_whom_it_was_issued_to() -> None:
    token = sign(jti="t1", role="editor")
    assert await reader().read(token) == Identity("ada", claims(jti="t1", role="editor"), NOW + 605.0), (
        "until it expires, and the clocks' difference more"
    )


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_each_algorithm_verifies_by_its_key_and_by_no_other(algorithm: str) -> None:
    own, other = private_key(algorithm), private_key(algorithm, 1)
    tokens = reader(public_pem(own), algorithms=[algorithm])
    assert (await tokens.read(sign(algorithm, own))).user == "ada"
    assert await refused(tokens, sign(algorithm, other)) == "unauthenticated"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_each_hash_verifies_by_its_secret_and_by_no_other(algorithm: str) -> None:
    tokens = reader(algorithms=[algorithm])
    assert (await tokens.read(sign(algorithm))).user == "ada"
    assert await refused(tokens, sign(algorithm, "y" * 64)) == "unauthenticated"


async def test_secrets_rotate_in_a_list() -> None:
    tokens = reader([SECRET, "o" * 64])
    for secret in (SECRET, "o" * 64):
        assert (await tokens.read(sign(key=secret, headers={"kid": "whatever"}))).user == "ada"
    assert await refused(tokens, sign(key="n" * 64)) == "unauthenticated"


async def test_keys_that_have_names_verify_what_names_them() -> None:
    tokens = reader({"a": SECRET, "b": "o" * 64})
    assert (await tokens.read(sign(headers={"kid": "a"}))).user == "ada"
    assert (await tokens.read(sign(key="o" * 64, headers={"kid": "b"}))).user == "ada"
    for kid in ("b", "c", ""):
        assert await refused(tokens, sign(headers={"kid": kid})) == "unauthenticated"
    assert await refused(tokens, sign()) == "unauthenticated"


async def test_public_keys_have_names_as_well() -> None:
    own, other = private_key("ES256", 0), private_key("ES256", 1)
    tokens = reader({"a": public_pem(own), "b": public_pem(other)}, algorithms=["ES256"])
    assert (await tokens.read(token_of("a"))).user == "ada"
    assert (await tokens.read(token_of("b", number=1))).user == "ada"
    for kid in ("b", "c", None):
        assert await refused(tokens, token_of(kid)) == "unauthenticated"


async def test_keys_are_text_or_bytes() -> None:
    assert (await reader(SECRET.encode()).read(sign())).user == "ada"
    own = private_key("ES256")
    assert (await reader(public_pem(own).encode(), algorithms=["ES256"]).read(sign("ES256", own))).user == "ada"


async def test_without_a_clock_it_is_the_systems() -> None:
    tokens = JSONWebTokens(SECRET, issuer=ISSUER, audience=AUDIENCE, algorithms=["HS256"])
    now = time.time()
    assert (await tokens.read(sign(iat=now, exp=now + 3600))).user == "ada"
    assert await refused(tokens, sign(iat=now - 7200, exp=now - 3600)) == "expired"


@pytest.mark.parametrize(
    ("given_claims", "scopes"),
    [
        ({"scope": "read write"}, ["read", "write"]),
        ({"scopes": ["read", 7, "write"]}, ["read", "write"]),
        ({"scopes": "read write"}, ["read", "write"]),
        ({"scopes": {"all": True}}, []),
        ({"scopes": [], "scope": "read"}, []),
    ],
)
async def test_scopes_come_in_one_form(given_claims: dict[str, Any], scopes: list[str]) -> None:
    assert (await reader().read(sign(**given_claims))).claims["scopes"] == scopes


async def test_without_scopes_there_is_no_such_claim() -> None:
    several: list[dict[str, Any]] = [{}, {"scope": 7}]
    for given_claims in several:
        assert "scopes" not in (await reader().read(sign(**given_claims))).claims


async def test_the_user_is_another_claim_or_made_of_them() -> None:
    assert (await reader(user="email").read(sign(email="ada@example"))).user == "ada@example"
    several = reader(user=lambda found: f"login/{found['sub']}")
    assert (await several.read(sign(sub="7"))).user == "login/7"
    for bad in (None, 7, ["ada"], "", "a\nb", "x" * 129, "e\u0301"):
        assert await refused(reader(), sign(sub=bad)) == "unauthenticated"


async def test_audiences_are_one_or_more_on_both_sides() -> None:
    for told, wanted in (("chat", "chat"), (["web", "chat"], "chat"), ("web", ["chat", "web"]), (["web"], ["web"])):
        assert (await reader(audience=wanted).read(sign(aud=told))).user == "ada"
    assert (await reader(audience=None).read(sign(aud=None))).user == "ada"


# --- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "PS256", "ES256", "EdDSA"])
async def test_every_changed_character_is_noticed(algorithm: str) -> None:
    key: Any = SECRET if algorithm == "HS256" else private_key(algorithm)
    tokens = reader(SECRET if algorithm == "HS256" else public_pem(key), algorithms=[algorithm])
    token = sign(algorithm, key)
    assert (await tokens.read(token)).user == "ada"
    for place, char in enumerate(token):
        for other in ("A" if char != "A" else "B", chr(ord(char) ^ 1), "=", ".", "é"):
            if other != char:
                await refused(tokens, token[:place] + other + token[place + 1 :])
    for length in range(len(token)):
        await refused(tokens, token[:length])
    for longer in (token + "A", token + "=", token + ".", token + "\n", " " + token):
        await refused(tokens, longer)


@settings(max_examples=200)
@given(place=st.integers(0, 10_000), char=st.characters())
async def test_a_character_of_any_kind_in_any_place_is_noticed(place: int, char: str) -> None:
    token = sign()
    place %= len(token)
    if token[place] != char:
        await refused(reader(), token[:place] + char + token[place + 1 :])


@given(st.text())
async def test_nothing_made_up_is_believed(token: str) -> None:
    assert await refused(reader(), token) == "unauthenticated"


@pytest.mark.parametrize(
    "token",
    [None, 7, b"bytes", "", ".", "..", "a.b", "a.b.c", "a.b.c.d", "é.é.é", "\ud800", "x" * (MAX_TOKEN + 1), "[].[].x"],
)
async def test_what_is_no_token_is_refused(token: object) -> None:
    assert await refused(reader(), token) == "unauthenticated"


async def test_what_is_too_long_is_not_even_looked_at() -> None:
    with pytest.raises(Unauthenticated) as caught:
        await reader().read(sign(noise="x" * MAX_TOKEN))
    assert str(caught.value.__cause__) == "not a string, or too long"


@pytest.mark.parametrize(
    "name", ["none", "None", "NONE", "nOnE", "", None, 7, ["HS256"], "hs256", "ES256K", "RSA-OAEP"]
)
async def test_an_algorithm_that_is_not_pinned_is_refused(name: object) -> None:
    for signature in ("", "AA"):
        made = f"{part({'alg': name, 'typ': 'JWT'})}.{part(claims())}.{signature}"
        assert await refused(reader(), made) == "unauthenticated"
    assert await refused(reader(), f"{part({'typ': 'JWT'})}.{part(claims())}.AA") == "unauthenticated"
    assert await refused(reader(algorithms=["HS512"]), sign("HS256")) == "unauthenticated"


async def test_a_public_key_is_never_taken_for_a_secret() -> None:
    """The classic forgery: sign by HMAC with the public key, that everybody has."""
    for algorithm in ("RS256", "ES256", "EdDSA"):
        pem = public_pem(private_key(algorithm))
        header, body = part({"alg": "HS256"}), part(claims())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        forged = f"{header}.{body}.{part(hmac.sign(f'{header}.{body}'.encode(), pem.encode()))}"
        assert await refused(reader(pem, algorithms=[algorithm]), forged) == "unauthenticated"
        with pytest.raises(ConfigurationError, match="no secret"):
            reader(pem, algorithms=["HS256"])
        with pytest.raises(ConfigurationError, match="HS verifies with a secret"):
            reader(pem, algorithms=["HS256", algorithm])


def signed_by(private: Any, algorithm: str, kid: str | None, sign: Callable[[bytes], bytes]) -> str:
    """A token whose algorithm and signature no library would put together."""
    header = {"alg": algorithm} if kid is None else {"alg": algorithm, "kid": kid}
    signed = f"{part(header)}.{part(claims())}"
    return f"{signed}.{part(sign(signed.encode()))}"


async def test_each_curve_has_one_algorithm(clock: FakeClock) -> None:
    """RFC 7518 section 3.4; and of the Edwards curves, Ed25519 alone."""
    small: Any = private_key("ES256")

    def with_sha_384(data: bytes) -> bytes:
        numbers = decode_dss_signature(small.sign(data, ec.ECDSA(hashes.SHA384())))
        return b"".join(number.to_bytes(32, "big") for number in numbers)

    goldilocks = ed448.Ed448PrivateKey.generate()
    for private, algorithm, made in ((small, "ES384", with_sha_384), (goldilocks, "EdDSA", goldilocks.sign)):
        pinned = ["ES256", "ES384", "EdDSA"]
        entry = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
        entry.pop("key_ops", None)
        for more in ({}, {"alg": algorithm}):
            tokens = published(Issuer({**entry, **more, "kid": "a"}), clock, algorithms=pinned)
            assert await refused(tokens, signed_by(private, algorithm, "a", made)) == "unauthenticated"
        with pytest.raises(ConfigurationError, match="no pinned algorithm fits"):
            reader(public_pem(private), algorithms=[algorithm])


async def test_a_weak_key_verifies_nothing_whatever_it_is_published_for(clock: FakeClock) -> None:
    """RFC 7518 section 3.3."""
    weak: Any = private_key("RSA", 9, 1024)
    entry = jwt.get_algorithm_by_name("RS256").to_jwk(weak.public_key(), as_dict=True)
    entry.pop("key_ops", None)
    for more in ({}, {"alg": "RS256"}):
        tokens = published(Issuer({**entry, **more, "kid": "a"}), clock, algorithms=["RS256"])
        assert await refused(tokens, sign("RS256", weak, headers={"kid": "a"})) == "unauthenticated"


async def test_a_key_that_is_published_for_one_algorithm_verifies_by_no_other(clock: FakeClock) -> None:
    tokens = published(Issuer(jwk("RS256", "a", alg="RS256")), clock, algorithms=["RS256", "RS512", "PS256"])
    assert (await tokens.read(token_of("a", algorithm="RS256"))).user == "ada"
    for algorithm in ("RS512", "PS256"):
        assert await refused(tokens, token_of("a", algorithm=algorithm)) == "unauthenticated"


async def test_a_key_whose_name_is_no_string_verifies_nothing(clock: FakeClock) -> None:
    odd, good = {**jwk("ES256", None), "kid": 7}, jwk("ES256", "b", number=1)
    tokens = published(Issuer(odd, good), clock)
    assert await refused(tokens, token_of(None)) == "unauthenticated"
    assert (await tokens.read(token_of(None, number=1))).user == "ada"


async def test_keys_that_a_token_brings_or_points_to_are_ignored() -> None:
    mine = private_key("RS256", 1)
    tokens = reader(public_pem(private_key("RS256")), algorithms=["RS256"])
    for headers in (
        {"jwk": jwk("RS256", "mine", number=1)},
        {"jku": "http://127.0.0.1:1/keys", "kid": "mine"},
        {"x5u": "http://127.0.0.1:1/cert"},
        {"x5c": ["MIIB"]},
    ):
        assert await refused(tokens, sign("RS256", mine, headers=headers)) == "unauthenticated"


@pytest.mark.parametrize(
    "headers", [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"crit": None}, {"b64": True}, {"kid": 7}, {"kid": ["a"]}]
)
async def test_a_header_that_demands_more_is_refused(headers: dict[str, Any]) -> None:
    header, body = part({"alg": "HS256", **headers}), part(claims())
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = part(hmac.sign(f"{header}.{body}".encode(), SECRET.encode()))
    assert await refused(reader(), f"{header}.{body}.{signature}") == "unauthenticated"


@pytest.mark.parametrize(
    "other",
    [
        {"iss": None},
        {"iss": "https://login.example/"},
        {"iss": "https://evil.example"},
        {"iss": [ISSUER]},
        {"aud": None},
        {"aud": "web"},
        {"aud": ["web", "Chat"]},
        {"aud": ["chat", 7]},
        {"aud": {"chat": 1}},
        {"aud": 7},
        {"aud": ""},
        {"aud": []},
        {"sub": None},
        {"exp": None},
        {"exp": "1900000000"},
        {"exp": True},
        {"exp": [NOW]},
        {"exp": 10**400},
        {"exp": -(2**53)},
        {"nbf": "soon"},
        {"nbf": NOW + 5.001},
        {"iat": NOW + 5.001},
        {"iat": "now"},
    ],
    ids=str,
)
async def test_a_signature_alone_is_not_enough(other: dict[str, Any]) -> None:
    assert await refused(reader(), sign(**other)) == (
        "expired" if other.get("exp") == -(2**53) + 1 else "unauthenticated"
    )


@pytest.mark.parametrize("payload", [[], "ada", None, 7, True], ids=str)
async def test_a_payload_that_is_no_object_is_refused(payload: object) -> None:
    header = part({"alg": "HS256"})
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = part(hmac.sign(f"{header}.{part(payload)}".encode(), SECRET.encode()))
    assert await refused(reader(), f"{header}.{part(payload)}.{signature}") == "unauthenticated"
    assert await refused(reader(), f"{part('[' * 3000)}.{part(b'[' * 3000)}.{signature}") == "unauthenticated"


async def test_tokens_with_an_audience_are_refused_where_none_is_expected() -> None:
    assert await refused(reader(audience=None), sign()) == "unauthenticated"


async def test_claims_that_are_required_must_be_there() -> None:
    tokens = reader(require=["jti", "tenant"])
    assert (await tokens.read(sign(jti="1", tenant="t"))).user == "ada"
    for other in ({"jti": "1"}, {"tenant": "t"}, {"jti": "1", "tenant": None}):
        assert await refused(tokens, sign(**other)) == "unauthenticated"


async def test_times_are_the_clocks_of_which_may_be_apart() -> None:
    clock = FakeClock(time=NOW)
    tokens = reader(clock=clock, leeway=2.0)
    token = sign(exp=NOW + 10, nbf=NOW + 2, iat=NOW + 2)
    assert (await tokens.read(token)).expires_at == NOW + 12
    await clock.advance(11.999)
    assert (await tokens.read(token)).user == "ada"
    await clock.advance(0.001)
    assert await refused(tokens, token) == "expired"
    await clock.advance(10**6)
    assert await refused(tokens, token) == "expired"
    assert await refused(tokens, sign(exp=NOW + 10, aud="web")) == "unauthenticated", "it was never good"


async def test_a_longest_life_bounds_what_the_issuer_grants() -> None:
    clock = FakeClock(time=NOW)
    tokens = reader(clock=clock, leeway=0.0, max_age=60.0)
    token = sign(exp=NOW + 10**6)
    assert (await tokens.read(token)).expires_at == NOW + 60
    assert (await reader(clock=clock, leeway=0.0, max_age=0.5).read(token)).expires_at == NOW + 0.5
    assert await refused(tokens, sign(iat=None)) == "unauthenticated"
    await clock.advance(60.0)
    assert await refused(tokens, token) == "expired"


# --- the program's errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "options", "said"),
    [
        (SECRET, {"algorithms": []}, "pin one or more"),
        (SECRET, {"algorithms": ["none"]}, "pin one or more"),
        (SECRET, {"algorithms": ["HS256", "XX"]}, "pin one or more"),
        ("short", {}, "at least 32 bytes"),
        ("x" * 32, {"algorithms": "HS512"}, "at least 64 bytes"),
        ([], {}, "no key"),
        ({}, {}, "no key"),
        (SECRET, {"algorithms": ["RS256"]}, "no public key"),
        (SECRET, {"issuer": ""}, "issuer"),
        (SECRET, {"audience": ""}, "audience"),
        (SECRET, {"audience": []}, "audience"),
        (SECRET, {"require": "jti"}, "list"),
        (SECRET, {"leeway": -1.0}, "leeway"),
        (SECRET, {"max_age": 0.0}, "max_age"),
        (SECRET, {"max_age": float("nan")}, "max_age"),
    ],
)
def test_what_does_not_fit_is_an_error_of_the_program(keys: Keys, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        reader(keys, **options)


def test_keys_that_do_not_fit_are_errors_of_the_program() -> None:
    with pytest.raises(ConfigurationError, match="no pinned algorithm fits"):
        reader(public_pem(private_key("ES384")), algorithms=["ES256", "RS256"])
    with pytest.raises(ConfigurationError, match="at least 2048 bits"):
        reader(public_pem(private_key("RSA", 9, 1024)), algorithms=["RS256"])
    with pytest.raises(ConfigurationError, match="the private one stays"):
        reader(private_pem(private_key("RS256")), algorithms=["RS256"])
    with pytest.raises(ConfigurationError, match="HS verifies with a secret"):
        reader(JWKS(URL), algorithms=["HS256"])


def test_without_pyjwt_it_says_what_to_install() -> None:
    program = """
import sys
sys.modules["jwt"] = None
from starlette_realtime.webtokens import JWKS, JSONWebTokens
from starlette_realtime import ConfigurationError
for make in (lambda: JSONWebTokens("x" * 32, issuer="i", audience="a", algorithms=["HS256"]), lambda: JWKS("https://i/")):
    try:
        make()
    except ConfigurationError as exc:
        print(exc)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.count("pip install 'starlette-realtime[jwt]'") == 2


def test_the_cause_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("starlette_realtime.webtokens.jwks.importlib.import_module", missing)
    with pytest.raises(ConfigurationError) as caught:
        JWKS(URL)
    assert isinstance(caught.value.__cause__, ImportError)


# --- published keys ---------------------------------------------------------------------------------------------------


class Issuer:
    """An issuer that publishes keys, counts who asks, and fails, or takes its time, on demand."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = list(keys)
        self.asked = 0
        self.fails = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def fetch(self, url: str) -> bytes:
        """What is at the URL."""
        self.asked += 1
        await self.answers.wait()
        if self.fails:
            raise OSError("connection refused")
        return json.dumps({"keys": self.keys}).encode()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(time=NOW)


def published(issuer: Issuer, clock: FakeClock, *, algorithms: Any = ("ES256",), **options: Any) -> JSONWebTokens:
    """A reader of that issuer's tokens, whose expiry doesn't matter here."""
    keys = JWKS(URL, fetch=issuer.fetch, clock=clock, **options)
    return JSONWebTokens(keys, issuer=ISSUER, audience=AUDIENCE, algorithms=algorithms, leeway=10**6, clock=clock)


def token_of(kid: str | None, *, number: int = 0, algorithm: str = "ES256", **other: Any) -> str:
    """A token that names its key."""
    headers = {} if kid is None else {"kid": kid}
    return sign(algorithm, private_key(algorithm, number), headers=headers, **other)


async def test_keys_are_fetched_once_and_kept(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"), jwk("ES256", "b", number=1))
    tokens = published(issuer, clock)
    assert issuer.asked == 0
    for _ in range(10):
        assert (await tokens.read(token_of("a"))).user == "ada"
        assert (await tokens.read(token_of("b", number=1))).user == "ada"
        assert await refused(tokens, token_of("b")) == "unauthenticated"
    assert issuer.asked == 1
    await clock.advance(599.9)
    await tokens.read(token_of("a"))
    assert issuer.asked == 1
    await clock.advance(0.1)
    await tokens.read(token_of("a"))
    assert issuer.asked == 2


async def test_a_token_that_names_no_key_is_tried_with_all(clock: FakeClock) -> None:
    tokens = published(Issuer(jwk("ES256", "a"), jwk("ES256", None, number=1)), clock)
    for number in (0, 1):
        assert (await tokens.read(token_of(None, number=number))).user == "ada"
    assert await refused(tokens, token_of(None, number=2)) == "unauthenticated"


async def test_a_new_key_is_found_when_a_token_names_it(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"))
    tokens = published(issuer, clock)
    await tokens.read(token_of("a"))
    issuer.keys = [jwk("ES256", "b", number=1)]
    await clock.advance(10.0)
    assert (await tokens.read(token_of("b", number=1))).user == "ada"
    assert await refused(tokens, token_of("a")) == "unauthenticated", "a key that is gone verifies nothing"


async def test_made_up_names_do_not_hammer_the_issuer(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"))
    tokens = published(issuer, clock)
    for n in range(1_000):
        assert (
            await refused(tokens, token_of(f"made up {n}") if n < 3 else sign_header(f"made up {n}"))
            == "unauthenticated"
        )
    assert issuer.asked == 1
    await clock.advance(10.0)
    await refused(tokens, token_of("none that there is"))
    for n in range(100):
        await refused(tokens, sign_header(f"again {n}"))
    assert issuer.asked == 2


def sign_header(kid: str) -> str:
    """A token whose signature is nobody's: its key's name is all that matters."""
    return f"{part({'alg': 'ES256', 'kid': kid})}.{part(claims())}.{part(b'0' * 64)}"


async def test_tokens_of_others_do_not_have_keys_fetched(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"))
    tokens = published(issuer, clock)
    for token in (token_of("a", iss="https://other.example"), sign(), "nonsense", token_of("a", algorithm="EdDSA")):
        await refused(tokens, token)
    assert issuer.asked == 0


async def test_all_wait_for_one_fetch_and_who_gives_up_spoils_nothing(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"))
    issuer.answers.clear()
    tokens = published(issuer, clock)
    readers = [asyncio.create_task(tokens.read(token_of("a"))) for _ in range(50)]
    await settle()
    readers[0].cancel()
    await settle()
    assert issuer.asked == 1
    issuer.answers.set()
    assert {identity.user for identity in await asyncio.gather(*readers[1:])} == {"ada"}
    assert issuer.asked == 1
    assert clock.timers == 0


async def test_keys_of_two_issuers_never_mix(clock: FakeClock) -> None:
    ours, theirs = Issuer(jwk("ES256", "a")), Issuer(jwk("ES256", "a", number=1))
    tokens = published(ours, clock)
    other = JSONWebTokens(
        JWKS(URL, fetch=theirs.fetch, clock=clock),
        issuer="https://other.example",
        audience=AUDIENCE,
        algorithms=["ES256"],
        clock=clock,
    )
    assert (await tokens.read(token_of("a"))).user == "ada"
    assert (await other.read(token_of("a", number=1, iss="https://other.example"))).user == "ada"
    assert await refused(tokens, token_of("a", number=1)) == "unauthenticated"
    assert await refused(other, token_of("a", iss="https://other.example")) == "unauthenticated"


async def test_old_keys_serve_for_a_while_when_the_issuer_is_away(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"))
    tokens = published(issuer, clock, stale_for=100.0)
    await tokens.read(token_of("a"))
    issuer.fails = True
    await clock.advance(600.0)
    for _ in range(5):
        assert (await tokens.read(token_of("a"))).user == "ada"
    assert issuer.asked == 2, "it is left alone for a moment"
    with pytest.raises(Unavailable):  # it might be a new one
        await tokens.read(token_of("b", number=1))
    await clock.advance(100.0)
    with pytest.raises(Unavailable) as caught:
        await tokens.read(token_of("a"))
    assert caught.value.retry_after == 10.0
    issuer.fails = False
    await clock.advance(10.0)
    assert (await tokens.read(token_of("a"))).user == "ada"


async def test_without_any_keys_nobody_can_tell(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"))
    issuer.fails = True
    tokens = published(issuer, clock)
    for _ in range(10):
        with pytest.raises(Unavailable):
            await tokens.read(token_of("a"))
    assert issuer.asked == 1
    issuer.fails = False
    await clock.advance(10.0)
    assert (await tokens.read(token_of("a"))).user == "ada"


async def test_a_fetch_takes_no_longer_than_its_time(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"))
    issuer.answers.clear()
    reading = asyncio.create_task(published(issuer, clock).read(token_of("a")))
    await clock.advance(4.9)
    assert not reading.done()
    await clock.advance(0.1)
    with pytest.raises(Unavailable):
        await reading


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": ["a"]}',
        b'{"error": "later"}',
        b'{"keys": []}' + b" " * 131_072,
        b'{"keys": [' + b",".join([b"{}"] * 33) + b"]}",
    ],
    ids=lambda text: text[:20].decode(),
)
async def test_what_is_no_set_of_keys_counts_as_a_failure(clock: FakeClock, text: bytes) -> None:
    async def fetch(url: str) -> bytes:
        return text

    tokens = reader(JWKS(URL, fetch=fetch, clock=clock), algorithms=["ES256"], clock=clock)
    with pytest.raises(Unavailable):
        await tokens.read(token_of("a"))


async def test_a_set_may_be_as_large_as_is_allowed(clock: FakeClock) -> None:
    text = json.dumps({"keys": [jwk("ES256", "a"), *({"kid": str(n)} for n in range(31))]}).encode()

    async def fetch(url: str) -> bytes:
        return text.ljust(131_072)

    tokens = reader(JWKS(URL, fetch=fetch, clock=clock), algorithms=["ES256"], clock=clock)
    assert (await tokens.read(token_of("a"))).user == "ada"


async def test_old_keys_need_not_serve_at_all_when_the_issuer_is_away(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"))
    tokens = published(issuer, clock, stale_for=0.0, max_age=0.5, min_interval=0.25)
    await tokens.read(token_of("a"))
    issuer.fails = True
    await clock.advance(0.5)
    with pytest.raises(Unavailable) as caught:
        await tokens.read(token_of("a"))
    assert caught.value.retry_after == 1.0, "no less, however short the interval is"


async def test_an_empty_set_takes_all_keys_back(clock: FakeClock) -> None:
    issuer = Issuer(jwk("ES256", "a"))
    tokens = published(issuer, clock)
    await tokens.read(token_of("a"))
    issuer.keys = []
    await clock.advance(600.0)
    assert await refused(tokens, token_of("a")) == "unauthenticated"


@pytest.mark.parametrize(
    "entry",
    [
        {**jwk("ES256", "a"), "use": "enc"},
        {**jwk("ES256", "a"), "use": 7},
        {**jwk("ES256", "a"), "alg": "ES384"},
        {**jwk("ES256", "a"), "alg": 7},
        {**jwk("ES256", "a"), "alg": ["ES256"]},
        {**jwk("ES256", "a"), "alg": "EdDSA"},
        {**jwk("ES256", "a"), "key_ops": ["sign"]},
        {**jwk("ES256", "a"), "key_ops": "verify"},
        {**jwk("ES256", "a"), "kid": 7},
        {**jwk("ES256", "a"), "kid": "A"},
        {**jwk("ES256", "a"), "kty": "RSA"},
        {**jwk("ES256", "a"), "kty": "oct", "k": part(SECRET.encode())},
        {**jwk("ES256", "a"), "kty": ["EC"]},
        {**jwk("ES256", "a"), "x": "AAAA"},
        {**jwk("ES256", "a"), "x": 7},
        {**jwk("ES256", "a"), "crv": "P-384"},
        {**jwk("ES256", "a"), "crv": "secp256k1"},
        {**jwk("ES256", "a"), "d": part(b"1" * 32)},
        {"kid": "a"},
        {},
    ],
    ids=lambda entry: ",".join(f"{name}={str(value)[:8]}" for name, value in entry.items() if name not in "xy"),
)
async def test_a_key_that_does_not_fit_verifies_nothing(clock: FakeClock, entry: dict[str, Any]) -> None:
    issuer = Issuer(entry, jwk("EdDSA", "good"))
    tokens = published(issuer, clock, algorithms=["ES256", "EdDSA"])
    assert await refused(tokens, token_of("a")) == "unauthenticated"
    assert (await tokens.read(token_of("good", algorithm="EdDSA"))).user == "ada", "the others do"


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_each_algorithm_verifies_by_a_published_key(clock: FakeClock, algorithm: str) -> None:
    for entry in (jwk(algorithm, "a"), jwk(algorithm, "a", alg=algorithm, use="sig", key_ops=["verify"])):
        tokens = published(Issuer(entry), clock, algorithms=[algorithm])
        assert (await tokens.read(token_of("a", algorithm=algorithm))).user == "ada"


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example/keys",
        "http://127.0.0.1.evil.example/",
        "ftp://login.example/keys",
        "file:///etc/passwd",
        "https://",
        "https://user:password@login.example/keys",
        "login.example/keys",
        "https://login.example/the keys",
        "https://login.example/schlüssel",
        "https://login.example/keys\x7f",
        "",
    ],
)
def test_keys_are_fetched_from_safe_places_only(url: str) -> None:
    with pytest.raises(ConfigurationError, match="https"):
        JWKS(url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_keys_of_this_machine_need_no_tls(host: str) -> None:
    url = f"http://{host}:1/keys"
    assert JWKS(url).url == url


def test_times_that_make_no_sense_are_errors_of_the_program() -> None:
    wrong: list[dict[str, Any]] = [{"max_age": 0.0}, {"min_interval": 0.0}, {"timeout": 0.0}, {"stale_for": -1.0}]
    for options in wrong:
        with pytest.raises(ConfigurationError, match="seconds"):
            JWKS(URL, **options)


# --- over HTTP --------------------------------------------------------------------------------------------------------


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def web(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A web server on this machine, and its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            """In the request's own thread, as a handshake may take its time, or fail."""
            if tls is None:
                super().finish_request(request, client_address)
                return
            with suppress(OSError), tls.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answering(body: bytes, status: int = 200, **headers: str) -> Answer:
    """Always the same."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@asynccontextmanager
async def fetching(answer: Answer, **options: Any) -> AsyncIterator[JSONWebTokens]:
    """A reader whose keys are fetched over HTTP."""
    with web(answer) as url:
        yield reader(JWKS(f"{url}/keys", **options), algorithms=["ES256"])


async def test_keys_come_over_http() -> None:
    asked: list[tuple[str, str | None]] = []
    body = json.dumps({"keys": [jwk("ES256", "a")]}).encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append((handler.path, handler.headers["accept"]))
        answering(body)(handler)

    async with fetching(answer) as tokens:
        assert (await tokens.read(token_of("a"))).user == "ada"
    assert asked == [("/keys", "application/json")]


async def test_over_tls_keys_come_only_from_whom_a_known_authority_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate(tmp_path)
    with web(answering(json.dumps({"keys": [jwk("ES256", "a")]}).encode()), made.server_context()) as url:
        with pytest.raises(Unavailable):
            await reader(JWKS(url), algorithms=["ES256"]).read(token_of("a"))
        monkeypatch.setenv("SSL_CERT_FILE", str(made.ca_path))
        assert (await reader(JWKS(url), algorithms=["ES256"]).read(token_of("a"))).user == "ada"


async def test_keys_that_come_in_several_parts_are_put_together() -> None:
    keys = [jwk("ES256", "a"), {"kid": "long", "x5c": ["x" * 40_000]}, jwk("ES256", "b", number=1)]
    async with fetching(answering(json.dumps({"keys": keys}).encode())) as tokens:
        assert (await tokens.read(token_of("a"))).user == "ada"
        assert (await tokens.read(token_of("b", number=1))).user == "ada"


async def test_a_proxy_is_not_asked_for_what_is_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def proxy(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        answering(b"", 502)(handler)

    with web(proxy) as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with fetching(answering(json.dumps({"keys": [jwk("ES256", "a")]}).encode())) as tokens:
            assert (await tokens.read(token_of("a"))).user == "ada"
    assert asked == []


async def test_a_proxy_is_asked_for_what_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        asked.append(await reading.readline())
        writing.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await writing.drain()
        writing.close()
        await writing.wait_closed()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        tokens = reader(JWKS(URL), algorithms=["ES256"])
        with pytest.raises(Unavailable):
            await tokens.read(token_of("a"))
    assert [line.split()[:2] for line in asked] == [[b"CONNECT", b"login.example:443"]]


async def test_fetches_that_have_ended_stand_in_the_way_of_none() -> None:
    body = json.dumps({"keys": [jwk("ES256", "a")]}).encode()
    with web(answering(body)) as url:
        for n in range(MOST_FETCHES + 1):
            tokens = reader(JWKS(f"{url}/{n}"), algorithms=["ES256"])
            assert (await tokens.read(token_of("a"))).user == "ada"


async def test_so_many_fetches_are_under_way_and_no_more() -> None:
    asked: list[str] = []
    go = Event()
    body = json.dumps({"keys": [jwk("ES256", "a")]}).encode()

    def late(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        go.wait(30.0)
        answering(body)(handler)

    def read(url: str) -> Awaitable[Identity]:
        tokens = JSONWebTokens(JWKS(url, timeout=30.0), issuer=ISSUER, audience=AUDIENCE, algorithms=["ES256"])
        return tokens.read(token_of("a", exp=time.time() + 600, iat=None))

    await until(lambda: not _fetching, what="the end of what earlier tests have abandoned")
    with web(late) as url:
        waiting = [asyncio.ensure_future(read(f"{url}/{n}")) for n in range(MOST_FETCHES)]
        try:
            await until(lambda: len(asked) == MOST_FETCHES, what="all of them to be asked")
            with pytest.raises(Unavailable):
                async with asyncio.timeout(5.0):
                    await read(f"{url}/more")
            assert "/more" not in asked
        finally:
            go.set()
        assert [identity.user for identity in await asyncio.gather(*waiting)] == ["ada"] * MOST_FETCHES


async def test_who_waits_for_keys_is_told_in_time_whatever_the_fetch_still_does(clock: FakeClock) -> None:
    go, asked = Event(), Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        go.wait(30.0)

    with web(silent) as url:
        keys = JWKS(f"{url}/keys", timeout=20.0, min_interval=60.0, clock=clock)
        tokens = JSONWebTokens(keys, issuer=ISSUER, audience=AUDIENCE, algorithms=["ES256"], clock=clock)
        reading = asyncio.create_task(tokens.read(token_of("a")))
        try:
            await until(asked.is_set, what="the fetch to have begun")
            await clock.advance(20.0)
            await until(reading.done, what="the answer that there is none")
            with pytest.raises(Unavailable):
                await reading
        finally:
            go.set()
    await until(lambda: not _fetching, what="the fetch to have ended")


async def test_a_redirect_is_not_followed() -> None:
    with web(answering(json.dumps({"keys": [jwk("ES256", "a")]}).encode())) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            async with fetching(answering(b"", status, Location=f"{elsewhere}/keys")) as tokens:
                with pytest.raises(Unavailable):
                    await tokens.read(token_of("a"))


async def test_an_answer_that_is_an_error_or_too_large_or_none_counts_as_a_failure() -> None:
    body = json.dumps({"keys": [jwk("ES256", "a")]}).encode()
    for answer in (
        answering(body, 404),
        answering(body, 500),
        answering(body + b" " * 4_096),
        lambda handler: handler.wfile.write(b"nonsense"),
        lambda handler: handler.connection.close(),
    ):
        async with fetching(answer, max_bytes=4_096) as tokens:
            with pytest.raises(Unavailable):
                await tokens.read(token_of("a"))


async def test_who_never_answers_is_left_and_no_connection_stays() -> None:
    left = Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.recv(1)  # nothing comes but the end
        left.set()

    async with fetching(silent, timeout=0.2) as tokens:
        with pytest.raises(Unavailable):
            await tokens.read(token_of("a"))
        await until(left.is_set, what="the connection to be given up")


@pytest.mark.parametrize("start", ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nX-Long: ", "HTTP/1.1 2"])
async def test_who_answers_drop_by_drop_is_left_after_a_while_and_so_is_its_thread(start: str) -> None:
    enough = Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start.encode())
        try:
            while not enough.wait(0.005):
                handler.wfile.write(b" ")
        except OSError:
            pass

    async with fetching(drip, timeout=0.2, max_bytes=10**9) as tokens:
        try:
            with pytest.raises(Unavailable):
                await tokens.read(token_of("a"))
            await until(lambda: not _fetching, what="the fetch to have ended")
        finally:
            enough.set()
