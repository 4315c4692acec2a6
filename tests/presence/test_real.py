"""Presence behind a real server, over real sockets that are closed, cut and left; and the application of its page."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect

from starlette_realtime.presence import PresenceTracker
from tests.presence.support import edit, topic_of, user_of
from tests.support.pages import write
from tests.support.proxy import Proxy
from tests.support.server import Running, RunningServer, serve, serve_process
from tests.support.waiting import until


@asynccontextmanager
async def served(tracker: PresenceTracker) -> AsyncIterator[RunningServer]:
    route = WebSocketRoute("/{document}", edit, middleware=[Middleware(tracker.wrap)])
    async with tracker, serve(Starlette(routes=[route])) as server:
        yield server


async def test_an_abrupt_end_lingers_and_a_close_does_not() -> None:
    tracker = PresenceTracker(topic=topic_of, user=user_of, linger=0.5)
    left: list[str | None] = []
    tracker.on_leave(lambda topic, who: left.append(who.user))
    async with served(tracker) as server, Proxy("127.0.0.1", server.port) as proxy:
        ann = await connect(f"ws://127.0.0.1:{proxy.port}/plan?user=ann")
        async with connect(f"{server.ws_url}/plan?user=bob") as bob:
            await ann.recv()
            await bob.recv()
            assert [user.user for user in await tracker.users("plan")] == ["ann", "bob"]
            proxy.cut()
            await until(lambda: tracker.gauges()["lingering"] == 1)
            assert await tracker.status("plan", "ann") == "online"
        await until(lambda: left == ["bob", "ann"])
        assert (await tracker.members("plan")).total == 0
        await ann.close()
    assert not any(tracker.gauges().values())


async def test_a_page_that_is_loaded_again_is_never_gone() -> None:
    tracker = PresenceTracker(topic=topic_of, user=user_of, linger=30.0)
    async with served(tracker) as server, Proxy("127.0.0.1", server.port) as proxy:
        ann = await connect(f"ws://127.0.0.1:{proxy.port}/plan?user=ann")
        first = json.loads(await ann.recv())
        before = await tracker.members("plan")
        proxy.cut()
        await until(lambda: tracker.gauges()["lingering"] == 1)
        proxy.restore()
        async with connect(f"ws://127.0.0.1:{proxy.port}/plan?user=ann") as again:
            assert json.loads(await again.recv()) == first
            assert await tracker.members("plan") == before
        await ann.close()


async def test_closing_lets_go_of_whom_the_server_s_end_left_lingering() -> None:
    tracker = PresenceTracker(topic=topic_of, user=user_of, linger=60.0)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(tracker))
        ann = await stack.enter_async_context(connect(f"{server.ws_url}/plan?user=ann"))
        await ann.recv()
        server.server.should_exit = True
        await ann.wait_closed()
        await until(lambda: tracker.gauges()["lingering"] == 1)
    assert not any(tracker.gauges().values())


async def opened(server: Running, name: str) -> ClientConnection:
    return await connect(f"{server.ws_url}/documents/1?name={name}")


async def test_the_editor_of_the_page_shows_who_is_here(tmp_path: Path) -> None:
    write("presence-tracker.md", tmp_path)
    async with serve_process("app:app", cwd=tmp_path) as server, httpx2.AsyncClient(base_url=server.url) as client:
        assert "Who is here" in (await client.get("/")).text
        ann, bob = await opened(server, "ann"), await opened(server, "bob")
        async with client.stream("GET", "/documents/1/presence") as stream:
            events = stream.aiter_lines()
            await sees(events, {"ann": "online", "bob": "online"})
            await ann.send(json.dumps({"type": "away", "away": True}))
            await sees(events, {"ann": "away", "bob": "online"})
            second = await opened(server, "ann")
            await sees(events, {"ann": "online", "bob": "online"})
            await second.send(json.dumps({"type": "cursor", "line": 3}))
            while (users := await told(events))[0]["meta"] != {"line": 3}:
                pass
            assert [len(user["connections"]) for user in users] == [2, 1]
            await bob.close()
            await sees(events, {"ann": "online"})
        answer = (await client.get("/documents/1/users")).json()
        assert [(user["user"], user["status"], user["meta"]) for user in answer] == [("ann", "online", {"line": 3})]
        assert (await client.get("/documents/2/users")).json() == []
        for socket in (ann, second):
            await socket.close()
        await until(lambda: "ann closed document:1\n" in server.output)
        output = [line for line in server.output if "document:1" in line and "/" not in line]
        assert sorted(output) == sorted(
            f"{name} {what} document:1\n" for name in ("ann", "bob") for what in ("opened", "closed")
        )


async def told(events: AsyncIterator[str]) -> list[dict[str, Any]]:
    """The next event of the stream."""
    async for line in events:
        if line.startswith("data: "):
            users: list[dict[str, Any]] = json.loads(line.removeprefix("data: "))
            return users
    raise AssertionError("the stream has ended")


async def sees(events: AsyncIterator[str], expected: dict[str, str]) -> None:
    while {user["user"]: user["status"] for user in await told(events)} != expected:
        pass
