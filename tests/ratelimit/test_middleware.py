"""The limiter as middleware: on applications, mounts and routes, of Starlette and FastAPI, among Starlette's own."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from starlette_realtime.errors import ConfigurationError
from starlette_realtime.ratelimit import Limit, RateLimiter
from starlette_realtime.testing import FakeClock, Peer, Rejected, Response, get
from starlette_realtime.types import ASGIApp, Receive, Scope, Send
from tests.ratelimit.support import OTHER, PUBLIC


async def page(request: Request) -> PlainTextResponse:
    """Something to ask for."""
    return PlainTextResponse("here you are")


async def socket(websocket: WebSocket) -> None:
    """Echo."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


ROUTES = [Route("/page", page), WebSocketRoute("/ws", socket)]
LIMITS: dict[str, Any] = {"requests": "2/minute", "handshakes": "3/minute", "frames": "2/minute", "headers": True}

Make = Callable[[Callable[[ASGIApp], ASGIApp]], ASGIApp]


def on_starlette(limit: Any) -> ASGIApp:
    """All of a Starlette application."""
    return Starlette(routes=ROUTES, middleware=[Middleware(limit)])


def on_starlette_later(limit: Any) -> ASGIApp:
    """All of a Starlette application, added afterwards."""
    app = Starlette(routes=ROUTES)
    app.add_middleware(limit)
    return app


def on_fastapi(limit: Any) -> ASGIApp:
    """All of a FastAPI application."""
    app = FastAPI()
    app.add_middleware(limit)
    app.get("/page", response_model=None)(page)
    app.websocket("/ws")(socket)
    return app


def on_a_mount(limit: Any) -> ASGIApp:
    """What is mounted."""
    return Starlette(routes=[Mount("/", routes=ROUTES, middleware=[Middleware(limit)])])


def on_a_mount_of_fastapi(limit: Any) -> ASGIApp:
    """What is mounted in FastAPI."""
    app = FastAPI()
    app.mount("/", limit(Starlette(routes=ROUTES)))
    return app


def on_routes(limit: Any) -> ASGIApp:
    """Single routes."""
    middleware = [Middleware(limit)]
    routes = [
        Route("/page", page, middleware=middleware),
        WebSocketRoute("/ws", socket, middleware=middleware),
    ]
    return Starlette(routes=routes)


def on_routes_of_fastapi(limit: Any) -> ASGIApp:
    """Single routes of FastAPI."""
    app = FastAPI()
    middleware = [Middleware(limit)]
    app.routes.append(Route("/page", page, middleware=middleware))
    app.routes.append(WebSocketRoute("/ws", socket, middleware=middleware))
    return app


EVERYWHERE = [
    on_starlette,
    on_starlette_later,
    on_fastapi,
    on_a_mount,
    on_a_mount_of_fastapi,
    on_routes,
    on_routes_of_fastapi,
]


async def ask(app: ASGIApp, path: str = "/page", **options: Any) -> Response:
    """Ask for the page."""
    return await get(app, path, **{"client": PUBLIC, **options})


async def check(app: ASGIApp) -> None:
    """Everything is limited there, by address."""
    first, second, third = [await ask(app) for _ in range(3)]
    assert [first.status, second.status, third.status] == [200, 200, 429]
    assert first.headers["ratelimit-policy"] == third.headers["ratelimit-policy"] == '"requests";q=2;w=60'
    assert first.headers["ratelimit"] == '"requests";r=1;t=30'
    assert third.headers["ratelimit"] == '"requests";r=0;t=60'
    assert third.headers["retry-after"] == "30"
    error = third.json()
    assert error["code"] == "rate_limited"
    assert error["retry_after"] == pytest.approx(30.0)
    assert (await ask(app, client=OTHER)).status == 200

    async with Peer(app, "/ws", client=PUBLIC) as peer:
        for text in ("a", "b"):
            await peer.send(text)
            assert await peer.receive() == text
        await peer.send("c")
        assert (await peer.wait_closed()).code == 4429
    async with Peer(app, "/ws", client=PUBLIC), Peer(app, "/ws", client=PUBLIC):
        with pytest.raises(Rejected) as refused:
            await Peer(app, "/ws", client=PUBLIC).connect()
        assert refused.value.status == 429
        assert refused.value.headers["retry-after"] == "20"
    browser = Peer(app, "/ws", client=PUBLIC, origin="http://testserver")
    await browser.connect()
    closed = await browser.wait_closed()
    assert closed.code == 4429
    assert closed.reason.startswith("rate_limited;")
    with pytest.raises(Rejected) as refused:
        await Peer(app, "/ws", client=PUBLIC, denial=False).connect()
    assert refused.value.status == 403


@pytest.mark.parametrize("make", EVERYWHERE)
async def test_it_limits_wherever_it_stands(make: Make) -> None:
    limiter = RateLimiter(clock=FakeClock(), **LIMITS)
    await check(make(limiter.wrap))


async def test_it_is_made_where_it_is_added() -> None:
    app = Starlette(routes=ROUTES)
    app.add_middleware(RateLimiter, clock=FakeClock(), **LIMITS)
    await check(app)
    await check(Starlette(routes=ROUTES, middleware=[Middleware(RateLimiter, clock=FakeClock(), **LIMITS)]))
    await check(RateLimiter(Starlette(routes=ROUTES), clock=FakeClock(), **LIMITS))


class Basic(AuthenticationBackend):
    """Whoever names themselves."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        scheme, _, credentials = conn.headers.get("authorization", "").partition(" ")
        if scheme != "Basic":
            return None
        return AuthCredentials(["authenticated"]), SimpleUser(base64.b64decode(credentials).decode().split(":")[0])


STARLETTES = [
    Middleware(TrustedHostMiddleware, allowed_hosts=["testserver"]),
    Middleware(CORSMiddleware, allow_origins=["https://app.example.com"]),
    Middleware(SessionMiddleware, secret_key="a secret of the test"),
    Middleware(AuthenticationMiddleware, backend=Basic()),
]


@pytest.mark.parametrize("place", range(5))
async def test_it_limits_before_between_and_behind_starlettes_own(place: int) -> None:
    limiter = Middleware(RateLimiter, clock=FakeClock(), **LIMITS)
    await check(Starlette(routes=ROUTES, middleware=[*STARLETTES[:place], limiter, *STARLETTES[place:]]))


def behind(limiter: RateLimiter, middleware: Sequence[Middleware]) -> ASGIApp:
    """The routes, behind these and the limiter."""
    return Starlette(routes=ROUTES, middleware=[*middleware, Middleware(limiter.wrap)])


def as_user(name: str) -> list[tuple[str, str]]:
    """Headers that name somebody."""
    return [("authorization", "Basic " + base64.b64encode(f"{name}:".encode()).decode())]


async def test_it_counts_the_users_that_an_authentication_outside_has_found() -> None:
    app = behind(RateLimiter(requests=Limit("1/minute", by="user"), clock=FakeClock()), STARLETTES)
    answers = [await ask(app, headers=as_user(name), client=client) for name in "ab" for client in (PUBLIC, OTHER)]
    assert [answer.status for answer in answers] == [200, 429, 200, 429]
    assert [(await ask(app, client=client)).status for client in (PUBLIC, OTHER, OTHER)] == [200, 200, 429]


async def test_a_session_may_be_what_is_counted() -> None:
    async def sign_in(request: Request) -> PlainTextResponse:
        request.session["team"] = request.query_params["team"]
        return PlainTextResponse("in")

    limit = Limit("1/minute", by=lambda peer: peer.session.get("team"))
    limited = Route("/page", page, middleware=[Middleware(RateLimiter, requests=limit, clock=FakeClock())])
    app = Starlette(routes=[Route("/in", sign_in), limited], middleware=STARLETTES)
    cookies = [(await ask(app, f"/in?team={team}")).cookies for team in ("red", "red", "blue")]
    assert [(await ask(app, cookies=each)).status for each in cookies] == [200, 429, 200]
    assert [(await ask(app)).status for _ in range(3)] == [200] * 3


async def test_a_request_may_cost_more() -> None:
    limit = Limit("10/minute", by="address", cost=lambda request: float(request.query_params.get("n", "1")))
    app = RateLimiter(Starlette(routes=ROUTES), requests=limit, headers=True, clock=FakeClock())
    assert (await ask(app, "/page?n=6")).headers["ratelimit"] == '"requests";r=4;t=36'
    expensive = await ask(app, "/page?n=11")
    assert (expensive.status, expensive.json()["code"]) == (429, "too_expensive")
    assert "retry-after" not in expensive.headers
    assert "retry_after" not in expensive.json()
    assert (await ask(app, "/page?n=4")).status == 200


async def test_only_what_is_counted_is_told_in_headers() -> None:
    app = RateLimiter(
        Starlette(routes=ROUTES),
        requests=["5/minute", Limit("2/second", burst=4, by=lambda peer: peer.query_params.get("key"))],
        headers=True,
        clock=FakeClock(),
    )
    policy = '"requests-1";q=5;w=60, "requests-2";q=4;w=2'
    private = await ask(app, client=("127.0.0.1", 1))
    assert private.headers["ratelimit-policy"] == policy
    assert "ratelimit" not in private.headers
    assert (await ask(app, "/page?key=k")).headers["ratelimit"] == '"requests-2";r=3;t=1'
    silent = await ask(RateLimiter(Starlette(routes=ROUTES), requests="5/minute"))
    assert not {"ratelimit", "ratelimit-policy"} & set(silent.headers)


async def test_headers_tell_what_remains_of_a_shared_quota() -> None:
    store = RateLimiter(clock=FakeClock()).store
    limit = Limit("5/minute", by="address", shared=True)
    one, other = (
        RateLimiter(Starlette(routes=ROUTES), requests=limit, headers=True, store=each)
        for each in (store, store.sibling())  # type: ignore[attr-defined]
    )
    await ask(one)
    await ask(one)
    assert (await ask(other)).headers["ratelimit"] == '"requests";r=2;t=60'


async def test_one_limiter_may_stand_at_several_places_and_counts_once_for_all() -> None:
    limiter = RateLimiter(requests="3/minute", clock=FakeClock())
    shared = [Middleware(limiter.wrap)]
    routes = [Route(f"/{n}", page, middleware=shared) for n in range(2)] + [Route("/free", page)]
    app = Starlette(routes=routes)
    assert [(await ask(app, f"/{n % 2}")).status for n in range(4)] == [200, 200, 200, 429]
    assert (await ask(app, "/free")).status == 200


async def test_without_an_application_it_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"RateLimiter\(app, …\), or Middleware\(limiter.wrap\)"):
        await ask(RateLimiter())


async def test_requests_are_not_limited_unless_asked_for() -> None:
    app = RateLimiter(Starlette(routes=ROUTES), headers=True)
    answers = [await ask(app) for _ in range(100)]
    assert {answer.status for answer in answers} == {200}
    assert "ratelimit-policy" not in answers[0].headers


async def test_other_scopes_pass_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    lifespan = {"type": "lifespan"}
    await RateLimiter(app)(lifespan, nothing, nothing)
    assert seen == [lifespan]


async def test_connections_are_capped_by_user_and_by_address_and_leave_their_slots() -> None:
    limiter = RateLimiter(connections_per_user=1, connections_per_address=2, clock=FakeClock())
    app = behind(limiter, STARLETTES)
    async with (
        Peer(app, "/ws", client=PUBLIC, headers=as_user("ada")),
        Peer(app, "/ws", client=PUBLIC, headers=as_user("bob")),
    ):
        for client, name in ((OTHER, "ada"), (PUBLIC, "cleo")):
            with pytest.raises(Rejected) as refused:
                await Peer(app, "/ws", client=client, headers=as_user(name)).connect()
            assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "5")
        browser = Peer(app, "/ws", client=PUBLIC, origin="http://testserver")
        await browser.connect()
        closed = await browser.wait_closed()
        assert (closed.code, closed.reason) == (4429, "rate_limited;5")
        assert limiter.gauges()["slots"] == 4  # one of the user and one of the address, for each
    assert limiter.gauges()["slots"] == 0
    async with Peer(app, "/ws", client=PUBLIC, headers=as_user("ada")) as peer:
        await peer.cancel()
    assert limiter.gauges()["slots"] == 0


async def test_a_slot_is_given_back_whatever_the_application_does() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    limiter = RateLimiter(fails, clock=FakeClock())
    with pytest.raises(ZeroDivisionError):
        await Peer(limiter, "/ws", client=PUBLIC).connect()
    assert limiter.gauges()["slots"] == 0
