"""Connection caps: so many for a user and an address, on all processes together; a reconnect takes its own place."""

from typing import Any

import pytest

from starlette_realtime import MemoryStore, RateLimiter
from starlette_realtime.testing import FakeClock, settle
from tests.rooms.support import Client, Failed, World

PUBLIC = ("192.0.2.7", 50_000)  # of RFC 5737's addresses for documentation
MUCH = "10000/second"


def caps(**options: Any) -> RateLimiter:
    return RateLimiter(**{"handshakes": (), "frames": MUCH, "joins": MUCH, "publishes": (), **options})


async def come(world: World, user: str, *, session: str | None = None, client: tuple[str, int] = PUBLIC) -> Client:
    one = await world.client(client=client).__aenter__()
    await one.auth(user, session=session)
    await settle()
    return one


async def test_a_user_has_so_many_connections_and_no_more() -> None:
    async with World(limiter=caps(connections_per_user=2)) as world:
        first = await come(world, "ann")
        await come(world, "ann")
        third = await world.client(client=PUBLIC).__aenter__()
        with pytest.raises(Failed) as failed:
            await third.auth("ann")
        assert failed.value.code == "rate_limited"
        closed = await third.closed()
        assert (closed.code, closed.reason) == (4429, "rate_limited;5")
        await come(world, "bob")
        await first.peer.disconnect()
        await settle()
        await come(world, "ann")


async def test_an_address_has_so_many_whoever_they_are() -> None:
    async with World(limiter=caps(connections_per_address=2)) as world:
        await come(world, "ann")
        await come(world, "bob")
        with pytest.raises(Failed):
            await come(world, "cleo")
        await come(world, "cleo", client=("198.51.100.1", 50_000))
        # All of a customer's /64 are one.
        await come(world, "dan", client=("2001:db8::1", 50_000))
        await come(world, "eve", client=("2001:db8::2", 50_000))
        with pytest.raises(Failed):
            await come(world, "fay", client=("2001:db8::ffff", 50_000))


async def test_the_caps_hold_for_all_processes_together() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    one = World(clock=clock, store=store, limiter=caps(connections_per_user=2))
    two = World(clock=clock, store=store.sibling(), limiter=caps(connections_per_user=2))
    async with one, two:
        await come(one, "ann")
        await come(two, "ann")
        for world in (one, two):
            with pytest.raises(Failed):
                await come(world, "ann")


async def test_a_reconnect_takes_the_place_of_what_it_left_behind() -> None:
    async with World(limiter=caps(connections_per_user=1)) as world:
        first = await come(world, "ann")
        second = await come(world, "ann", session=first.session)
        assert (await first.closed()).code == 4403
        await settle()
        with pytest.raises(Failed):
            await come(world, "ann")  # the first one's end has not freed the second one's place
        await second.peer.disconnect()
        await settle()
        await come(world, "ann")


async def test_all_places_are_free_again_however_a_connection_ends() -> None:
    async with World(limiter=caps(connections_per_user=1, connections_per_address=1)) as world:
        for end in ("disconnect", "lose", "close", "cancel"):
            client = await come(world, "ann")
            if end == "close":
                (connection,) = world.realtime.connections
                connection.close(4403)
                await client.closed()
            else:
                await getattr(client.peer, end)()
            await settle()
        await come(world, "ann")


async def test_without_caps_there_are_none() -> None:
    async with World(limiter=caps(connections_per_user=None, connections_per_address=None)) as world:
        for _ in range(60):
            await come(world, "ann")
        assert len(world.realtime.connections) == 60


async def test_the_defaults_are_10_for_a_user_and_50_for_an_address() -> None:
    async with World(limiter=caps()) as world:
        for user in ("ann", "bob", "cleo", "dan", "eve"):
            for _ in range(10):
                await come(world, user)
            with pytest.raises(Failed):
                await come(world, user)
        with pytest.raises(Failed):
            await come(world, "fay")
        assert len(world.realtime.connections) == 50


async def test_peers_of_private_networks_are_not_capped_by_address(caplog: pytest.LogCaptureFixture) -> None:
    async with World(limiter=caps(connections_per_address=1)) as world:
        for user in ("ann", "bob", "cleo"):
            await come(world, user, client=("10.0.0.1", 50_000))
    assert [record.getMessage() for record in caplog.records if "address" in record.getMessage()] != []
