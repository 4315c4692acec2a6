"""AuthGuard around a WebSocket: when the credentials expire it is closed, and the application hears of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from starlette_realtime import AuthGuard, Clock, SignedTokens
from starlette_realtime.testing import Closed, FakeClock, Peer, Rejected, settle
from starlette_realtime.types import ASGIApp, Message, Receive, Scope, Send

BOUND = 15.0
"""Seconds after the expiry within which the guard's call has ended, whatever the peer does."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def tokens(clock: FakeClock) -> SignedTokens:
    return SignedTokens("a secret that only these tests know", clock=clock)


class Observed:
    """An ASGI application that notes what it hears, does something, and notes how that ends."""

    def __init__(self, work: Callable[[Receive, Send], Awaitable[object]]) -> None:
        self.heard: list[Message] = []
        self.raised: BaseException | None = None
        self.ended = False
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept, and work."""

        async def noted() -> Message:
            self.heard.append(await receive())
            return self.heard[-1]

        await noted()
        await send({"type": "websocket.accept"})
        try:
            await self._work(noted, send)
        except BaseException as exc:
            self.raised = exc
            raise
        finally:
            self.ended = True


async def listen(receive: Receive, send: Send) -> None:
    """Read to the end."""
    while (await receive())["type"] != "websocket.disconnect":
        pass


def talking(clock: Clock) -> Observed:
    """An application that says something each second, and hears nothing."""

    async def talk(receive: Receive, send: Send) -> None:
        while True:
            await send({"type": "websocket.send", "text": "tick"})
            await clock.sleep(1.0)

    return Observed(talk)


@asynccontextmanager
async def visit(app: ASGIApp, clock: FakeClock, tokens: SignedTokens) -> AsyncIterator[Peer]:
    """A peer whose credentials are good for ten seconds; the guard leaves nothing behind."""
    before = asyncio.all_tasks()
    guard = AuthGuard(app, authenticate=tokens, clock=clock)
    peer = Peer(guard, headers=[("Authorization", f"Bearer {tokens.issue('ada', expires_in=10.0)}")])
    await peer.connect()
    try:
        yield peer
        await peer.disconnect()
    finally:
        await peer.cancel()
    await settle()
    assert clock.timers == 0
    assert asyncio.all_tasks() == before


async def test_a_websocket_is_closed_and_the_application_told_when_its_credentials_expire(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    app = Observed(listen)
    async with visit(app, clock, tokens) as peer:
        await clock.advance(9.9)
        await peer.send("still here")
        await settle()
        assert peer.closed is None
        assert not app.ended
        await clock.advance(0.1)
        closed = await peer.wait_closed()
        assert (closed.code, closed.reason) == (4401, "expired")
        await peer.ended()
    kinds = [message["type"] for message in app.heard]
    assert kinds == ["websocket.connect", "websocket.receive", "websocket.disconnect"]
    assert (app.heard[-1]["code"], app.heard[-1]["reason"]) == (4401, "expired")


async def test_the_disconnect_is_heard_by_whoever_reads_later(clock: FakeClock, tokens: SignedTokens) -> None:
    go = asyncio.Event()

    async def busy(receive: Receive, send: Send) -> None:
        await go.wait()
        assert (await receive())["type"] == "websocket.disconnect"
        assert (await receive())["type"] == "websocket.disconnect"

    app = Observed(busy)
    async with visit(app, clock, tokens) as peer:
        await clock.advance(10.0)
        assert (await peer.wait_closed()).code == 4401
        assert not app.ended
        go.set()
        await peer.ended()
    assert app.raised is None


async def test_what_is_sent_after_the_expiry_raises_oserror(clock: FakeClock, tokens: SignedTokens) -> None:
    go = asyncio.Event()
    errors: list[str] = []

    async def stubborn(receive: Receive, send: Send) -> None:
        await go.wait()
        for message in ({"type": "websocket.send", "text": "late"}, {"type": "websocket.close", "code": 1000}):
            try:
                await send(message)
            except OSError as exc:
                errors.append(str(exc))

    async with visit(Observed(stubborn), clock, tokens) as peer:
        await clock.advance(10.0)
        assert (await peer.wait_closed()).code == 4401
        go.set()
        await peer.ended()
        assert peer.waiting() == []
    assert len(errors) == 2
    assert all("expired" in error for error in errors)


async def test_an_application_that_only_speaks_is_ended_by_its_sends(clock: FakeClock, tokens: SignedTokens) -> None:
    app = talking(clock)
    async with visit(app, clock, tokens) as peer:
        await clock.advance(11.0)
        assert (await peer.wait_closed()).code == 4401
        assert len(peer.waiting()) >= 10
        with pytest.raises(OSError, match="expired"):
            await peer.ended()
        peer.task = None
    assert isinstance(app.raised, OSError)


async def test_starlettes_websocket_hears_a_disconnect(clock: FakeClock, tokens: SignedTokens) -> None:
    seen: list[int] = []

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await websocket.receive_text()
        except WebSocketDisconnect as exc:
            seen.append(exc.code)
        with pytest.raises(WebSocketDisconnect):
            await websocket.send_text("late")
        seen.append(0)

    app = Starlette(routes=[WebSocketRoute("/ws", endpoint)])
    async with visit(app, clock, tokens) as peer:
        await clock.advance(10.0)
        assert (await peer.wait_closed()).code == 4401
        await peer.ended()
    assert seen == [4401, 0]


async def test_credentials_that_expire_before_the_handshake_is_answered_refuse_it(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    errors: list[OSError] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await clock.sleep(20.0)
        try:
            await send({"type": "websocket.accept"})
        except OSError as exc:
            errors.append(exc)

    guard = AuthGuard(slow, authenticate=tokens, clock=clock)
    peer = Peer(guard, headers=[("Authorization", f"Bearer {tokens.issue('ada', expires_in=10.0)}")])
    connecting = asyncio.create_task(peer.connect())
    await clock.advance(20.0)
    with pytest.raises(Rejected) as rejected:
        await connecting
    assert rejected.value.status == 403
    assert len(errors) == 1
    assert clock.timers == 0


async def test_a_peer_that_does_not_read_keeps_a_listening_application_no_longer_than_the_bound(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    app = Observed(listen)
    async with visit(app, clock, tokens) as peer:
        peer.stall()
        await clock.advance(10.0)
        assert app.ended, "the application hears of it at once"
        await clock.advance(BOUND)
        assert peer.task is not None
        assert peer.task.done()


async def test_a_peer_that_does_not_read_keeps_a_speaking_application_no_longer_than_the_bound(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    app = talking(clock)
    async with visit(app, clock, tokens) as peer:
        await clock.advance(5.5)
        peer.stall()
        await clock.advance(10.0 + BOUND)
        assert app.ended, "a send that nobody takes is given up"
        assert isinstance(app.raised, OSError)
        assert peer.task is not None
        assert peer.task.done()
        peer.task = None


async def test_who_goes_before_the_expiry_leaves_no_timer(clock: FakeClock, tokens: SignedTokens) -> None:
    app = Observed(listen)
    async with visit(app, clock, tokens) as peer:
        assert clock.timers == 2, "one for the expiry, one to read what is revoked"
        await peer.disconnect(1001)
        assert clock.timers == 0
    assert app.heard[-1]["code"] == 1001
    async with visit(Observed(listen), clock, tokens) as peer:
        await peer.cancel()
        assert clock.timers == 0


async def test_credentials_without_an_end_last_with_the_connection(clock: FakeClock) -> None:
    guard = AuthGuard(Observed(listen), authenticate=lambda token: token, clock=clock)
    async with Peer(guard, headers=[("Authorization", "Bearer ada")]) as peer:
        await clock.advance(100_000.0)
        await peer.send("still here")
        assert peer.closed is None
    assert clock.timers == 0


async def test_what_the_application_raises_is_not_hidden(clock: FakeClock, tokens: SignedTokens) -> None:
    async def fail(receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    async with visit(Observed(fail), clock, tokens) as peer:
        with pytest.raises(RuntimeError, match="broken"):
            await peer.ended()
        with pytest.raises(Closed):
            await peer.receive()
        peer.task = None


async def test_a_servers_own_timeouts_are_not_taken_for_an_expiry(clock: FakeClock, tokens: SignedTokens) -> None:
    raised: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for direction in (receive(), send({"type": "websocket.accept"})):
            try:
                await direction
            except TimeoutError as exc:
                raised.append(str(exc))

    async def receive() -> Message:
        raise TimeoutError("of receive")

    async def send(message: Message) -> None:
        raise TimeoutError("of send")

    guard = AuthGuard(app, authenticate=tokens, clock=clock)
    await guard(Peer(guard, headers=[("Authorization", f"Bearer {tokens.issue('ada')}")]).scope, receive, send)
    assert raised == ["of receive", "of send"]


async def test_what_ends_twice_ends_once(clock: FakeClock, tokens: SignedTokens) -> None:
    guard = AuthGuard(authenticate=tokens, clock=clock)
    go = asyncio.Event()

    async def busy(receive: Receive, send: Send) -> None:
        await go.wait()

    token = tokens.issue("ada", expires_in=10.0)
    peer = Peer(guard.wrap(Observed(busy)), headers=[("Authorization", f"Bearer {token}")])
    await peer.connect()
    await guard.revoke_user("ada")
    await clock.advance(20.0)
    await guard.revoke_token(str(tokens.issue("ada")))
    assert (await peer.wait_closed()).code == 4450
    go.set()
    await peer.ended()


async def test_who_is_waited_for_by_an_application_that_gives_up_loses_nothing(
    clock: FakeClock, tokens: SignedTokens
) -> None:
    heard: list[Message] = []

    async def impatient(receive: Receive, send: Send) -> None:
        try:
            async with clock.timeout(1.0):
                await receive()
        except TimeoutError:
            heard.append(await receive())

    async with visit(Observed(impatient), clock, tokens) as peer:
        await clock.advance(1.0)
        await peer.send("late")
        await peer.ended()
    assert [message["text"] for message in heard] == ["late"]
