"""AuthGuard wherever it may stand: on an app, a Mount, a Route, a WebSocketRoute; with other middleware around it."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import permutations
from typing import Any

import httpx2
import pytest
import websockets
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.authentication import AuthenticationBackend
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from starlette_realtime import AuthGuard, ConfigurationError, SignedTokens, StarletteSession
from starlette_realtime.asgi import scope_user
from starlette_realtime.store import MemoryStore
from starlette_realtime.testing import FakeClock, Peer, Rejected
from starlette_realtime.types import ASGIApp
from tests.auth.support import (
    SECRET,
    administration,
    bearer,
    greet,
    private,
    request,
    sign_in,
    user_of,
    whoami,
)
from tests.support.server import serve
from tests.support.waiting import until

ROUTES = [Route("/private", private), Route("/administration", administration), WebSocketRoute("/ws", greet)]

Place = Callable[[AuthGuard], ASGIApp]


def around_app(guard: AuthGuard) -> ASGIApp:
    """The whole application."""
    return guard.wrap(Starlette(routes=[Mount("/in", routes=ROUTES)]))


def as_middleware(guard: AuthGuard) -> ASGIApp:
    """The whole application, by its own means."""
    app = Starlette(routes=[Mount("/in", routes=ROUTES)])
    app.add_middleware(guard.wrap)
    return app


def on_mount(guard: AuthGuard) -> ASGIApp:
    """A part of it."""
    return Starlette(routes=[Mount("/in", routes=ROUTES, middleware=[Middleware(guard.wrap)])])


def on_mounted_app(guard: AuthGuard) -> ASGIApp:
    """A part of it, that is an application."""
    return Starlette(routes=[Mount("/in", app=guard.wrap(Starlette(routes=ROUTES)))])


def on_routes(guard: AuthGuard) -> ASGIApp:
    """Route by route."""
    middleware = [Middleware(guard.wrap)]
    return Starlette(
        routes=[
            Route("/in/private", private, middleware=middleware),
            Route("/in/administration", administration, middleware=middleware),
            WebSocketRoute("/in/ws", greet, middleware=middleware),
        ]
    )


def on_fastapi(guard: AuthGuard) -> ASGIApp:
    """All of a FastAPI application, with a route of FastAPI's kind."""
    app = FastAPI(routes=[Mount("/in", routes=ROUTES)])
    app.add_middleware(guard.wrap)

    @app.get("/in/fastapi")
    async def fastapi(request: Request) -> dict[str, str]:
        return {"user": request.user.identity}

    return app


def on_fastapi_mount(guard: AuthGuard) -> ASGIApp:
    """A FastAPI application within another."""
    inner, outer = FastAPI(routes=ROUTES), FastAPI()
    inner.add_middleware(guard.wrap)
    outer.mount("/in", inner)
    return outer


def on_fastapi_routes(guard: AuthGuard) -> ASGIApp:
    """Routes that are appended, as FastAPI's decorators take no middleware."""
    app = FastAPI()
    middleware = [Middleware(guard.wrap)]
    app.router.routes.append(Route("/in/private", private, middleware=middleware))
    app.router.routes.append(Route("/in/administration", administration, middleware=middleware))
    app.router.routes.append(WebSocketRoute("/in/ws", greet, middleware=middleware))
    return app


PLACES: Sequence[Place] = (
    around_app,
    as_middleware,
    on_mount,
    on_mounted_app,
    on_routes,
    on_fastapi,
    on_fastapi_mount,
    on_fastapi_routes,
)


@pytest.mark.parametrize("place", PLACES)
async def test_it_guards_wherever_it_stands(clock: FakeClock, tokens: SignedTokens, place: Place) -> None:
    guard = AuthGuard(authenticate=tokens, clock=clock)
    app = place(guard)
    plain, admin = bearer(tokens.issue("ada")), bearer(tokens.issue("root", claims={"scopes": ["admin"]}))
    assert (await request(app, "/in/private")).status_code == 401
    assert await user_of(app, path="/in/private", headers=plain) == "ada"
    assert (await request(app, "/in/administration", headers=plain)).status_code == 403
    assert await user_of(app, path="/in/administration", headers=admin) == "root"
    with pytest.raises(Rejected) as rejected:
        await Peer(app, "/in/ws").connect()
    assert rejected.value.status == 401
    async with Peer(app, "/in/ws", headers=plain) as peer:
        assert (await peer.receive_json())["user"] == "ada"
        await guard.revoke_user("ada")
        assert (await peer.wait_closed()).code == 4450


async def test_a_guard_that_wraps_nothing_says_what_to_do(tokens: SignedTokens) -> None:
    guard = AuthGuard(authenticate=tokens)
    with pytest.raises(ConfigurationError, match=r"AuthGuard\(app, …\), or guard\.wrap\(app\)"):
        await request(guard)


async def test_two_guards_do_not_disturb_each_other(clock: FakeClock, tokens: SignedTokens) -> None:
    """The inner one decides who it is for what lies behind it."""
    others = SignedTokens("quite another secret, of 16 bytes", clock=clock)
    inner = AuthGuard(authenticate=tokens, cookie="tok", clock=clock)
    outer = AuthGuard(authenticate=others, clock=clock)
    app = outer.wrap(Starlette(routes=[Route("/", whoami), Route("/in", whoami, middleware=[Middleware(inner.wrap)])]))
    both = [*bearer(others.issue("bob")), ("Cookie", f"tok={tokens.issue('ada')}")]
    assert await user_of(app, headers=both) == "bob"
    assert (await request(app, "/in", headers=both)).status_code == 401, (
        "the header goes first, and isn't the inner one's"
    )


# --- Starlette's own middleware ---------------------------------------------------------------------------------------


class NoBackend(AuthenticationBackend):
    """Knows nobody."""

    async def authenticate(self, conn: HTTPConnection) -> None:
        """Nobody."""


def others() -> dict[str, Middleware]:
    """What may stand before the guard, and behind it."""
    return {
        "sessions": Middleware(SessionMiddleware, secret_key=SECRET),
        "cors": Middleware(CORSMiddleware, allow_origins=["https://friend.example"], allow_methods=["*"]),
        "hosts": Middleware(TrustedHostMiddleware, allowed_hosts=["testserver"]),
    }


@pytest.mark.parametrize("order", list(permutations(["guard", *others()])), ids=", ".join)
async def test_it_stands_in_any_order_with_sessions_cors_and_trusted_hosts(
    clock: FakeClock, tokens: SignedTokens, order: tuple[str, ...]
) -> None:
    guard = Middleware(AuthGuard, authenticate=tokens, origins=["https://friend.example"], clock=clock)
    all_of_them = {**others(), "guard": guard}
    app = Starlette(routes=[Route("/sign-in", sign_in), *ROUTES], middleware=[all_of_them[name] for name in order])
    headers = bearer(tokens.issue("ada"))
    friend = [*headers, ("Origin", "https://friend.example")]
    response = await request(app, "/private", headers=friend)
    assert response.json() == {"user": "ada"}
    assert response.headers["access-control-allow-origin"] == "https://friend.example"
    assert (await request(app, "/private")).status_code == 401
    assert (await request(app, "/private", headers=headers, host="evil.example")).status_code == 400
    assert (await request(app, "/sign-in?theme=dark", headers=headers)).cookies["session"]
    async with Peer(app, headers=headers) as peer:
        assert (await peer.receive_json())["user"] == "ada"


async def test_a_preflight_passes_where_cors_stands_outside(clock: FakeClock, tokens: SignedTokens) -> None:
    guard = Middleware(AuthGuard, authenticate=tokens, origins=["https://friend.example"], clock=clock)
    app = Starlette(routes=ROUTES, middleware=[others()["cors"], guard])
    asking = [("Origin", "https://friend.example"), ("Access-Control-Request-Method", "GET")]
    assert (await request(app, "/private", method="OPTIONS", headers=asking)).status_code == 200


async def test_behind_starlettes_authentication_the_guard_decides_and_before_it_the_other(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    guard = Middleware(AuthGuard, authenticate=tokens, clock=clock)
    theirs = Middleware(AuthenticationMiddleware, backend=NoBackend())
    headers = bearer(tokens.issue("ada"))
    assert await user_of(Starlette(routes=[Route("/", whoami)], middleware=[theirs, guard]), headers=headers) == "ada"
    assert await user_of(Starlette(routes=[Route("/", whoami)], middleware=[guard, theirs]), headers=headers) is None


async def test_other_components_read_whom_it_found(clock: FakeClock, tokens: SignedTokens) -> None:
    async def told(request: HTTPConnection) -> Response:
        return Response(str(scope_user(request.scope)))

    guard = AuthGuard(authenticate=tokens, anonymous=True, clock=clock)
    app = guard.wrap(Starlette(routes=[Route("/", told)]))
    assert (await request(app, headers=bearer(tokens.issue("ada")))).text == "ada"
    assert (await request(app)).text == "None"


def test_starlettes_test_client_gets_on_with_it() -> None:
    """It runs each request on an event loop of its own."""
    tokens = SignedTokens(SECRET)
    guard = AuthGuard(authenticate=tokens, first_frame=True)
    client = TestClient(guard.wrap(Starlette(routes=ROUTES)))
    token = tokens.issue("ada")
    for _ in range(3):
        assert client.get("/private", headers=dict(bearer(token))).json() == {"user": "ada"}
        with client.websocket_connect("/ws", headers=dict(bearer(token))) as socket:
            assert socket.receive_json()["user"] == "ada"
        with client.websocket_connect("/ws") as socket:
            socket.send_json({"type": "auth", "token": token})
            assert socket.receive_json()["user"] == "ada"
        with client.websocket_connect("/ws") as socket:
            socket.send_json({"type": "auth", "token": "nonsense"})
            assert socket.receive_json()["code"] == "unauthenticated"
            with pytest.raises(WebSocketDisconnect):
                socket.receive_json()


# --- on a real server -------------------------------------------------------------------------------------------------


class Served:
    """A real server, and clients of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx2.AsyncClient(base_url=url)

    async def get(self, path: str, headers: Iterable[tuple[str, str]] = ()) -> httpx2.Response:
        """One request."""
        return await self.http.get(path, headers=dict(headers))

    def websocket(self, path: str, headers: Iterable[tuple[str, str]] = (), **options: Any) -> websockets.connect:
        """One WebSocket."""
        url = self.url.replace("http", "ws", 1) + path
        return websockets.connect(url, additional_headers=list(headers), open_timeout=5.0, proxy=None, **options)


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[Served]:
    """The application on uvicorn."""
    async with serve(app, lifespan="off") as server:
        site = Served(server.url)
        try:
            yield site
        finally:
            await site.http.aclose()


async def closed(socket: websockets.ClientConnection) -> tuple[int | None, str | None]:
    """How the server closed it, whatever came before."""
    with suppress(websockets.ConnectionClosed):
        async for _ in socket:
            pass
    return socket.close_code, socket.close_reason


@pytest.mark.parametrize("place", [on_routes, on_fastapi_mount])
async def test_on_a_real_server_all_of_it_works(place: Place) -> None:
    tokens = SignedTokens(SECRET)
    guard = AuthGuard(authenticate=tokens, first_frame=True)
    headers = bearer(tokens.issue("ada"))
    async with served(place(guard)) as site:
        assert (await site.get("/in/private", headers)).json() == {"user": "ada"}
        refused = await site.get("/in/private", bearer("nonsense"))
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
        with pytest.raises(websockets.InvalidStatus) as rejected:
            await site.websocket("/in/ws", bearer("nonsense"))
        assert rejected.value.response.status_code == 401
        assert rejected.value.response.headers["www-authenticate"] == 'Bearer error="invalid_token"'

        async with site.websocket("/in/ws", bearer("nonsense"), origin=site.url) as page:
            assert await closed(page) == (4401, "unauthenticated")
        async with site.websocket("/in/ws", origin="https://evil.example") as page:
            assert await closed(page) == (4403, "forbidden")

        async with site.websocket("/in/ws", origin=site.url) as page:
            await page.send(json.dumps({"type": "auth", "id": 1, "token": tokens.issue("ada")}))
            assert json.loads(await page.recv())["data"]["user"] == "ada"
            assert json.loads(await page.recv())["user"] == "ada"
            await page.send("hello")
            assert await page.recv() == "hello"
            await guard.revoke_user("ada")
            assert await closed(page) == (4450, "revoked")
        assert (await site.get("/in/private", headers)).json()["code"] == "revoked"

        brief = tokens.issue("bob", expires_in=0.3)
        async with site.websocket("/in/ws", bearer(brief)) as peer:
            assert await closed(peer) == (4401, "expired")


async def test_on_a_real_server_a_ticket_opens_one_websocket_and_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    tokens = SignedTokens(SECRET)
    guard = AuthGuard(authenticate=tokens)
    identity = tokens.read(tokens.issue("ada"))
    caplog.set_level("INFO")
    async with serve(guard.wrap(Starlette(routes=ROUTES)), lifespan="off", access_log=True) as server:
        site = Served(server.url)
        scope = {"type": "http", "method": "POST", "headers": [(b"origin", site.url.encode())]}
        ticket = guard.issue_ticket(identity, scope)
        async with site.websocket(f"/ws?ticket={ticket}", origin=site.url) as page:
            assert json.loads(await page.recv())["user"] == "ada"
        async with site.websocket(f"/ws?ticket={ticket}", origin=site.url) as page:
            assert await closed(page) == (4401, "unauthenticated")
        with pytest.raises(websockets.InvalidStatus):
            await site.websocket(f"/ws?ticket={guard.issue_ticket(identity, scope)}")
        unbound = guard.issue_ticket(identity, {**scope, "headers": []})
        assert (await site.get(f"/private?ticket={unbound}")).json() == {"user": "ada"}
        await site.http.aclose()
        await until(lambda: "/private" in caplog.text, what="the access log")
    assert "/ws" in caplog.text
    assert "rtt1." not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("uvicorn"))


async def test_on_a_real_server_a_session_signs_in_and_out() -> None:
    store = MemoryStore()
    guard = AuthGuard(authenticate=StarletteSession(), store=store)
    app = Starlette(
        routes=[Route("/sign-in", sign_in), Mount("/in", routes=ROUTES, middleware=[Middleware(guard.wrap)])],
        middleware=[Middleware(SessionMiddleware, secret_key=SECRET)],
    )
    async with guard, served(app) as site:
        assert (await site.get("/in/private")).status_code == 401
        await site.get("/sign-in?user=ada")
        assert (await site.get("/in/private")).json() == {"user": "ada"}
        cookie = [("Cookie", f"session={site.http.cookies['session']}")]
        async with site.websocket("/in/ws", cookie, origin=site.url) as page:
            assert json.loads(await page.recv())["user"] == "ada"
            await AuthGuard(anonymous=True, store=store).revoke_user("ada")
            assert await closed(page) == (4450, "revoked")
        assert (await site.get("/in/private")).json()["code"] == "revoked"
