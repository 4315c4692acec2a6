"""Caps on connections hold over all processes, let a reconnect in, and survive an absent store."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.authentication import SimpleUser

from starlette_realtime.errors import RateLimited
from starlette_realtime.ratelimit import RateLimiter
from starlette_realtime.store import MemoryStore
from starlette_realtime.testing import FakeClock
from starlette_realtime.testing.clock import settle
from starlette_realtime.types import Receive, Scope, Send
from tests.ratelimit.support import OTHER, PUBLIC, scope

HERE, THERE = scope(PUBLIC), scope(OTHER)


def limiter(store: MemoryStore, *, user: int | None = 2, address: int | None = 3) -> RateLimiter:
    """A limiter with small caps."""
    return RateLimiter(store=store, connections_per_user=user, connections_per_address=address)


def slots(store: MemoryStore) -> int:
    """How many slots the store knows of."""
    return store.gauges()["slots"]


async def refused(limiter: RateLimiter, slot: str, user: str | None = None, client: str = "here") -> bool:
    """Whether a connection is refused."""
    try:
        await limiter.admit(slot, user=user, scope=HERE if client == "here" else THERE)
    except RateLimited:
        return True
    return False


async def test_a_user_has_so_many_connections_over_all_processes() -> None:
    store = MemoryStore(clock=FakeClock())
    one, other = limiter(store), limiter(store.sibling())
    assert not await refused(one, "1", "ada")
    assert not await refused(other, "2", "ada", "there")
    with pytest.raises(RateLimited, match="rate_limited") as caught:
        await one.admit("3", user="ada", scope=THERE)
    assert (caught.value.retry_after, caught.value.message) == (5.0, "too many connections")
    assert not await refused(one, "3", "bob", "there")
    await other.release("2", user="ada", scope=THERE)
    assert not await refused(one, "4", "ada", "there")


async def test_an_address_has_so_many_whoever_is_there() -> None:
    store = MemoryStore(clock=FakeClock())
    here = limiter(store)
    assert [await refused(here, name, name) for name in ("a", "b", "c", "d")] == [False, False, False, True]
    assert not await refused(here, "d", "d", "there")
    assert await refused(here, "e")


async def test_both_are_taken_or_neither() -> None:
    store = MemoryStore(clock=FakeClock())
    here = limiter(store, address=1)
    assert not await refused(here, "1", "ada")
    for attempt in range(5):
        assert await refused(here, f"bob {attempt}", "bob")
    assert slots(store) == 2
    assert here.gauges()["slots"] == 2
    await here.release("1", user="ada", scope=HERE)
    assert slots(store) == here.gauges()["slots"] == 0


async def test_a_reconnect_takes_its_own_slot_over() -> None:
    store = MemoryStore(clock=FakeClock())
    one, other = limiter(store, user=1), limiter(store.sibling(), user=1)
    assert not await refused(one, "mine", "ada")
    assert not await refused(one, "mine", "ada")
    await one.release("mine", user="ada", scope=HERE)  # what was left behind ends now
    assert await refused(one, "else", "ada")
    assert not await refused(other, "mine", "ada")
    await one.release("mine", user="ada", scope=HERE)
    assert await refused(one, "else", "ada")
    await other.release("mine", user="ada", scope=HERE)
    assert not await refused(one, "else", "ada")


async def test_without_a_cap_or_a_public_address_nothing_is_taken() -> None:
    store = MemoryStore(clock=FakeClock())
    free = limiter(store, user=None, address=None)
    private = limiter(store)
    for n in range(20):
        assert not await refused(free, f"{n}", "ada")
        await private.admit(f"{n}", scope=scope(("10.0.0.1", 1)))
    assert slots(store) == 0


async def test_a_slot_that_is_released_unasked_changes_nothing() -> None:
    store = MemoryStore(clock=FakeClock())
    here = limiter(store)
    await here.release("1", user="ada", scope=HERE)
    assert slots(store) == here.gauges()["slots"] == 0


# --- the store is away ------------------------------------------------------------------------------------------------


async def test_while_the_store_is_away_each_process_has_its_share_which_it_tells_afterwards() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    elsewhere = store.sibling()
    async with store, elsewhere:
        here = limiter(store, user=6, address=None)
        assert not await refused(here, "known", "ada")
        store.faults.stall()
        first = asyncio.ensure_future(refused(here, "0", "ada"))
        await clock.advance(2.0)  # the store's own patience
        assert not await first
        assert [await refused(here, f"{n}", "ada") for n in range(1, 4)] == [False, True, True]  # 6 by two processes
        assert here.gauges()["slots"] == 3
        await clock.advance(8.0)  # it looks now and then
        assert slots(elsewhere) == 1
        store.faults.resume()
        await clock.advance(10.0)
        assert slots(elsewhere) == 3
        there = limiter(elsewhere, user=6, address=None)
        assert [await refused(there, f"there {n}", "ada") for n in range(4)] == [False] * 3 + [True]
        for slot in ("known", "0", "1"):
            await here.release(slot, user="ada", scope=HERE)
        assert slots(elsewhere) == 3
        assert here.gauges()["slots"] == 0


async def test_what_was_taken_and_given_back_meanwhile_is_never_told() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    async with store:
        here = limiter(store, user=6, address=None)
        store.faults.stall()
        first = asyncio.ensure_future(refused(here, "1", "ada"))
        await clock.advance(2.0)
        assert not await first
        assert not await refused(here, "2", "ada")
        assert not await refused(here, "2", "ada")
        assert here.gauges()["untold_slots"] == 2
        await here.release("1", user="ada", scope=HERE)
        await here.release("2", user="ada", scope=HERE)
        assert here.gauges()["untold_slots"] == 1
        store.faults.resume()
        await clock.advance(10.0)
        assert slots(store) == 1
        await here.release("2", user="ada", scope=HERE)
        assert slots(store) == here.gauges()["slots"] == 0


async def test_a_slot_that_two_connections_took_meanwhile_is_free_when_both_have_ended() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    async with store:
        here = limiter(store, user=6, address=None)
        store.faults.stall()
        first = asyncio.ensure_future(refused(here, "1", "ada"))
        await clock.advance(2.0)
        assert not await first
        assert not await refused(here, "1", "ada")
        store.faults.resume()
        await clock.advance(10.0)
        for left in (1, 0):
            await here.release("1", user="ada", scope=HERE)
            assert slots(store) == here.gauges()["slots"] == left


async def test_what_is_given_back_while_it_is_being_told_does_not_stay() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    async with store:
        here = limiter(store, user=6, address=None)
        store.faults.stall()
        first = asyncio.ensure_future(refused(here, "1", "ada"))
        await clock.advance(2.0)
        assert not await first
        await clock.advance(6.0)  # telling now, which waits for the store
        await here.release("1", user="ada", scope=HERE)
        store.faults.resume()
        await clock.advance(10.0)
        assert slots(store) == here.gauges()["slots"] == 0


async def test_what_the_store_knows_is_given_back_even_while_it_is_away() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    async with store:
        here = limiter(store)
        assert not await refused(here, "1", "ada")
        store.faults.stall()
        releasing = asyncio.ensure_future(here.release("1", user="ada", scope=HERE))
        await clock.advance(5.0)
        await releasing
        store.faults.resume()
        await clock.advance(10.0)
        assert slots(store) == 0


class Slow(MemoryStore):
    """Thinks a while before it does something, and again before it says so."""

    async def admit(self, key: str, slot: str, *, limit: int) -> bool:
        for _ in range(3):
            await asyncio.sleep(0)
        admitted = await super().admit(key, slot, limit=limit)
        for _ in range(3):
            await asyncio.sleep(0)
        return admitted

    async def release(self, key: str, slot: str) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await super().release(key, slot)
        await asyncio.sleep(0)


async def cancelled_after(steps: int, work: Coroutine[Any, Any, None]) -> bool:
    """Cancel that when the event loop has gone round so often; tells whether it was in time."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    in_time = task.cancel()
    await asyncio.wait((task,))
    return in_time and task.cancelled()


async def test_whenever_a_handshake_is_cancelled_its_slots_are_free_again() -> None:
    store = Slow(clock=FakeClock())
    here = limiter(store, user=2, address=2)
    for steps in range(100):
        if not await cancelled_after(steps, here.admit("1", user="ada", scope=HERE)):
            break
        await settle()
        assert slots(store) == here.gauges()["slots"] == 0, steps
    assert steps > 10
    await here.release("1", user="ada", scope=HERE)
    assert [await refused(here, f"{n}", "ada") for n in range(3)] == [False, False, True]


async def test_whenever_a_handshake_that_is_refused_is_cancelled_it_holds_nothing() -> None:
    store = Slow(clock=FakeClock())
    here = limiter(store, user=2, address=1)
    assert not await refused(here, "other", "bob")
    for steps in range(20):
        await cancelled_after(steps, here.admit("1", user="ada", scope=HERE))
        await settle()
        assert slots(store) == here.gauges()["slots"] == 2, steps


async def test_whenever_a_release_is_cancelled_it_is_made_all_the_same() -> None:
    store = Slow(clock=FakeClock())
    here = limiter(store, user=2, address=2)
    for steps in range(1, 100):
        await here.admit("1", user="ada", scope=HERE)
        in_time = await cancelled_after(steps, here.release("1", user="ada", scope=HERE))
        await settle()
        assert slots(store) == here.gauges()["slots"] == 0, steps
        if not in_time:
            break
    assert steps > 5


async def test_a_slot_that_is_taken_over_outlives_a_handshake_that_was_cancelled() -> None:
    store = Slow(clock=FakeClock())
    here = limiter(store, user=1, address=None)
    await here.admit("mine", user="ada", scope=HERE)
    for steps in range(100):
        if not await cancelled_after(steps, here.admit("mine", user="ada", scope=HERE)):
            break
        await settle()
        assert slots(store) == here.gauges()["slots"] == 1, steps
        assert await refused(here, "else", "ada")
    await here.release("mine", user="ada", scope=HERE)
    await here.release("mine", user="ada", scope=HERE)
    assert slots(store) == 0


async def test_closing_waits_for_what_is_being_given_back() -> None:
    store = Slow(clock=FakeClock())
    here = limiter(store)
    await here.admit("1", user="ada", scope=HERE)
    await cancelled_after(2, here.release("1", user="ada", scope=HERE))
    await here.aclose()
    assert slots(store) == 0


async def test_a_limiter_that_stands_in_front_and_inside_takes_one_slot() -> None:
    store = MemoryStore(clock=FakeClock())
    both = limiter(store, user=1, address=1)
    inside: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await both.admit("session", user="ada", scope=scope)
        inside.append(slots(store))
        await limiter(store, user=None, address=2).admit("another's", scope=scope)
        inside.append(slots(store))
        await both.release("session", user="ada", scope=scope)
        inside.append(slots(store))

    async def nothing(*_: object) -> Any:
        raise AssertionError("nothing is heard or said")

    await both.wrap(both.wrap(app))({**HERE, "type": "websocket"}, nothing, nothing)
    assert inside == [2, 3, 2], "the address's and the user's; and another limiter's"
    assert slots(store) == 1
    assert both.gauges()["slots"] == 0


async def test_what_was_taken_in_front_may_be_more_than_what_is_taken_inside() -> None:
    store = MemoryStore(clock=FakeClock())
    both = limiter(store, user=1, address=1)
    inside: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await both.admit("session", scope=scope)  # somebody else, or nobody
        await both.admit("session", user="bob", scope=scope)
        inside.append(slots(store))

    async def nothing(*_: object) -> Any:
        raise AssertionError("nothing is heard or said")

    await both.wrap(app)({**HERE, "type": "websocket", "user": SimpleUser("ada")}, nothing, nothing)
    assert inside == [3], "ada's and the address's, in front; and bob's"


async def test_closing_ends_what_goes_on() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    async with store:
        await RateLimiter(store=store).aclose()
        here = limiter(store, user=6, address=None)
        store.faults.stall()
        first = asyncio.ensure_future(refused(here, "1", "ada"))
        await clock.advance(2.0)
        await first
        before = clock.timers
        for slot in ("2", "3"):
            assert not await refused(here, slot, "ada")
        assert clock.timers == before  # one look after all of them
        await here.aclose()
        assert clock.timers == before - 1
        assert not await refused(here, "4", "ada")
        await clock.advance(6.0)
        await here.aclose()  # while it waits for the store
        store.faults.resume()
        await clock.advance(20.0)
        assert slots(store) == 0


async def test_a_handshake_that_is_cancelled_leaves_no_slot() -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    async with store:
        here = limiter(store)
        store.faults.stall()
        admitting = asyncio.ensure_future(here.admit("1", user="ada", scope=HERE))
        await clock.advance(0.5)
        admitting.cancel()
        await clock.advance(0.5)
        store.faults.resume()
        await clock.advance(0.1)
        with pytest.raises(asyncio.CancelledError):
            await admitting
        await clock.advance(10.0)
        assert slots(store) == here.gauges()["slots"] == 0
