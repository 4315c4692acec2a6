"""Pacing: a client is told what is left before it runs out, and limits count whom they say they count."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from starlette_realtime import ConfigurationError, Limit, Member, RateLimiter, Realtime
from starlette_realtime.messages import Send
from starlette_realtime.testing import settle
from tests.rooms.support import Client, Failed, World, serving

MUCH = "10000/second"


def declare(realtime: Realtime) -> None:
    chat = realtime.room("chat:{room_id:int}")

    @chat.on("free")
    async def free(member: Member) -> None:
        pass

    @chat.on("named", limit="4/second")
    async def named(member: Member) -> None:
        pass

    @chat.on("shared", limit=Limit("2/minute", by="user", shared=True))
    async def shared(member: Member) -> None:
        pass

    @chat.on("priced", limit=Limit("10/second", cost=lambda command: len(bytes(command.data))))
    async def priced(member: Member, text: str) -> None:
        pass

    @chat.on("say")
    async def say(member: Member, text: str) -> int:
        return (await member.broadcast("said", text)).offset

    @chat.on("twice")
    async def twice(member: Member) -> None:
        await member.broadcast("said", "once")
        await member.send_to_user("bob", "said", "twice")

    @chat.on("wave")
    async def wave(member: Member) -> None:
        await member.broadcast_volatile("waved")

    @chat.on_join
    async def arrived(member: Member) -> None:
        await member.broadcast("arrived", member.user)


@asynccontextmanager
async def world_with(**options: Any) -> AsyncIterator[World]:
    limiter = RateLimiter(**{"frames": MUCH, "joins": MUCH, "publishes": (), "connections_per_user": None, **options})
    async with serving(declare, limiter=limiter) as world:
        yield world


async def event(client: Client, name: str, data: object = None, **fields: Any) -> Any:
    return await client.call("event", room="chat:1", event=name, data=data, **fields)


async def limits(client: Client) -> list[Any]:
    await settle()
    return [{key: value for key, value in frame.items() if key != "type"} for frame in client.take("limits")]


async def test_a_client_hears_what_is_left_when_that_is_little() -> None:
    async with world_with(frames=Limit("20/second", burst=40)) as world:
        ann = await world.enter("ann", "chat:1")
        await world.clock.advance(10.0)
        for _ in range(30):
            await event(ann, "free")
        assert await limits(ann) == []
        await event(ann, "free")
        assert await limits(ann) == [{"remaining": 9, "retry_after": 0.0}]
        for _ in range(9):
            await event(ann, "free")
        assert await limits(ann) == []  # once a second is enough
        with pytest.raises(Failed) as failed:
            await event(ann, "free")
        assert failed.value.error["retry_after"] == pytest.approx(0.05)
        await world.clock.advance(1.0)
        for _ in range(20):
            await event(ann, "free")
        (told,) = await limits(ann)
        assert told["remaining"] == 9


async def test_a_named_limit_names_its_event_and_when_nothing_is_left_says_how_long() -> None:
    async with world_with() as world:
        ann = await world.enter("ann", "chat:1")
        for _ in range(4):
            await event(ann, "named")
        (told,) = await limits(ann)
        assert told == {"event": "named", "remaining": 0, "retry_after": pytest.approx(0.25)}
        with pytest.raises(Failed) as failed:
            await event(ann, "named")
        assert failed.value.code == "rate_limited"
        await event(ann, "free")
        other = await world.enter("ann", "chat:1")
        await event(other, "named")  # another connection has limits of its own


async def test_a_limit_by_user_counts_all_of_their_connections() -> None:
    async with world_with() as world:
        one, two = await world.enter("ann", "chat:1"), await world.enter("ann", "chat:1")
        await event(one, "shared")
        await event(two, "shared")
        for client in (one, two):
            with pytest.raises(Failed) as failed:
                await event(client, "shared")
            assert failed.value.code == "rate_limited"
        await event(await world.enter("bob", "chat:1"), "shared")


async def test_a_cost_is_what_the_event_makes_of_it() -> None:
    async with world_with() as world:
        ann = await world.enter("ann", "chat:1")
        await event(ann, "priced", "12345")  # 7 bytes with its quotes
        with pytest.raises(Failed) as failed:
            await event(ann, "priced", "12")
        assert failed.value.error["retry_after"] == pytest.approx(0.1)
        with pytest.raises(Failed) as failed:
            await event(ann, "priced", "1234567890")
        assert (failed.value.code, failed.value.error.get("retry_after")) == ("too_expensive", None)


async def test_what_a_user_publishes_is_limited_on_all_connections_together() -> None:
    async with world_with(publishes=Limit("3/second", by="user", shared=True)) as world:
        one, two = await world.enter("ann", "chat:1"), await world.enter("ann", "chat:1")
        for client, text in ((one, "1"), (two, "2"), (one, "3")):
            await event(client, "say", text)
        with pytest.raises(Failed) as failed:
            await event(two, "say", "4")
        assert failed.value.code == "rate_limited"
        assert 0 < failed.value.error["retry_after"] <= 1.01
        await event(two, "wave")  # volatile events are not kept, and cost the store nothing
        await event(await world.enter("bob", "chat:1"), "say", "5")
        await world.clock.advance(1.1)
        await event(two, "say", "4")
        assert await one.heard("said") == ["1", "2", "3", "5", "4"]


async def test_a_second_publication_that_is_refused_leaves_the_first_and_a_retry_by_key_repeats_nothing() -> None:
    async with world_with(publishes=Limit("3/second", by="user", shared=True)) as world:
        ann, bob = await world.enter("ann", "chat:1"), await world.enter("bob")
        await event(ann, "say", "1")
        await event(ann, "say", "2")
        with pytest.raises(Failed):
            await event(ann, "twice", key="k")
        await world.clock.advance(2.0)
        await event(ann, "twice", key="k")
        assert await ann.heard("said") == ["1", "2", "once"]
        assert await bob.heard("said") == ["twice"]


async def test_what_the_server_publishes_is_not_limited() -> None:
    async with world_with(publishes=Limit("1/minute", by="user", shared=True)) as world:
        for user in ("ann", "bob", "cleo"):
            await world.enter(user, "chat:1")  # each is told of by on_join
        for number in range(20):
            await world.realtime.at("chat:1").broadcast("said", number)


async def test_handlers_of_rooms_with_the_same_event_count_apart() -> None:
    def more(realtime: Realtime) -> None:
        for pattern in ("one", "two"):
            room = realtime.room(pattern)

            @room.on("ping", limit=Limit("1/minute", by="user", shared=True))
            async def ping(member: Member) -> None:
                pass

    async with serving(more, limiter=RateLimiter(frames=MUCH)) as world:
        ann = await world.enter("ann", "one", "two")
        await ann.call("event", room="one", event="ping")
        await ann.call("event", room="two", event="ping")
        with pytest.raises(Failed):
            await ann.call("event", room="one", event="ping")


async def test_a_cost_function_that_fails_is_an_error_of_the_server_and_the_connection_lives() -> None:
    def cost(command: Any) -> float:
        if isinstance(command, Send) and command.event == "named":
            raise RuntimeError("a bug in the application")
        return 1.0

    async with world_with(frames=Limit("100/second", cost=cost)) as world:
        ann = await world.enter("ann", "chat:1")
        with pytest.raises(Failed) as failed:
            await event(ann, "named")
        assert failed.value.code == "internal"
        await event(ann, "free")


def test_a_publication_costs_a_number() -> None:
    with pytest.raises(ConfigurationError, match="costs a number"):
        RateLimiter(publishes=Limit("10/second", by="user", cost=len))
