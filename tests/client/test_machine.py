"""Cuts against sends: whatever happens to the link, everything arrives exactly once, in order, at everybody."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_realtime import History, Member, Position, Realtime, SignedTokens
from starlette_realtime.client import Event, Room, connect
from starlette_realtime.testing import AppOpener, FakeClock, Link, settle

PARTS = st.integers(1, 6)


class SendingMachine(RuleBasedStateMachine):
    """Two clients in one room, each on its own bad link; their readers lag behind a small inbox."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.count = 0
        self.sent: tuple[list[int], list[int]] = ([], [])
        self.futures: list[asyncio.Future[Position]] = []
        self.heard: tuple[list[int], list[int]] = ([], [])
        self.run(self._start())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.runner.run(work)

    async def _start(self) -> None:
        tokens = SignedTokens("a secret of the tests alone", clock=self.clock)
        self.realtime = Realtime(authenticate=tokens, clock=self.clock)
        chat = self.realtime.room("chat", history=History(size=5_000, ttl=86_400.0))
        self.room = chat.at()

        @chat.on("message")
        async def message(member: Member, data: int) -> Position:
            return await member.broadcast("message", data)

        app = Starlette(routes=[Mount("/realtime", self.realtime)])
        await self.realtime.__aenter__()
        self.links = (Link(clock=self.clock), Link(clock=self.clock))

        async def token() -> str:
            return tokens.issue("ann")

        self.clients = tuple(
            connect(
                "http://testserver/realtime",
                token=token,
                clock=self.clock,
                inbox=4,
                opener=AppOpener(app, link=link),
                random=lambda: 0.5,
            )
            for link in self.links
        )
        self.rooms: list[Room] = []
        for client in self.clients:
            await client.__aenter__()
            self.rooms.append(await client.join("chat"))

    @rule(who=st.integers(0, 1), count=PARTS)
    def send(self, who: int, count: int) -> None:
        async def work() -> None:
            for _ in range(count):
                self.count += 1
                self.sent[who].append(self.count)
                self.futures.append(self.rooms[who].send("message", self.count, returns=Position))

        self.run(work())

    @rule(who=st.integers(0, 1), spins=st.integers(0, 12))
    def cut(self, who: int, spins: int) -> None:
        async def work() -> None:
            for _ in range(spins):
                await asyncio.sleep(0)
            self.links[who].cut()

        self.run(work())

    @rule(who=st.integers(0, 1))
    def half_open(self, who: int) -> None:
        async def work() -> None:
            self.links[who].half_open()

        self.run(work())

    @rule(who=st.integers(0, 1))
    def restore(self, who: int) -> None:
        async def work() -> None:
            self.links[who].restore()
            await settle()

        self.run(work())

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0]))
    def wait(self, seconds: float) -> None:
        self.run(self.clock.advance(seconds))

    @rule(who=st.integers(0, 1), count=PARTS)
    def read(self, who: int, count: int) -> None:
        self.run(self._read(who, count))

    async def _read(self, who: int, count: int) -> None:
        await settle()
        for _ in range(count):
            step = asyncio.ensure_future(anext(aiter(self.rooms[who])))
            await settle()
            if not step.done():
                step.cancel()
                return
            event = step.result()
            assert isinstance(event, Event), event
            self.heard[who].append(event.data)

    def teardown(self) -> None:
        try:
            self.run(self._end())
        finally:
            self.runner.close()

    async def _end(self) -> None:
        for link in self.links:
            link.restore()
        # Progress: with the network back, all of it gets through, before anything becomes uncertain.
        await self.clock.until(lambda: all(future.done() for future in self.futures), within=80.0)
        assert [future.exception() for future in self.futures if future.exception() is not None] == []
        truth = await self._history()
        assert sorted(truth) == list(range(1, self.count + 1)), "exactly once"
        for mine in self.sent:
            assert [number for number in truth if number in mine] == mine, "in order"
        for who in (0, 1):
            for _ in range(300):
                await self._read(who, 6)
                if len(self.heard[who]) >= len(truth):
                    break
                await self.clock.advance(1.0)
            assert self.heard[who] == truth
        for client in self.clients:
            await client.close()
        await self.realtime.__aexit__(None, None, None)
        assert len(asyncio.all_tasks()) == 1

    async def _history(self) -> list[int]:
        page = await self.room.history(limit=100)
        events = list(page.events)
        while page.more:
            page = await self.room.history(limit=100, before=page.events[0].position)
            events = [*page.events, *events]
        return [msgspec.json.decode(event.data, type=int) for event in events]


def test_everything_arrives_exactly_once_in_order_whatever_happens_to_the_links() -> None:
    run_state_machine_as_test(SendingMachine, settings=settings(max_examples=60, stateful_step_count=30))
