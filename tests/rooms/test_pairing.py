"""Pairing: whoever is told of by `on_join` is told of by `on_leave`, and the other way round, whatever is lost."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from starlette_realtime import Entry, Member, MemoryStore, Realtime
from starlette_realtime.testing import FakeClock, settle
from tests.rooms.support import Failed, World

Told = list[tuple[str, str | None]]


@asynccontextmanager
async def telling(count: int, first: MemoryStore | None = None) -> AsyncIterator[tuple[Sequence[World], Told]]:
    """So many processes, and whatever they are told of who comes and goes."""
    told = Told()
    first = first or MemoryStore(clock=FakeClock())
    clock = first.clock

    def declare(realtime: Realtime) -> None:
        chat = realtime.room("chat:{room_id:int}", presence=True)

        @chat.on_join
        async def came(member: Member) -> None:
            told.append(("join", member.user))

        @chat.on_leave
        async def went(member: Member) -> None:
            told.append(("leave", member.user))

    async with AsyncExitStack() as stack:
        worlds = []
        for number in range(count):
            world = World(clock=clock, store=first if number == 0 else first.sibling())
            declare(world.realtime)
            worlds.append(await stack.enter_async_context(world))
        yield worlds, told


@pytest.mark.parametrize("first", [{}, {"status": "away"}, {"room": "chat:1", "meta": {"typing": True}}])
async def test_who_was_taken_for_dead_comes_again_whatever_is_written_first(first: dict[str, Any]) -> None:
    async with telling(2) as ((one, two), told):
        ann = await two.enter("ann", "chat:1")
        two.store.faults.stall()
        await one.clock.advance(20.0)
        assert told == [("join", "ann"), ("leave", "ann")]
        if first:
            setting = await ann.command("status", **first)
            await settle()
        two.store.faults.resume()
        if first:
            await ann.answer(setting)
        await one.clock.advance(6.0)
        await settle()
        assert told == [("join", "ann"), ("leave", "ann"), ("join", "ann")]
        assert [entry.user for entry in (await one.realtime.at("chat:1").members()).entries] == ["ann"]
        await ann.peer.disconnect()
        await settle()
        assert told[3:] == [("leave", "ann")]


async def test_a_join_whose_answer_was_lost_comes_and_goes() -> None:
    async with telling(1) as ((world,), told):
        ann = await world.enter("ann")
        world.store.faults.unanswered(1)
        with pytest.raises(Failed, match="unavailable"):
            await ann.join("chat:1")
        await world.clock.advance(20.0)
        await settle()
        assert (await world.realtime.at("chat:1").members()).total == 0
        assert told in ([], [("join", "ann"), ("leave", "ann")])
        await ann.join("chat:1")
        await settle()
        assert [what for what, _ in told].count("join") == [what for what, _ in told].count("leave") + 1


class Forgetful(MemoryStore):
    """A store on which the others have declared this process dead, once: what it writes brings the user anew."""

    forgot = False

    async def enter(self, topic: str, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        arrived = await super().enter(topic, entries)
        forgot, self.forgot = self.forgot, False
        return tuple(entries) if forgot else arrived


async def test_a_status_that_brings_a_user_back_is_an_arrival() -> None:
    store = Forgetful(clock=FakeClock())
    async with telling(1, first=store) as ((world,), told):
        ann = await world.enter("ann", "chat:1")
        store.forgot = True
        await ann.call("status", status="away")
        await settle()
        assert told == [("join", "ann")] * 2


async def test_of_who_came_and_went_unseen_both_are_told() -> None:
    async with telling(1) as ((world,), told):
        entry = Entry("gone", "u:ann")  # of a join that was given up before the store had answered
        world.store._presence_changed("chat:1", (entry,), ())
        world.store._presence_changed("chat:1", (), (entry,))
        await settle()
        assert told == [("join", "ann"), ("leave", "ann")]


async def test_leaving_while_the_store_is_away_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with telling(1) as ((world,), told):
        clients = [await world.enter(f"u{number}", "chat:1") for number in range(5)]
        world.store.faults.stall()
        for client in clients:
            await client.peer.disconnect()
        await world.clock.advance(10.0)
        lines = [record for record in caplog.records if "when the store is back" in record.getMessage()]
        assert len(lines) == 1
        world.store.faults.resume()
        await world.clock.advance(10.0)
        await settle()
        assert sorted(told) == sorted((what, f"u{number}") for what in ("join", "leave") for number in range(5))
