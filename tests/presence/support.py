"""A small application under presence, in as many processes as a test wants, on one clock that stands still."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from starlette_realtime import MemoryStore
from starlette_realtime.presence import ConnectionPresence, PresenceHandle, PresenceTracker, Watch
from starlette_realtime.presence.changes import Watched
from starlette_realtime.testing import FakeClock, Peer, settle


def topic_of(conn: HTTPConnection) -> str | None:
    return conn.path_params.get("document")


def user_of(conn: HTTPConnection) -> str | None:
    return conn.query_params.get("user")


async def edit(websocket: WebSocket) -> None:
    """Do as the peer says, until it has gone."""
    handle: PresenceHandle = websocket.scope["presence"]
    if "refuse" in websocket.query_params:
        await websocket.close(4403)
        return
    await websocket.accept()
    await websocket.send_json([handle.topic, handle.connection])
    try:
        while True:
            command: dict[str, Any] = await websocket.receive_json()
            if "close" in command:
                await websocket.close(command["close"])
                return
            if "return" in command:
                return
            if "crash" in command:
                raise RuntimeError("the endpoint crashed")
            await handle.set(**command)
            await websocket.send_json("set")
    except WebSocketDisconnect:
        return


class Process:
    """One server process: a store, a tracker, and what its callbacks were told."""

    def __init__(self, store: MemoryStore, clock: FakeClock, **options: Any) -> None:
        self.store = store
        self.tracker = PresenceTracker(
            store=store, clock=clock, rng=random.Random(store.node), **{"topic": topic_of, "user": user_of, **options}
        )
        route = WebSocketRoute("/{document}", edit, middleware=[Middleware(self.tracker.wrap)])
        self.app = Starlette(routes=[route])
        self.told: list[str] = []

        @self.tracker.on_join
        async def came(topic: str, who: ConnectionPresence) -> None:
            self.told.append(f"+{who.user} {topic}")

        @self.tracker.on_leave
        async def went(topic: str, who: ConnectionPresence) -> None:
            self.told.append(f"-{who.user} {topic}")

    def peer(self, user: str | None = None, document: str = "plan", more: str = "") -> Peer:
        return Peer(self.app, f"/{document}?{f'user={user}' if user else ''}{more}")

    async def who(self, document: str = "plan") -> dict[str | None, str]:
        """The users, each with their status and how many connections they have."""
        users = await self.tracker.users(document)
        return {each.user: f"{each.status} {len(each.connections)}" for each in users}


@asynccontextmanager
async def processes(count: int, **options: Any) -> AsyncIterator[list[Process]]:
    """So many processes on one store; at the end nothing may be left of anything."""
    clock = FakeClock()
    stores = [MemoryStore(clock=clock, rng=random.Random(3))]
    stores += [stores[0].sibling() for _ in range(count - 1)]
    made = [Process(store, clock, **options) for store in stores]
    async with AsyncExitStack() as stack:
        for process in made:
            await stack.enter_async_context(process.tracker)
        try:
            yield made
        finally:
            for process in made:
                process.store.faults.resume()
    for process in made:
        gauges = process.tracker.gauges()
        assert not any(gauges.values()), gauges
        assert process.store.gauges()["entries"] == process.store.gauges()["feeds"] == 0
    await clock.advance(100.0)  # what a memory store knows of unused topics
    assert clock.timers == 0


def clock_of(process: Process) -> FakeClock:
    clock = process.tracker.clock
    assert isinstance(clock, FakeClock)
    return clock


async def follow(watch: Watch, into: list[Watched]) -> None:
    """Write down what a watcher gets."""
    async for change in watch:
        into.append(change)  # noqa: PERF401 - one by one, as they come


async def present(peer: Peer) -> list[Any]:
    """Wait until the endpoint says that it accepted; gives its topic and connection."""
    told: list[Any] = await peer.receive_json()
    await settle()
    return told
