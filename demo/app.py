"""A chat and a dashboard: rooms, presence, direct messages, typing, cursors, live numbers. The page is in `static/`."""

import os
import secrets
import signal
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Cookie, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.dashboard import Dashboard
from demo.processes import Place
from starlette_realtime import (
    History,
    Limit,
    Member,
    RateLimiter,
    Realtime,
    Refused,
    RoomsOptions,
    SignedTokens,
    Store,
    Unauthenticated,
)
from starlette_realtime.asgi import address_group, client_address

STATIC = Path(__file__).parent / "static"
ROOMS = {"lobby": "Lobby", "kitchen": "Kitchen", "garden": "Garden", "library": "Library"}
COOKIE = "realtime_demo"
DAY = 86_400.0
KEPT = History(size=500, ttl=3600.0)

place = Place.read()


def shared() -> Store | None:
    """What several processes share; none: memory does."""
    if not place.store:
        return None
    from starlette_realtime import RedisStore  # here, since one process alone needs no driver

    return RedisStore(place.store)


# Without a secret of your own, everybody signs in again after a restart.
tokens = SignedTokens(os.environ.get("REALTIME_SECRET") or secrets.token_hex(), max_age=DAY)
realtime = Realtime(
    authenticate=tokens,
    cookie=COOKIE,
    origins=place.origins,
    store=shared(),
    options=RoomsOptions(user_history=KEPT),
)
chat = realtime.room("chat:{room_id}", presence=True, history=KEPT)
dashboard = Dashboard(realtime, {f"chat:{room_id}" for room_id in ROOMS}, place)


# --- what goes over the wire ----------------------------------------------------------------------------------------


def clean(name: str) -> str:
    """The one spelling of a name: NFC, single spaces, 1 to 32 printable characters; raises `ValueError`."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not (1 <= len(name) <= 32 and name.isprintable()):
        raise ValueError("a name has 1 to 32 printable characters")
    return name


Name = Annotated[str, AfterValidator(clean)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Words(BaseModel):
    """What somebody says. `id` is the page's own, by which it knows its message again."""

    text: str = Field(min_length=1, max_length=4000)
    id: str = Field(default="", max_length=64)


class Direct(Words):
    """What somebody says to one person."""

    to: Name


class Cursor(BaseModel):
    """Where a pointer is, as a fraction of the message area."""

    x: Fraction
    y: Fraction


# --- rooms ----------------------------------------------------------------------------------------------------------


@chat.authorize
async def may_join(member: Member, room_id: str) -> bool:
    """Everybody who has signed in, into the rooms that there are."""
    return room_id in ROOMS


@chat.on("message", limit="10/second")
async def message(member: Member, words: Words) -> dict[str, int]:
    """Kept: whoever is away gets it on coming back. What is returned acknowledges it."""
    position = await member.broadcast("message", words)
    return {"offset": position.offset}


@chat.on("direct", limit="10/second")
async def direct(member: Member, words: Direct) -> dict[str, int]:
    """Kept as well: to all pages of one user, and to all of the sender's own."""
    assert member.user is not None  # the room is not public
    if words.to != member.user:
        await member.send_to_user(words.to, "direct", words)
    position = await member.send_to_user(member.user, "direct", words)
    return {"offset": position.offset}


@chat.on("typing", limit="5/second")
async def typing(member: Member) -> None:
    """Volatile: worthless a moment later."""
    await member.broadcast_volatile("typing", others_only=True)


@chat.on("cursor", limit="15/second")
async def cursor(member: Member, at: Cursor) -> None:
    """Volatile, and often."""
    await member.broadcast_volatile("cursor", at, others_only=True)


@realtime.on("noise", limit="20/10 seconds")
async def noise() -> None:
    """What the page floods the server with: it is limited, and heard by nobody."""


@realtime.on("where", limit="10/second")
async def where() -> int:
    """The number of the process that the page is connected to."""
    return place.number


@realtime.on("kill", limit="1/second")
async def kill() -> None:
    """End this process as a crash would, if there is another one to go to: it is a demo of that."""
    if not await place.has_company():
        raise Refused("last_process", "this is the only process left, so it stays")
    os.kill(os.getpid(), signal.SIGKILL)


# --- signing in -----------------------------------------------------------------------------------------------------


REACHED = " ".join(["'self'", *place.sources])
"""What the page may connect to: where it came from, and the other processes."""


class SecurityHeaders:
    """ASGI middleware: what a browser may do with our pages."""

    HEADERS = {  # noqa: RUF012 - read only
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src {REACHED}; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What runs as long as the server."""
    async with realtime, dashboard.running():
        yield


def signing_in(connection: HTTPConnection) -> str | None:
    """Whom sign-ins are counted by: the peer, a private address as any other, since on a desk there is no other."""
    if (connection.scope["method"], connection.scope["path"]) != ("POST", "/session"):
        return None
    address = client_address(connection.scope)
    return "somebody" if address is None else address_group(address)


app = FastAPI(lifespan=lifespan, openapi_url=None)
# For requests alone: what comes over a WebSocket is limited by `realtime`, where it is known who sent it.
app.add_middleware(
    RateLimiter,
    requests=Limit("5/second", burst=100, by=signing_in),
    handshakes=(),
    frames=(),
    connections_per_user=None,
    connections_per_address=None,
)
app.add_middleware(SecurityHeaders)
app.mount("/realtime", realtime)
app.mount("/static", StaticFiles(directory=STATIC))


class SignIn(BaseModel):
    """A demo has no passwords: whoever gives a name is that user, on as many devices as they like."""

    name: Name


class Session(BaseModel):
    """Who is signed in, and a token of 10 minutes for clients that send no cookie."""

    name: str
    token: str


async def json_only(content_type: Annotated[str, Header()] = "") -> None:
    """Refuse what another site's form could send: that is never JSON."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send application/json")


def session(name: str, response: Response) -> Session:
    """The answer of both endpoints, never to be stored."""
    response.headers["cache-control"] = "no-store"
    return Session(name=name, token=tokens.issue(name, expires_in=600.0))


@app.post("/session", dependencies=[Depends(json_only)])
async def sign_in(body: SignIn, request: Request, response: Response) -> Session:
    """Sign in: the cookie is for this page, the token for other clients."""
    token = tokens.issue(body.name)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, token, max_age=int(DAY), httponly=True, samesite="lax", secure=secure)
    return session(body.name, response)


@app.get("/session")
async def signed_in(response: Response, token: Annotated[str, Cookie(alias=COOKIE)] = "") -> Session:
    """Who the cookie says this is, and a fresh token; 401 for nobody."""
    try:
        user = tokens.read(token).user
    except Unauthenticated:
        raise HTTPException(401, "sign in first", headers={"cache-control": "no-store"}) from None
    assert user is not None  # a signed token names one
    return session(user, response)


@app.delete("/session", status_code=204)
async def sign_out(response: Response) -> None:
    """Sign out this browser."""
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")


@app.get("/rooms")
async def rooms() -> dict[str, str]:
    """The rooms that there are, and their titles."""
    return {f"chat:{room_id}": title for room_id, title in ROOMS.items()}


@app.get("/processes")
async def processes() -> dict[str, int | list[int]]:
    """Which process this is, and the ports of all, where there are several: a page may connect to any of them."""
    return {"number": place.number, "ports": list(place.ports)}


@app.get("/", response_class=FileResponse)
async def page() -> Path:
    """The page."""
    return STATIC / "index.html"
