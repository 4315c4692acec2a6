"""An application in the same process, a link to it that breaks on demand, and clients of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct
from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_realtime import (
    Connection,
    Declined,
    History,
    Member,
    Position,
    Realtime,
    SignedTokens,
)
from starlette_realtime.client import (
    Client,
    Event,
    Reset,
    Room,
    connect,
)
from starlette_realtime.testing import AppOpener, FakeClock, Link, settle


class Text(Struct):
    text: str


class Site:
    """An application with a chat, a link to it that breaks on demand, and clients of it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.tokens = SignedTokens("a secret of the tests alone", clock=self.clock)
        self.realtime = Realtime(authenticate=self.tokens, clock=self.clock)
        self.app = Starlette(routes=[Mount("/realtime", self.realtime)])
        self.link = Link(clock=self.clock)
        self.chat = self.realtime.room("chat:{number:int}", presence=True, history=History(size=5, ttl=600.0))
        self.room = self.chat.at(number=1)
        self.asked: list[str] = []

        @self.chat.on("message")
        async def message(member: Member, data: Any) -> Position:
            return await member.broadcast("message", data)

        @self.chat.on("ask")
        async def ask(member: Member, data: Any) -> Any:
            try:
                return await member.request("question", data, timeout=5.0)
            except Declined as declined:
                raise declined.answer from declined  # it is the same client's own word

        locked = self.realtime.room("locked")

        @locked.authorize
        async def nobody(member: Member) -> bool:
            return False

        self.realtime.room("served", history=None)

        @self.realtime.on("serve")
        async def serve(connection: Connection) -> None:
            await connection.join("served")
            await connection.send("hello", {"text": "you"})

    def token(self, user: str = "ann") -> str:
        return self.tokens.issue(user)

    async def fresh(self) -> str:
        self.asked.append("token")
        return self.token()

    def client(self, **options: Any) -> Client:
        chosen: dict[str, Any] = {"token": self.fresh, "clock": self.clock, "random": lambda: 0.5, **options}
        chosen.setdefault("opener", AppOpener(self.app, link=self.link))
        return connect("http://testserver/realtime", **chosen)

    async def relink(self, client: Client, **published: Any) -> None:
        """Break the link, publish, and come back."""
        self.link.cut()
        await settle()
        for event, values in published.items():
            for value in values:
                await self.room.broadcast(event, value)
        self.link.restore()
        await self.clock.until(lambda: client.state == "online")
        await settle()


@asynccontextmanager
async def reported() -> AsyncIterator[list[Any]]:
    """What the event loop's exception handler gets, in the block."""
    loop = asyncio.get_running_loop()
    found: list[Any] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda loop, context: found.append(context.get("exception") or context["message"]))
    try:
        yield found
    finally:
        loop.set_exception_handler(before)


async def some(room: Room | Client, count: int) -> list[Any]:
    """The data of the next events, a tuple where recovered, and the reasons of resets."""
    found: list[Any] = []
    async with asyncio.timeout(5.0):
        await _some(room, count, found)
    return found


async def _some(room: Room | Client, count: int, found: list[Any]) -> None:
    async for item in room:
        match item:
            case Reset():
                found.append(f"reset: {item.reason}")
            case Event(data=data, recovered=True):
                found.append((data,))
            case Event(data=data):
                found.append(data)
        if len(found) == count:
            break
