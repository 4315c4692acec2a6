"""A small application for the tests of the tools: a chat, made anew for each, on any store and clock."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from starlette_realtime import Clock, Connection, Declined, Identity, Member, MemoryStore, Realtime, Store


async def by_name(token: str) -> Identity | None:
    """A token is the user's name."""
    return Identity(token) if token != "nobody" else None


def make_realtime(store: Store | None = None, clock: Clock | None = None) -> Realtime:
    """A chat with presence, a locked room, and a few handlers."""
    realtime = Realtime(authenticate=by_name, store=store or MemoryStore(clock=clock), clock=clock)
    chat = realtime.room("chat:{room_id:int}", presence=True)
    locked = realtime.room("locked")

    @locked.authorize
    async def nobody(member: Member) -> bool:
        return False

    @chat.on("say")
    async def say(member: Member, text: str) -> int:
        return (await member.broadcast("said", text)).offset

    @chat.on("wave")
    async def wave(member: Member) -> None:
        await member.broadcast_volatile("waved", member.user, others_only=True)

    @chat.on("ask")
    async def ask(member: Member) -> Any:
        try:
            return await member.request("question", {"of": "life"})
        except Declined as declined:
            return {"refused": declined.answer.code}

    @realtime.on("whoami")
    async def whoami(connection: Connection) -> str | None:
        return connection.user

    @realtime.on("invite")
    async def invite(connection: Connection) -> None:
        await connection.join("chat:7")

    return realtime


def make_app(store: Store | None = None, clock: Clock | None = None) -> Starlette:
    """The chat, mounted, with one HTTP endpoint beside it."""
    realtime = make_realtime(store, clock)

    async def rooms(request: Request) -> JSONResponse:
        return JSONResponse({"connections": len(realtime.connections)})

    app = Starlette(routes=[Route("/rooms", rooms), Mount("/realtime", realtime)], lifespan=realtime.lifespan)
    app.state.realtime = realtime
    return app
