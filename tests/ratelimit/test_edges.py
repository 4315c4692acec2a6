"""At their edges limits hold as they do elsewhere: what is told, what is remembered, and who is counted."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from starlette.authentication import SimpleUser

from starlette_realtime.errors import RateLimited
from starlette_realtime.ratelimit import Decision, Limit, Rate, RateLimiter, TokenBucket
from starlette_realtime.store import MemoryStore
from starlette_realtime.store.quotas import MemoryQuotas
from starlette_realtime.testing import FakeClock, Peer, Rejected
from starlette_realtime.types import ASGIApp, Message, Receive, Scope, Send
from tests.ratelimit.support import PUBLIC, Gone, RemoteStore, scope, subject
from tests.support.waiting import until

ADA, BOB = subject("ada"), subject("bob")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Say what is heard."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def named(app: ASGIApp, user: str) -> ASGIApp:
    """The application, as that user sees it."""

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "user": SimpleUser(user)}, receive, send)

    return identified


# --- what counts ------------------------------------------------------------------------------------------------------


async def test_each_of_several_limits_has_its_own_burst() -> None:
    gate = RateLimiter(clock=(clock := FakeClock())).gate("things", [Limit("1/minute", burst=3), Limit("9/minute")])
    mine: dict[object, TokenBucket] = {}
    assert [gate.take_now(mine).allowed for _ in range(4)] == [True, True, True, False]
    await clock.advance(60.0)
    assert [gate.take_now(mine).allowed for _ in range(2)] == [True, False]


async def test_who_has_no_name_has_the_same_burst_and_clock() -> None:
    gate = RateLimiter(clock=(clock := FakeClock())).gate("things", Limit("1/minute", by="user", burst=3))
    mine: dict[object, TokenBucket] = {}
    who = subject(connection="c")
    assert [(await gate.take(who, mine)).allowed for _ in range(4)] == [True, True, True, False]
    await clock.advance(60.0)
    assert [(await gate.take(who, mine)).allowed for _ in range(2)] == [True, False]


@pytest.mark.parametrize("by", ["connection", "user"])
@pytest.mark.parametrize("rates", ["10/second", "10/second;90/minute"])
async def test_a_cost_may_be_a_number_that_is_always_the_same(by: Any, rates: str) -> None:
    gate = RateLimiter(clock=FakeClock()).gate("things", Limit(rates, by=by, cost=4))
    mine: dict[object, TokenBucket] = {}
    who = subject("ada", connection="c")
    assert [(await gate.take(who, mine, "whatever")).allowed for _ in range(3)] == [True, True, False]


def test_a_bucket_tells_how_long_one_thing_waits() -> None:
    bucket = TokenBucket(Rate(2, 1.0), clock=FakeClock())
    assert bucket.wait() == bucket.take() == bucket.take() == 0.0
    assert bucket.wait() == pytest.approx(0.5)


# --- what is told -----------------------------------------------------------------------------------------------------


async def test_a_refusal_names_the_limit_that_refuses_and_what_is_left_of_it() -> None:
    limits = [Limit("10/second"), Limit("5/minute", cost=lambda what: what)]
    gate = RateLimiter(clock=FakeClock()).gate("things", limits)
    mine: dict[object, TokenBucket] = {}
    assert gate.take_now(mine, 2).allowed
    assert gate.take_now(mine, 6) == Decision(False, None, 3, 5, 24.0, "things-2")
    refused = gate.take_now(mine, 4)
    assert (refused.remaining, refused.limit, refused.reset, refused.policy) == (3, 5, 24.0, "things-2")
    assert refused.retry_after == pytest.approx(12.0)
    alone = RateLimiter(clock=FakeClock()).gate("alone", Limit("5/minute", cost=lambda what: what))
    mine.clear()
    assert alone.take_now(mine, 2).allowed
    assert alone.take_now(mine, 6) == Decision(False, None, 3, 5, 24.0, "alone")


async def test_an_allowance_of_a_shared_limit_tells_what_is_left() -> None:
    gate = RateLimiter(clock=FakeClock()).gate("things", Limit("5/10seconds", by="user", shared=True))
    told = [await gate.take(ADA, {}) for _ in range(5)]
    assert told[0] == Decision(True, 0.0, 4, 5, 2.0, "things")
    assert told[-1] == Decision(True, 0.0, 0, 5, 10.0, "things")


@pytest.mark.parametrize("strategy", ["moving-window", "fixed-window", "sliding-window-counter"])
async def test_an_exact_allowance_lets_pass_at_once(strategy: Any) -> None:
    limit = Limit("5/10seconds", by="user", shared=True, strategy=strategy)
    gate = RateLimiter(clock=FakeClock()).gate("things", limit)
    for left in (4, 3, 2, 1, 0):
        decision = await gate.take(ADA, {}, exact=True)
        assert (decision.allowed, decision.retry_after, decision.remaining, decision.limit) == (True, 0.0, left, 5)


async def test_what_the_store_refused_is_remembered_however_short_it_is() -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    limit = Limit("5/second", by="user", shared=True)
    full, gate = (RateLimiter(store=each).gate("things", limit) for each in (store.sibling(), store))
    for _ in range(5):
        assert (await full.take(ADA, {})).allowed
    first = await gate.take(ADA, {})
    asked = store.remote.asked
    again = await gate.take(ADA, {})
    assert store.remote.asked == asked
    assert first.retry_after is not None
    assert first.retry_after <= 1.01
    assert again == Decision(False, again.retry_after, 0, 5, again.reset, "things")
    assert again.retry_after == again.reset == pytest.approx(first.retry_after)
    await clock.advance(0.9)
    assert not (await gate.take(ADA, {})).allowed
    assert store.remote.asked == asked
    assert (await gate.take(BOB, {})).allowed


def test_a_limits_frame_is_due_below_a_quarter_and_not_at_it() -> None:
    gate = RateLimiter(clock=FakeClock()).gate("things", "20/second")
    assert gate.due({}, Decision(True, 0.0, 4, 20))
    assert not gate.due({}, Decision(True, 0.0, 5, 20))


# --- who is counted ---------------------------------------------------------------------------------------------------


async def test_while_the_store_is_away_one_users_excess_is_not_anothers(caplog: pytest.LogCaptureFixture) -> None:
    store = RemoteStore(clock=FakeClock())
    store.remote.error = Gone()
    # A bucket of its own would refuse ada before the store is asked: this limiter has seen nothing of her yet.
    limits = [Limit("2/minute", by="user", shared=True), Limit("9/minute", by="user", shared=True)]
    gate = RateLimiter(store=store).gate("things", limits)
    assert [(await gate.take(ADA, {})).allowed for _ in range(3)] == [True, True, False]
    assert [(await gate.take(BOB, {})).allowed for _ in range(3)] == [True, True, False]
    assert caplog.text.count("the store is away") == 1, "though it was never there"


async def test_while_the_store_is_away_the_share_of_a_limit_is_told_which_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = RemoteStore(clock=(clock := FakeClock()))
    limits = [Limit("2/minute", by="user", shared=True), Limit("90/minute", by="user", shared=True)]
    gate = RateLimiter(store=store).gate("things", limits)
    async with store, store.sibling():
        assert (await gate.take(BOB, {})).allowed
        store.remote.error = Gone()
        assert (await gate.take(ADA, {})).allowed
        assert await gate.take(ADA, {}) == Decision(False, 60.0, 0, 1, 60.0, "things-1")
        store.remote.error = None
        await clock.advance(60.1)
        assert (await gate.take(ADA, {})).allowed
    assert caplog.text.count("the store is away: limits are counted in this process alone, divided by 2 (Gone())") == 1


@pytest.mark.parametrize("kind", [MemoryStore, RemoteStore])
async def test_a_large_thing_that_a_fixed_window_refuses_takes_no_room_from_small_ones(kind: type[MemoryStore]) -> None:
    store = kind(clock=FakeClock())
    limit = Limit("3/minute", by="user", shared=True, strategy="fixed-window", cost=lambda what: what)
    full, gate = (RateLimiter(store=each).gate("things", limit) for each in (store.sibling(), store))
    assert (await full.take(ADA, {}, 2)).allowed
    assert not (await gate.take(ADA, {}, 2)).allowed
    assert (await gate.take(ADA, {}, 1)).allowed
    assert not (await gate.take(ADA, {}, 1)).allowed


class SetBack(FakeClock):
    """A clock whose Unix time is set by hand."""

    unix = 100.0

    def time(self) -> float:
        return self.unix


async def test_a_clock_that_was_set_back_makes_no_hit_older() -> None:
    quotas = MemoryQuotas(clock := SetBack())
    assert await quotas.acquire_entry("a", 2, 10)
    clock.unix = 50.0
    assert await quotas.acquire_entry("a", 2, 10)
    clock.unix = 61.0
    for other in ("b", "c", "d"):
        assert await quotas.acquire_entry(other, 2, 10)
    assert not await quotas.acquire_entry("a", 2, 10)
    clock.unix = 110.1
    assert await quotas.acquire_entry("a", 2, 10)


async def test_a_hit_at_the_very_edge_of_a_window_is_told_no_more() -> None:
    quotas = MemoryQuotas(clock := SetBack())
    assert await quotas.acquire_entry("a", 9, 10)
    clock.unix = 105.0
    assert await quotas.acquire_entry("a", 9, 10, 3)
    assert await quotas.get_moving_window("a", 9, 10) == (100.0, 4)
    clock.unix = 110.0
    assert await quotas.get_moving_window("a", 9, 10) == (105.0, 3)


@pytest.mark.parametrize("name", ["\ud800", "\ud800" * 200], ids=["short", "long"])
async def test_any_name_can_be_counted(name: str) -> None:
    store = MemoryStore(clock=FakeClock())
    limiter = RateLimiter(store=store, connections_per_user=1)
    gate = limiter.gate("things", Limit("1/minute", by=lambda peer: name, shared=True))
    assert [(await gate.take(subject(), {})).allowed for _ in range(2)] == [True, False]
    await limiter.admit("1", user=name)
    with pytest.raises(RateLimited):
        await limiter.admit("2", user=name)


async def test_frames_are_counted_by_the_user_over_sockets_and_by_what_they_cost() -> None:
    frames = [Limit("10/minute", by="user", cost=len), Limit("9/minute", by="connection")]
    limiter = RateLimiter(echo, frames=frames, clock=FakeClock())

    async with Peer(named(limiter, "ada")) as one, Peer(named(limiter, "ada")) as other:
        await one.send("abcdef")
        assert await one.receive() == "abcdef"
        await other.send("abcd")
        assert await other.receive() == "abcd"
        await one.send("x")
        assert (await one.wait_closed()).code == 4429


# --- slots ------------------------------------------------------------------------------------------------------------


async def test_a_slot_that_was_taken_thrice_is_held_until_the_third_has_gone() -> None:
    limiter = RateLimiter(store=MemoryStore(clock=FakeClock()))
    for _ in range(3):
        await limiter.admit("mine", user="ada")
    held = []
    for _ in range(3):
        held.append(limiter.gauges()["slots"])
        await limiter.release("mine", user="ada")
    assert (held, limiter.gauges()["slots"]) == ([1, 1, 1], 0)


async def test_who_goes_gives_back_no_slot_but_its_own() -> None:
    limiter = RateLimiter(store=MemoryStore(clock=FakeClock()))
    for slot in ("1", "2"):
        await limiter.admit(slot, user="ada")
    await limiter.release("1", user="ada")
    assert limiter.gauges()["slots"] == 1
    await limiter.release("2", user="ada")
    assert limiter.gauges()["slots"] == 0


@pytest.mark.parametrize(("cap", "processes", "share"), [(1, 1, 1), (1, 2, 1), (3, 2, 1), (5, 2, 2)])
async def test_while_the_store_is_away_a_share_is_a_whole_number_and_at_least_one(
    cap: int, processes: int, share: int
) -> None:
    store = MemoryStore(clock=(clock := FakeClock()))
    async with AsyncExitStack() as stack:
        for each in (store, *(store.sibling() for _ in range(processes - 1))):
            await stack.enter_async_context(each)
        limiter = RateLimiter(store=store, connections_per_user=cap, connections_per_address=None)
        await limiter.admit("known", user="bob")  # when it also learns how many processes there are
        store.faults.stall()
        admitted = 0
        for n in range(cap + 1):
            admitting = asyncio.ensure_future(limiter.admit(f"{n}", user="ada"))
            await clock.advance(2.0 if n == 0 else 0.0)
            try:
                await admitting
                admitted += 1
            except RateLimited:
                pass
        assert admitted == share
        store.faults.resume()
        await limiter.aclose()


async def test_a_handshake_whose_group_is_cancelled_leaves_no_slot() -> None:
    class Slow(MemoryStore):
        """Has taken the slot, and answers later."""

        async def admit(self, key: str, slot: str, *, limit: int) -> bool:
            admitted = await super().admit(key, slot, limit=limit)
            taken.set()
            await answers.wait()
            return admitted

        async def release(self, key: str, slot: str) -> None:
            await asyncio.sleep(0)
            await super().release(key, slot)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    taken, answers = asyncio.Event(), asyncio.Event()
    store = Slow(clock=FakeClock())
    limiter = RateLimiter(app, store=store)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    async with anyio.create_task_group() as group:
        group.start_soon(limiter, scope(kind="websocket"), receive, send)
        await taken.wait()
        group.cancel_scope.cancel()
    assert store.gauges()["slots"] == 1, "the store has not answered yet"
    answers.set()
    await until(lambda: store.gauges()["slots"] == limiter.gauges()["slots"] == 0)


async def test_a_limiter_without_connections_holds_nothing() -> None:
    gauges = RateLimiter(clock=FakeClock()).gauges()
    assert set(gauges.values()) == {0}


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("requests", [(), "9/minute"])
async def test_what_an_application_hears_and_says_is_as_without_a_limiter(requests: Any, headers: bool) -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": b"own"})

    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"whatever"}

    async def send(message: Message) -> None:
        said.append(message)

    await RateLimiter(app, requests=requests, headers=headers, clock=FakeClock())(scope(), receive, send)
    assert heard == [{"type": "http.request", "body": b"whatever"}]
    start, body = said
    names = [name for name, _ in start["headers"]]
    assert names == ([b"x-own", b"ratelimit-policy", b"ratelimit"] if headers and requests else [b"x-own"])
    assert body == {"type": "http.response.body", "body": b"own"}


async def test_a_response_without_headers_gets_the_limiters_alone() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})

    said: list[Message] = []

    async def send(message: Message) -> None:
        said.append(message)

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    await RateLimiter(app, requests="9/minute", headers=True, clock=FakeClock())(scope(), receive, send)
    assert [name for name, _ in said[0]["headers"]] == [b"ratelimit-policy", b"ratelimit"]


async def test_the_lifespan_passes_through() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": f"{(await receive())['type']}.complete"})

    said: list[str] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        said.append(message["type"])

    await RateLimiter(app, clock=FakeClock())({"type": "lifespan"}, receive, send)
    assert said == ["lifespan.startup.complete"]


async def test_frames_of_who_has_no_name_are_counted_by_the_socket_though_the_address_is_the_same() -> None:
    limiter = RateLimiter(echo, frames=Limit("2/minute", by="user"), clock=FakeClock())

    async def from_one_house(scope: Scope, receive: Receive, send: Send) -> None:
        await limiter({**scope, "client": PUBLIC}, receive, send)

    async with Peer(from_one_house) as one, Peer(from_one_house) as other:
        for peer in (one, other):
            for text in ("a", "b"):
                await peer.send(text)
                assert await peer.receive() == text
        await one.send("c")
        assert (await one.wait_closed()).code == 4429
        assert other.closed is None


async def test_a_handshake_is_counted_by_its_user_and_by_what_it_costs() -> None:
    cost = Limit("10/minute", by="user", cost=lambda handshake: 10 if "dear" in handshake.url.path else 1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})

    limiter = RateLimiter(app, handshakes=cost, clock=FakeClock())
    for user, path, status in (("ada", "/dear", 403), ("ada", "/", 429), ("bob", "/", 403), ("bob", "/dear", 429)):
        with pytest.raises(Rejected) as rejected:
            await Peer(named(limiter, user), path).connect()
        assert rejected.value.status == status
