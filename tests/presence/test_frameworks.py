"""The tracker on an application, a Mount and a route, of Starlette and of FastAPI, in any order with authentication."""

import base64
import json
from collections.abc import Callable
from typing import Any

import itsdangerous
import pytest
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount, WebSocketRoute
from starlette.types import ASGIApp

from starlette_realtime.auth import AuthGuard
from starlette_realtime.presence import PresenceTracker
from starlette_realtime.testing import FakeClock, Peer, Rejected, settle
from starlette_realtime.tokens import SignedTokens
from tests.presence.support import edit, present, topic_of

TOKENS = SignedTokens("sixteen bytes at least, for tests")
Place = Callable[[PresenceTracker, list[Middleware]], ASGIApp]


def on_a_starlette_application(tracker: PresenceTracker, others: list[Middleware]) -> ASGIApp:
    return Starlette(routes=[WebSocketRoute("/docs/{document}", edit)], middleware=[*others, Middleware(tracker.wrap)])


def on_a_mount(tracker: PresenceTracker, others: list[Middleware]) -> ASGIApp:
    routes = [WebSocketRoute("/{document}", edit)]
    return Starlette(routes=[Mount("/docs", routes=routes, middleware=[*others, Middleware(tracker.wrap)])])


def on_a_route(tracker: PresenceTracker, others: list[Middleware]) -> ASGIApp:
    route = WebSocketRoute("/docs/{document}", edit, middleware=[Middleware(tracker.wrap)])
    return Starlette(routes=[route], middleware=others)


def on_a_mounted_application(tracker: PresenceTracker, others: list[Middleware]) -> ASGIApp:
    inner = Starlette(routes=[WebSocketRoute("/{document}", edit)], middleware=[Middleware(tracker.wrap)])
    return Starlette(routes=[Mount("/docs", inner)], middleware=others)


def on_a_fastapi_application(tracker: PresenceTracker, others: list[Middleware]) -> ASGIApp:
    app = FastAPI(middleware=others)
    app.add_middleware(tracker.wrap)  # FastAPI puts it outside of the others
    app.websocket("/docs/{document}")(edit)
    return app


def on_a_route_of_fastapi(tracker: PresenceTracker, others: list[Middleware]) -> ASGIApp:
    app = FastAPI(middleware=others)
    app.router.routes.append(WebSocketRoute("/docs/{document}", edit, middleware=[Middleware(tracker.wrap)]))
    return app


PLACES = [
    on_a_starlette_application,
    on_a_mount,
    on_a_route,
    on_a_mounted_application,
    on_a_fastapi_application,
    on_a_route_of_fastapi,
]


class Header(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-user")
        return (AuthCredentials(), SimpleUser(name)) if name else None


def session_user(conn: HTTPConnection) -> str | None:
    user: str | None = conn.session.get("user")
    return user


def cookie(user: str) -> dict[str, str]:
    signed = itsdangerous.TimestampSigner("key").sign(base64.b64encode(json.dumps({"user": user}).encode()))
    return {"session": signed.decode()}


WAYS: list[tuple[list[Middleware], dict[str, Any], dict[str, Any]]] = [
    (
        [Middleware(AuthGuard, authenticate=TOKENS)],
        {},
        {},  # a token, which is issued when it is needed
    ),
    ([Middleware(AuthenticationMiddleware, backend=Header())], {}, {"headers": [("x-user", "ann")]}),
    (
        [Middleware(SessionMiddleware, secret_key="key")],
        {"user": session_user},
        {"cookies": cookie("ann"), "origin": "http://testserver"},
    ),
]


@pytest.mark.parametrize("way", WAYS, ids=["AuthGuard", "AuthenticationMiddleware", "SessionMiddleware"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_user_is_present_wherever_the_tracker_stands(
    place: Place, way: tuple[list[Middleware], dict[str, Any], dict[str, Any]]
) -> None:
    others, options, credentials = way
    credentials = credentials or {"headers": [("authorization", f"Bearer {TOKENS.issue('ann')}")]}
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["testserver"])
    cors = Middleware(CORSMiddleware, allow_origins=["https://elsewhere.example"])
    tracker = PresenceTracker(topic=topic_of, clock=FakeClock(), **options)
    app = place(tracker, [hosts, cors, *others])
    async with Peer(app, "/docs/plan", **credentials) as peer:
        assert (await present(peer))[0] == "plan"
        assert await tracker.status("plan", "ann") == "online"
    await settle()
    assert await tracker.status("plan", "ann") == "offline"
    assert tracker.gauges()["present"] == 0


@pytest.mark.parametrize("place", PLACES)
async def test_whom_a_guard_refuses_is_never_seen(place: Place) -> None:
    tracker = PresenceTracker(topic=topic_of, clock=FakeClock())
    app = place(tracker, [Middleware(AuthGuard, authenticate=TOKENS)])
    with pytest.raises(Rejected):
        await Peer(app, "/docs/plan").connect()
    assert (await tracker.members("plan")).seq == 0


async def test_whose_credentials_expire_lingers_and_may_renew_them() -> None:
    clock = FakeClock()
    tokens = SignedTokens("sixteen bytes at least, for tests", max_age=60.0, clock=clock)
    tracker = PresenceTracker(topic=topic_of, clock=clock)
    app = on_a_route(tracker, [Middleware(AuthGuard, authenticate=tokens, clock=clock)])

    def peer() -> Peer:
        return Peer(app, "/docs/plan", headers=[("authorization", f"Bearer {tokens.issue('ann')}")])

    async with peer() as first:
        _, connection = await present(first)
        await clock.advance(61.0)
        assert (await first.wait_closed()).code == 4401
        assert await tracker.status("plan", "ann") == "online"
        async with peer() as second:
            assert (await present(second))[1] == connection
            await clock.advance(30.0)
            assert await tracker.status("plan", "ann") == "online"


async def test_added_by_its_class_it_is_a_middleware_like_any_other() -> None:
    app = Starlette(routes=[WebSocketRoute("/docs/{document}", edit)])
    app.add_middleware(PresenceTracker, topic=topic_of, user=lambda conn: "ann")
    async with Peer(app, "/docs/plan") as peer:
        assert (await present(peer))[0] == "plan"


@pytest.mark.parametrize("place", [on_a_starlette_application, on_a_mount, on_a_route])
async def test_who_authenticates_in_the_first_frame_is_present_after_it(place: Place) -> None:
    tracker = PresenceTracker(topic=topic_of, clock=FakeClock())
    app = place(tracker, [Middleware(AuthGuard, authenticate=TOKENS, first_frame=True)])
    async with Peer(app, "/docs/plan") as peer:
        await settle()
        assert (await tracker.members("plan")).seq == 0
        await peer.send({"type": "auth", "id": 1, "token": TOKENS.issue("ann")})
        while (told := await peer.receive_json()) and isinstance(told, dict):
            assert "error" not in told
        assert told[0] == "plan"
        assert await tracker.status("plan", "ann") == "online"
