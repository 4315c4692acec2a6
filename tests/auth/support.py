"""What the tests of AuthGuard share: an application that tells who is asking, and ways to ask it."""

import base64
from collections.abc import Iterable
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.authentication import BaseUser, requires
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from starlette_realtime import AuthGuard
from starlette_realtime.types import ASGIApp

SECRET = "a secret that only these tests know"
HOME = "http://testserver"

Headers = Iterable[tuple[str, str]]


async def whoami(request: Request) -> Response:
    """Who the guard says is asking."""
    user: BaseUser = request.user
    authenticated = user.is_authenticated
    return JSONResponse(
        {
            "user": user.identity if authenticated else None,
            "name": user.display_name,
            "scopes": list(request.auth.scopes),
        }
    )


@requires("authenticated")
async def private(request: Request) -> Response:
    """For users only, by Starlette's own decorator."""
    return JSONResponse({"user": request.user.identity})


@requires("admin")
async def administration(request: Request) -> Response:
    """For users with a scope."""
    return JSONResponse({"user": request.user.identity})


async def sign_in(request: Request) -> Response:
    """Take what is in the query into the session."""
    request.session.update(request.query_params)
    return Response()


@requires("authenticated")
async def greet(websocket: WebSocket) -> None:
    """Say who it is, then echo until the end."""
    await websocket.accept()
    await websocket.send_json({"user": websocket.user.identity, "scopes": list(websocket.auth.scopes)})
    async for text in websocket.iter_text():
        await websocket.send_text(text)


def application(*outside: Middleware, **options: Any) -> Starlette:
    """The application, with a guard around all of it."""
    routes = [
        Route("/", whoami, methods=["GET", "POST", "PUT", "DELETE"]),
        Route("/private", private),
        Route("/administration", administration),
        WebSocketRoute("/ws", greet),
    ]
    return Starlette(routes=routes, middleware=[*outside, Middleware(AuthGuard, **options)])


async def request(
    app: ASGIApp, path: str = "/", *, method: str = "GET", headers: Headers = (), host: str | None = None
) -> httpx2.Response:
    """One request, with these headers just as they are."""
    fields = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    if host is not None:
        fields.append((b"host", host.encode()))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=HOME) as client:
        return await client.request(method, path, headers=fields)


async def user_of(app: ASGIApp, **options: Any) -> str | None:
    """Who the application says a request comes from."""
    response = await request(app, **options)
    assert response.status_code == 200, response.text
    user: str | None = response.json()["user"]
    return user


async def refusal(app: ASGIApp, **options: Any) -> tuple[int, str]:
    """Status and error code of a request that is refused."""
    response = await request(app, **options)
    assert response.status_code >= 400
    return response.status_code, response.json()["code"]


def bearer(token: str) -> Headers:
    """The header that brings a token."""
    return [("Authorization", f"Bearer {token}")]


def basic(name: str, password: str = "x") -> Headers:
    """The header of HTTP Basic."""
    return [("Authorization", "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode())]
