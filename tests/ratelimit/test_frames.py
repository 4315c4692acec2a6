"""The frames of a WebSocket: in order, none lost, none too many, and an end that its application hears of."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.authentication import SimpleUser
from starlette.websockets import WebSocket, WebSocketDisconnect

from starlette_realtime.errors import ConfigurationError
from starlette_realtime.ratelimit import Limit, Rate, RateLimiter
from starlette_realtime.testing import Closed, FakeClock, Peer, Rejected, settle
from starlette_realtime.types import Frame, Receive, Scope, Send
from tests.ratelimit.support import PUBLIC, RemoteStore


class Listener:
    """An application that writes down what it receives, and how that ended."""

    def __init__(self) -> None:
        self.heard: list[Frame] = []
        self.ended: tuple[int, str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept, and listen."""
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.connect"
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text")
            self.heard.append(text if text is not None else message["bytes"])
        self.ended = (message["code"], message.get("reason", ""))
        for kind in ("websocket.send", "websocket.close"):
            with pytest.raises(OSError, match="the connection was closed with 4429"):
                await send({"type": kind, "text": "too late"})


class Patient(Listener):
    """The same, but whoever leaves is not told anything."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept, and listen."""
        await send({"type": "websocket.accept"})
        await receive()
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text")
            self.heard.append(text if text is not None else message["bytes"])


@asynccontextmanager
async def listened(**options: Any) -> AsyncIterator[tuple[Peer, Listener, FakeClock]]:
    """A peer of a listener behind a limiter."""
    clock = FakeClock()
    listener = Patient() if options.get("over") == "wait" else Listener()
    peer = Peer(RateLimiter(listener, clock=clock, **options), client=PUBLIC)
    await peer.connect()
    yield peer, listener, clock
    await peer.disconnect()


async def test_over_the_limit_the_websocket_is_closed_and_says_when_to_return() -> None:
    async with listened(frames=Limit("8/second", burst=3)) as (peer, listener, _):
        for n in range(20):
            peer.push(f"{n}")
        closed = await peer.wait_closed()
        assert (closed.code, closed.reason) == (4429, "rate_limited;0.125")
        await peer.ended()
        assert listener.heard == ["0", "1", "2"]
        assert listener.ended == (4429, "rate_limited;0.125")


async def test_within_the_limit_frames_of_both_kinds_pass_unchanged() -> None:
    async with listened(frames="10/second", over="wait") as (peer, listener, clock):
        sent: list[Frame] = ["a", b"b", "", b"", "ä" * 100]
        for n in range(10):
            peer.push(sent[n % 5])
        await settle()
        assert listener.heard == sent + sent
        await clock.advance(1.0)
        peer.push("again")
        await settle()
        assert listener.heard[10:] == ["again"]


async def test_the_frames_that_are_too_many_wait_in_order() -> None:
    async with listened(frames=Limit("10/second", burst=2), over="wait") as (peer, listener, clock):
        for n in range(10):
            peer.push(f"{n}")
        for passed in range(2, 10):
            await settle()
            assert listener.heard == [f"{n}" for n in range(passed)]
            await clock.advance(0.099)
            assert len(listener.heard) == passed
            await clock.advance(0.001)
        assert listener.heard == [f"{n}" for n in range(10)]


async def test_who_has_to_wait_for_too_long_on_end_is_closed() -> None:
    async with listened(frames=Limit("1/second", burst=1), over="wait", max_wait=5.0) as (peer, listener, clock):
        for n in range(100):
            peer.push(f"{n}")
        for _ in range(20):
            await clock.advance(0.5)
        closed = await peer.wait_closed()
        assert (closed.code, closed.reason.partition(";")[0]) == (4429, "rate_limited")
        assert 5 <= len(listener.heard) <= 7


async def test_a_limit_that_is_slower_than_the_longest_wait_ends_by_it() -> None:
    async with listened(frames="1/hour", over="wait", max_wait=5.0) as (peer, listener, clock):
        peer.push("0")
        peer.push("1")
        await clock.advance(4.9)
        await settle()
        assert peer.closed is None
        await clock.advance(0.2)
        assert (await peer.wait_closed()).code == 4429
        assert listener.heard == ["0"]


async def test_who_catches_up_in_between_may_wait_again() -> None:
    async with listened(frames=Limit("1/second", burst=1), over="wait", max_wait=3.0) as (peer, listener, clock):
        for begun in range(0, 20, 2):
            peer.push(f"{begun}")
            peer.push(f"{begun + 1}")
            for _ in range(10):
                await clock.advance(0.5)
        assert len(listener.heard) == 20
        assert peer.closed is None


def test_a_longest_wait_is_positive() -> None:
    with pytest.raises(ConfigurationError, match="max_wait"):
        RateLimiter(max_wait=0.0)


async def test_a_receive_that_is_cancelled_while_its_frame_waits_loses_nothing() -> None:
    heard: list[str] = []
    waits = 0

    async def impatient(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal waits
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                try:
                    async with clock.timeout(0.03):
                        heard.append(await socket.receive_text())
                except TimeoutError:
                    waits += 1

    clock = FakeClock()
    app = RateLimiter(impatient, frames=Limit("10/second", burst=1), over="wait", clock=clock)
    async with Peer(app, client=PUBLIC) as peer:
        for n in range(4):
            peer.push(f"{n}")
        await clock.advance(0.5)
        assert heard == ["0", "1", "2", "3"]
        assert waits >= 9


async def test_a_frame_that_could_never_pass_closes_however_patient() -> None:
    limit = Limit("10/second", cost=len)
    for over in ("wait", "close"):
        listener = Patient()
        app = RateLimiter(listener, frames=limit, over=over, clock=FakeClock())
        async with Peer(app, client=PUBLIC) as peer:
            await peer.send("x" * 10)
            await peer.send("x" * 11)
            closed = await peer.wait_closed()
            assert (closed.code, closed.reason) == (4429, "too_expensive")
        assert listener.heard == ["x" * 10]


async def test_frames_cost_what_a_function_says_text_or_bytes() -> None:
    async with listened(frames=Limit("100/second", cost=len)) as (peer, listener, _):
        await peer.send("x" * 60)
        await peer.send(b"x" * 40)
        await peer.send("")
        await settle()
        assert len(listener.heard) == 3
        await peer.send("x")
        assert (await peer.wait_closed()).code == 4429


async def test_a_cost_that_is_none_is_the_applications_error() -> None:
    peer = Peer(RateLimiter(Patient(), frames=Limit("1/second", cost=lambda frame: -1)), client=PUBLIC)
    await peer.connect()
    await peer.send("x")
    with pytest.raises(ConfigurationError, match="a cost is a number"):
        await peer.disconnect()


async def test_frames_may_be_counted_by_user_over_all_connections() -> None:
    clock, listeners = FakeClock(), [Patient(), Patient()]
    limiter = RateLimiter(frames=Limit("3/minute", by=lambda peer: peer.query_params.get("who")), clock=clock)
    apps = [limiter.wrap(listener) for listener in listeners]
    async with Peer(apps[0], "/?who=ada", client=PUBLIC) as one, Peer(apps[1], "/?who=ada", client=PUBLIC) as two:
        for n in range(2):
            await one.send(f"{n}")
        await settle()
        await two.send("2")
        await settle()
        await two.send("3")
        assert (await two.wait_closed()).code == 4429
        assert (listeners[0].heard, listeners[1].heard) == (["0", "1"], ["2"])
    async with Peer(apps[0], "/", client=PUBLIC) as free:
        for n in range(100):
            await free.send(f"{n}")
        await settle()
        assert len(listeners[0].heard) == 102


async def test_the_first_frame_of_a_websocket_may_wait_as_long_as_any() -> None:
    clock, listeners = FakeClock(), [Patient(), Patient()]
    by_name = Limit(Rate(1, 0.5), by=lambda peer: peer.query_params.get("who"))
    limiter = RateLimiter(frames=by_name, over="wait", max_wait=0.5, clock=clock)
    one, two = (Peer(limiter.wrap(listener), "/?who=ada", client=PUBLIC) for listener in listeners)
    async with one, two:
        await one.send("0")
        await settle()
        await two.send("1")
        await settle()
        assert (listeners[0].heard, listeners[1].heard) == (["0"], [])
        await clock.advance(0.5)
        await settle()
        assert listeners[1].heard == ["1"]


async def test_no_limit_on_frames_lets_all_of_them_pass() -> None:
    async with listened(frames=(), over="wait") as (peer, listener, _):
        for n in range(1_000):
            peer.push(f"{n}")
        await settle()
        assert len(listener.heard) == 1_000


async def test_a_peer_that_has_gone_or_does_not_read_holds_up_no_close() -> None:
    clock, listener = FakeClock(), Listener()
    app = RateLimiter(listener, frames="1/second", clock=clock)

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        async def stuck(message: Any) -> None:
            if message["type"] == "websocket.close":
                await asyncio.Event().wait()
            await send(message)

        await app(scope, receive, stuck)

    peer = Peer(deaf, client=PUBLIC)
    await peer.connect()
    peer.push("0")
    peer.push("1")
    await clock.advance(9.9)
    assert [listener.ended] == [None]
    await clock.advance(0.1)
    assert listener.ended == (4429, "rate_limited;1")
    await peer.disconnect()


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("already closed")])
async def test_a_close_that_fails_is_no_error(error: Exception) -> None:
    listener = Listener()
    app = RateLimiter(listener, frames="1/second", clock=FakeClock())

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        async def fails(message: Any) -> None:
            if message["type"] == "websocket.close":
                raise error
            await send(message)

        await app(scope, receive, fails)

    async with Peer(broken, client=PUBLIC) as peer:
        peer.push("0")
        peer.push("1")
        await peer.ended()
    assert listener.ended == (4429, "rate_limited;1")


# --- slots that are taken over ----------------------------------------------------------------------------------------


def session(peer: Any) -> str | None:
    """What a client is known by."""
    return peer.cookies.get("session")  # type: ignore[no-any-return]


def visit(app: Any, cookie: str | None = None, **options: Any) -> Peer:
    """A peer with that session."""
    return Peer(app, client=PUBLIC, cookies={"session": cookie} if cookie is not None else None, **options)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what comes."""
    socket = WebSocket(scope, receive, send)
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.send_text(await socket.receive_text())


async def test_a_reconnect_replaces_what_it_left_behind() -> None:
    limiter = RateLimiter(echo, connections_per_address=1, slot=session, clock=FakeClock())
    async with visit(limiter, "mine") as before:
        await before.send("0")
        assert await before.receive() == "0"
        async with visit(limiter, "mine") as after:
            closed = await before.wait_closed()
            assert (closed.code, closed.reason) == (4403, "replaced")
            await before.ended()
            await after.send("1")
            assert await after.receive() == "1"
            assert limiter.gauges() == {"buckets": 1, "leases": 0, "slots": 1, "untold_slots": 0, "replaceable": 1}
            for cookie in ("else", None):
                with pytest.raises(Rejected, match="429"):
                    await visit(limiter, cookie).connect()
        assert limiter.gauges()["slots"] == limiter.gauges()["replaceable"] == 0


async def test_who_is_replaced_while_its_frame_waits_ends_at_once() -> None:
    limiter = RateLimiter(echo, frames="1/minute", over="wait", slot=session, clock=FakeClock())
    async with visit(limiter, "mine") as before:
        for frame in ("0", "1"):
            await before.send(frame)
        assert await before.receive() == "0"
        await settle()  # now the other one waits
        async with visit(limiter, "mine"):
            assert (await before.wait_closed()).code == 4403
            await before.ended()
    assert limiter.gauges()["slots"] == 0


async def test_a_slot_is_given_back_where_it_was_taken_whatever_address_is_found_inside() -> None:
    async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
        scope["client"] = ("203.0.113.99", 1)
        await echo(scope, receive, send)

    limiter = RateLimiter(proxied, connections_per_address=1, clock=FakeClock())
    for _ in range(3):
        async with visit(limiter):
            assert limiter.gauges()["slots"] == 1
        await settle()
        assert limiter.gauges()["slots"] == 0


async def test_who_is_known_by_nothing_has_a_slot_of_its_own() -> None:
    limiter = RateLimiter(echo, connections_per_address=2, slot=session, clock=FakeClock())
    async with visit(limiter) as one, visit(limiter) as two:
        for peer in (one, two):
            await peer.send("x")
            assert await peer.receive() == "x"
        with pytest.raises(Rejected, match="429"):
            await visit(limiter).connect()


async def test_the_same_slot_by_many_is_one_open_connection() -> None:
    limiter = RateLimiter(echo, handshakes=(), connections_per_address=1, slot=session, clock=FakeClock())
    peers = [visit(limiter, "shared") for _ in range(20)]
    for peer in peers:
        await peer.connect()
    await settle()
    assert [peer.closed is None for peer in peers] == [False] * 19 + [True]
    for peer in peers:
        await peer.disconnect()
    assert limiter.gauges()["slots"] == 0


async def test_another_user_cannot_take_a_slot_over() -> None:
    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        scope["user"] = SimpleUser(scope["query_string"].decode())
        await limiter(scope, receive, send)

    limiter = RateLimiter(echo, slot=session, clock=FakeClock())
    async with Peer(named, "/?ada", client=PUBLIC, cookies={"session": "s"}) as ada:
        async with Peer(named, "/?eve", client=PUBLIC, cookies={"session": "s"}):
            await ada.send("still here")
            assert await ada.receive() == "still here"
        async with Peer(named, "/?ada", client=PUBLIC, cookies={"session": "s"}):
            assert (await ada.wait_closed()).code == 4403


async def test_who_is_replaced_while_it_writes_to_a_peer_that_does_not_read_ends_as_well() -> None:
    async def talk(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        with pytest.raises(OSError, match=r"closed|gone"):
            while True:
                await send({"type": "websocket.send", "text": "x"})

    limiter = RateLimiter(talk, slot=session, clock=(clock := FakeClock()))
    before, after = visit(limiter, "s", backlog=10), visit(limiter, "s", backlog=10)
    await before.connect()
    await settle()
    await after.connect()
    await clock.advance(10.0)
    assert before.task is not None
    assert before.task.done()
    after.leave()
    await after.ended()


async def test_a_frame_of_who_may_be_replaced_waits_its_time() -> None:
    listener = Patient()
    limiter = RateLimiter(frames="1/second", over="wait", slot=session, clock=(clock := FakeClock()))
    async with visit(limiter.wrap(listener), "s") as peer:
        for n in range(3):
            await peer.send(f"{n}")
        await clock.advance(0.9)
        assert listener.heard == ["0"]
        await clock.advance(1.2)
        assert listener.heard == ["0", "1", "2"]


async def test_who_is_replaced_while_its_frame_is_counted_elsewhere_ends_without_it() -> None:
    listener, store = Patient(), RemoteStore(clock=(clock := FakeClock()))
    limit = Limit("9/minute", by=lambda peer: "all", shared=True)
    limiter = RateLimiter(frames=limit, slot=session, store=store)
    async with visit(limiter.wrap(listener), "s") as before:
        store.remote.hangs = True
        await before.send("0")
        await settle()
        assert store.remote.asked == 1
        async with visit(limiter.wrap(echo), "s"):
            await clock.advance(1.0)
            await before.ended()
    assert listener.heard == []


async def test_a_send_that_hangs_ends_with_the_connection() -> None:
    hanging: list[Scope] = []

    async def talk(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        hanging.append(scope)
        with pytest.raises(OSError, match="the peer doesn't read"):
            await send({"type": "websocket.send", "text": "x"})

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        async def stuck(message: Any) -> None:
            if message["type"] == "websocket.send":
                await asyncio.Event().wait()
            await send(message)

        await limiter(scope, receive, stuck)

    limiter = RateLimiter(talk, slot=session, clock=FakeClock())
    before = visit(deaf, "s")
    await before.connect()
    async with visit(limiter.wrap(echo), "s"):
        await before.ended()
        assert len(hanging) == 1


async def test_who_was_closed_already_is_not_closed_again() -> None:
    limiter = RateLimiter(frames="1/minute", slot=session, clock=FakeClock())
    lingers = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        await lingers.wait()

    async with visit(limiter.wrap(slow), "s") as before:
        for _ in range(2):
            await before.send("x")
        assert (await before.wait_closed()).code == 4429
        async with visit(limiter.wrap(echo), "s"):
            lingers.set()
            await before.ended()


async def test_a_cancelled_receive_of_who_may_be_replaced_loses_nothing() -> None:
    heard: list[str] = []

    async def impatient(scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with clock.timeout(0.1):
                        heard.append(await socket.receive_text())

    limiter = RateLimiter(impatient, slot=session, clock=(clock := FakeClock()))
    async with visit(limiter, "s") as peer:
        for n in range(5):
            await clock.advance(0.25)
            peer.push(f"{n}")
        await settle()
    assert heard == ["0", "1", "2", "3", "4"]


async def test_what_a_server_raises_reaches_the_application() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(ZeroDivisionError):
            await receive()

    async def receive() -> Any:
        raise ZeroDivisionError

    async def send(message: Any) -> None:
        raise AssertionError

    limiter = RateLimiter(failing, slot=lambda peer: "s", clock=FakeClock())
    await limiter(
        {"type": "websocket", "client": PUBLIC, "headers": [], "path": "/", "query_string": b""}, receive, send
    )


async def test_an_application_that_leaves_while_it_reads_leaves_nothing_behind() -> None:
    reading: list[asyncio.Future[Any]] = []

    async def leaves(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        reading.append(asyncio.ensure_future(receive()))
        await settle()
        reading[0].cancel()

    limiter = RateLimiter(leaves, slot=session, clock=FakeClock())
    peer = visit(limiter, "s")
    with contextlib.suppress(Closed):
        await peer.connect()
    await peer.ended()
    assert len(asyncio.all_tasks()) <= 2


async def test_what_is_waited_on_end_is_counted_together() -> None:
    async with listened(frames=Limit("1/3 seconds", burst=1), over="wait", max_wait=5.0) as (peer, listener, clock):
        for n in range(3):
            peer.push(f"{n}")
        await clock.advance(3.1)
        assert listener.heard == ["0", "1"]
        await clock.advance(1.8)
        assert peer.closed is None
        await clock.advance(0.2)
        assert (await peer.wait_closed()).code == 4429
        assert listener.heard == ["0", "1"]
