"""Servers that are set back, by less than a lease: what a process has given back meanwhile, it gives back once more."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from starlette_realtime.store.redis import lately
from starlette_realtime.store.redis.lately import Lately
from starlette_realtime.testing import FakeClock
from starlette_realtime.testing.contract.presence import entry, names
from tests.store.redis.load import running
from tests.support.redis import BINARIES, Binary, Server, server
from tests.support.waiting import until

PERIODS = {"lease": 30.0, "beat": 0.2}


@pytest.fixture(params=BINARIES, ids=str)
async def single(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    binary: Binary = request.param
    async with server(binary) as alone:
        yield alone


async def test_whoever_had_left_leaves_again(single: Server) -> None:
    async with running(single, 2, **PERIODS) as (one, two):
        await one.enter("t", [entry("a")])
        await one.enter("other", [entry("a"), entry("b")])
        snapshot = await single.snapshot()
        await one.leave("t", ["a"])
        await one.leave("other", ["a"])
        told: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        one.on_presence(lambda topic, joined, left: told.append((topic, names(joined), names(left))))
        await single.restore(snapshot)

        async def left() -> bool:
            found = [await two.members(topic, limit=9) for topic in ("t", "other")]
            return [names(members.entries) for members in found] == [(), ("b",)]

        async with asyncio.timeout(10.0):
            while not await left():
                await asyncio.sleep(0.02)
        await until(lambda: one.gauges()["presence_mending"] == 0)
        assert told == []  # once was enough
        noted = await single.command("ZRANGE", one._keys.node(one.node, "rooms"), 0, -1)
        assert noted == [b"other"]
        await one.leave("other", ["b"])


async def test_slots_are_those_that_are_held(single: Server) -> None:
    async with running(single, 2, **PERIODS) as (one, two):
        assert await one.admit("k", "released", limit=2)
        assert await one.admit("k2", "released", limit=2)
        snapshot = await single.snapshot()
        await one.release("k", "released")
        await one.release("k2", "released")
        assert await one.admit("k", "taken", limit=2)
        await single.restore(snapshot)

        async def held(key: str) -> set[bytes]:
            return set(await single.command("HKEYS", one._keys.of("slots", key)))

        async with asyncio.timeout(10.0):
            while (await held("k"), await held("k2")) != ({b"taken"}, set()):
                await asyncio.sleep(0.02)
        assert await two.admit("k", "two", limit=2)
        assert not await two.admit("k", "three", limit=2)
        await one.release("k", "taken")
        await two.release("k", "two")


def test_what_was_given_back_is_suspect_over_another_connection() -> None:
    clock, stood = FakeClock(), {b"k": 1.0}
    given = Lately(stood.get, clock=clock, keep=10.0)
    given.add("a", b"k", 1.0)
    given.add("b", b"k", None)
    assert given.suspects() == ["b"]
    del stood[b"k"]
    assert given.suspects() == []  # nobody knows yet
    stood[b"k"] = 2.0
    assert given.suspects() == ["a"]
    assert given.suspects() == []


async def test_what_was_given_back_is_forgotten_after_a_while() -> None:
    clock, stood = FakeClock(), {b"k": 1.0}
    given = Lately(stood.get, clock=clock, keep=10.0)
    given.add("a", b"k", 1.0)
    await clock.advance(11.0)
    given.add("b", b"k", 1.0)
    assert given.suspects() == []
    stood[b"k"] = 2.0
    assert given.suspects() == ["b"]
    given.add("b", b"k", 1.0)
    given.clear()
    assert given.suspects() == []


def test_only_the_latest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lately, "NAMES", 2)
    given = Lately(lambda key: 2.0, clock=FakeClock(), keep=10.0)
    for name in ("a", "b", "c", "b"):
        given.add(name, b"k", 1.0)
    assert given.suspects() == ["c", "b"]
