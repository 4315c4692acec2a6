"""Presence over several processes, through dead and frozen ones, and while the store is away."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from starlette_realtime import MemoryStore, StoreError
from starlette_realtime.messages import Entry
from starlette_realtime.testing import settle
from tests.presence.support import clock_of, present, processes


async def test_a_user_on_two_processes_is_one() -> None:
    async with processes(2) as (one, two):
        async with one.peer("ann") as first:
            await present(first)
            async with two.peer("ann") as second:
                await present(second)
                await second.send({"status": "away"})
                await second.receive_json()
                assert await one.who() == await two.who() == {"ann": "online 2"}
        await settle()
        assert await one.who() == {}
        assert (one.told, two.told) == (["+ann plan", "-ann plan"], [])


async def test_who_comes_back_on_another_process_was_never_gone() -> None:
    async with processes(2) as (one, two):
        first = one.peer("ann")
        await first.connect()
        await present(first)
        await first.lose()
        async with two.peer("ann") as second:
            await present(second)
            await clock_of(one).advance(10.0)
            assert await one.who() == {"ann": "online 1"}
        await settle()
        assert (one.told, two.told) == (["+ann plan"], ["-ann plan"])


async def test_who_was_on_a_dead_process_leaves_once() -> None:
    async with (
        processes(3) as (one, two, dead),
        one.peer("ann") as here,
        dead.peer("ann") as there,
        dead.peer("bob") as bob,
    ):
        for peer in (here, there, bob):
            await present(peer)
        dead.store.faults.kill()
        await clock_of(one).advance(20.0)
        assert await one.who() == {"ann": "online 1"}
        assert one.told + two.told == ["+ann plan", "-bob plan"]
        assert dead.told == ["+bob plan"]


async def test_a_frozen_process_comes_back_with_its_users() -> None:
    async with processes(2) as (one, frozen):
        async with frozen.peer("ann") as ann:
            await present(ann)
            frozen.store.faults.stall()
            await clock_of(one).advance(20.0)
            assert await one.who() == {}
            frozen.store.faults.resume()
            await clock_of(one).advance(10.0)
            assert await one.who() == {"ann": "online 1"}
            assert one.told == ["-ann plan"]
            assert frozen.told == ["+ann plan", "+ann plan"]
        await settle()
        assert await one.who() == {}
        assert frozen.told[-1] == "-ann plan"


async def test_an_endpoint_works_while_the_store_is_away_and_is_present_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with processes(2) as (one, two):
        one.store.faults.stall()
        async with one.peer("ann") as ann, one.peer("bob") as bob:
            await clock_of(one).advance(3.0)
            for peer in (ann, bob):
                await present(peer)
            await ann.send({"status": "away"})
            assert await ann.receive_json() == "set"  # at once: it is known that the store is away
            await bob.disconnect()
            assert await two.who() == {}
            one.store.faults.resume()
            await clock_of(one).advance(6.0)
            assert await two.who() == {"ann": "away 1"}
        await settle()
        assert await two.who() == {}
        assert [told for told in one.told if "ann" in told] == ["+ann plan", "-ann plan"]
        assert one.told.count("+bob plan") == one.told.count("-bob plan")  # a request was under way
    assert caplog.text.count("can't be told who is present") == caplog.text.count("the store is back") == 1


async def test_who_leaves_while_the_store_is_away_is_gone_when_it_is_back() -> None:
    async with processes(2) as (one, two):
        ann = one.peer("ann")
        await ann.connect()
        await present(ann)
        one.store.faults.stall()
        await ann.disconnect()
        await clock_of(one).advance(3.0)
        assert await two.who() == {"ann": "online 1"}
        one.store.faults.resume()
        await clock_of(one).advance(6.0)
        assert await two.who() == {}
        assert one.told == ["+ann plan", "-ann plan"]


async def test_who_breaks_off_while_the_store_is_away_lingers_all_the_same() -> None:
    async with processes(2) as (one, two):
        one.store.faults.stall()
        ann = one.peer("ann")
        await ann.connect()
        await clock_of(one).advance(3.0)
        await ann.lose()
        one.store.faults.resume()
        await clock_of(one).advance(1.5)
        assert await two.who() == {"ann": "online 1"}
        await clock_of(one).advance(6.0)
        assert await two.who() == {}


async def test_closing_while_the_store_is_away_waits_no_longer_than_the_store(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with processes(2) as (one, two):
        lost, there = one.peer("ann"), one.peer("bob")
        await there.connect()
        await present(there)
        one.store.faults.stall()
        await lost.connect()
        await clock_of(one).advance(3.0)
        await lost.lose()
        await there.send({"status": "away"})
        await clock_of(one).advance(3.0)
        closing = asyncio.ensure_future(one.tracker.__aexit__(None, None, None))
        await clock_of(one).advance(5.0)
        assert closing.done()
        assert one.tracker.gauges()["retries"] == 0
        one.store.faults.resume()
        await one.tracker.__aenter__()
        await there.disconnect()
        await settle()
        assert await two.who() == {}


async def test_a_store_that_breaks_its_promise_is_logged_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    enter, failures = MemoryStore.enter, [KeyError("a bug"), StoreError("and away")]

    async def broken(self: MemoryStore, topic: str, entries: Sequence[Entry]) -> Any:
        if failures:
            raise failures.pop(0)
        return await enter(self, topic, entries)

    monkeypatch.setattr(MemoryStore, "enter", broken)
    async with processes(1) as (process,), process.peer("ann") as ann:
        await present(ann)
        assert await process.who() == {}
        await clock_of(process).advance(1.0)
        assert await process.who() == {"ann": "online 1"}
    assert "something else than a StoreError" in caplog.text


async def test_a_change_during_a_request_is_told_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    enter, gate = MemoryStore.enter, asyncio.Event()

    async def slow(self: MemoryStore, topic: str, entries: Sequence[Entry]) -> Any:
        answer = await enter(self, topic, entries)
        await gate.wait()
        return answer

    monkeypatch.setattr(MemoryStore, "enter", slow)
    async with processes(1) as (process,):
        ann, bob = process.peer("ann"), process.peer("bob")
        await ann.connect()
        await bob.connect()
        await settle()
        bob.leave()
        await bob.cancel()
        gate.set()
        await present(ann)
        assert await process.who() == {"ann": "online 1", "bob": "online 1"}  # cut off: he lingers
        gate.clear()
        await ann.send({"status": "away"})
        await settle()
        await ann.cancel()
        async with process.peer("ann") as again:
            await settle()
            gate.set()
            await present(again)
            assert (await process.who())["ann"] == "online 1"
        await clock_of(process).advance(6.0)
        assert await process.who() == {}
        assert process.told == ["+ann plan", "+bob plan", "-ann plan", "-bob plan"]


async def test_what_the_store_tells_of_other_topics_is_none_of_its_business() -> None:
    async with processes(2) as (one, dead):
        await dead.store.enter("chat:1", [Entry("a", "u:ann", "ann")])
        dead.store.faults.kill()
        await clock_of(one).advance(20.0)
        assert one.told == []
