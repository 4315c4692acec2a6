"""A thousand connections come, join, speak and go, in every way that a connection can end: nothing of them stays."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from starlette_realtime import (
    CLOSE_CODES,
    Connection,
    ConnectionOptions,
    History,
    Member,
    MemoryStore,
    Realtime,
    Refused,
    RoomsOptions,
)
from starlette_realtime.testing import FakeClock, Rejected, settle
from tests.rooms.support import Client, World

EACH = 25
"""Connections that end in each way: there are over forty."""

FEW = 6
"""The same where one way is looked at."""

SHORT = History(size=8, ttl=2.0)


class App:
    """Handlers for every way to go wrong."""

    def __init__(self, realtime: Realtime) -> None:
        self.seen: list[weakref.ref[Connection]] = []
        room = realtime.room("chat:{room_id:int}", presence=True, history=SHORT, linger=0.5)
        slow = realtime.room("slow:{room_id:int}", presence=True, history=SHORT, linger=0.5)
        closed = realtime.room("closed")

        @slow.authorize
        async def wait_for_ever(member: Member) -> bool:
            await asyncio.Event().wait()
            return True

        @closed.authorize
        async def break_(member: Member) -> bool:
            raise RuntimeError("no")

        @room.on("say")
        async def say(member: Member, text: str) -> None:
            await member.broadcast("said", text)
            await member.broadcast_volatile("waved", text, others_only=True)
            await member.send_to_user(str(member.user), "mail", text)

        @room.on("fail")
        async def fail() -> None:
            raise RuntimeError("no")

        @room.on("ask")
        async def ask(member: Member) -> Any:
            return await member.request("question")

        @room.on("wait")
        async def wait() -> None:
            await asyncio.Event().wait()

        @room.on("flood")
        async def flood(member: Member) -> None:
            for _ in range(100):
                await member.send("flooded", "x" * 1_000)

        @room.on_leave
        async def left(member: Member) -> None:
            await member.broadcast("left", member.user)

        @realtime.on("close")
        async def close(connection: Connection, code: int) -> None:
            connection.close(code, retry_after=1.0)

        @realtime.on_connect
        async def connected(connection: Connection) -> None:
            if connection.user == "banned":
                raise Refused("forbidden")
            if connection.user == "bug":
                raise RuntimeError("no")

        @realtime.on_disconnect
        async def disconnected(connection: Connection) -> None:
            if connection.user == "u1":
                raise RuntimeError("no")

        authenticate = realtime._rooms.opened

        def opened(connection: Connection, **options: Any) -> None:
            self.seen.append(weakref.ref(connection))
            authenticate(connection, **options)

        realtime._rooms.opened = opened  # type: ignore[method-assign]


def make_world() -> World:
    clock = FakeClock()
    store = MemoryStore(clock=clock, forget=5.0, forget_joined=2.0, dedupe=3.0, lease=1.5, beat=0.5, sweep=0.3)
    world = World(
        clock=clock,
        store=store,
        options=RoomsOptions(user_history=SHORT),
        connection=ConnectionOptions(
            heartbeat=20.0,
            grace=5.0,
            auth_timeout=2.0,
            outbox_bytes=50_000,
            outbox_entries=50,
            send_timeout=3.0,
            handler_grace=0.5,
            request_timeout=1.0,
            inbox=4,
        ),
        origins=["https://allowed.example"],
    )
    world.chat = App(world.realtime)
    return world


@pytest.fixture(autouse=True)
def _without_logs() -> Iterator[None]:
    """What is logged with a traceback is held by pytest until the test's end, and all of its frames with it."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with make_world() as world:
        yield world


async def speakers(world: World, count: int, life: str = "") -> list[Client]:
    """Clients that joined two rooms and spoke."""
    clients = []
    for number in range(count):
        client = await world.enter(f"u{number % 5}{life}", f"chat:{number % 7}", "chat:99")
        await client.event("say", "hello", "chat:99", key=f"k{number}")
        clients.append(client)
    return clients


async def strangers(world: World, count: int) -> list[Client]:
    """Clients that did not authenticate."""
    return [await world.client().__aenter__() for _ in range(count)]


Way = Callable[[World, int], Awaitable[None]]
WAYS: dict[str, Way] = {}


def way(fn: Way) -> Way:
    WAYS[fn.__name__] = fn
    return fn


@way
async def with_a_close_frame(world: World, count: int) -> None:
    for number, client in enumerate(await speakers(world, count)):
        await client.peer.disconnect((1000, 1001, 1005, 4000)[number % 4])


@way
async def cut_off(world: World, count: int) -> None:
    for client in await speakers(world, count):
        await client.peer.lose()


@way
async def cut_off_and_back(world: World, count: int) -> None:
    clients = await speakers(world, count)
    for client in clients[: count // 2]:
        await client.peer.lose()
        again = await world.enter(client.user, session=client.session)
        await again.join("chat:99", since={"epoch": "x", "offset": 1, "id": "y"})
        clients.append(again)
    for client in clients:
        client.peer.leave(1006)


@way
async def taken_over(world: World, count: int) -> None:
    client, *_ = await speakers(world, 1)
    for _ in range(count):
        client = await world.enter(client.user, "chat:99", session=client.session)
    await client.peer.lose()


def closed_with(code: int) -> Way:
    async def closed(world: World, count: int) -> None:
        for client in await speakers(world, count):
            await client.command("event", event="close", data=code)
            assert (await client.closed()).code == code

    return closed


for code in CLOSE_CODES:
    WAYS[f"closed_with_{code}"] = closed_with(code)


@way
async def kicked(world: World, count: int) -> None:
    clients = await speakers(world, count)
    for number in range(5):
        await world.realtime.at("chat:99").kick(user=f"u{number}")
    await clients[0].join("chat:99")
    for client in clients:
        await client.peer.lose()


@way
async def disconnected(world: World, count: int) -> None:
    clients = await speakers(world, count)
    for number in range(5):
        await world.realtime.disconnect_user(f"u{number}")
    for client in clients:
        await client.closed()


@way
async def expired(world: World, count: int) -> None:
    end = world.clock.now() - 1_000.0 + 2.0
    clients = await speakers(world, count, life=f"+{end}")
    await world.clock.advance(3.0)
    for client in clients:
        assert (await client.closed()).code == 4401


@way
async def silent(world: World, count: int) -> None:
    clients = await speakers(world, count)
    await world.clock.advance(26.0)
    for client in clients:
        assert (await client.closed()).code == 4408


@way
async def never_authenticated(world: World, count: int) -> None:
    clients = await strangers(world, count)
    await world.clock.advance(2.5)
    for client in clients:
        assert (await client.closed()).code == 4404


@way
async def gone_before_auth(world: World, count: int) -> None:
    for client in await strangers(world, count):
        await client.peer.lose()


@way
async def badly_authenticated(world: World, count: int) -> None:
    for number, client in enumerate(await strangers(world, count)):
        await client.command("auth", token=("+", "banned", "bug")[number % 3])
        await client.closed()


@way
async def refused_at_the_door(world: World, count: int) -> None:
    for number in range(count):
        headers = [("authorization", "Bearer ")] if number % 2 else []
        client = world.client(headers=headers, origin=None if number % 2 else "https://evil.example")
        with pytest.raises(Rejected):
            await client.peer.connect()
            client.peer.closed = await client.peer.wait_closed()
            raise Rejected(client.peer.closed.code, {})


@way
async def with_bad_frames(world: World, count: int) -> None:
    for client in await speakers(world, count):
        for _ in range(10):
            await client.peer.send("[")
        assert (await client.closed()).code == 4400


@way
async def with_a_frame_too_large(world: World, count: int) -> None:
    for client in await speakers(world, count):
        await client.peer.send("x" * 70_000)
        assert (await client.closed()).code == 1009


@way
async def reading_too_slowly(world: World, count: int) -> None:
    for client in await speakers(world, count):
        client.peer.stall()
        await client.command("event", event="flood", room="chat:99")
        await settle()
        client.peer.flow()
        assert (await client.closed()).code == 4440


@way
async def not_reading(world: World, count: int) -> None:
    clients = await speakers(world, count)
    for client in clients:
        client.peer.stall()
    await world.realtime.at("chat:99").broadcast("said", 1)
    await world.clock.advance(10.0)
    assert all(client.peer.closed for client in clients)


@way
async def not_reading_its_recovery(world: World, count: int) -> None:
    clients = []
    for client in await speakers(world, count):
        position = (await client.join("chat:99"))["position"]
        await world.realtime.at("chat:99").broadcast("said", 1)
        await client.call("leave", room="chat:99")
        client.peer.stall()
        await client.command("join", room="chat:99", since=position)
        clients.append(client)
    await settle()
    for client in clients[::2]:
        client.peer.leave(1006)
    await world.clock.advance(10.0)
    assert all(client.peer.closed for client in clients)


@way
async def cancelled(world: World, count: int) -> None:
    for client in await speakers(world, count):
        await client.peer.cancel()


@way
async def cancelled_while_it_is_written_to(world: World, count: int) -> None:
    clients = await speakers(world, count)
    for client in clients:
        client.peer.stall()
    await world.realtime.at("chat:99").broadcast("said", 1)
    await settle()
    for client in clients:
        await client.peer.cancel()


@way
async def after_its_handlers_failed(world: World, count: int) -> None:
    for client in await speakers(world, count):
        await client.command("event", event="fail", room="chat:99")
        await client.command("join", room="closed")
        await settle()
        await client.peer.lose()


@way
async def while_it_joins(world: World, count: int) -> None:
    for number, client in enumerate(await speakers(world, count)):
        await client.command("join", room=f"slow:{number}")
        await client.command("join", room=f"chat:{1_000 + number}")
        for _ in range(number % 6):
            await asyncio.sleep(0)
        await client.peer.lose()


@way
async def while_it_authenticates(world: World, count: int) -> None:
    for number, client in enumerate(await strangers(world, count)):
        await client.command("auth", token=f"u{number}")
        await client.command("join", room="chat:99")
        for _ in range(number % 8):
            await asyncio.sleep(0)
        await client.peer.lose()


@way
async def while_handlers_run(world: World, count: int) -> None:
    for client in await speakers(world, count):
        for event in ("wait", "wait", "say"):
            await client.command("event", event=event, room="chat:99", data="x")
        await client.command("auth", token=client.user)
        await settle()
        await client.peer.lose()


@way
async def while_reading_is_paused(world: World, count: int) -> None:
    for client in await speakers(world, count):
        for _ in range(20):
            await client.command("event", event="wait", room="chat:99")
        await settle()
        client.peer.leave()
        await client.peer.cancel()


@way
async def while_it_is_asked(world: World, count: int) -> None:
    for client in await speakers(world, count):
        await client.command("event", event="ask", room="chat:99")
        await settle()
        await client.peer.lose()


@way
async def after_its_rooms_were_left(world: World, count: int) -> None:
    for client in await speakers(world, count):
        await client.call("leave", room="chat:99")
        await client.peer.disconnect()


@way
async def while_the_store_is_away(world: World, count: int) -> None:
    clients = await speakers(world, count)
    world.store.faults.stall()
    for number, client in enumerate(clients):
        await client.command("join", room=f"chat:{2_000 + number}")
        await client.command("event", event="say", room="chat:99", data="x")
        await settle()
        client.peer.leave(1006 if number % 2 else 1000)
    await world.clock.advance(4.0)
    world.store.faults.resume()


async def came_to_rest(world: World) -> None:
    """Move the clock past every period that something may be kept for."""
    await world.clock.advance(60.0)


def held(world: World) -> dict[str, int]:
    return {**world.realtime.gauges(), "timers": world.clock.timers, "tasks": len(asyncio.all_tasks())}


@pytest.mark.parametrize("name", WAYS)
async def test_nothing_stays_of_connections_that_ended(world: World, name: str) -> None:
    await came_to_rest(world)
    before = held(world)
    await WAYS[name](world, FEW)
    await came_to_rest(world)
    after = held(world)
    assert {key: (before[key], after[key]) for key in after if after[key] != before[key]} == {}
    assert world.realtime.connections == frozenset()
    seen: list[weakref.ref[Connection]] = world.chat.seen
    world.clients.clear()
    gc.collect()
    assert [ref() for ref in seen if ref() is not None] == []
    assert len(seen) >= FEW or name == "refused_at_the_door"


async def test_nothing_stays_of_a_thousand_connections() -> None:
    assert len(WAYS) * EACH >= 1_000
    tasks = asyncio.all_tasks()
    world = make_world()
    seen: list[weakref.ref[Connection]] = world.chat.seen
    async with world:
        await came_to_rest(world)
        before = held(world)
        for name in WAYS:
            await WAYS[name](world, EACH)
        await came_to_rest(world)
        after = held(world)
        assert {key: (before[key], after[key]) for key in after if after[key] != before[key]} == {}
        assert len(seen) >= 1_000
        clients = await speakers(world, EACH)  # these meet the shutdown
    assert {client.peer.closed.code for client in clients if client.peer.closed} <= {1000, 1012}
    del clients
    world.clients.clear()
    await settle()
    assert asyncio.all_tasks() == tasks
    gauges = world.realtime.gauges()
    assert {name for name, value in gauges.items() if value} <= {
        "store.topics",  # positions are remembered for a while
        "store.publications",
        "store.publication_bytes",
        "store.dedupe_keys",
        "store.timers",
    }
    await world.clock.advance(60.0)
    assert not any(world.realtime.gauges().values())
    assert world.clock.timers == 0
    gc.collect()
    assert [ref() for ref in seen if ref() is not None] == []
