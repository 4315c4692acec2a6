"""The wire protocol's client in Python, as it stands in the documentation, against a server and over broken links."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from starlette_realtime import History, Member, Realtime, SignedTokens
from tests.support.proxy import Proxy
from tests.support.server import serve

PAGE = Path(__file__).parent.parent / "docs" / "wire-protocol.md"

Listen = Callable[[str, Callable[[], str], str], AsyncIterator[Any]]


@pytest.fixture
def listen() -> Listen:
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    page: dict[str, Any] = {}
    exec(compile(source, PAGE.name, "exec"), page)
    found: Listen = page["listen"]
    return found


async def test_it_misses_nothing_over_a_broken_link_and_says_so_where_it_must(listen: Listen) -> None:
    tokens = SignedTokens("a secret of the tests alone")
    realtime = Realtime(authenticate=tokens)
    app = FastAPI(lifespan=realtime.lifespan)
    app.mount("/realtime", realtime)
    chat = realtime.room("chat:{room_id:int}", history=History(size=3, ttl=60.0))
    room = chat.at(room_id=1)
    joined = asyncio.Event()

    @chat.on_join
    async def arrived(member: Member) -> None:
        joined.set()

    async with serve(app) as server, Proxy("127.0.0.1", server.port) as proxy:
        heard = listen(f"ws://127.0.0.1:{proxy.port}/realtime/ws", lambda: tokens.issue("ann"), "chat:1")
        first = asyncio.ensure_future(anext(heard))
        await asyncio.wait_for(joined.wait(), 5.0)
        await room.broadcast("message", 1)
        assert await first == 1
        for missed, expected in (([2, 3], [2, 3]), ([4, 5, 6, 7], [None])):
            proxy.cut()
            for number in missed:
                await room.broadcast("message", number)
            proxy.restore()
            assert [await anext(heard) for _ in expected] == expected
        await room.broadcast("message", 8)
        assert await anext(heard) == 8
        assert proxy.connections >= 3


async def test_it_ends_where_the_server_refuses(listen: Listen) -> None:
    tokens = SignedTokens("a secret of the tests alone")
    realtime = Realtime(authenticate=tokens)
    app = FastAPI(lifespan=realtime.lifespan)
    app.mount("/realtime", realtime)
    locked = realtime.room("locked")

    @locked.authorize
    async def nobody(member: Member) -> bool:
        return False

    async with serve(app) as server:
        url = f"ws://127.0.0.1:{server.port}/realtime/ws"
        with pytest.raises(RuntimeError, match="not allowed"):
            await anext(listen(url, lambda: tokens.issue("ann"), "locked"))
        with pytest.raises(RuntimeError):
            await anext(listen(url, lambda: "no token", "locked"))
