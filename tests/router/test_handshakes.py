"""RoomRouter: handshakes count while they are under way, and none outlives the kit's stop."""

import asyncio
from collections.abc import Sequence

import pytest
from starlette.requests import HTTPConnection

from starlette_realtime import (
    AuthGuard,
    ConnectionOptions,
    Identity,
    Limit,
    MemoryStore,
    RateLimiter,
    Realtime,
    Refused,
    RoomRouter,
)
from starlette_realtime.messages import Node
from starlette_realtime.testing import FakeClock, Peer, Rejected, settle

SUBPROTOCOL = "starlette-realtime.v1.json"


class Slow:
    """Asks somebody who takes their time."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked = 0

    async def __call__(self, token: str) -> Identity:
        self.asked += 1
        await self.gate.wait()
        if token == "nobody":
            raise Refused("forbidden")
        return Identity(token)


def dial(realtime: Realtime, token: str = "ada") -> Peer:
    headers = [("authorization", f"Bearer {token}")]
    return Peer(realtime, "/ws", subprotocols=[SUBPROTOCOL], headers=headers)


async def outcome(peer: Peer) -> int:
    """0 for who is let in, else the status."""
    try:
        await peer.__aenter__()
    except Rejected as rejected:
        return rejected.status
    return 0


async def test_handshakes_under_way_count_as_connections() -> None:
    slow = Slow()
    clock = FakeClock()
    async with Realtime(authenticate=slow, max_connections=2, clock=clock) as realtime:
        peers = [dial(realtime) for _ in range(5)]
        tries = [asyncio.ensure_future(outcome(peer)) for peer in peers]
        await settle()
        assert slow.asked == 2
        slow.gate.set()
        assert sorted(await asyncio.gather(*tries)) == [0, 0, 503, 503, 503]
        assert len(realtime.connections) == 2
        for peer in peers:
            await peer.__aexit__(None, None, None)
        await settle()
        third = dial(realtime)
        assert await outcome(third) == 0
        await third.__aexit__(None, None, None)


async def test_handshakes_count_while_the_store_is_asked_how_many_there_may_be() -> None:
    class Far(MemoryStore):
        """Quotas that take a while."""

        async def nodes(self) -> Sequence[Node]:
            await asyncio.sleep(0)
            return await super().nodes()

    clock = FakeClock()
    store = Far(clock=clock)
    limiter = RateLimiter(handshakes=Limit("1000/second", by=lambda connection: "everybody", shared=True))
    async with Realtime(authenticate=Slow(), store=store, limiter=limiter, max_connections=2, clock=clock) as realtime:
        peers = [Peer(realtime, "/ws", subprotocols=[SUBPROTOCOL]) for _ in range(5)]
        assert sorted(await asyncio.gather(*map(outcome, peers))) == [0, 0, 503, 503, 503]
        for peer in peers:
            await peer.__aexit__(None, None, None)


async def test_handshakes_cost_what_a_function_of_them_says() -> None:
    def price(handshake: HTTPConnection) -> float:
        return 99.0 if handshake.headers.get("x-price") == "much" else 1.0

    limiter = RateLimiter(handshakes=Limit("10/minute", by=lambda connection: "everybody", cost=price))
    async with Realtime(anonymous=True, limiter=limiter, clock=FakeClock()) as realtime:
        async with Peer(realtime) as peer:
            assert peer.accepted
        dear = Peer(realtime, headers=[("x-price", "much")], origin="http://testserver")
        await dear.connect()
        assert (await dear.wait_closed()).code == 4429
        assert realtime.counters.refused == {"too_expensive": 1}


async def test_handshakes_are_counted_by_whom_an_authentication_outside_has_found() -> None:
    router = RoomRouter(limiter=RateLimiter(handshakes=Limit("2/minute", by="user")), clock=FakeClock())

    async def by_name(token: str) -> str:
        return token

    app = AuthGuard(router, authenticate=by_name)
    async with router:
        for user, expected in (("ada", 0), ("ada", 0), ("ada", 429), ("bob", 0)):
            peer = Peer(app, headers=[("authorization", f"Bearer {user}")])
            assert await outcome(peer) == expected
            if not expected:
                await peer.__aexit__(None, None, None)


async def test_a_handshake_takes_no_longer_than_an_auth() -> None:
    clock = FakeClock()
    options = ConnectionOptions(auth_timeout=0.5)
    async with Realtime(authenticate=Slow(), connection=options, clock=clock) as realtime:
        trying = asyncio.ensure_future(outcome(dial(realtime)))
        await settle()
        await clock.advance(0.6)
        assert await trying == 503


async def test_a_handshake_under_way_at_the_stop_is_told_to_come_back() -> None:
    slow = Slow()
    clock = FakeClock()
    realtime = Realtime(authenticate=slow, clock=clock)
    async with realtime:
        peer = dial(realtime)
        trying = asyncio.ensure_future(outcome(peer))
        await settle()
        assert slow.asked == 1
    slow.gate.set()
    assert await trying == 503
    assert not realtime.connections


@pytest.mark.parametrize(("token", "status"), [("nobody", 403)])
async def test_who_is_refused_at_the_handshake_is_told_how(token: str, status: int) -> None:
    slow = Slow()
    slow.gate.set()
    async with Realtime(authenticate=slow, clock=FakeClock()) as realtime:
        assert await outcome(dial(realtime, token)) == status


async def test_a_refused_origin_is_logged_once_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    async with Realtime(anonymous=True, clock=FakeClock()) as realtime:
        for _ in range(2):
            peer = Peer(
                realtime, "/ws", subprotocols=[SUBPROTOCOL], origin="http://localhost:5173", host="127.0.0.1:8000"
            )
            await peer.__aenter__()
            assert (await peer.wait_closed()).code == 4403
            await peer.__aexit__(None, None, None)
    (told,) = [record.getMessage() for record in caplog.records if "origin" in record.getMessage()]
    assert "http://localhost:5173" in told
    assert "origins=[" in told


@pytest.mark.parametrize(
    ("headers", "advice"),
    [
        ([("host", "elsewhere.example")], "not one host"),
        ([("cookie", "token=x")], "sends no cookie"),
    ],
)
async def test_no_origin_is_advised_where_none_would_help(
    headers: list[tuple[str, str]], advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Realtime(authenticate=Slow(), cookie="token", clock=FakeClock()) as realtime:
        with pytest.raises(Rejected):
            await Peer(realtime, "/ws", subprotocols=[SUBPROTOCOL], headers=headers).connect()
        (told,) = [record.getMessage() for record in caplog.records if "refused origin" in record.getMessage()]
        assert advice in told
        assert "origins=[" not in told


async def test_a_stop_spreads_the_clients_that_come_back() -> None:
    clock = FakeClock()
    async with Realtime(anonymous=True, clock=clock) as realtime:
        peers = []
        for _ in range(3):
            peer = Peer(realtime, "/ws", subprotocols=[SUBPROTOCOL])
            await peer.__aenter__()
            await peer.receive_json()
            peers.append(peer)
    frames = [await peer.receive_json() for peer in peers]
    assert sorted(frame["after"] for frame in frames) == [0.5, 0.502, 0.504]
    for peer in peers:
        await peer.__aexit__(None, None, None)
