"""Kicks across processes: they hold where nobody listened yet, and in rooms that keep nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime import Member, MemoryStore, Realtime
from starlette_realtime.messages import History, Page
from starlette_realtime.testing import FakeClock, settle
from tests.rooms.support import Client, Failed, World

ROOMS = [None, History(), History(size=2, ttl=60.0)]


class Door:
    """Two processes with a room, and what its `authorize` says."""

    def __init__(self, history: History | None) -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        self.clock = clock
        self.here, self.there = World(clock=clock, store=store), World(clock=clock, store=store.sibling())
        self.asked = 0
        self.banned: set[str | None] = set()
        self.open = asyncio.Event()
        for world in (self.here, self.there):
            self._declare(world.realtime, history)

    def _declare(self, realtime: Realtime, history: History | None) -> None:
        room = realtime.room("live", history=history)

        @room.authorize
        async def may(member: Member) -> bool:
            self.asked += 1
            answer = member.user not in self.banned
            await self.open.wait()
            return answer

        @room.on("shout")
        async def shout(member: Member, text: str) -> None:
            await member.broadcast_volatile("shouted", text)

    async def joining(self) -> tuple[Client, int]:
        """Bob, who waits for the answer."""
        bob = await self.here.enter("bob")
        number = await bob.command("join", room="live")
        await settle()
        return bob, number


@asynccontextmanager
async def door(history: History | None) -> AsyncIterator[Door]:
    door = Door(history)
    async with door.here, door.there:
        yield door


@pytest.mark.parametrize("history", ROOMS)
async def test_a_kick_elsewhere_holds_for_whoever_is_about_to_join(history: History | None) -> None:
    async with door(history) as it:
        bob, number = await it.joining()
        it.banned.add("bob")
        await it.there.realtime.at("live").kick(user="bob")
        it.open.set()
        with pytest.raises(Failed) as failed:
            await bob.answer(number)
        assert failed.value.code == "forbidden"
        await it.there.realtime.at("live").broadcast_volatile("shouted", "secret")
        assert await bob.heard() == []
        assert it.asked == 2


@pytest.mark.parametrize("history", ROOMS)
async def test_who_may_come_back_after_a_kick_comes_in(history: History | None) -> None:
    async with door(history) as it:
        bob, number = await it.joining()
        await it.there.realtime.at("live").kick(user="bob")
        it.open.set()
        await bob.answer(number)
        await it.there.realtime.at("live").broadcast_volatile("shouted", "welcome")
        assert await bob.heard() == ["welcome"]


@pytest.mark.parametrize("history", [None, History()])
async def test_a_kick_of_somebody_else_asks_nobody_again(history: History | None) -> None:
    async with door(history) as it:
        bob, number = await it.joining()
        await it.there.realtime.at("live").kick(user="eve")
        it.open.set()
        await bob.answer(number)
        assert it.asked == 1


async def test_who_joins_where_others_are_is_asked_once() -> None:
    async with door(None) as it:
        it.open.set()
        await it.here.enter("ada", "live")
        await it.there.realtime.at("live").kick(user="bob")
        await it.here.enter("bob", "live")
        assert it.asked == 2


async def test_a_kick_that_a_busy_rooms_history_no_longer_shows_is_held_for_possible() -> None:
    async with door(History()) as it:
        bob, number = await it.joining()
        it.banned.add("bob")
        room = it.there.realtime.at("live")
        await room.kick(user="bob")
        for _ in range(100):
            await room.broadcast("said", "x")
        it.open.set()
        with pytest.raises(Failed):
            await bob.answer(number)


async def test_a_history_that_reaches_back_far_enough_asks_nobody_again() -> None:
    async with door(History()) as it:
        room = it.there.realtime.at("live")
        for _ in range(100):
            await room.broadcast("said", "x")
            await it.clock.advance(0.1)
        bob, number = await it.joining()
        it.open.set()
        await bob.answer(number)
        assert it.asked == 1


async def test_an_answer_that_took_longer_than_kicks_are_kept_is_asked_for_again() -> None:
    async with door(None) as it:
        bob, number = await it.joining()
        it.banned.add("bob")
        await it.there.realtime.at("live").kick(user="bob")
        await it.clock.advance(61.0)
        it.open.set()
        with pytest.raises(Failed):
            await bob.answer(number)


async def test_a_kick_in_a_room_that_keeps_nothing_survives_a_lost_delivery() -> None:
    async with door(None) as it:
        it.open.set()
        bob = await it.here.enter("bob", "live")
        it.here.store.faults.drop(1)
        await it.there.realtime.at("live").kick(user="bob", code="muted")
        await settle()
        assert bob.take("left") == []
        await it.clock.advance(11.0)
        assert [frame["code"] for frame in bob.take("left")] == ["muted"]


async def test_a_room_that_keeps_nothing_tells_no_position_after_a_kick() -> None:
    async with door(None) as it:
        it.open.set()
        bob = await it.here.enter("bob", "live")
        await it.there.realtime.at("live").kick(user="eve")
        await settle()
        assert (await bob.join("live")).get("position") is None
        assert (await it.there.realtime.at("live").history()).events == ()


async def test_a_store_that_goes_away_before_the_kicks_are_looked_for_refuses_for_now() -> None:
    async with door(None) as it:
        bob, number = await it.joining()
        page = it.here.store.page

        async def away(*args: object, **options: object) -> Page:
            it.here.store.faults.stall()
            return await page(*args, **options)  # type: ignore[arg-type]

        it.here.store.page = away  # type: ignore[method-assign]
        it.open.set()
        await settle()
        await it.clock.advance(2.1)
        with pytest.raises(Failed) as failed:
            await bob.answer(number)
        assert failed.value.code == "unavailable"
        it.here.store.page = page  # type: ignore[method-assign]
        it.here.store.faults.resume()
        await it.clock.advance(3.0)
        await bob.join("live")
