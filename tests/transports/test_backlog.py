"""The backlog: what sockets have to send, looked at by one timer."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from starlette_realtime import Connection
from starlette_realtime.testing import FakeClock
from starlette_realtime.transports.backlog import Backlog
from tests.rooms.support import World


class Socket(asyncio.WriteTransport):
    """A socket that has so much to send."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.closing = False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as world:
        yield world


async def connections(world: World, count: int) -> list[Connection]:
    """So many open connections."""
    for number in range(count):
        await world.enter(f"user{number}")
    return sorted(world.realtime.connections, key=lambda each: str(each.user))


async def test_one_timer_looks_at_all_and_ends_with_the_last(world: World) -> None:
    found = await connections(world, 3)
    timers = world.clock.timers
    backlog, sockets = Backlog.of(world.clock), [Socket() for _ in found]
    for socket, connection in zip(sockets, found, strict=True):
        backlog.add(socket, connection)
    assert world.clock.timers == timers + 1
    sockets[0].closing = True
    await world.clock.advance(3.0)
    assert world.clock.timers == timers + 1
    sockets[1].closing = sockets[2].closing = True
    backlog.ended(sockets[1])
    backlog.ended(sockets[2])
    assert world.clock.timers == timers


async def test_a_socket_that_stays_open_after_the_connections_end_is_looked_at_until_it_closes(world: World) -> None:
    (connection,) = await connections(world, 1)
    timers = world.clock.timers
    backlog, socket = Backlog.of(world.clock), Socket()
    backlog.add(socket, connection)
    backlog.ended(socket)
    socket.waiting = 100_000_000
    await world.clock.advance(1.0)
    assert socket.closing
    assert world.clock.timers <= timers


async def test_only_who_is_over_the_bound_goes(world: World) -> None:
    found = await connections(world, 3)
    backlog, sockets = Backlog.of(world.clock), [Socket() for _ in found]
    for socket, connection in zip(sockets, found, strict=True):
        backlog.add(socket, connection)
        socket.waiting = connection.options.outbox_bytes
    sockets[1].waiting += found[1].outbox.largest
    sockets[2].waiting += found[2].outbox.largest + 1
    await world.clock.advance(1.0)
    assert [connection.close_code for connection in found] == [None, None, 4440]
    assert [socket.closing for socket in sockets] == [False, False, True]


async def test_a_large_frame_is_not_taken_for_pongs(world: World) -> None:
    (connection,) = await connections(world, 1)
    backlog, socket = Backlog.of(world.clock), Socket()
    backlog.add(socket, connection)
    large = "€" * 3_000_000
    await connection.outbox.put_unbounded((large,))
    connection.put(("small",), 5)
    await world.clock.advance(0.0)
    socket.waiting = len(large.encode())
    await world.clock.advance(1.0)
    assert not connection.closed


async def test_clocks_don_t_share() -> None:
    one, two = FakeClock(), FakeClock()
    assert Backlog.of(one) is Backlog.of(one)
    assert Backlog.of(one) is not Backlog.of(two)


def test_another_event_loop_starts_afresh() -> None:
    clock = FakeClock()

    async def of() -> Backlog:
        return Backlog.of(clock)

    assert asyncio.run(of()) is not asyncio.run(of())
