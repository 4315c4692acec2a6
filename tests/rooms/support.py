"""What the tests of the rooms share: an application on a clock that stands still, and native clients of it."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, TypeAlias

from starlette_realtime import ConnectionOptions, Identity, MemoryStore, RateLimiter, Realtime
from starlette_realtime.testing import Closed, FakeClock, Peer, settle

Json: TypeAlias = Any

SUBPROTOCOL = "starlette-realtime.v1.json"


def unlimited() -> RateLimiter:
    """So much that no test of something else runs into a limit."""
    much = "10000/second"
    return RateLimiter(frames=much, joins=much, publishes=(), connections_per_user=None, connections_per_address=None)


async def by_name(token: str) -> Identity | None:
    """A token is the user's name and, behind a `+`, for how many seconds from the clock's start it is good."""
    name, _, life = token.partition("+")
    return Identity(name, expires_at=1_800_000_000.0 + float(life) if life else None) if name else None


class Client:
    """A native client: commands by their names, frames in the order in which they came."""

    def __init__(self, realtime: Realtime, **options: Any) -> None:
        self.realtime = realtime
        self.peer = Peer(realtime, **{"subprotocols": [SUBPROTOCOL], **options})
        self.log: list[Json] = []
        """Everything that came, in order."""
        self.unread: list[Json] = []
        """What was not yet asked for."""
        self.id = ""
        self.session: str | None = None
        self.user: str | None = None
        self._ids = itertools.count(1)

    async def __aenter__(self) -> Self:
        await self.peer.connect()
        self.id = (await self.expect("welcome"))["connection"]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self.peer.task is not None and self.peer.closed is None:
            await self.peer.disconnect()

    async def auth(self, token: str | None = None, **fields: Any) -> Json:
        """Authenticate; raises `Failed`."""
        data = await self.call("auth", **({} if token is None else {"token": token}), **fields)
        self.session, self.user = data["session"], data["user"]
        return data

    async def call(self, kind: str, **fields: Any) -> Json:
        """Send a command and wait for its reply; raises `Failed` where that is an error."""
        return await self.answer(await self.command(kind, **fields))

    async def command(self, kind: str, **fields: Any) -> int:
        """Send a command with an id, which is returned."""
        number = next(self._ids)
        await self.peer.send({"type": kind, "id": number, **fields})
        return number

    async def answer(self, number: int) -> Json:
        """Wait for the reply to that command; raises `Failed`."""
        reply = await self.expect("reply", id=number)
        if "error" in reply:
            raise Failed(reply["error"])
        return reply["data"]

    async def join(self, room: str, **fields: Any) -> Json:
        """Join a room."""
        return await self.call("join", room=room, **fields)

    async def event(self, event: str, data: Json = None, room: str | None = "chat:1", **fields: Any) -> Json:
        """Send an event and wait for its acknowledgement."""
        more = {} if room is None else {"room": room}
        return await self.call("event", event=event, data=data, **more, **fields)

    async def expect(self, kind: str, **match: Any) -> Json:
        """The next unread frame of that type and with those fields; raises `TimeoutError` or `Closed`."""
        for frame in self.take(keep=True):
            if _matches(frame, kind, match):
                self.unread.remove(frame)
                return frame
        while True:
            self._note(await self.peer.receive())
            frame = self.unread[-1]
            if _matches(frame, kind, match):
                return self.unread.pop()

    def take(self, kind: str | None = None, *, keep: bool = False) -> list[Json]:
        """The unread frames that are here already, of one type or all; they are then read, unless `keep`."""
        for text in self.peer.waiting():
            self._note(text)
        found = [frame for frame in self.unread if kind is None or frame["type"] == kind]
        if not keep:
            self.unread = [frame for frame in self.unread if not (kind is None or frame["type"] == kind)]
        return found

    async def heard(self, *events: str) -> list[Json]:
        """Once nothing moves any more: the data of all events so far that were unread, of these names or all."""
        await settle()
        return [frame["data"] for frame in self.take("event") if not events or frame["event"] in events]

    async def closed(self) -> Closed:
        """Wait until the server closes, and read what it said before."""
        closed = await self.peer.wait_closed()
        self.take(keep=True)
        return closed

    def _note(self, text: str | bytes) -> None:
        frame = json.loads(text)
        self.log.append(frame)
        self.unread.append(frame)


class Failed(Exception):
    """An error reply."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error)
        self.error = error
        self.code: str = error["code"]


class World:
    """One application on a fake clock and a memory store, and its clients."""

    def __init__(self, **options: Any) -> None:
        self.clock = options.pop("clock", None) or FakeClock()
        self.store = options.pop("store", None) or MemoryStore(clock=self.clock)
        options.setdefault("authenticate", by_name)
        options.setdefault("limiter", unlimited())
        options.setdefault("connection", connection_options())
        self.realtime = Realtime(clock=self.clock, store=self.store, **options)
        self.clients: list[Client] = []
        self.chat: Any = None
        """What the fixture `world` declares."""

    @property
    def entries(self) -> int:
        """How many presence records there are in rooms: processes are present, too, in a topic of the kit's own."""
        topics = self.store.backend.topics.values()
        return sum(len(topic.entries) for topic in topics if not topic.name.startswith("rt:"))

    def client(self, **options: Any) -> Client:
        """A client that is not connected yet."""
        client = Client(self.realtime, **options)
        self.clients.append(client)
        return client

    async def enter(self, user: str | None = "ada", *rooms: str, **fields: Any) -> Client:
        """A client that is connected, authenticated, and in these rooms."""
        client = await self.client().__aenter__()
        await client.auth(user, **fields)
        for room in rooms:
            await client.join(room)
        await settle()
        client.take()
        return client

    async def __aenter__(self) -> Self:
        await self.realtime.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.store.faults.resume()
        for client in self.clients:
            if client.peer.task is not None and not client.peer.task.done():
                client.peer.flow()
                client.peer.leave()
        stopping = asyncio.ensure_future(self.realtime.__aexit__(None, None, None))
        for _ in range(200):
            await settle()
            if stopping.done():
                break
            await self.clock.advance(0.25)
        await stopping


@asynccontextmanager
async def serving(declare: Callable[[Realtime], object] | None = None, **options: Any) -> AsyncIterator[World]:
    """A world whose rooms `declare` declares."""
    world = World(**options)
    if declare is not None:
        declare(world.realtime)
    async with world:
        yield world


def connection_options(**options: Any) -> ConnectionOptions:
    """The default bounds, but for these, and a heart that need not beat when a test moves the clock."""
    return ConnectionOptions(**{"heartbeat": 1_000_000.0, **options})


def _matches(frame: Json, kind: str, match: Mapping[str, Any]) -> bool:
    return frame["type"] == kind and all(frame.get(name) == value for name, value in match.items())
