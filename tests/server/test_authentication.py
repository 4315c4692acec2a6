"""Who a client is: by the first frame, the handshake, the application's sessions, or nobody; and who is not let in."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import jwt
import pytest
from itsdangerous import BadSignature, TimestampSigner, URLSafeSerializer, URLSafeTimedSerializer
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from websockets.exceptions import InvalidStatus

from starlette_realtime import Identity, Member, Realtime, SignedTokens, StarletteSession, Unauthenticated
from starlette_realtime.testing import FakeClock
from starlette_realtime.tokens import Sessions
from tests.server.support import AT_ONCE, CALM, SECRET, Frame, Peer, Site, declare, dial, new_tokens, running


@pytest.fixture(scope="module")
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    async with running() as site:
        yield site


# --- before auth ------------------------------------------------------------------------------------------------------

COMMANDS: list[Frame] = [
    {"type": "join", "room": "chat:1"},
    {"type": "join", "room": "nope"},
    {"type": "leave", "room": "chat:1"},
    {"type": "event", "event": "echo", "data": 1},
    {"type": "event", "event": "message", "room": "chat:1", "data": {"text": "x"}},
    {"type": "event", "event": "nope"},
    {"type": "status", "status": "away"},
    {"type": "history", "room": "chat:1"},
    {"type": "members", "room": "chat:1"},
]


@pytest.mark.parametrize("command", COMMANDS, ids=json.dumps)
async def test_a_command_before_auth_is_unauthenticated_and_auth_may_still_come(site: Site, command: Frame) -> None:
    async with site.peer() as peer:
        await peer.expect("welcome")
        type, fields = command["type"], {name: value for name, value in command.items() if name != "type"}
        assert (await peer.refused(type, **fields))["code"] == "unauthenticated"
        await peer.send(type, **fields)
        assert (await peer.expect("error"))["code"] == "unauthenticated"
        assert (await peer.auth(site.token("alice")))["user"] == "alice"
        await peer.do("join", room="chat:1")


async def test_commands_that_are_sent_together_with_auth_wait_for_it(site: Site) -> None:
    async with site.peer() as peer:
        await peer.send("auth", id=101, token=site.token("alice"))
        await peer.send("join", id=102, room="chat:1")
        await peer.send("event", id=103, event="message", room="chat:1", data={"text": "x"})
        for number in (101, 102, 103):
            assert "error" not in await peer.expect("reply", id=number)


async def test_who_does_not_authenticate_within_five_seconds_is_closed(site: Site) -> None:
    async with site.peer() as peer, site.peer("bob") as witness:
        await peer.expect("welcome")
        await peer.refused("event", event="echo")  # talking is not authenticating
        await site.clock.advance(4.9)
        await peer.refused("event", event="echo")
        await site.clock.advance(0.1)
        assert (await peer.expect("error"))["code"] == "no_auth"
        assert await peer.closed() == (4404, "no_auth")
        await witness.sync()


async def test_credentials_of_the_handshake_need_auth_in_time_too(site: Site) -> None:
    async with dial(site.server, headers=[("Authorization", f"Bearer {site.token('alice')}")]) as peer:
        await peer.expect("welcome")
        await site.clock.advance(5.0)
        assert await peer.closed() == (4404, "no_auth")


async def test_who_has_authenticated_in_time_stays(site: Site) -> None:
    async with site.peer() as peer:
        await peer.expect("welcome")
        await site.clock.advance(4.9)
        await peer.auth(site.token("alice"))
        await site.clock.advance(60.0)
        await peer.sync()


# --- no credentials ---------------------------------------------------------------------------------------------------


def _b64(data: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")


def _forged(site: Site) -> dict[str, str]:
    """Tokens by what is wrong with them."""
    good = site.token("alice")
    payload, _, signature = good.rpartition(".")
    now = int(site.clock.time() * 1000)
    claims = {"sub": "alice", "iat": now, "exp": now + 60_000, "jti": "x", "claims": {}}
    jwt_claims = {"sub": "alice", "exp": int(site.clock.time()) + 600}
    salt = "starlette-realtime.access:default"
    sha256 = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    mallory = _b64({**claims, "sub": "mallory"})
    return {
        "empty signature": f"{payload}.",
        "no signature": payload,
        "cut signature": good[:-1],
        "other case": good.swapcase(),
        "flipped": good[:-5] + ("A" if good[-5] != "A" else "B") + good[-4:],
        "payload changed": f"{'A' if payload[0] != 'A' else 'B'}{payload[1:]}.{signature}",
        "another payload": f"{mallory}.{signature}",
        "spaces": f" {good} ",
        "newline": good + "\n",
        "NUL": good + "\x00",
        "twice": f"{good}.{good}",
        "no text": "\ud83d\ude00" * 9,
        "foreign salt": SignedTokens(SECRET, salt="billing", clock=site.clock).issue("alice"),
        "foreign key": SignedTokens("quite another secret, of 16 bytes", clock=site.clock).issue("alice"),
        "key with a space": SignedTokens(SECRET + " ", clock=site.clock).issue("alice"),
        "session": Sessions(SECRET, clock=site.clock).issue("a" * 32, "alice"),
        "signed for nothing": URLSafeSerializer(SECRET).dumps(claims),
        "another digest": URLSafeSerializer(SECRET, salt=salt, signer_kwargs={"key_derivation": "hmac"}).dumps(claims),
        "no digest": URLSafeSerializer(SECRET, salt=salt, signer_kwargs={"key_derivation": "none"}).dumps(claims),
        "another derivation": URLSafeSerializer(
            SECRET, salt=salt, signer_kwargs={"digest_method": hashlib.sha256}
        ).dumps(claims),
        "timed": str(URLSafeTimedSerializer(SECRET, salt=salt, signer_kwargs=sha256).dumps(claims)),
        "wrong claims": URLSafeSerializer(SECRET, salt=salt, signer_kwargs=sha256).dumps({"sub": "alice"}),
        "no expiry": URLSafeSerializer(SECRET, salt=salt, signer_kwargs=sha256).dumps({**claims, "exp": None}),
        "no user": URLSafeSerializer(SECRET, salt=salt, signer_kwargs=sha256).dumps({**claims, "sub": ""}),
        "a number": URLSafeSerializer(SECRET, salt=salt, signer_kwargs=sha256).dumps(5),
        "a control character": URLSafeSerializer(SECRET, salt=salt, signer_kwargs=sha256).dumps(
            {**claims, "sub": "ali\nce"}
        ),
        "JWT": jwt.encode(jwt_claims, SECRET.ljust(64), algorithm="HS256"),
        "JWT of none": f"{_b64({'alg': 'none', 'typ': 'JWT'})}.{_b64(jwt_claims)}.",
        "JWT of None": f"{_b64({'alg': 'None'})}.{_b64(jwt_claims)}.{signature}",
        "JWT head": f"{_b64({'alg': 'HS256'})}.{good}",
    }


FORGED = [
    "empty signature", "no signature", "cut signature", "other case", "flipped", "payload changed", "another payload",
    "spaces", "newline", "NUL", "twice", "no text", "foreign salt", "foreign key", "key with a space",
    "session", "signed for nothing", "another digest", "no digest", "another derivation", "timed", "wrong claims",
    "no expiry", "no user", "a number", "a control character", "JWT", "JWT of none", "JWT of None", "JWT head",
]  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
async def test_a_token_that_was_not_issued_here_lets_nobody_in(site: Site, kind: str) -> None:
    forged = _forged(site)
    assert set(forged) == set(FORGED)
    async with site.peer("bob") as witness, site.peer() as peer:
        error = await peer.refused("auth", token=forged[kind])
        assert error == {"code": "unauthenticated", "message": "the token is not valid"}
        last = await peer.expect("error")
        assert last["code"] == "unauthenticated"
        assert await peer.closed() == (4401, "unauthenticated")
        assert forged[kind] not in "".join(peer.texts)
        await witness.sync()


async def test_the_issued_token_that_the_forgeries_started_from_is_good(site: Site) -> None:
    async with site.peer() as peer:
        data = await peer.auth(site.token("alice"))
    assert data["user"] == "alice"
    assert data["expires_in"] == 600.0
    assert data["session"]


async def test_an_expired_token_is_expired_from_its_last_millisecond_on(site: Site) -> None:
    token = site.token("alice", expires_in=2.0)
    await site.clock.advance(1.999)
    async with site.peer() as peer:
        await peer.auth(token)
    await site.clock.advance(0.001)
    async with site.peer() as peer:
        assert (await peer.refused("auth", token=token))["code"] == "expired"
        assert await peer.closed() == (4401, "expired")


async def test_an_access_token_is_no_session(site: Site) -> None:
    token = site.token("alice")
    async with site.peer() as peer:
        session = (await peer.auth(token, session=token))["session"]
    assert session != token


async def test_auth_without_a_token_is_refused_where_nobody_is_anonymous(site: Site) -> None:
    async with site.peer() as peer:
        error = await peer.refused("auth")
        assert error["code"] == "unauthenticated"
        assert await peer.closed() == (4401, "unauthenticated")


async def test_a_refused_auth_without_an_id_says_why_before_the_close(site: Site) -> None:
    async with site.peer() as peer:
        await peer.send("auth", token="nonsense")
        assert await peer.closed() == (4401, "unauthenticated")
        assert {frame["code"] for frame in peer.heard("error")} == {"unauthenticated"}


async def test_rotated_keys_are_good_until_they_are_dropped() -> None:
    clock = FakeClock()
    keys = ["the newest secret of all", "the one that was before"]
    first, second = (SignedTokens(key, clock=clock) for key in keys)
    both = SignedTokens(keys, clock=clock)
    async with running(clock=clock, authenticate=both) as site:
        for tokens in (first, second, both):
            async with site.peer() as peer:
                await peer.auth(tokens.issue("alice"))
    async with running(clock=clock, authenticate=first) as site, site.peer() as peer:
        await peer.refused("auth", token=second.issue("alice"))
        assert (await peer.closed())[0] == 4401


# --- the application's own ways ---------------------------------------------------------------------------------------


async def test_a_cookie_of_the_same_site_is_a_credential() -> None:
    async with running(cookie="access") as site:
        headers = [("Cookie", f"theme=dark; access={site.token('alice')}")]
        async with dial(site.server, origin=site.server.url, headers=headers) as page:
            assert (await page.refused("join", room="chat:1"))["code"] == "unauthenticated"
            assert (await page.auth())["user"] == "alice"
            await page.do("join", room="chat:1")


async def test_starlettes_session_is_a_credential() -> None:
    clock = FakeClock()
    realtime = Realtime(
        authenticate=StarletteSession("name", expires_key="until"),
        anonymous=True,
        connection=CALM,
        options=AT_ONCE,
        clock=clock,
    )
    declare(realtime)

    async def sign_in(request: Request) -> Response:
        request.session["name"] = "alice"
        request.session["until"] = clock.time() + 100
        return Response()

    app = Starlette(
        lifespan=realtime.lifespan,
        routes=[Route("/in", sign_in), Mount("/realtime", realtime)],
        middleware=[Middleware(SessionMiddleware, secret_key=SECRET)],
    )
    async with running(app=app, realtime=realtime, clock=clock) as site:
        async with httpx2.AsyncClient() as client:
            cookie = (await client.get(f"{site.server.url}/in")).headers["set-cookie"].partition(";")[0]
        async with dial(site.server, origin=site.server.url, headers=[("Cookie", cookie)]) as page:
            data = await page.auth()
            assert (data["user"], round(data["expires_in"])) == ("alice", 100)
            await page.do("join", room="chat:1")
        async with dial(site.server, origin="http://evil.example", headers=[("Cookie", cookie)]) as page:
            assert await page.closed() == (4403, "forbidden")
        async with dial(site.server, origin=site.server.url, headers=[("Cookie", cookie[:-3] + "AAA")]) as page:
            assert (await page.auth())["user"] is None
        async with dial(site.server) as program:
            assert (await program.auth())["user"] is None
            await clock.advance(101.0)
        async with dial(site.server, origin=site.server.url, headers=[("Cookie", cookie)]) as page:
            assert (await page.refused("auth"))["code"] == "expired"
            assert await page.closed() == (4401, "expired")


class Backend(AuthenticationBackend):
    """As an application that signs names in would write it."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        header = conn.headers.get("authorization")
        if header is None:
            return None
        try:
            name = TimestampSigner(SECRET).unsign(header.removeprefix("Bearer ")).decode()
        except BadSignature as exc:
            raise AuthenticationError("no") from exc
        return AuthCredentials(["authenticated", "speak"]), SimpleUser(name)


async def test_any_authentication_backend_will_do() -> None:
    async with running(authenticate=Backend()) as site:
        token = TimestampSigner(SECRET).sign("alice").decode()
        async with dial(site.server, headers=[("Authorization", f"Bearer {token}")]) as program:
            assert (await program.auth())["user"] == "alice"
            (connection,) = site.realtime.connections
            assert connection.identity is not None
            assert connection.identity.claims == {"scopes": ["authenticated", "speak"]}
        async with dial(site.server) as program:
            assert (await program.auth(token))["user"] == "alice"
        async with dial(site.server) as program:
            await program.refused("auth", token=token + "x")
            assert await program.closed() == (4401, "unauthenticated")
        with pytest.raises(InvalidStatus) as refusal:
            async with dial(site.server, headers=[("Authorization", "Bearer nonsense")]):
                pytest.fail("it must not get in")
        assert refusal.value.response.status_code == 401


def by_name(token: str) -> str | None:
    return {"a-token": "alice", "b-token": "bob"}.get(token)


async def by_identity(token: str) -> Identity | None:
    return Identity(by_name(token), {"level": 3}) if by_name(token) else None


def by_refusal(token: str) -> str:
    user = by_name(token)
    if user is None:
        raise Unauthenticated(code="expired")
    return user


@pytest.mark.parametrize(
    ("function", "code"), [(by_name, "unauthenticated"), (by_identity, "unauthenticated"), (by_refusal, "expired")]
)
async def test_a_function_will_do(function: Any, code: str) -> None:
    async with running(authenticate=function) as site:
        for user, token in (("alice", "a-token"), ("bob", "b-token")):
            async with dial(site.server) as peer:
                assert (await peer.auth(token))["user"] == user
            async with dial(site.server, headers=[("Authorization", f"Bearer {token}")]) as peer:
                assert (await peer.auth())["user"] == user
        async with dial(site.server) as peer:
            assert (await peer.refused("auth", token="c-token"))["code"] == code
            assert await peer.closed() == (4401, code)


@pytest.mark.parametrize("user", ["", "a" * 129, "ali\nce", "cafe\u0301", "\u202ealice"], ids=ascii)
async def test_a_user_that_cannot_be_one_is_not_let_in(user: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(authenticate=lambda token: user) as site, dial(site.server) as peer:
        await peer.refused("auth", token="x")
        assert await peer.closed() == (4401, "unauthenticated")
    assert "not the user they name" in caplog.text


async def test_a_function_that_fails_lets_nobody_in_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fails(token: str) -> str:
        raise RuntimeError("a secret detail")

    async with running(authenticate=fails) as site:
        async with dial(site.server) as peer:
            assert (await peer.refused("auth", token="x"))["code"] == "internal"
            code, _ = await peer.closed()
            assert code == 1013
            assert "secret" not in "".join(peer.texts)
        assert "a secret detail" in caplog.text


async def test_the_ways_are_asked_in_turn() -> None:
    clock = FakeClock()
    tokens = new_tokens(clock)
    async with running(clock=clock, authenticate=[by_name, tokens]) as site:
        for token, user in (("a-token", "alice"), (tokens.issue("carol"), "carol")):
            async with dial(site.server) as peer:
                assert (await peer.auth(token))["user"] == user
        async with dial(site.server) as peer:
            assert await peer.refused("auth", token=SignedTokens("x" * 16, clock=clock).issue("bob"))


# --- nobody in particular ---------------------------------------------------------------------------------------------


@pytest.fixture
async def public(anyio_backend: str) -> AsyncIterator[Site]:
    clock = FakeClock()
    realtime = Realtime(authenticate=new_tokens(clock), anonymous=True, connection=CALM, options=AT_ONCE, clock=clock)
    declare(realtime)
    wall = realtime.room("wall", public=True, presence=True)
    named = realtime.room("named-wall", public=True, presence=True, show_users=True)

    for room in (wall, named):

        @room.on("message")
        async def message(member: Member, text: str) -> None:
            await member.broadcast("message", text)

    async with running(realtime=realtime, clock=clock) as site:
        yield site


async def test_anonymous_clients_are_asked_for(site: Site, public: Site) -> None:
    async with public.peer() as stranger:
        data = await stranger.auth()
        assert (data["user"], data["expires_in"]) == (None, None)
        assert not stranger.heard("joined")
        await stranger.sync()


async def test_an_invalid_token_is_refused_where_none_would_do(public: Site) -> None:
    async with public.peer() as stranger:
        await stranger.refused("auth", token="nonsense")
        assert await stranger.closed() == (4401, "unauthenticated")


def _users(frames: list[Frame]) -> set[str | None]:
    """All users that are mentioned in frames of a room."""
    found: set[str | None] = set()

    def look(value: object) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("user"), str):
                found.add(value["user"])
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)

    look(frames)
    return found


@pytest.mark.parametrize(("room", "shown"), [("wall", set()), ("named-wall", {"alice"})])
async def test_a_public_room_shows_connections_and_users_only_when_told_to(
    public: Site, room: str, shown: set[str]
) -> None:
    async with public.peer() as stranger, public.peer("alice") as alice:
        await stranger.auth()
        await stranger.do("join", room=room)
        await alice.do("join", room=room)
        presence = await stranger.expect("presence", room=room)
        assert len(presence["joined"]) == 1
        await alice.do("event", event="message", room=room, data="hello")
        sender = (await stranger.expect("event", event="message"))["from"]
        assert sender["connection"] == presence["joined"][0]["connection"]
        await stranger.do("members", room=room)
        await stranger.do("history", room=room)
        await stranger.do("event", event="message", room=room, data="hi")
        assert "user" not in (await alice.expect("event", event="message", data="hi"))["from"]
        assert _users(stranger.frames) == shown
        assert "alice" not in "".join(stranger.texts) or shown


async def test_the_witness_of_strangers_is_not_told_their_sessions(public: Site) -> None:
    peers: list[Peer] = []
    async with public.peer() as one, public.peer() as two:
        peers += [one, two]
        sessions = []
        for peer in peers:
            sessions.append((await peer.auth())["session"])
            await peer.do("join", room="wall")
        await one.do("event", event="message", room="wall", data="hi")
        await two.expect("event", event="message")
        sids = [connection.session for connection in public.realtime.connections]
        assert len(sids) == 2
        for peer, own in zip(peers, sessions, strict=True):
            heard = "".join(peer.texts).replace(own, "")
            assert not any(sid in heard for sid in sids)
