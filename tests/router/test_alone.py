"""RoomRouter alone: in every place where it may stand, with and without the other components."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser, requires
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from starlette_realtime import (
    AuthGuard,
    ConfigurationError,
    ConnectionOptions,
    Identity,
    Member,
    RateLimiter,
    Room,
    RoomRouter,
    SignedTokens,
    StarletteSession,
)
from starlette_realtime.testing import FakeClock, Peer, Rejected, settle
from tests.server.support import dial
from tests.support.server import serve

TOKENS = SignedTokens("a secret of these tests alone")
NATIVE = "starlette-realtime.v1.json"


class ByHeader(AuthenticationBackend):
    """Somebody's own authentication."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = conn.headers.get("x-user")
        return (AuthCredentials(["authenticated"]), SimpleUser(name)) if name else None


def chat() -> Room:
    room = Room("chat:{room_id:int}", presence=True)

    @room.on("say")
    async def say(member: Member, text: str) -> None:
        await member.broadcast("said", [member.user, text])

    return room


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


@requires("authenticated")
async def private(request: Request) -> Response:
    return PlainTextResponse(request.user.display_name)


ROUTES = [Route("/", hello), Route("/private", private)]


async def talk(app: Any, user: str, *, path: str = "/realtime/ws", by_token: bool) -> None:
    """Come in as `user`, join, and hear oneself speak."""
    header = ("authorization", f"Bearer {TOKENS.issue(user)}") if by_token else ("x-user", user)
    async with Peer(app, path, headers=[header], subprotocols=[NATIVE]) as peer:
        await peer.send({"type": "auth", "id": 1})
        await peer.send({"type": "join", "id": 2, "room": "chat:1"})
        await peer.send({"type": "event", "id": 3, "room": "chat:1", "event": "say", "data": "hi"})
        frames: list[Any] = []
        while not frames or frames[-1].get("id") != 3:
            frames.append(await peer.receive_json())
        (auth,) = [frame for frame in frames if frame.get("id") == 1]
        assert auth["data"]["user"] == user
        while not any(frame["type"] == "event" for frame in frames):
            frames.append(await peer.receive_json())
        (event,) = [frame for frame in frames if frame["type"] == "event"]
        assert event["data"] == [user, "hi"]


def guarded() -> Middleware:
    return Middleware(AuthGuard, authenticate=TOKENS, anonymous=True)


def authenticated() -> Middleware:
    return Middleware(AuthenticationMiddleware, backend=ByHeader())


OTHERS: dict[str, Callable[[], Middleware]] = {
    "sessions": lambda: Middleware(SessionMiddleware, secret_key="not a secret at all"),
    "cors": lambda: Middleware(CORSMiddleware, allow_origins=["https://elsewhere.example"]),
    "hosts": lambda: Middleware(TrustedHostMiddleware, allowed_hosts=["testserver"]),
    "limits": lambda: Middleware(RateLimiter),
}


@pytest.mark.parametrize("finder", [guarded, authenticated])
@pytest.mark.parametrize("make", [Starlette, FastAPI])
@pytest.mark.parametrize("other", [None, *OTHERS])
@pytest.mark.parametrize("position", [0, 1, 2])
async def test_it_stands_behind_whatever_finds_the_user(
    make: Callable[..., Starlette], finder: Callable[[], Middleware], other: str | None, position: int
) -> None:
    router = RoomRouter(path="/realtime", rooms=[chat()])
    stack = [finder(), Middleware(router.wrap)]
    if other is not None:
        stack.insert(position, OTHERS[other]())
    app = make(routes=ROUTES, middleware=stack)
    async with router:
        await talk(app, "ann", by_token=finder is guarded)
        with pytest.raises(Rejected):
            async with Peer(app, "/elsewhere"):
                pass
    assert router.gauges()["connections"] == 0


@pytest.mark.parametrize("make", [Starlette, FastAPI])
async def test_it_stands_in_a_mount(make: Callable[..., Starlette]) -> None:
    router = RoomRouter(rooms=[chat()])
    mount = Mount("/deep", routes=[Mount("/realtime", router, middleware=[guarded()])])
    app = make(routes=[*ROUTES, mount], lifespan=router.lifespan)
    async with router:
        await talk(app, "ann", path="/deep/realtime/ws", by_token=True)
        with pytest.raises(Rejected) as refused:
            async with Peer(app, "/deep/realtime/nowhere", headers=[("authorization", f"Bearer {TOKENS.issue('x')}")]):
                pass
        assert refused.value.status == 404


async def test_a_guard_of_its_own_needs_nothing_outside() -> None:
    router = RoomRouter(path="/realtime", rooms=[chat()], guard=AuthGuard(authenticate=TOKENS))
    async with router:
        await talk(Starlette(routes=ROUTES, middleware=[Middleware(router.wrap)]), "ann", by_token=True)


async def test_sessions_of_starlette_are_a_guards_credentials() -> None:
    async def sign_in(request: Request) -> Response:
        request.session["user"] = request.query_params["as"]
        return PlainTextResponse("")

    router = RoomRouter(path="/realtime", rooms=[chat()])
    stack = [
        Middleware(SessionMiddleware, secret_key="not a secret at all"),
        Middleware(AuthGuard, authenticate=StarletteSession(), anonymous=True),
        Middleware(router.wrap),
    ]
    app = Starlette(routes=[Route("/sign-in", sign_in)], middleware=stack)
    async with serve(app) as server:
        import httpx2

        async with httpx2.AsyncClient() as browser:
            cookie = (await browser.get(f"{server.url}/sign-in?as=ann")).headers["set-cookie"].split(";")[0]
        async with dial(server, origin=server.url, headers=[("cookie", cookie)]) as peer:
            assert (await peer.auth())["user"] == "ann"


async def test_nobody_comes_in_where_nobody_authenticates() -> None:
    router = RoomRouter(path="/realtime", rooms=[chat()])
    app = Starlette(routes=ROUTES, middleware=[Middleware(router.wrap)])
    async with router, Peer(app, "/realtime/ws", subprotocols=[NATIVE]) as peer:
        await peer.send({"type": "auth", "id": 1, "token": TOKENS.issue("ann")})
        assert (await peer.wait_closed()).code == 4401


async def test_the_user_outside_keeps_their_expiry() -> None:
    clock = FakeClock()
    tokens = SignedTokens("a secret of these tests alone", clock=clock)
    router = RoomRouter(path="/realtime", rooms=[chat()], connection=ConnectionOptions(heartbeat=1e6), clock=clock)
    stack = [Middleware(AuthGuard, authenticate=tokens, clock=clock), Middleware(router.wrap)]
    app = Starlette(middleware=stack)
    async with router:
        header = ("authorization", f"Bearer {tokens.issue('ann', expires_in=60.0)}")
        async with Peer(app, "/realtime/ws", headers=[header], subprotocols=[NATIVE]) as peer:
            await peer.send({"type": "auth", "id": 1})
            await settle()
            (reply,) = [json.loads(frame) for frame in peer.waiting() if b"reply" in str(frame).encode()]
            assert reply["data"]["expires_in"] == pytest.approx(60.0)
            await clock.advance(61.0)
            assert (await peer.wait_closed()).code == 4401


async def test_what_is_not_its_own_is_passed_on_and_requires_works_behind_a_guard() -> None:
    router = RoomRouter(path="/realtime", rooms=[chat()])
    app = Starlette(routes=ROUTES, middleware=[guarded(), Middleware(router.wrap)])
    async with serve(app) as server:
        import httpx2

        async with httpx2.AsyncClient(base_url=server.url) as http:
            assert (await http.get("/")).text == "hello"
            assert (await http.get("/private")).status_code == 403
            token = {"authorization": f"Bearer {TOKENS.issue('ann')}"}
            assert (await http.get("/private", headers=token)).text == "ann"
            assert (await http.get("/realtime/client.js")).status_code == 200
            assert (await http.get("/realtime/nowhere")).status_code == 404  # the application's
            assert (await http.get("/realtimeclient.js")).status_code == 404


async def test_as_middleware_it_lives_as_long_as_the_application() -> None:
    router = RoomRouter(path="/realtime", rooms=[chat()])
    app = Starlette(routes=ROUTES, middleware=[guarded(), Middleware(router.wrap)])
    async with serve(app) as server:
        async with dial(server, headers=[("authorization", f"Bearer {TOKENS.issue('ann')}")]) as peer:
            await peer.auth()
            await peer.do("join", room="chat:7")
            assert router.occupancy() == {"chat:7": 1}
        await router.at("chat:7").broadcast("said", "from the server")
    with pytest.raises(ConfigurationError, match="lifespan"):
        await router.at("chat:7").broadcast("said", "after the end")


async def test_a_class_given_to_add_middleware_serves_rooms_that_were_declared_elsewhere() -> None:
    room = chat()
    app = Starlette(routes=ROUTES)
    app.add_middleware(RoomRouter, path="/realtime", rooms=[room])
    app.add_middleware(AuthGuard, authenticate=TOKENS)
    async with serve(app) as server, AsyncExitStack() as stack:
        header = [("authorization", f"Bearer {TOKENS.issue('ann')}")]
        peer = await stack.enter_async_context(dial(server, headers=header))
        await peer.auth()
        await peer.do("join", room="chat:7")
        await room.at(room_id=7).broadcast("said", "hello")
        assert (await peer.expect("event", room="chat:7"))["data"] == "hello"


async def test_a_start_that_fails_is_the_servers_to_know() -> None:
    router = RoomRouter(path="/realtime")
    started = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.set()

    async def refuse() -> None:
        raise ConfigurationError("no store today")

    router.store._start = refuse  # type: ignore[method-assign]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(ConfigurationError):
        await router.wrap(app)({"type": "lifespan"}, receive, send)
    assert sent == [{"type": "lifespan.startup.failed", "message": "ConfigurationError: no store today"}]
    assert not started.is_set()


async def test_before_its_lifespan_it_says_what_to_do() -> None:
    router = RoomRouter()
    with pytest.raises(ConfigurationError, match=r"roomrouter\.lifespan"):
        async with Peer(router, "/ws"):
            pass
    with pytest.raises(ConfigurationError, match=r"lifespan=roomrouter\.lifespan"):
        await router({"type": "lifespan"}, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["realtime", "/realtime/", "/"])
def test_a_path_that_could_not_match_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="path is like"):
        RoomRouter(path=path)


def test_options_in_the_place_of_rooms_are_refused() -> None:
    from starlette_realtime import RoomsOptions

    with pytest.raises(ConfigurationError, match="options=RoomsOptions"):
        RoomRouter(rooms=RoomsOptions())  # type: ignore[arg-type]


async def test_an_identity_of_a_function_is_as_good_as_a_token() -> None:
    async def look_up(token: str) -> Identity | None:
        return Identity("ann", {"scopes": ["write"]}) if token == "known" else None

    router = RoomRouter(path="/realtime", rooms=[chat()])
    stack = [Middleware(AuthGuard, authenticate=look_up), Middleware(router.wrap)]
    async with router:
        header = ("authorization", "Bearer known")
        async with Peer(Starlette(middleware=stack), "/realtime/ws", headers=[header], subprotocols=[NATIVE]) as peer:
            await peer.send({"type": "auth", "id": 1})
            await settle()
            (connection,) = router.connections
            assert connection.identity is not None
            assert (connection.user, connection.identity.claims["scopes"]) == ("ann", ["write"])
