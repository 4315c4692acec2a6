"""Revocation: whose credentials are revoked is disconnected everywhere, and doesn't come back with the same."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime import MemoryStore, Realtime, SignedTokens
from starlette_realtime.testing import FakeClock, settle
from tests.rooms.support import Client, Failed, World, connection_options, unlimited

SECRET = "a secret that only these tests know"


class Processes:
    """Two processes that share a store and a secret."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.tokens = SignedTokens(SECRET, clock=self.clock)
        store = MemoryStore(clock=self.clock)
        self.worlds = [
            World(clock=self.clock, store=each, authenticate=self.tokens, limiter=unlimited())
            for each in (store, store.sibling())
        ]

    def token(self, user: str) -> str:
        return self.tokens.issue(user)

    async def enter(self, process: int, token: str) -> Client:
        client = await self.worlds[process].client().__aenter__()
        await client.auth(token)
        await settle()
        return client


@asynccontextmanager
async def processes() -> AsyncIterator[Processes]:
    both = Processes()
    async with both.worlds[0], both.worlds[1]:
        yield both


@pytest.mark.parametrize("process", [0, 1])
async def test_a_revoked_user_is_disconnected_on_every_process_at_once(process: int) -> None:
    async with processes() as both:
        here, there = await both.enter(0, both.token("ann")), await both.enter(1, both.token("ann"))
        other = await both.enter(1, both.token("bob"))
        await both.worlds[process].realtime.revoke_user("ann")
        await settle()
        for client in (here, there):
            closed = await client.closed()
            assert (closed.code, closed.reason) == (4450, "revoked")
        assert other.peer.closed is None


async def test_a_revoked_token_is_one_devices_alone() -> None:
    async with processes() as both:
        lost, kept = both.token("ann"), both.token("ann")
        one, two = await both.enter(0, lost), await both.enter(1, kept)
        (connection,) = both.worlds[0].realtime.connections
        assert connection.identity is not None
        await both.worlds[1].realtime.revoke_token(str(connection.identity.claims["jti"]))
        await settle()
        assert (await one.closed()).code == 4450
        assert two.peer.closed is None
        with pytest.raises(Failed) as failed:
            await both.enter(1, lost)
        assert failed.value.code == "revoked"


async def test_older_tokens_are_refused_and_newer_ones_are_good() -> None:
    async with processes() as both:
        old = both.token("ann")
        await both.clock.advance(1.0)
        await both.worlds[0].realtime.revoke_user("ann")
        await settle()
        for process in (0, 1):
            client = await both.worlds[process].client().__aenter__()
            with pytest.raises(Failed) as failed:
                await client.auth(old)
            assert failed.value.code == "revoked"
            assert (await client.closed()).code == 4450
        await both.clock.advance(1.0)
        await both.enter(1, both.token("ann"))


async def test_a_revocation_that_nobody_heard_of_acts_within_15_seconds() -> None:
    async with processes() as both:
        client = await both.enter(1, both.token("ann"))
        both.worlds[1].store.faults.drop(1)
        await both.worlds[0].realtime.revoke_user("ann")
        await settle()
        (connection,) = both.worlds[1].realtime.connections
        assert not connection.closed
        for _ in range(30):
            await both.clock.advance(0.5)
        assert (await client.closed()).code == 4450


async def test_a_refresh_with_a_revoked_token_is_refused_and_the_connection_ends() -> None:
    async with processes() as both:
        token = both.token("ann")
        client = await both.enter(0, both.token("ann"))
        await both.clock.advance(1.0)
        await both.worlds[0].realtime.revoke_user("ann")
        await settle()
        assert (await client.closed()).code == 4450
        assert both.tokens.read(token).user == "ann"  # the signature alone would still be good


async def test_who_has_not_yet_said_auth_is_refused_then() -> None:
    clock = FakeClock()
    tokens = SignedTokens(SECRET, clock=clock)
    world = World(clock=clock, authenticate=tokens, connection=connection_options())
    async with world:
        header = ("authorization", f"Bearer {tokens.issue('ann')}")
        client = await world.client(headers=[header]).__aenter__()
        await world.realtime.revoke_user("ann")
        with pytest.raises(Failed) as failed:
            await client.auth(None)
        assert failed.value.code == "revoked"
        assert (await client.closed()).code == 4450


async def test_revocations_last_over_the_kits_stop_in_the_store() -> None:
    clock = FakeClock()
    tokens = SignedTokens(SECRET, clock=clock)
    store = MemoryStore(clock=clock)
    token = tokens.issue("ann")
    async with Realtime(authenticate=tokens, store=store, clock=clock) as first:
        await first.revoke_user("ann")
    async with Realtime(authenticate=tokens, store=store, clock=clock) as second:
        client = await Client(second).__aenter__()
        with pytest.raises(Failed):
            await client.auth(token)


async def test_a_revocation_while_somebody_is_let_in_is_not_overtaken() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(token: str) -> str:
        asked.set()
        await go.wait()
        return token

    async with World(clock=clock, store=store, authenticate=slow) as world:
        client = await world.client().__aenter__()
        coming = asyncio.ensure_future(client.auth("ann"))
        await asked.wait()
        await clock.advance(1.0)
        await store.sibling().revoke("u:ann", issued_before=clock.time())
        await clock.advance(1.0)
        go.set()
        with pytest.raises(Failed) as failed:
            await coming
        assert failed.value.code == "revoked"


async def test_asking_again_without_a_token_makes_nobody_younger() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)

    async def anybody(token: str) -> str:
        return token

    async with World(clock=clock, store=store, authenticate=anybody) as world:
        client = await world.enter("ann")
        revoked_at = clock.time() + 1.0
        await clock.advance(2.0)
        await client.call("auth")
        await world.realtime.guard.revoke_user("ann", issued_before=revoked_at)
        await settle()
        assert (await client.closed()).code == 4450
