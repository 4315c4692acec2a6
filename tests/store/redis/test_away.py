"""While the server hangs, a whole application on it goes on refusing in time, and afterwards goes on as before."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest

from starlette_realtime import Member, Realtime, RedisStore
from tests.rooms.support import Client, Failed, by_name, connection_options
from tests.support.redis import Server, server
from tests.support.waiting import until

PROMISED = 2.0
"""Seconds within which what can't be published is refused, with the defaults of everything."""

ROOM = "chat:1"


@pytest.fixture
async def hanging(anyio_backend: str) -> AsyncIterator[tuple[Server, Client, Client]]:
    """A server, and two clients of two processes on it, with the default limits and periods."""
    async with server() as redis, AsyncExitStack() as stack:
        clients = []
        for user in ("ann", "bob"):
            store = RedisStore(redis.url, prefix="away")
            realtime = Realtime(authenticate=by_name, store=store, secret="x" * 32, connection=connection_options())
            room = realtime.room("chat:{number:int}", presence=True)

            @room.on("say")
            async def say(member: Member, text: str) -> int:
                return (await member.broadcast("said", text)).offset

            await stack.enter_async_context(realtime)
            client = await stack.enter_async_context(Client(realtime))
            await client.auth(user)
            await client.join(ROOM)
            clients.append(client)
        yield redis, clients[0], clients[1]
        redis.resume()


async def test_an_event_is_refused_in_time_again_and_again_and_made_once_afterwards(
    hanging: tuple[Server, Client, Client],
) -> None:
    redis, ann, bob = hanging
    assert await ann.event("say", "before", ROOM, key="1") == 1
    redis.pause()
    loop = asyncio.get_running_loop()
    for _ in range(3):
        start = loop.time()
        with pytest.raises(Failed) as refused:
            await asyncio.wait_for(ann.event("say", "meanwhile", ROOM, key="2"), 10.0)
        assert refused.value.code == "unavailable"
        assert loop.time() - start < PROMISED * 1.25  # and what the machine takes for itself
    redis.resume()
    again: object = None
    async with asyncio.timeout(30.0):
        while again is None:  # what was refused may have been made: it is known by its key
            with suppress(Failed):
                again = await ann.event("say", "meanwhile", ROOM, key="2")
    assert again == 2
    assert await bob.event("say", "after", ROOM, key="3") == 3
    for client in (ann, bob):
        heard = [frame["data"] for frame in client.take("event") if frame["event"] == "said"]

        def all_heard(client: Client = client, heard: list[object] = heard) -> bool:
            heard += [frame["data"] for frame in client.take("event") if frame["event"] == "said"]
            return len(heard) >= 3

        await until(all_heard)
        assert heard == ["before", "meanwhile", "after"]
