"""Tokens are believed when this application signed them for this purpose, and until they expire."""

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer

from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, Unauthenticated
from starlette_realtime.messages import Identity
from starlette_realtime.tokens import MAX_TOKEN, Secret, Sessions, SignedTokens

SECRET = "a secret of enough bytes"
OTHER = "another one of enough bytes"


class Wrist(Clock):
    """A clock whose Unix time is set by hand, backwards too."""

    unix = 1_800_000_000.0

    def time(self) -> float:
        return self.unix


def refused(tokens: SignedTokens, token: object) -> str:
    """The code that reading `token` is refused with."""
    with pytest.raises(Unauthenticated) as caught:
        tokens.read(token)  # type: ignore[arg-type]
    return caught.value.code


def test_a_token_says_whom_it_was_issued_to() -> None:
    tokens = SignedTokens(SECRET, clock=Wrist(), token_id=lambda: "t1")
    token = tokens.issue("ada", claims={"role": "admin", "rooms": [1, 2]}, expires_in=60.0)
    assert tokens.read(token) == Identity(
        user="ada",
        claims={"role": "admin", "rooms": [1, 2], "jti": "t1", "iat": 1_800_000_000.0},
        expires_at=1_800_000_060.0,
    )


def test_every_token_has_an_id_of_its_own() -> None:
    tokens = SignedTokens(SECRET)
    ids = {tokens.read(tokens.issue("ada")).claims["jti"] for _ in range(100)}
    assert len(ids) == 100


@pytest.mark.parametrize("life", [0.25, 0.001, 1.0, 59.999, 600.0])
def test_a_token_expires_to_the_millisecond(life: float) -> None:
    clock = Wrist()
    tokens = SignedTokens(SECRET, clock=clock)
    token = tokens.issue("ada", expires_in=life)
    clock.unix += life - 0.001
    assert tokens.read(token).user == "ada"
    clock.unix += 0.001
    assert refused(tokens, token) == "expired"
    clock.unix += 10**9
    assert refused(tokens, token) == "expired"


def test_a_clock_that_steps_back_refuses_nobody() -> None:
    clock = Wrist()
    tokens = SignedTokens(SECRET, clock=clock)
    token = tokens.issue("ada")
    clock.unix -= 3600.0
    assert tokens.read(token).user == "ada"


def test_a_shorter_max_age_holds_for_older_tokens() -> None:
    clock = Wrist()
    token = SignedTokens(SECRET, clock=clock, max_age=3600.0).issue("ada")
    strict, brief = (SignedTokens(SECRET, clock=clock, max_age=age) for age in (60.0, 0.5))
    assert brief.read(token).expires_at == 1_800_000_000.5
    clock.unix += 59.999
    assert strict.read(token).expires_at == 1_800_000_060.0
    assert refused(brief, token) == "expired"
    clock.unix += 0.001
    assert refused(strict, token) == "expired"


def test_keys_rotate() -> None:
    old = SignedTokens(SECRET).issue("ada")
    both = SignedTokens([OTHER, SECRET])
    assert both.read(old).user == "ada"
    new = both.issue("ada")
    assert SignedTokens(OTHER).read(new).user == "ada"
    assert refused(SignedTokens(SECRET), new) == "unauthenticated"
    assert refused(SignedTokens(OTHER), old) == "unauthenticated"


def test_bytes_and_text_are_the_same_secret() -> None:
    assert SignedTokens(SECRET.encode()).read(SignedTokens(SECRET).issue("ada")).user == "ada"


def signature(secret: str, purpose: str, signed: str) -> str:
    """HMAC-SHA-256 by a key that is the secret's for this purpose, in base64url."""
    key = hmac.digest(secret.encode(), f"starlette-realtime.{purpose}".encode(), "sha256")
    return base64.urlsafe_b64encode(hmac.digest(key, signed.encode(), "sha256")).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("token", "purpose"),
    [
        (SignedTokens(SECRET).issue("ada"), "access:default"),
        (SignedTokens(SECRET, salt="chat").issue("ada"), "access:chat"),
        (Sessions(SECRET).issue("s", "ada"), "session"),
    ],
    ids=["token", "salted", "session"],
)
def test_a_signature_is_of_sha_256_and_each_purpose_has_a_key_of_its_own(token: str, purpose: str) -> None:
    """Other releases, and other programs, can check what this one signed."""
    payload, _, signed = token.rpartition(".")
    assert signed == signature(SECRET, purpose, payload)


def test_tokens_and_sessions_of_another_release_are_still_good() -> None:
    """Nobody is signed out, and no session lost, by what is changed within."""
    clock = Wrist()
    access = {
        "sub": "ada",
        "iat": 1_800_000_000_000,
        "exp": 1_800_000_060_000,
        "jti": "t1",
        "claims": {"role": "admin"},
    }
    session = {"sid": "s1", "sub": "ada", "exp": 1_800_000_060_000}

    def made(content: object, purpose: str) -> str:
        payload = base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
        return f"{payload}.{signature(SECRET, purpose, payload)}"

    identity = SignedTokens(SECRET, clock=clock).read(made(access, "access:default"))
    assert (identity.user, identity.claims["role"], identity.expires_at) == ("ada", "admin", 1_800_000_060.0)
    assert Sessions(SECRET, clock=clock).read(made(session, "session"), "ada") == "s1"


def test_a_token_of_another_salt_is_refused() -> None:
    assert refused(SignedTokens(SECRET, salt="b"), SignedTokens(SECRET, salt="a").issue("ada")) == "unauthenticated"


@pytest.mark.parametrize("salt", ["default", "session", "", ":session", "starlette-realtime.session"])
def test_a_token_never_passes_as_a_session_nor_a_session_as_a_token(salt: str) -> None:
    tokens, sessions = SignedTokens(SECRET, salt=salt), Sessions(SECRET)
    assert sessions.read(tokens.issue("ada"), "ada") is None
    assert refused(tokens, sessions.issue("s", "ada")) == "unauthenticated"


def test_every_changed_character_is_noticed() -> None:
    tokens = SignedTokens(SECRET)
    token = tokens.issue("ada")
    for n, char in enumerate(token):
        assert refused(tokens, token[:n] + ("A" if char != "A" else "B") + token[n + 1 :]) == "unauthenticated"


def test_every_truncation_is_noticed() -> None:
    tokens = SignedTokens(SECRET)
    token = tokens.issue("ada")
    assert {refused(tokens, token[:n]) for n in range(len(token))} == {"unauthenticated"}


@pytest.mark.parametrize(
    "token", [None, 7, b"bytes", ["list"], "", ".", "..", "a.b.c", "é", "\ud800", "\x00", "x" * (MAX_TOKEN + 1)]
)
def test_what_is_no_token_is_refused(token: object) -> None:
    assert refused(SignedTokens(SECRET), token) == "unauthenticated"
    assert Sessions(SECRET).read(token, None) is None  # type: ignore[arg-type]


def test_what_is_too_long_is_not_even_looked_at() -> None:
    tokens = SignedTokens(SECRET)
    with pytest.raises(Unauthenticated) as caught:
        tokens.read(tokens.issue("ada") + "x" * MAX_TOKEN)
    assert str(caught.value.__cause__) == "not a string, or too long"


def test_a_token_is_at_most_as_long_as_what_is_looked_at() -> None:
    """Whatever can be issued can be read."""
    tokens = SignedTokens(SECRET, token_id=lambda: "t1", clock=Wrist())
    noise = base64.b64encode(hashlib.shake_256(b"noise").digest(6500)).decode()
    lengths = set()
    for length in range(7800, len(noise)):
        try:
            token = tokens.issue("ada", claims={"noise": noise[:length]})
        except ValueError:
            continue
        lengths.add(len(token))
        assert tokens.read(token).user == "ada"
    assert MAX_TOKEN - 8 <= max(lengths) <= MAX_TOKEN  # how far noise can be packed differs by a byte or two


@given(st.text())
def test_nothing_made_up_is_believed(token: str) -> None:
    assert refused(SignedTokens(SECRET), token) == "unauthenticated"
    assert Sessions(SECRET).read(token, None) is None


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        "ada",
        {},
        {"sub": "ada"},
        {"sub": 7, "iat": 0, "exp": 10**15, "jti": "t"},
        {"sub": "ada", "iat": "0", "exp": 10**15, "jti": "t"},
        {"sub": "ada", "iat": 0, "exp": 10**15, "jti": "t", "claims": []},
        {"sub": "", "iat": 0, "exp": 10**15, "jti": "t"},
        {"sub": "a\n", "iat": 0, "exp": 10**15, "jti": "t"},
        {"sub": "e\u0301", "iat": 0, "exp": 10**15, "jti": "t"},
        {"sub": "x" * 129, "iat": 0, "exp": 10**15, "jti": "t"},
    ],
)
def test_a_signature_alone_is_not_enough(payload: object) -> None:
    tokens = SignedTokens(SECRET)
    assert isinstance(tokens._serializer, URLSafeSerializer)
    assert refused(tokens, tokens._serializer.dumps(payload)) == "unauthenticated"


def test_the_reason_is_for_logs_only() -> None:
    tokens = SignedTokens(SECRET)
    with pytest.raises(Unauthenticated) as caught:
        tokens.read("forged.token")
    assert caught.value.message == Unauthenticated().message
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("secret", ["x" * 16, b"x" * 16, "é" * 8, ["x" * 16, b"y" * 16]])
def test_sixteen_bytes_are_enough_of_a_secret(secret: Secret) -> None:
    assert SignedTokens(secret).read(SignedTokens(secret).issue("ada")).user == "ada"
    assert all(isinstance(each, bytes) for each in SignedTokens(secret).secrets)


@pytest.mark.parametrize("secret", ["", "short", b"x" * 15, "é" * 7, [], ["x" * 16, "short"]])
def test_a_short_secret_is_refused(secret: Secret) -> None:
    with pytest.raises(ConfigurationError, match="at least 16 bytes"):
        SignedTokens(secret)
    with pytest.raises(ConfigurationError, match="at least 16 bytes"):
        Sessions(secret)


@pytest.mark.parametrize("age", [0.0, -1.0, float("nan")])
def test_an_age_that_is_not_positive_is_refused(age: float) -> None:
    with pytest.raises(ConfigurationError, match="max_age"):
        SignedTokens(SECRET, max_age=age)
    with pytest.raises(ConfigurationError, match="max_age"):
        Sessions(SECRET, max_age=age)


@pytest.mark.parametrize("life", [0.0, -1.0, 600.1, float("nan")])
def test_a_life_out_of_bounds_is_refused(life: float) -> None:
    with pytest.raises(ValueError, match="expires_in"):
        SignedTokens(SECRET).issue("ada", expires_in=life)


@pytest.mark.parametrize("user", ["", "a\x00", "x" * 129, "e\u0301"])
def test_no_token_is_issued_to_what_cannot_be_a_user(user: str) -> None:
    with pytest.raises(ValueError, match="cannot be a user"):
        SignedTokens(SECRET).issue(user)


@pytest.mark.parametrize("claim", ["jti", "iat", "exp", "sub"])
def test_the_tokens_own_claims_are_not_given(claim: str) -> None:
    with pytest.raises(ValueError, match=claim):
        SignedTokens(SECRET).issue("ada", claims={claim: 1})


def test_claims_that_make_a_token_too_long_are_refused() -> None:
    noise = "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(3000))
    with pytest.raises(ValueError, match="at most 8192"):
        SignedTokens(SECRET).issue("ada", claims={"noise": noise})


@pytest.mark.parametrize("user", ["ada", None])
def test_a_session_is_read_back_by_its_owner_alone(user: str | None) -> None:
    sessions = Sessions(SECRET)
    token = sessions.issue("s", user)
    assert sessions.read(token, user) == "s"
    assert sessions.read(token, "eve") is None
    assert sessions.read(token, None if user else "ada") is None
    assert Sessions(OTHER).read(token, user) is None
    assert Sessions([OTHER, SECRET]).read(token, user) == "s"


def test_a_session_expires_to_the_millisecond() -> None:
    clock = Wrist()
    sessions = Sessions(SECRET, max_age=0.5, clock=clock)
    token = sessions.issue("s", None)
    clock.unix += 0.499
    assert sessions.read(token, None) == "s"
    clock.unix += 0.001
    assert sessions.read(token, None) is None


def test_a_session_token_that_was_changed_is_none() -> None:
    sessions = Sessions(SECRET)
    token = sessions.issue("s", None)
    assert {sessions.read(token[:n], None) for n in range(len(token))} == {None}
    assert sessions.read("A" + token, None) is None


def test_session_ids_are_128_random_bits() -> None:
    sessions = Sessions(SECRET)
    ids = {sessions.new_sid() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(bytes.fromhex(sid)) == 16 for sid in ids)
    assert Sessions(SECRET, entropy=lambda n: b"\x01" * n).new_sid() == "01" * 16
