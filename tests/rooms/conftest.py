"""A world with a chat."""

from collections.abc import AsyncIterator

import pytest

from starlette_realtime import Member, Realtime, Room
from tests.rooms.support import World


class Chat:
    """The application of most tests here."""

    def __init__(self, realtime: Realtime) -> None:
        self.room: Room = realtime.room("chat:{room_id:int}", presence=True)
        self.arrivals: list[str | None] = []
        self.departures: list[str | None] = []

        @self.room.on("say")
        async def say(member: Member, text: str) -> int:
            return (await member.broadcast("said", text)).offset

        @self.room.on("say_others")
        async def say_others(member: Member, text: str) -> int:
            return (await member.broadcast("said", text, others_only=True)).offset

        @self.room.on("wave")
        async def wave(member: Member, text: str) -> None:
            await member.broadcast_volatile("waved", text)

        @self.room.on("wave_others")
        async def wave_others(member: Member, text: str) -> None:
            await member.broadcast_volatile("waved", text, others_only=True)

        @self.room.on_join
        async def came(member: Member) -> None:
            self.arrivals.append(member.user)

        @self.room.on_leave
        async def left(member: Member) -> None:
            self.departures.append(member.user)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.chat = Chat(world.realtime)
    async with world:
        yield world
