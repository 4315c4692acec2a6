"""Several processes on one store and one clock: clients move from one to the other, and lose nothing."""

import pytest

from starlette_realtime import MemoryStore
from starlette_realtime.testing import Client, FakeClock, Leaks, Processes, get, settle
from tests.testing.support import make_app


async def test_what_one_process_publishes_is_heard_in_the_other() -> None:
    async with (
        Processes(make_app, 2) as (one, two),
        Client(one, "/realtime", token="ann") as ann,
        Client(two, "/realtime", token="bob") as bob,
    ):
        room, other = await ann.join("chat:1"), await bob.join("chat:1")
        await room.send("say", "hello")
        assert (await other.event("said")).data == "hello"
        assert await other.users() == {"ann", "bob"}
        for process in (one, two):
            assert (await get(process, "/rooms")).json() == {"connections": 1}


async def test_a_client_of_a_killed_process_goes_on_at_another() -> None:
    async with Processes(make_app, 2) as processes:
        one, two = processes
        async with Client(one, "/realtime", token="ann") as ann, Client(two, "/realtime", token="bob") as bob:
            room, other = await ann.join("chat:1"), await bob.join("chat:1")
            await other.send("say", "before")
            await one.kill()
            assert (await ann.wait_closed()).code == 1006
            await other.send("say", "meanwhile")
            assert list(processes.alive) == [two]
            with pytest.raises(ConnectionRefusedError):
                await ann.resume()
            await ann.resume(two)
            await other.send("say", "after")
            assert [(await room.event("said")).data for _ in range(3)] == ["before", "meanwhile", "after"]
            await room.nothing("said")


async def test_the_members_of_a_killed_process_are_gone_when_its_lease_is_over() -> None:
    async with (
        Processes(make_app, 2) as (one, two),
        Client(one, "/realtime", token="ann") as ann,
        Client(two, "/realtime", token="bob") as bob,
    ):
        await ann.join("chat:1")
        room = await bob.join("chat:1")
        await one.kill()
        assert await room.users() == {"ann", "bob"}
        clock = two.store.clock
        assert isinstance(clock, FakeClock)
        await clock.advance(20.0)
        assert await room.users() == {"bob"}


async def test_a_process_that_stops_asks_its_clients_to_come_back() -> None:
    async with Processes(make_app, 2) as (one, two), Client(one, "/realtime", token="ann") as ann:
        room = await ann.join("chat:1")
        await one.stop()
        assert (await ann.expect("reconnect"))["reason"] == "draining"
        assert (await ann.wait_closed()).code == 1012
        await ann.resume(two)
        assert room.recovered
        assert await room.users() == {"ann"}
        await one.stop()


async def test_a_frozen_process_is_noticed_by_nobody_and_makes_up_for_it_when_it_thaws() -> None:
    async with (
        Processes(make_app, 2) as (one, two),
        Client(one, "/realtime", token="ann") as ann,
        Client(two, "/realtime", token="bob") as bob,
    ):
        room, other = await ann.join("chat:1"), await bob.join("chat:1")
        one.freeze()
        await other.send("say", "hello")
        await ann.command("event", event="say", data="into the ice", room="chat:1")
        await settle()
        assert ann.closed is None
        await room.nothing()
        one.thaw()
        assert {(await room.event("said")).data for _ in range(2)} == {"hello", "into the ice"}


async def test_a_process_frozen_at_the_end_is_stopped_all_the_same() -> None:
    async with Processes(make_app, 1) as (one,), Client(one, "/realtime", token="ann") as ann:
        await ann.join("chat:1")
        one.freeze()
        await ann.drop()
        one.thaw()
        one.freeze()
    assert not one.alive


async def test_one_more_may_be_started() -> None:
    async with Processes(make_app, 1) as processes:
        (one,) = processes
        async with Client(one, "/realtime", token="ann") as ann:
            room = await ann.join("chat:1")
            more = await processes.start()
            await one.stop()
            await ann.resume(more)
            assert room.recovered
        assert list(processes) == [one, more]
        assert list(processes.alive) == [more]
    assert not more.alive


async def test_the_store_and_the_clock_may_be_given() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock, lease=1.0, beat=0.25, sweep=0.25)
    for given in (None, clock):
        async with Leaks(clock), Processes(make_app, 2, clock=given, store=store) as processes:
            one, two = processes
            assert processes.clock is clock
            assert one.store is store
            assert two.store.backend is store.backend
    with pytest.raises(TypeError, match="fake clock"):
        Processes(make_app, store=MemoryStore())


async def test_a_process_that_does_not_start_stops_those_that_did() -> None:
    started: list[object] = []

    def make(**options: object) -> object:
        if started:
            raise ZeroDivisionError
        started.append(app := make_app(**options))  # type: ignore[arg-type]
        return app

    clock = FakeClock()
    async with Leaks(clock):
        with pytest.raises(ZeroDivisionError):
            async with Processes(make, 2, clock=clock):  # type: ignore[arg-type]
                pytest.fail("it must not get here")
