"""Repeats: an event that a client sends again with its key is published once, whoever publishes and wherever."""

import asyncio
from contextlib import suppress
from typing import Any

from starlette_realtime import Connection, Member, RateLimited, RateLimiter, Realtime
from starlette_realtime.testing import settle
from tests.rooms.support import Client, World, serving

MUCH = "10000/second"


async def stored(world: World, name: str) -> list[Any]:
    """What a room keeps."""
    return [bytes(event.data) for event in (await world.realtime.at(name).history()).events]


async def repeat(client: Client, event: str, data: Any = None, *, room: str | None = None) -> None:
    """Send an event twice with one key, as a client does whose first answer was lost."""
    for _ in range(2):
        await client.event(event, data, room=room, key="k1")


async def test_what_a_connections_own_handler_publishes_is_published_once() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}")

        @realtime.on("post")
        async def post(connection: Connection, text: str) -> None:
            await realtime.at("chat:1").broadcast("said", text)
            await realtime.at("chat:1").broadcast("said", text + "!")
            await realtime.send_to_user("bob", "told", text)

    async with serving(declare) as world:
        bob = await world.enter("bob", "chat:1")
        ada = await world.enter("ada")
        await repeat(ada, "post", "hello")
        assert await bob.heard() == ["hello", "hello!", "hello"]
        await ada.event("post", "hello", room=None, key="k2")  # another event, which says the same
        assert await stored(world, "chat:1") == [b'"hello"', b'"hello!"'] * 2
        assert await bob.heard("told") == ["hello"]


async def test_a_member_and_a_view_of_its_room_do_not_take_each_others_numbers() -> None:
    def declare(realtime: Realtime) -> None:
        chat = realtime.room("chat:{room_id:int}")

        @chat.on("post")
        async def post(member: Member) -> None:
            await member.broadcast("said", "by the member")
            await realtime.at("chat:1").broadcast("said", "by the server")
            await realtime.at("chat:2").broadcast("said", "elsewhere")

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1")
        await repeat(ada, "post", room="chat:1")
        assert await stored(world, "chat:1") == [b'"by the member"', b'"by the server"']
        assert await stored(world, "chat:2") == [b'"elsewhere"']


async def test_what_a_handler_leaves_to_a_task_is_that_tasks_own() -> None:
    tasks: list[asyncio.Task[None]] = []

    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}")

        async def later(text: str) -> None:
            await realtime.at("chat:1").broadcast("said", text)

        @realtime.on("post")
        async def post(connection: Connection, text: str) -> None:
            tasks.append(asyncio.ensure_future(later(text)))

    async with serving(declare) as world:
        ada = await world.enter("ada")
        await repeat(ada, "post", "progress")
        await asyncio.gather(*tasks)
        assert await stored(world, "chat:1") == [b'"progress"'] * 2


async def test_an_event_without_a_key_is_a_new_one_each_time() -> None:
    def declare(realtime: Realtime) -> None:
        realtime.room("chat:{room_id:int}")

        @realtime.on("post")
        async def post(connection: Connection, text: str) -> None:
            await realtime.at("chat:1").broadcast("said", text)

    async with serving(declare) as world:
        ada = await world.enter("ada")
        for _ in range(2):
            await ada.event("post", "again", room=None)
        assert await stored(world, "chat:1") == [b'"again"'] * 2


async def test_a_publication_that_is_refused_has_its_number_too() -> None:
    saved = asyncio.Event()

    def declare(realtime: Realtime) -> None:
        chat = realtime.room("chat:{room_id:int}")

        @chat.on("post")
        async def post(member: Member, text: str) -> None:
            with suppress(RateLimited):
                await member.send_to_user("bob", "told", text)
            await saved.wait()  # it takes long enough for there to be something left again
            await member.broadcast("said", text)

        @chat.on("spend")
        async def spend(member: Member) -> None:
            await member.broadcast("spent")

    limiter = RateLimiter(frames=MUCH, joins=MUCH, publishes="1/second", connections_per_user=None)
    async with serving(declare, limiter=limiter) as world:
        ada = await world.enter("ada", "chat:1")
        await ada.event("spend")
        for _ in range(2):
            saved.clear()
            posting = await ada.command("event", event="post", room="chat:1", data="x", key="k1")
            await settle()
            await world.clock.advance(3.0)
            saved.set()
            await ada.answer(posting)
            await world.clock.advance(3.0)
        assert await ada.heard("said") == ["x"]


async def test_publications_side_by_side_have_their_numbers_by_their_order() -> None:
    def declare(realtime: Realtime) -> None:
        chat = realtime.room("chat:{room_id:int}")

        @chat.on("post")
        async def post(member: Member) -> None:
            await asyncio.gather(*(member.broadcast("said", n) for n in range(4)))

    async with serving(declare) as world:
        ada = await world.enter("ada", "chat:1")
        await repeat(ada, "post", room="chat:1")
        assert await stored(world, "chat:1") == [b"0", b"1", b"2", b"3"]
