"""AuthGuard alone, as plain ASGI middleware: who is asking, and from where."""

import asyncio
import base64
import threading
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from starlette_realtime import (
    AuthGuard,
    ConfigurationError,
    Forbidden,
    Identity,
    Refused,
    ScopeUser,
    SignedTokens,
    StarletteSession,
    Unauthenticated,
    Unavailable,
)
from starlette_realtime.clock import Clock
from starlette_realtime.store import MemoryStore
from starlette_realtime.testing import FakeClock, Peer, Rejected
from starlette_realtime.types import ASGIApp, Message, Receive, Scope, Send
from tests.auth.support import (
    HOME,
    SECRET,
    Headers,
    application,
    basic,
    bearer,
    greet,
    private,
    refusal,
    request,
    sign_in,
    user_of,
    whoami,
)
from tests.support.waiting import until

# --- what the application is told -------------------------------------------------------------------------------------


async def test_a_request_with_a_token_has_a_user(clock: FakeClock, tokens: SignedTokens) -> None:
    app = application(authenticate=tokens, clock=clock)
    token = tokens.issue("ada", claims={"scopes": ["admin"]})
    told = (await request(app, headers=bearer(token))).json()
    assert told == {"user": "ada", "name": "ada", "scopes": ["authenticated", "admin"]}
    for path in ("/private", "/administration"):
        assert await user_of(app, path=path, headers=bearer(token)) == "ada"
    plain = bearer(tokens.issue("bob"))
    assert await user_of(app, path="/private", headers=plain) == "bob"
    assert (await request(app, "/administration", headers=plain)).status_code == 403


async def test_a_websocket_with_a_token_has_a_user(clock: FakeClock, tokens: SignedTokens) -> None:
    app = application(authenticate=tokens, clock=clock)
    async with Peer(app, headers=bearer(tokens.issue("ada"))) as peer:
        assert await peer.receive_json() == {"user": "ada", "scopes": ["authenticated"]}
        await peer.send("hello")
        assert await peer.receive() == "hello"
    assert clock.timers == 0


async def test_a_route_can_have_a_guard_of_its_own(clock: FakeClock, tokens: SignedTokens) -> None:
    guard = Middleware(AuthGuard, authenticate=tokens, clock=clock)
    app = Starlette(
        routes=[
            Route("/private", private, middleware=[guard]),
            Route("/open", lambda _: Response("open")),
            WebSocketRoute("/ws", greet, middleware=[guard]),
        ]
    )
    assert (await request(app, "/open")).text == "open"
    assert (await request(app, "/private")).status_code == 401
    assert await user_of(app, path="/private", headers=bearer(tokens.issue("ada"))) == "ada"
    with pytest.raises(Rejected) as rejected:
        await Peer(app).connect()
    assert rejected.value.status == 401
    async with Peer(app, headers=bearer(tokens.issue("ada"))) as peer:
        assert (await peer.receive_json())["user"] == "ada"


async def test_the_guard_passes_the_lifespan_on(tokens: SignedTokens) -> None:
    kinds: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kinds.append(scope["type"])
        kinds.append((await receive())["type"])
        await send({"type": "lifespan.startup.complete"})

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        kinds.append(message["type"])

    await AuthGuard(app, authenticate=tokens)({"type": "lifespan"}, receive, send)
    assert kinds == ["lifespan", "lifespan.startup", "lifespan.startup.complete"]
    with pytest.raises(ConfigurationError, match="wraps no application"):
        await AuthGuard(authenticate=tokens)({"type": "lifespan"}, receive, send)


@pytest.mark.parametrize(
    "options",
    [{}, {"authenticate": []}, {"authenticate": 5}, {"authenticate": [None]}, {"authenticate": StarletteSession}],
)
def test_a_guard_that_lets_nobody_in_is_an_error_of_the_program(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        AuthGuard(**options)


def test_any_origin_and_what_browsers_send_unasked_do_not_go_together(tokens: SignedTokens) -> None:
    wrong: list[dict[str, Any]] = [
        {"authenticate": tokens, "cookie": "tok"},
        {"authenticate": StarletteSession()},
        {"authenticate": [tokens, StarletteSession()]},
        {"authenticate": [tokens, StarletteSession()], "cookie": "tok"},
    ]
    for options in wrong:
        with pytest.raises(ConfigurationError, match="any page act for whoever is signed in"):
            AuthGuard(origins="*", **options)
        AuthGuard(origins=["https://friend.example"], **options)
    AuthGuard(origins="*", authenticate=tokens)


async def test_a_request_is_served_to_its_end_though_its_credentials_expire_meanwhile(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    async def slowly(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one ", b"two"):
            await clock.sleep(1.0)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    guard = AuthGuard(slowly, authenticate=tokens, clock=clock)
    asking = asyncio.create_task(request(guard, headers=bearer(tokens.issue("ada", expires_in=1.5))))
    for _ in range(4):
        await clock.advance(1.0)
    assert (await asking).text == "one two"
    assert clock.timers == 0


# --- who brings nothing, or nothing valid -----------------------------------------------------------------------------


async def test_without_credentials_a_request_is_refused(clock: FakeClock, tokens: SignedTokens) -> None:
    app = application(authenticate=tokens, clock=clock)
    response = await request(app)
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"
    with pytest.raises(Rejected) as rejected:
        await Peer(app).connect()
    assert rejected.value.status == 401
    async with Peer(app, origin=HOME) as page:  # a browser can't read a status
        closed = await page.wait_closed()
        assert (closed.code, closed.reason) == (4401, "unauthenticated")


async def test_invalid_tokens_are_refused_and_expired_ones_are_called_so(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    for anonymous in (False, True):
        app = application(authenticate=tokens, anonymous=anonymous, clock=clock)
        old = bearer(tokens.issue("ada", expires_in=1.0))
        await clock.advance(1.0)
        assert await refusal(app, headers=old) == (401, "expired")
        assert await refusal(app, headers=bearer("nonsense")) == (401, "unauthenticated")
        assert await refusal(app, headers=bearer("")) == (401, "unauthenticated")
        good = tokens.issue("ada")
        for text in (f"{good} x", f"x {good}", f"{good} {good}"):
            assert await refusal(app, headers=bearer(text)) == (401, "unauthenticated")
        assert await user_of(app, headers=bearer(f"  {good} ")) == "ada"
        twice = [*bearer(tokens.issue("ada")), *bearer(tokens.issue("ada"))]
        assert await refusal(app, headers=twice) == (401, "unauthenticated")
        async with Peer(app, origin=HOME, headers=old) as page:
            closed = await page.wait_closed()
            assert (closed.code, closed.reason) == (4401, "expired")


async def test_a_token_in_the_query_is_not_read(clock: FakeClock, tokens: SignedTokens) -> None:
    app = application(authenticate=tokens, cookie="token", clock=clock)
    token = tokens.issue("ada")
    assert (await request(app, f"/?token={token}&access_token={token}")).status_code == 401
    with pytest.raises(Rejected):
        await Peer(app, f"/ws?token={token}").connect()


async def test_the_anonymous_are_let_in_where_they_are_asked_for(clock: FakeClock, tokens: SignedTokens) -> None:
    app = application(authenticate=tokens, anonymous=True, clock=clock)
    assert (await request(app)).json() == {"user": None, "name": "", "scopes": []}
    assert (await request(app, "/private")).status_code == 403
    assert await user_of(app, headers=bearer(tokens.issue("ada"))) == "ada"
    alone = application(anonymous=True, clock=clock)
    assert await user_of(alone) is None
    assert await refusal(alone, headers=bearer("x")) == (401, "unauthenticated")


# --- cookies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cookies",
    [
        "tok=%s",
        'tok="%s"',
        'prefs={"a":1}; tok=%s',
        "foo; tok=%s",
        "k=ü; tok=%s",
        "a,b=1; tok=%s",
        "tok2=1; nottok=2; tok=%s; =3;;",
        "a=b=c;tok=%s;d",
        'a="; tok=%s; b="',
    ],
)
async def test_a_cookie_is_read_however_odd_its_neighbours_are(
    clock: FakeClock, tokens: SignedTokens, cookies: str
) -> None:
    app = application(authenticate=tokens, cookie="tok", clock=clock)
    headers = [("Cookie", cookies % tokens.issue("ada"))]
    assert await user_of(app, headers=headers) == "ada"
    async with Peer(app, origin=HOME, headers=headers) as peer:
        assert (await peer.receive_json())["user"] == "ada"


async def test_cookies_in_several_headers_are_one_list(clock: FakeClock, tokens: SignedTokens) -> None:
    """HTTP/2 splits them (RFC 9113 section 8.2.3)."""
    app = application(authenticate=tokens, cookie="tok", clock=clock)
    assert await user_of(app, headers=[("Cookie", "a=1"), ("Cookie", f"tok={tokens.issue('ada')}")]) == "ada"


@pytest.mark.parametrize("join", ["; ", None])
async def test_two_cookies_of_one_name_are_no_credential(
    clock: FakeClock, tokens: SignedTokens, join: str | None
) -> None:
    """A neighbouring subdomain may have planted one of them."""
    app = application(authenticate=tokens, anonymous=True, cookie="tok", clock=clock)
    pairs = [f"tok={tokens.issue(user)}" for user in ("ada", "mallory")]
    for planted in (pairs, pairs[::-1], [pairs[0], "tok=x"], [pairs[0], "tok"]):
        headers = [("Cookie", join.join(planted))] if join else [("Cookie", pair) for pair in planted]
        assert await user_of(app, headers=headers) is None


async def test_an_invalid_cookie_is_no_credential(clock: FakeClock, tokens: SignedTokens) -> None:
    strict = application(authenticate=tokens, cookie="tok", clock=clock)
    lenient = application(authenticate=tokens, cookie="tok", anonymous=True, clock=clock)
    for value in ("nonsense", "", "\xfc", "x" * 9000):
        headers = [("Cookie", f"tok={value}")]
        assert await refusal(strict, headers=headers) == (401, "unauthenticated")
        assert await user_of(lenient, headers=headers) is None


async def test_a_header_goes_before_a_cookie(clock: FakeClock, tokens: SignedTokens) -> None:
    app = application(authenticate=tokens, cookie="tok", clock=clock)
    cookie = ("Cookie", f"tok={tokens.issue('ada')}")
    assert await user_of(app, headers=[cookie, *bearer(tokens.issue("bob"))]) == "bob"
    assert await refusal(app, headers=[cookie, *bearer("nonsense")]) == (401, "unauthenticated")


# --- sessions and backends --------------------------------------------------------------------------------------------


def with_sessions(clock: FakeClock, session: StarletteSession, **options: Any) -> Starlette:
    """An application that signs in by Starlette's sessions: outside of the guard."""
    guard = Middleware(AuthGuard, authenticate=session, clock=clock, **options)
    return Starlette(
        routes=[
            Route("/sign-in", sign_in),
            Route("/", whoami, middleware=[guard]),
            WebSocketRoute("/ws", greet, middleware=[guard]),
        ],
        middleware=[Middleware(SessionMiddleware, secret_key=SECRET)],
    )


async def cookie_of(app: ASGIApp, query: str) -> Headers:
    """The session's cookie, once signed in."""
    response = await request(app, f"/sign-in?{query}")
    return [("Cookie", f"session={response.cookies['session']}")]


async def test_the_user_of_the_session_is_the_user(clock: FakeClock) -> None:
    app = with_sessions(clock, StarletteSession())
    headers = await cookie_of(app, "user=ada")
    assert await user_of(app, headers=headers) == "ada"
    async with Peer(app, origin=HOME, headers=headers) as peer:
        assert (await peer.receive_json())["user"] == "ada"
    assert (await request(app)).status_code == 401
    assert (await request(app, headers=await cookie_of(app, "theme=dark"))).status_code == 401
    other = with_sessions(clock, StarletteSession("uid"))
    assert await user_of(other, headers=await cookie_of(other, "uid=7")) == "7"


async def test_a_session_ends_when_it_says_so(clock: FakeClock) -> None:
    app = with_sessions(clock, StarletteSession(expires_key="until"))
    headers = await cookie_of(app, f"user=ada&until={clock.time() + 10.0}")
    async with Peer(app, origin=HOME, headers=headers) as peer:
        await peer.receive_json()
        await clock.advance(10.0)
        assert (await peer.wait_closed()).code == 4401
    assert await refusal(app, headers=headers) == (401, "expired")
    async with Peer(app, origin=HOME, headers=headers) as peer:
        assert (await peer.wait_closed()).code == 4401
        assert peer.waiting() == [], "the application was not asked"


async def test_a_session_without_its_middleware_is_an_error_of_the_program(clock: FakeClock) -> None:
    with pytest.raises(ConfigurationError, match="SessionMiddleware"):
        await request(application(authenticate=StarletteSession(), clock=clock))


class Backend(AuthenticationBackend):
    """HTTP Basic, with one password."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Whom the header names."""
        scheme, _, value = conn.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        name, _, password = base64.b64decode(value).decode().partition(":")
        if password != "right":
            raise AuthenticationError("wrong password")
        return AuthCredentials(["admin"]), SimpleUser(name)


async def test_a_backend_of_starlette_says_who_it_is(clock: FakeClock, tokens: SignedTokens) -> None:
    app = application(authenticate=[tokens, Backend()], clock=clock)
    headers = basic("ada", "right")
    assert (await request(app, headers=headers)).json()["scopes"] == ["authenticated", "admin"]
    assert await user_of(app, path="/administration", headers=headers) == "ada"
    assert await refusal(app, headers=basic("ada", "wrong")) == (401, "unauthenticated")
    assert (await request(app)).status_code == 401
    assert await user_of(app, headers=bearer(tokens.issue("bob"))) == "bob"
    async with Peer(app, headers=headers) as peer:
        assert await peer.receive_json() == {"user": "ada", "scopes": ["authenticated", "admin"]}


class Named(BaseUser):
    """A user with a name, and no identity of another kind."""

    def __init__(self, name: str, authenticated: bool = True) -> None:
        self._name = name
        self._authenticated = authenticated

    @property
    def is_authenticated(self) -> bool:
        """As told."""
        return self._authenticated

    @property
    def display_name(self) -> str:
        """The name."""
        return self._name


class Bearers(AuthenticationBackend):
    """Takes the token itself for a name."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Whom the header names."""
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token == "nobody":
            return None
        if token == "wrong":
            raise AuthenticationError("wrong token")
        return AuthCredentials(), Named(token, token != "guest")


async def test_a_backend_is_asked_about_tokens_wherever_they_come_from(clock: FakeClock) -> None:
    app = application(authenticate=Bearers(), cookie="tok", clock=clock)
    for headers in (bearer("ada"), [("Cookie", "tok=ada")]):
        assert await user_of(app, headers=headers) == "ada"
    for token in ("wrong", "nobody", "guest", "é"):
        for headers in (bearer(token), [("Cookie", f"tok={token}")]):
            if token != "é":
                assert await refusal(app, headers=headers) == (401, "unauthenticated")
    guard = AuthGuard(authenticate=Bearers(), clock=clock)
    scope = {"type": "http", "method": "GET", "headers": [(b"authorization", b"Bearer eve")]}
    assert (await guard.authenticate("ada", scope)).user == "ada", "the one that is asked about"
    for token in ("wrong", "nobody", "guest", "€"):
        with pytest.raises(Unauthenticated):
            await guard.authenticate(token, scope)
    frames = AuthGuard(Starlette(routes=[WebSocketRoute("/ws", greet)]), authenticate=Bearers(), first_frame=True)
    async with Peer(frames) as peer:
        await peer.send({"type": "auth", "token": "ada"})
        assert (await peer.receive_json())["user"] == "ada"


async def test_a_backend_that_refuses_what_is_not_a_credential_keeps_nobody_out(clock: FakeClock) -> None:
    class Strict(AuthenticationBackend):
        """Refuses whoever brings nothing."""

        async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
            """Nobody."""
            raise AuthenticationError("bring something")

    lenient = application(authenticate=Strict(), anonymous=True, clock=clock)
    assert await user_of(lenient) is None
    assert await refusal(lenient, headers=basic("ada")) == (401, "unauthenticated")


async def test_a_proxys_password_and_a_cookie_go_together(clock: FakeClock, tokens: SignedTokens) -> None:
    app = application(authenticate=tokens, cookie="tok", clock=clock)
    assert await user_of(app, headers=[*basic("staging"), ("Cookie", f"tok={tokens.issue('ada')}")]) == "ada"


async def test_who_was_found_outside_is_who_it_is(clock: FakeClock, tokens: SignedTokens) -> None:
    inner = Middleware(AuthGuard, authenticate=ScopeUser(), clock=clock)
    routes = [Route("/", whoami, middleware=[inner])]
    theirs = Starlette(routes=routes, middleware=[Middleware(AuthenticationMiddleware, backend=Backend())])
    headers = basic("ada", "right")
    assert (await request(theirs, headers=headers)).json()["scopes"] == ["authenticated", "admin"]
    assert await refusal(theirs) == (401, "unauthenticated")
    guard = Middleware(AuthGuard, authenticate=tokens, anonymous=True, clock=clock)
    ours = Starlette(routes=routes, middleware=[guard])
    headers = bearer(tokens.issue("ada", claims={"scopes": ["editor"]}))
    assert (await request(ours, headers=headers)).json()["scopes"] == ["authenticated", "editor"]
    assert await refusal(ours) == (401, "unauthenticated")
    assert await refusal(Starlette(routes=routes), headers=headers) == (401, "unauthenticated")


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 129])
async def test_who_was_found_outside_is_somebody_who_can_be_a_user(clock: FakeClock, name: str) -> None:
    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        guard = AuthGuard(whoami, authenticate=ScopeUser(), clock=clock)  # type: ignore[arg-type]
        await guard({**scope, "user": SimpleUser(name)}, receive, send)

    assert await refusal(named) == (401, "unauthenticated")


# --- functions --------------------------------------------------------------------------------------------------------


async def _awaited(token: str) -> str | None:
    await asyncio.sleep(0)
    return token if token == "ada" else None


class _Callable:
    async def __call__(self, token: str) -> Identity | None:
        return Identity(token) if token == "ada" else None


class _Reader:
    def read(self, token: str) -> Identity:
        if token != "ada":
            raise Unauthenticated
        return Identity(token)


class _AsyncReader:
    async def read(self, token: str) -> Identity:
        return _Reader().read(token)


@pytest.mark.parametrize(
    "way",
    [
        lambda token: token if token == "ada" else None,
        lambda token: Identity(token) if token == "ada" else None,
        lambda token: _awaited(token),
        _awaited,
        _Callable(),
        _Reader(),
        _AsyncReader(),
    ],
    ids=["sync", "identity", "awaitable", "async", "object", "reader", "async reader"],
)
async def test_functions_and_readers_say_whom_a_token_names(way: Any) -> None:
    app = application(authenticate=way)
    assert await user_of(app, headers=bearer("ada")) == "ada"
    assert await refusal(app, headers=bearer("eve")) == (401, "unauthenticated")


async def test_what_is_neither_an_identity_nor_a_user_nor_none_is_an_error_of_the_program() -> None:
    app = application(authenticate=lambda token: 7)
    with pytest.raises(ConfigurationError, match="answered with a int"):
        await request(app, headers=bearer("ada"))


async def test_an_identity_without_a_user_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    app = application(authenticate=lambda token: Identity(None), anonymous=True)
    assert await refusal(app, headers=bearer("ada")) == (401, "unauthenticated")
    assert "an authenticated identity has a user" in caplog.text


async def test_a_function_that_is_not_async_may_block() -> None:
    asked, go = threading.Event(), threading.Event()

    def ask_the_database(token: str) -> str:
        asked.set()
        assert go.wait(5.0), "the event loop goes on meanwhile"
        return token

    asking = asyncio.create_task(user_of(application(authenticate=ask_the_database), headers=bearer("ada")))
    await until(asked.is_set, what="the function to be called")
    assert not asking.done()
    go.set()
    assert await asking == "ada"


async def test_ways_are_asked_in_turn_and_an_expired_token_is_called_so(clock: FakeClock, tokens: SignedTokens) -> None:
    others = SignedTokens("quite another secret, of 16 bytes", clock=clock)
    app = application(authenticate=[tokens, others], clock=clock)
    for each in (tokens, others):
        assert await user_of(app, headers=bearer(each.issue("ada"))) == "ada"
        old = bearer(each.issue("ada", expires_in=1.0))
        await clock.advance(1.0)
        assert await refusal(app, headers=old) == (401, "expired")


async def test_a_way_that_knows_nothing_good_of_a_token_keeps_none_behind_it_from_it(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    others = SignedTokens("quite another secret, of 16 bytes", clock=clock)

    def away(token: str) -> str:
        raise Unavailable

    def over(token: str) -> Identity:
        return Identity("somebody", expires_at=clock.time())

    def late(token: str) -> str:
        raise Unauthenticated(code="expired")

    before: list[list[Any]] = [[others], [lambda token: None], [away], [over], [late], [away, others], [late, others]]
    for ways in before:
        guard = AuthGuard(authenticate=[*ways, tokens], clock=clock)
        scope = {"type": "http", "method": "GET", "headers": []}
        assert (await guard.authenticate(tokens.issue("ada"), scope)).user == "ada"
    told: list[tuple[list[Any], str]] = [
        ([late, others], "expired"),
        ([others, late], "expired"),
        ([over, others], "expired"),
        ([others, tokens], "unauthenticated"),
        ([away, late], "unavailable"),
        ([away, others], "unavailable"),
        ([others, away], "unavailable"),
    ]
    for ways, code in told:
        with pytest.raises(Refused) as caught:
            await AuthGuard(authenticate=ways, clock=clock).authenticate("nonsense", scope)
        assert caught.value.code == code
    with pytest.raises(Unauthenticated) as refused:
        await AuthGuard(authenticate=tokens, clock=clock).authenticate("nonsense", scope)
    assert isinstance(refused.value.__cause__, ValueError), "why is there for the log"


async def test_an_identity_that_has_expired_is_refused(clock: FakeClock) -> None:
    app = application(authenticate=lambda token: Identity(token, expires_at=clock.time()), clock=clock)
    assert await refusal(app, headers=bearer("ada")) == (401, "expired")


async def test_a_function_may_forbid(clock: FakeClock) -> None:
    def banned(token: str) -> str:
        raise Forbidden("not you")

    assert await refusal(application(authenticate=banned, clock=clock), headers=bearer("ada")) == (403, "forbidden")


@pytest.mark.parametrize("user", ["", "a\nb", "x" * 129, "e\u0301"])
async def test_what_cannot_be_a_user_is_refused_and_logged(user: str, caplog: pytest.LogCaptureFixture) -> None:
    app = application(authenticate=lambda token: Identity(user))
    assert await refusal(app, headers=bearer("t")) == (401, "unauthenticated")
    assert "not the user they name" in caplog.text


# --- from where -------------------------------------------------------------------------------------------------------


@pytest.fixture
def signed_in(tokens: SignedTokens) -> tuple[str, str]:
    return "Cookie", f"tok={tokens.issue('ada')}"


@pytest.fixture
def guarded(clock: FakeClock, tokens: SignedTokens) -> Starlette:
    options = {"origins": ["https://friend.example"], "allowed_hosts": ["testserver"]}
    return application(authenticate=tokens, cookie="tok", clock=clock, **options)


@pytest.mark.parametrize("site", ["none", "same-origin", "same-site", "cross-site", None])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_page_can_be_opened_from_anywhere_by_who_is_signed_in(
    guarded: Starlette, signed_in: tuple[str, str], site: str | None, method: str
) -> None:
    headers = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate")] if site else []
    assert (await request(guarded, method=method, headers=[signed_in, *headers])).status_code == 200
    assert (await request(guarded, method=method, headers=headers)).status_code == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ([("Sec-Fetch-Site", "cross-site")], False),
        ([("Sec-Fetch-Site", "same-site")], False),
        ([("Sec-Fetch-Site", "cross-site"), ("Origin", "https://evil.example")], False),
        ([("Origin", "https://evil.example")], False),
        ([("Origin", "null")], False),
        ([("Origin", HOME), ("Origin", HOME)], False),
        ([], False),  # a cookie, and no word from where
        ([("Origin", HOME), ("Sec-Fetch-Site", "same-origin")], True),
        ([("Origin", HOME)], True),
        ([("Origin", "https://friend.example"), ("Sec-Fetch-Site", "cross-site")], True),
    ],
)
async def test_what_changes_something_with_a_cookie_comes_from_an_allowed_origin(
    guarded: Starlette, signed_in: tuple[str, str], method: str, headers: list[tuple[str, str]], allowed: bool
) -> None:
    response = await request(guarded, method=method, headers=[signed_in, *headers])
    assert response.status_code == (200 if allowed else 403)


async def test_without_a_cookie_no_origin_is_needed(guarded: Starlette, tokens: SignedTokens) -> None:
    assert await user_of(guarded, method="POST", headers=bearer(tokens.issue("ada"))) == "ada"


async def test_a_websocket_of_a_foreign_page_is_closed(guarded: Starlette, signed_in: tuple[str, str]) -> None:
    for origin in ("https://evil.example", "null"):
        async with Peer(guarded, origin=origin, headers=[signed_in]) as page:
            assert (await page.wait_closed()).code == 4403
            assert page.waiting() == []
    for headers in ([signed_in], [signed_in, ("Sec-Fetch-Site", "cross-site")]):
        with pytest.raises(Rejected) as rejected:
            await Peer(guarded, headers=headers).connect()
        assert rejected.value.status == 403
    async with Peer(guarded, origin="https://friend.example", headers=[signed_in]) as page:
        assert (await page.receive_json())["user"] == "ada"


async def test_another_host_is_refused_whatever_is_asked(guarded: Starlette, signed_in: tuple[str, str]) -> None:
    for method in ("GET", "POST"):
        headers = [signed_in, ("Origin", "http://rebound.example")]
        assert (await request(guarded, method=method, headers=headers, host="rebound.example")).status_code == 403
    async with Peer(guarded, origin="http://rebound.example", host="rebound.example", headers=[signed_in]) as page:
        assert (await page.wait_closed()).code == 4403


# --- what is shared ---------------------------------------------------------------------------------------------------


async def test_a_guard_takes_store_and_clock_of_what_it_serves_unless_it_has_its_own(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    store, own = MemoryStore(clock=clock), MemoryStore(clock=clock)
    shares = AuthGuard(authenticate=tokens, first_frame=True)
    keeps = AuthGuard(authenticate=tokens, store=own, clock=clock)
    for guard in (shares, keeps):
        guard.bind(store, clock)
        guard.bind(store, clock)
        await guard.revoke_user("ada")
        await guard.revoke_user("bob")
    assert list(await store.revocations()) == list(await own.revocations()) == ["u:ada", "u:bob"]
    timed, stored = AuthGuard(authenticate=tokens, clock=clock), AuthGuard(authenticate=tokens, store=own)
    given = MemoryStore()
    for guard in (timed, stored):
        guard.bind(given, Clock())
    await timed.revoke_user("eve", issued_before=1.0)
    await stored.revoke_user("zoe", issued_before=1.0)
    assert (list(await given.revocations()), list(await own.revocations())) == (["u:eve"], ["u:ada", "u:bob", "u:zoe"])
    app = Starlette(routes=[WebSocketRoute("/ws", greet)])
    async with Peer(shares.wrap(app)) as waiting, Peer(timed.wrap(app), headers=bearer(tokens.issue("ada"))) as peer:
        await clock.advance(5.0)
        assert (await waiting.wait_closed()).code == 4404
        await clock.advance(595.0)
        assert (await peer.wait_closed()).code == 4401


async def test_to_share_what_is_shared_already_changes_nothing(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    guard = AuthGuard(whoami_app, authenticate=lambda token: token)
    guard.bind(store, clock)
    ticket = guard.issue_ticket(Identity("ada"), {"type": "http", "method": "POST", "headers": []})
    heard: list[object] = []
    guard.on_revocation(heard.append)
    guard.bind(store, clock)
    assert await user_of(guard, path=f"/?ticket={ticket}") == "ada"
    await guard.revoke_user("bob")
    assert heard == [{"u:bob": clock.time()}]


async def whoami_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Who is asking, without routes."""
    await Route("/", whoami).handle(scope, receive, send)


async def test_a_guards_own_store_lives_by_the_guards_clock(clock: FakeClock, tokens: SignedTokens) -> None:
    guard = AuthGuard(authenticate=tokens, clock=clock)
    await guard.revoke_user("ada")
    assert guard.gauges()["revocations_known"] == 1
    await clock.advance(86_400.0)
    assert (await guard.authenticate(tokens.issue("ada"), {"type": "http", "headers": []})).user == "ada"
    assert guard.gauges()["revocations_known"] == 0
