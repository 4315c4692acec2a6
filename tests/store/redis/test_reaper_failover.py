"""Who is taken for dead by a master that is no longer one: they live with the next one, and are told to."""

from collections import Counter

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis import buried
from starlette_realtime.store.redis.buried import Buried
from starlette_realtime.testing import FakeClock
from starlette_realtime.testing.contract.presence import entry
from tests.store.redis.support import processes
from tests.store.redis.test_presence_failover import SHORT, Log, pair
from tests.support.waiting import until


async def test_whom_a_lost_master_took_for_dead_is_told_to_be_there() -> None:
    async with pair() as servers, processes(servers.old, 2, **SHORT) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("a1", "u:a"), entry("a2", "u:a"))
        await log.enter(two, entry("b"))
        await servers.part()
        servers.move(one)
        await until(lambda: log.balance["u:a"] == 0, within=10.0)
        servers.move(two)
        await until(lambda: log.balance == Counter({"u:a": 1, "u:b": 1}), within=10.0)
        await servers.there(one, members=["a1", "a2", "b"])


async def test_who_is_dead_on_a_lost_master_is_not_cleared_away_on_the_next_one() -> None:
    async with pair() as servers, processes(servers.old, 2, lease=30.0, beat=0.2) as (one, two):
        log = Log(one, two)
        await log.enter(one, entry("a"))
        await servers.part()
        link, reaper, node = two._link, two._process._reaper, one.node
        since = link.steady_since(two._keys.nodes)
        assert since is not None
        servers.move(one, two)
        await until(lambda: link.steady_since(two._keys.nodes) not in (None, since))
        with pytest.raises(StoreError, match="another one by now"):
            await reaper._clear(node, since)
        await servers.there(two, members=["a"])
        assert await servers.new.command("EXISTS", two._keys.node(node, "x")) == 0
        assert node in {each.id for each in await two.nodes()}
        assert log.lines == ["+u:a"]


def test_of_the_dead_the_latest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buried, "USERS", 3)
    clock, stood = FakeClock(), {b"k": 1.0}
    dead = Buried(stood.get, clock=clock, keep=10.0)
    dead.add("t", b"k", 1, 1.0, [entry("a"), entry("b")])
    dead.add("u", b"k", 2, 1.0, [entry("c"), entry("d")])
    assert dead.suspects() == []
    stood[b"k"] = 2.0
    assert [(one.topic, one.number, list(one.users)) for one in dead.suspects()] == [("u", 2, ["u:c", "u:d"])]
    assert dead.suspects() == []


async def test_the_dead_are_forgotten_after_a_while() -> None:
    clock, stood = FakeClock(), {b"k": 1.0}
    dead = Buried(stood.get, clock=clock, keep=10.0)
    dead.add("t", b"k", 1, 1.0, [entry("a")])
    await clock.advance(11.0)
    assert dead.suspects() == []
    stood[b"k"] = 2.0
    assert dead.suspects() == []
